"""Convert a GGUF file to a model folder in Hugging Face layout.

    jaxalign convert SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2

Commands read GGUF files themselves (`--model FILE.gguf`); the folder is for other tools, and gives
the same bits in the dtype it is written in. The weights are turned back into bfloat16 (or float32),
the tokenizer and chat template are written as Hugging Face has them, and the folder is opened once,
as a later run will. What a quantised file has lost stays lost: prefer Q8_0, F16 or BF16 files where
there is a choice.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxalign.core.errors import UserError
from jaxalign.lm.config import DType
from jaxalign.lm.gguf import convert_gguf
from jaxalign.lm.model import open_model
from jaxalign.lm.source import find_model
from jaxalign.lm.weights import count_params
from jaxalign.runs.console import progress_bars


@dataclasses.dataclass(frozen=True)
class Config:
    """Convert a GGUF file to a model folder in Hugging Face layout."""

    source: Annotated[str, tyro.conf.Positional]
    """GGUF file of a handled family, such as the ones llama.cpp and Ollama use; or smollm2."""
    out: Annotated[Path, tyro.conf.Positional]
    """Folder to write, in Hugging Face layout."""
    dtype: DType = "bfloat16"
    """Dtype of the weights that are written."""
    quiet: bool = False
    """Whether to show no progress bar."""


def run(config: Config) -> None:
    """Convert, open the result, and print what it is."""
    if Path(config.source).is_dir():
        raise UserError(f"`source` {config.source}: a folder; name the GGUF file in it")
    source = find_model(config.source, with_weights=False).weights_file
    if source is None:
        raise UserError(f"`source` {config.source}: not a GGUF file")
    with progress_bars(config.quiet) as show:
        convert_gguf(source, config.out, config.dtype, on_progress=show)
    files = open_model(config.out, config.dtype)
    model = files.config
    print(
        f"{config.out}: {count_params(model) / 1e6:,.1f} million parameters, "
        f"{model.num_hidden_layers} layers of {model.hidden_size}, vocabulary {model.vocab_size}, "
        f"{model.param_dtype}"
    )
