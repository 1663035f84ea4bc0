"""Supervised fine-tuning: low-rank adapters, one or several side by side, or all weights.

fine_tune        conversations in, adapter out
trainer          the loop on a mesh, with checkpoints and held-out loss
step             loss, optimiser and state of one step
program          the compiled step and its shardings
data, packing    which examples a step sees, packed into rows
conversations    files of conversations, and which questions are held out
"""

from jaxalign.lm.lora import LoraConfig
from jaxalign.training.fine_tune import fine_tune
from jaxalign.training.step import TrainConfig

__all__ = ["LoraConfig", "TrainConfig", "fine_tune"]
