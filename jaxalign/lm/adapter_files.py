"""Adapter folders as PEFT reads them: `adapter_config.json` and `adapter_model.safetensors`.

Every file is written under another name and renamed, so a killed run leaves the old file or the new
one, never half of one; the config goes first and comes last, so a folder that has one is whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (lets safetensors hand out bfloat16 as numpy)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxalign.core.errors import UserError
from jaxalign.core.files import write_atomically, write_text

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_FLOATS = ("F32", "F16", "BF16")


def write_adapter(
    folder: Path, fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    """Write an adapter folder for `PeftModel.from_pretrained`."""
    (folder / CONFIG).unlink(missing_ok=True)
    write_atomically(folder / WEIGHTS, save(dict(tensors), metadata={"format": "pt"}))
    write_text(folder / CONFIG, json.dumps(fields, indent=2, sort_keys=True) + "\n")


def read_adapter_config(folder: Path, peft_type: str) -> dict[str, Any]:
    """The fields of a PEFT config. UserError where it is missing or of another adapter type."""
    path = folder / CONFIG
    try:
        fields = json_object(path.read_text(encoding="utf-8"), path, "not a PEFT config")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: cannot be read; give the folder of a PEFT adapter") from None
    if fields.get("peft_type") != peft_type:
        raise UserError(f"{path}: peft_type={fields.get('peft_type')!r}, not {peft_type!r}")
    return fields


def read_tensors(
    path: Path, names: set[str], what: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a safetensors file that must hold `names` and nothing else, and its metadata.

    Raises UserError naming the file where it is missing or truncated, holds other tensors than
    `what` does, or a tensor is of another dtype than F32, F16 or BF16.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            found = set(file.keys())
            if found != names:
                raise UserError(f"{path}: not {what}: {_difference(found, names)}")
            for name in sorted(names):
                dtype = file.get_slice(name).get_dtype()
                if dtype not in _FLOATS:
                    raise UserError(f"{path}: {name} is {dtype}; F32, F16 or BF16 is expected")
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"{path}: truncated or not safetensors ({line})") from None


def _difference(found: set[str], names: set[str]) -> str:
    extra, missing = sorted(found - names), sorted(names - found)
    said = [f"holds {', '.join(extra[:3])}"] if extra else []
    said += [f"lacks {', '.join(missing[:3])}"] if missing else []
    return " and ".join(said)


def json_object(text: str, path: Path, complaint: str) -> dict[str, Any]:
    """The JSON object in `text`; UserError with the complaint where there is none."""
    try:
        fields = json.loads(text)
    except json.JSONDecodeError:
        fields = None
    if not isinstance(fields, dict):
        raise UserError(f"{path}: {complaint}")
    return fields
