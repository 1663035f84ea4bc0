"""Models that benchmarks run: a folder of the user's, the pocket Llama, or a shape at random.

With random weights nothing needs to be downloaded, and the work is that of the real model.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from jaxalign.core.errors import UserError
from jaxalign.lm.config import PRESETS, DType, LlamaConfig, read_config
from jaxalign.pocket import MODEL_FOLDER

SHAPES: dict[str, LlamaConfig] = {
    "tiny": LlamaConfig(4096, 256, 688, 6, 8, 4, 32),
    "small": LlamaConfig(32_000, 512, 1536, 8, 8, 4, 64),
    "smollm2-135m": LlamaConfig(
        49_152, 576, 1536, 30, 9, 3, 64, rope_theta=1e5, tie_word_embeddings=True
    ),
    **PRESETS,
}
Size = Literal["pocket", *SHAPES]  # read at run time by the command line
# Weights drawn from N(0, s²) with s = 0.02 at width 4096, the width of Llama-3-8B, give logits a
# standard deviation of 1.28. s is scaled by 1 / sqrt(width), so that small models answer as firmly.
_LOGIT_DEVIATION = 0.02 * math.sqrt(4096)


def model_config(size: Size, dtype: DType, model: Path | None = None) -> LlamaConfig:
    """Return the configuration of a folder in the Hugging Face layout, or else of a size.

    Raises:
        UserError: If the folder is no model of this kind.
    """
    if model is not None:
        if not (model / "config.json").is_file():
            raise UserError(
                f"`model` {model}: no config.json in it; give a folder of Hugging Face's"
            )
        return read_config(model, dtype)
    if size == "pocket":
        return read_config(MODEL_FOLDER, dtype)
    shape = SHAPES[size]
    scale = _LOGIT_DEVIATION / math.sqrt(shape.hidden_size)
    return shape.replace(initializer_range=scale, dtype=dtype, param_dtype=dtype)


def model_folder(size: Size, scratch: Path, model: Path | None = None) -> Path:
    """Return the folder of the weights; one in `scratch` is still to be written with random ones.

    It exists already if it holds a config.json.
    """
    if model is not None:
        return model
    return MODEL_FOLDER if size == "pocket" else scratch / "model"


def model_name(size: Size, model: Path | None = None) -> str:
    """Return what tables and files call the model."""
    return size if model is None else model.resolve().name
