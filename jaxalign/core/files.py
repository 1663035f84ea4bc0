"""JSON files that survive a kill: whole-file replacement, and append-only lines that rewind."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.core.errors import UserError

Plain = dict[str, Any] | list[Any] | str | int | float | bool | None


def plain(value: Any, where: str = "value") -> Plain:
    """`value` as JSON's own types. Dataclasses become objects, arrays lists, paths strings.

    float32 becomes the float64 of equal value and JSON keeps that exactly. Raises ValueError
    naming the place of a NaN or an infinity, TypeError for a type that has no JSON form.
    """
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}: JSON holds finite numbers only")
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(np.asarray(value).tolist(), where)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {f.name: plain(getattr(value, f.name), f"{where}.{f.name}") for f in fields}
    if isinstance(value, Mapping):
        return {str(k): plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, set | frozenset):
        return plain(sorted(value), where)
    raise TypeError(f"{where}: {type(value).__name__} has no JSON form")


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as JSON: a reader sees the old file or the new one, whole.

    Raises ValueError for a NaN or an infinity before touching the disk.
    """
    text = json.dumps(plain(value, path.name), indent=1, ensure_ascii=False, allow_nan=False)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)  # mkstemp's own 0600 would hide results from colleagues
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(folder: Path) -> None:
    """Make a rename last through a power cut, where the file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network file systems refuse; the rename itself has happened
    finally:
        os.close(handle)


def check_new_file(path: Path | None, option: str) -> None:
    """UserError, before any work, where no file could be put at `path`, named as `option`'s; None
    is none wanted."""
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"{option} {path}: a folder; name a file in it")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{option} {path}: no such folder")


class MetricsFile:
    """One JSON object per line, in the order of an integer field, `step` (say "generation").

    A resumed run calls `rewind(n)` with the step of its checkpoint and writes the rest again, so
    the file ends equal to an unbroken run's if rows hold no clock readings and a step's rows are
    written before that step's checkpoint.
    """

    def __init__(self, path: Path, step: str = "generation") -> None:
        self.path = path
        self.step = step

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one line and flush it. NaN and infinities are written as null."""
        fields = plain(finite_or_none(dict(row)), self.path.name)
        if not isinstance(fields[self.step], int):
            raise TypeError(f"{self.path.name}: {self.step}={fields[self.step]!r} is not a whole")
        line = json.dumps(fields, ensure_ascii=False, allow_nan=False)
        # One write of one line: a kill can tear the last line only, and `rewind` drops that.
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode() + b"\n")

    def rewind(self, last: int) -> None:
        """Drop every row past step `last`, and a torn last line. Raises UserError if the lines
        before it are not this file's."""
        if not self.path.exists():
            return
        keep = 0
        for start, end, fields in self._lines():
            if fields is None or fields[self.step] > last:
                keep = start
                break
            keep = end
        os.truncate(self.path, keep)

    def read(self) -> list[dict[str, Any]]:
        """Every whole row."""
        if not self.path.exists():
            return []
        return [fields for _, _, fields in self._lines() if fields is not None]

    def _lines(self) -> Iterator[tuple[int, int, dict[str, Any] | None]]:
        """Byte range and fields of each line; None for a last line that a kill has torn."""
        content = self.path.read_bytes()
        start = 0
        for number, line in enumerate(content.splitlines(keepends=True), 1):
            end = start + len(line)
            whole = line.endswith(b"\n")
            try:
                fields = json.loads(line) if whole else None
            except ValueError:
                fields = {}
            if whole and (
                not isinstance(fields, dict) or not isinstance(fields.get(self.step), int)
            ):
                if end == len(content):
                    fields = None
                else:
                    raise UserError(f"{self.path}, line {number}: not a row with a {self.step!r}")
            yield start, end, fields
            start = end


def finite_or_none(value: Any) -> Any:
    """NaN and infinities replaced by None: a loss may overflow and the run go on."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        value = np.asarray(value).tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {k: finite_or_none(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(v) for v in value]
    return value
