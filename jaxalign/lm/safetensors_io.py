"""Safetensors files of a model folder: find, check, open, hash and write them.

Knows the file format and the folder's layout (`model.safetensors`, or shards named by
`model.safetensors.index.json`), and nothing of Llama.
Format: 8 bytes of header length, a JSON header padded to 8 bytes, the tensors' bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxalign.core.errors import UserError

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # safetensors' names
_CODES = {name: code for code, name in STORED.items()}
_SAMPLE_BYTES, _SAMPLES = 2**16, 16  # of a tensor, for its hash


class Span(NamedTuple):
    """A tensor in a file: its header fields and its bytes [begin, end) in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def find_files(folder: Path) -> list[Path]:
    """The weight files of a folder. Raises UserError where there are none or one is missing."""
    if (folder / ONE_FILE).is_file():
        return [folder / ONE_FILE]
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder}: no {ONE_FILE} and no {INDEX} there")
    placed = read_weight_map(folder / INDEX)
    for tensor, file in placed.items():
        if not (folder / file).is_file():
            raise UserError(f"{folder / file}: missing; {INDEX} says that it holds {tensor}")
    return [folder / file for file in sorted(set(placed.values()))]


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name. Raises UserError where the index is not what it should be."""
    try:
        placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        outside = [file for file in placed.values() if file != Path(file).name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: not a safetensors index ({error!r})") from None
    if outside:
        raise UserError(f"{index}: {outside[0]!r} is not the name of a file in the same folder")
    return placed


def read_spans(path: Path) -> dict[str, Span]:
    """Where a file's tensors lie, by name.

    Raises UserError for a damaged or short file, naming the first tensor that does not fit.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise UserError(f"{path}: cut short, its {size} bytes do not hold the header")
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        spans = {name: _span(fields, 8 + length) for name, fields in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged header ({error!r})") from None
    for name, span in sorted(spans.items(), key=lambda item: item[1].end):
        if span.end > size:
            raise UserError(f"{path}: cut short, {name} ends at byte {span.end} of {size}")
    return spans


def _span(fields: dict[str, Any], start: int) -> Span:
    begin, end = fields["data_offsets"]
    return Span(fields["dtype"], tuple(fields["shape"]), start + begin, start + end)


def weights_sha256(folder: Path) -> str:
    """A hash that tells checkpoints apart, for run records: hexadecimal sha256.

    Over every tensor in the order of names: name, dtype, shape and bytes; of a tensor larger than
    1 MiB only 16 evenly spaced blocks of 64 KiB, the first and the last among them. So 16 GB take
    about a second, and how tensors are spread over files does not matter. It finds a retrained,
    merged or mixed-up checkpoint; it does not protect from someone who wants to hide a change.
    Raises UserError for missing, damaged or short files.
    """
    digest = hashlib.sha256()
    found = [(n, path, s) for path in find_files(folder) for n, s in read_spans(path).items()]
    for name, path, span in sorted(found, key=lambda item: item[0]):
        digest.update(f"{name} {span.dtype} {list(span.shape)}\n".encode())
        with path.open("rb") as file:
            for start, length in _samples(span.begin, span.end):
                file.seek(start)
                digest.update(file.read(length))
    return digest.hexdigest()


def _samples(begin: int, end: int) -> list[tuple[int, int]]:
    """(start, length) of the bytes of a tensor that its hash reads."""
    if end - begin <= _SAMPLES * _SAMPLE_BYTES:
        return [(begin, end - begin)]
    room = end - begin - _SAMPLE_BYTES
    return [(begin + i * room // (_SAMPLES - 1), _SAMPLE_BYTES) for i in range(_SAMPLES)]


def write_file(
    path: Path, shapes: dict[str, tuple[int, ...]], dtype: str, tensors: Iterable[np.ndarray]
) -> None:
    """One safetensors file of tensors of one dtype, with one of them in memory at a time.

    `tensors` yields C-contiguous arrays in the order of `shapes`.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + tensor_bytes(shape, dtype)
        header[name] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            file.write(tensor.reshape(-1).view(np.uint8).data)
        sync(file.fileno())


def write_json(path: Path, fields: dict[str, Any]) -> None:
    with path.open("wb") as file:
        file.write((json.dumps(fields, indent=2) + "\n").encode())
        sync(file.fileno())


def sync(descriptor: int) -> None:
    """Make what was written last through a power cut."""
    os.fsync(descriptor)


def tensor_bytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
