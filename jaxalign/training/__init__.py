"""Supervised fine-tuning: low-rank adapters, one or several side by side, or all weights.

fine_tune        conversations in, adapter out
trainer          the loop on a mesh, group by group, with checkpoints and held-out loss
step             optimiser and state of one step
loss, attention  what a step minimises, for long rows of short examples
program          the compiled step and its shardings, and how many adapters fit side by side
data, packing    which examples a step sees, packed into rows
shape            the lengths of rows that waste the least
conversations    files of conversations, and which questions are held out
"""

from jaxalign.lm.lora import LoraConfig
from jaxalign.training.fine_tune import fine_tune
from jaxalign.training.step import TrainConfig

__all__ = ["LoraConfig", "TrainConfig", "fine_tune"]
