"""The embedded default: a pocket Llama and the simulated society it was trained in.

`MODEL_FOLDER` is a model folder in Hugging Face layout (0.9 million parameters, 4 MB), trained by
`experiments/train_pocket.py`, so that everything in this package runs, from a first command to a
whole experiment, without downloading anything. It reads and answers survey questions the way large
models are reported to: from one home culture when told nothing, half-heartedly when given a
persona, closer to a country when it has seen some of that country's answers besides.

Everything about it is made up for this purpose. The countries' dimension scores are published
figures; all survey answers are simulated from them (`society`). No number that the pocket model or
the society produces is a finding about people, about a country or about Llama-3.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

MODEL_FOLDER = Path(str(resources.files("jaxalign.pocket"))) / "model"

__all__ = ["MODEL_FOLDER"]
