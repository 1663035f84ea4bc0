"""Find, check, hash and write the safetensors files of a model folder.

This module knows the file format and the layout of the folder (`model.safetensors`, or several
files listed in `model.safetensors.index.json`), but nothing about Llama. The format: 8 bytes with
the length of the header, a JSON header padded to a multiple of 8 bytes, the bytes of the tensors.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.core.json_text import parse_json, read_object, reason

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # safetensors' names
_CODES = {name: code for code, name in STORED.items()}
_SAMPLE_BYTES, _SAMPLES = 2**16, 16  # size and number of the blocks of a tensor that are hashed
_LONGEST_HEADER = 100_000_000  # bytes; the limit of safetensors itself
_SHOWN = 120  # characters of an error that a message repeats
_POINTER = b"version https://git-lfs.github.com/spec/"


def check_not_pointer(path: Path) -> None:
    """Raise UserError if a file is what Git LFS leaves in the place of one that it has not fetched.

    A file that does not exist is no pointer.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise UserError(f"{path}: a Git LFS pointer; run git lfs pull in its folder")


class Span(NamedTuple):
    """A tensor in a file: its header fields and its bytes [begin, end) in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def find_files(folder: Path) -> list[Path]:
    """Return the weight files of a folder; UserError if there are none or one is missing."""
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
    """Read which file holds each tensor; UserError if the index is damaged."""
    placed = read_object(index, "fetch it again").get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(f, str) for f in placed.values()):
        raise UserError(f"{index}: not a safetensors index (no weight_map); fetch it again")
    outside = [file for file in placed.values() if file != Path(file).name]
    if outside:
        raise UserError(f"{index}: {outside[0]!r} is not the name of a file in the same folder")
    return placed


def read_spans(path: Path) -> dict[str, Span]:
    """Read where the tensors of a file are, by name.

    Raises:
        UserError: If the file is damaged or truncated; the message names the first tensor that is
            not whole.
    """
    try:
        check_not_pointer(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LONGEST_HEADER:
                raise UserError(f"{path}: not safetensors, its header would have {length:,} bytes")
            if size < 8 or length > size - 8:
                raise UserError(f"{path}: cut short, its {size} bytes do not hold the header")
            text = file.read(length)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        header = parse_json(text)
        header.pop("__metadata__", None)
        spans = {name: _span(fields, 8 + length) for name, fields in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = reason(error) if isinstance(error, ValueError) else repr(error)
        raise UserError(f"{path}: damaged header ({why[:_SHOWN]})") from None
    for name, span in sorted(spans.items(), key=lambda item: item[1].end):
        if span.end > size:
            raise UserError(f"{path}: cut short, {name} ends at byte {span.end} of {size}")
    return spans


def _span(fields: dict[str, Any], start: int) -> Span:
    begin, end = fields["data_offsets"]
    sizes = fields["shape"]
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
        raise ValueError(f"data_offsets {begin!r} to {end!r} are no range of bytes")
    if not isinstance(sizes, list) or any(type(n) is not int or n < 0 for n in sizes):
        raise ValueError(f"shape {sizes!r} holds something else than sizes")
    dtype = fields["dtype"]
    if dtype in STORED and end - begin != math.prod(sizes) * (4 if dtype == "F32" else 2):
        raise ValueError(f"{end - begin} bytes for shape {sizes} of {dtype}")
    return Span(fields["dtype"], tuple(fields["shape"]), start + begin, start + end)


def weights_sha256(folder: Path) -> str:
    """Return a hash that tells checkpoints apart, for run records.

    The hash covers name, dtype, shape and bytes of every tensor in the order of names. Of a tensor
    larger than 1 MiB it reads only 16 evenly spaced blocks of 64 KiB, including the first and the
    last, so 16 GB take about a second. How tensors are spread over files does not matter. The hash
    detects a retrained, merged or mixed-up checkpoint; it does not protect against someone who
    wants to hide a change. A process hashes files once, unless their time or size changes.

    Returns:
        A sha256 as hexadecimal digits.

    Raises:
        UserError: If files are missing, damaged or truncated.
    """
    stats = [(path.resolve(), path.stat()) for path in find_files(folder)]
    return _hash_of(tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in stats))


@functools.lru_cache(maxsize=64)
def _hash_of(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Return the hash of weight files; their time and size are there to tell changed files."""
    return tensors_sha256((n, path, s) for path, _, _ in files for n, s in read_spans(path).items())


def tensors_sha256(tensors: Iterable[tuple[str, Path, Span]]) -> str:
    """Return the hash of `weights_sha256` over tensors: name, file, and where it is in the file."""
    digest = hashlib.sha256()
    for name, path, span in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {span.dtype} {list(span.shape)}\n".encode())
        with path.open("rb") as file:
            for start, length in _samples(span.begin, span.end):
                file.seek(start)
                digest.update(file.read(length))
    return digest.hexdigest()


def _samples(begin: int, end: int) -> list[tuple[int, int]]:
    """Return (start, length) of the blocks of a tensor that its hash reads."""
    if end - begin <= _SAMPLES * _SAMPLE_BYTES:
        return [(begin, end - begin)]
    # The first block starts at `begin`, the last ends at `end`.
    room = end - begin - _SAMPLE_BYTES
    return [(begin + i * room // (_SAMPLES - 1), _SAMPLE_BYTES) for i in range(_SAMPLES)]


def write_file(
    path: Path, shapes: dict[str, tuple[int, ...]], dtype: str, tensors: Iterable[np.ndarray]
) -> None:
    """Write tensors of one dtype to a safetensors file, with one array in memory at a time.

    Args:
        path: File to write.
        shapes: Shape of each tensor by name.
        dtype: Their dtype.
        tensors: Yields the tensors in the order of `shapes`, as C-contiguous arrays; a tensor may
            come as several blocks of rows.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + tensor_bytes(shape, dtype)
        header[name] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned to 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            file.write(tensor.reshape(-1).view(np.uint8).data)
        sync(file.fileno())


def write_json(path: Path, fields: dict[str, Any]) -> None:
    """Write a JSON object and flush it to disk."""
    with path.open("wb") as file:
        file.write((json.dumps(fields, indent=2) + "\n").encode())
        sync(file.fileno())


def sync(descriptor: int) -> None:
    """Flush a file to disk, so that it survives a power cut."""
    os.fsync(descriptor)


def tensor_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Return the size of a tensor in bytes."""
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
