"""Soft prompts on disk: our own safetensors file, and the folder layout of PEFT's prompt tuning.

PEFT (Hugging Face's adapter library) puts a prompt before everything else; a prompt tuned for
another place would give other logits there without a word, so it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save

from jaxalign.core.errors import UserError
from jaxalign.core.files import write_atomically
from jaxalign.lm.adapter_files import (
    CONFIG,
    WEIGHTS,
    json_object,
    read_adapter_config,
    read_tensors,
    write_adapter,
)

_OURS = "jaxalign_soft_prompt"  # key of the metadata, which is one JSON object
_TENSOR, _PEFT_TENSOR = "prompt", "prompt_embeddings"
Array = np.ndarray | jax.Array


def save_prompt(path: Path, prompt_MxD: Array, metadata: Mapping[str, Any]) -> None:
    """Write a prompt as float32 with its metadata (what JSON holds: country, model hash ...)."""
    prompt = _checked(np.asarray(prompt_MxD), path, None)
    header = {_OURS: json.dumps(dict(metadata), sort_keys=True)}
    write_atomically(path, save({_TENSOR: prompt}, metadata=header))


def load_prompt(path: Path, hidden_size: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
    """The prompt float32 [M, D] and its metadata.

    Raises UserError naming the file where it is missing, truncated, no soft prompt of this package,
    or, with `hidden_size`, made for a model of another width.
    """
    prompt, header = _read(path, _TENSOR, hidden_size)
    metadata = json_object(header.get(_OURS, ""), path, "not a soft prompt saved by jaxalign")
    return prompt, metadata


def save_peft(
    folder: Path, prompt_MxD: Array, base_model: str, hidden_size: int, placement: str = "front"
) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` for `PeftModel.from_pretrained`.

    base_model: the name or path of the model, for PEFT's records. Raises UserError for a placement
    other than "front", which PEFT cannot express, and for a prompt not [M, hidden_size].
    """
    if placement != "front":
        raise UserError(
            f"{folder}: a prompt with placement {placement} cannot be saved for PEFT, which puts "
            "prompts before everything; tune with placement front, or keep the safetensors file"
        )
    prompt = _checked(np.asarray(prompt_MxD), folder, hidden_size)
    fields = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "num_virtual_tokens": prompt.shape[0],
        "token_dim": prompt.shape[1],
        "num_transformer_submodules": 1,  # a decoder alone; PEFT counts 2 for encoder-decoders
        "prompt_tuning_init": "RANDOM",  # so that PEFT asks for no tokenizer; it loads the weights
        "inference_mode": True,
    }
    write_adapter(folder, fields, {_PEFT_TENSOR: prompt})


def load_peft(folder: Path, hidden_size: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
    """The prompt float32 [M, D] of a PEFT prompt-tuning folder, and the fields of its config.

    Raises UserError naming the file where one is missing, truncated or of another adapter type, or
    where weights, config and `hidden_size` disagree.
    """
    fields = read_adapter_config(folder, "PROMPT_TUNING")
    if fields.get("num_transformer_submodules") not in (None, 1):
        submodules = fields["num_transformer_submodules"]
        raise UserError(
            f"{folder / CONFIG}: num_transformer_submodules={submodules!r}: "
            "the prompt of an encoder-decoder, not of a Llama"
        )
    prompt, _ = _read(folder / WEIGHTS, _PEFT_TENSOR, hidden_size)
    stated = (fields.get("num_virtual_tokens"), fields.get("token_dim"))
    if stated != prompt.shape:
        raise UserError(f"{folder / WEIGHTS}: prompt {prompt.shape}, but {CONFIG} says {stated}")
    return prompt, fields


def _read(path: Path, tensor: str, hidden_size: int | None) -> tuple[np.ndarray, dict[str, str]]:
    """One prompt tensor as float32, and the file's metadata."""
    tensors, header = read_tensors(path, {tensor}, "a soft prompt")
    return _checked(tensors[tensor], path, hidden_size), header


def _checked(prompt: np.ndarray, path: Path, hidden_size: int | None) -> np.ndarray:
    """`prompt` as contiguous float32 [M, D]; UserError where it cannot be a prompt."""
    if prompt.ndim != 2 or 0 in prompt.shape:
        raise UserError(f"{path}: a prompt is [tokens, width], this is {list(prompt.shape)}")
    if hidden_size is not None and prompt.shape[1] != hidden_size:
        raise UserError(
            f"{path}: the prompt is {prompt.shape[1]} wide, the model {hidden_size}: "
            "it was made for another model"
        )
    prompt = np.ascontiguousarray(prompt, dtype=np.float32)
    if not np.isfinite(prompt).all():
        raise UserError(f"{path}: the prompt has {np.sum(~np.isfinite(prompt))} non-finite numbers")
    return prompt
