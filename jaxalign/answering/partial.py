"""Rows in a file that are filled bit by bit, and found again by the next run.

Each row stands beside the checksum of its numbers, so the file is its own record of progress.
Whenever the process is killed, a row is complete, missing, or written in part; and whatever happens
to the file afterwards, a row that is not what was written counts as missing and is asked again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxalign.answering.blocks import Conversations
from jaxalign.core.errors import UserError
from jaxalign.core.files import naming, write_all, write_array

_log = logging.getLogger("jaxalign")


class PartialRows:
    """N rows of numbers, some of which are missing.

    Attributes:
        values: The numbers [N, width]; those of missing rows mean nothing.
        missing: bool [N].
    """

    def __init__(self, values: np.ndarray, missing: np.ndarray, stored: Stored | None) -> None:
        self.values, self.missing, self._stored = values, missing, stored

    def put(self, rows: Sequence[int] | np.ndarray, values: np.ndarray) -> None:
        """Fill rows with numbers [rows, width], in the file too."""
        self.values[rows] = values
        self.missing[rows] = False
        if self._stored is not None:
            self._stored.write(np.asarray(rows), self.values[rows])


@dataclasses.dataclass(frozen=True)
class Stored:
    """The file of the rows: each row's numbers, and their checksum behind them.

    It is written to, not mapped: writing to mapped memory without room on the disk (a file with
    holes, a file system that copies on write) kills the process and says nothing.

    Attributes:
        path: The file, as numpy saves an array.
        first: Where its first row begins, in bytes.
        dtype: Of a row with its checksum.
    """

    path: Path
    first: int
    dtype: np.dtype

    def write(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Write numbers [rows, width] and their checksums."""
        if not len(rows):
            return
        order = np.argsort(rows, kind="stable")
        records = np.zeros(len(rows), self.dtype)
        records["values"] = values
        records["crc"] = _checksums(records["values"])
        ends = 1 + np.flatnonzero(np.diff(rows[order]) != 1)
        with naming(self.path), self.path.open("r+b", buffering=0) as file:
            for stretch in np.split(order, ends):
                file.seek(self.first + int(rows[stretch[0]]) * self.dtype.itemsize)
                write_all(file, records[stretch].tobytes())


def open_partial(folder: Path | None, name: str, rows: int, width: int, dtype: Any) -> PartialRows:
    """Open the rows in `folder/name.npy`, or make the file where there is none yet.

    With several processes, each gets what process 0 read, and only process 0 writes a file.

    Args:
        folder: directory of the file; None keeps the rows in memory.
        name: name of the file, without `.npy`.
        rows: number of rows.
        width: numbers in a row.
        dtype: of the numbers.

    Raises:
        UserError: if the file does not hold such rows.
    """
    values, missing, stored = np.zeros((rows, width), dtype), np.ones(rows, bool), None
    if folder is not None and jax.process_index() == 0:
        path = Path(folder) / f"{name}.npy"
        found = _open(path, np.zeros(rows, [("values", dtype, (width,)), ("crc", "<u4")]))
        stored = Stored(path, found.offset, found.dtype)
        values[:] = found["values"]
        missing = _checksums(values) != found["crc"]
        # Zero stands beside a row that was never written; it is the checksum of hardly any.
        damaged = int((missing & (found["crc"] != 0)).sum())
        if damaged:
            _log.info(f"{path}: {damaged} of {rows} answers are damaged and are asked again")
    if jax.process_count() > 1:
        values, missing = map(np.array, multihost_utils.broadcast_one_to_all((values, missing)))
    return PartialRows(values, missing, stored)


def _open(path: Path, empty: np.ndarray) -> np.memmap:
    if not path.exists():
        try:
            write_array(path, empty)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"{path.parent}: {error.strerror}; give another folder") from None
    try:
        # For writing too, so that a file that was cut short gets its length back.
        array = np.lib.format.open_memmap(path, mode="r+")
    except Exception as error:  # numpy reads the header with Python's own tokenizer
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be continued ({reason}); delete it") from None
    if array.shape != empty.shape or array.dtype != empty.dtype:
        raise UserError(
            f"{path}: holds {len(array)} rows of {array.dtype} and not {len(empty)} of "
            f"{empty.dtype}; delete it"
        )
    return array


def _checksums(values: np.ndarray) -> np.ndarray:
    """Return the CRC-32 of each row's bytes, uint32 [N]."""
    rows = np.ascontiguousarray(values)
    return np.fromiter((zlib.crc32(row) for row in rows), np.uint32, len(rows))


def digest(*parts: object) -> str:
    """Return sixteen hexadecimal digits for texts, numbers, configs, arrays, conversations.

    >>> digest("exact", 4096)
    '83865730664bf0bb'
    """
    sha256 = hashlib.sha256()
    for part in parts:
        if isinstance(part, Conversations):
            for rows in (part.lead_ins, part.questions):
                sha256.update(np.array([len(rows), *map(len, rows)], "<i4").tobytes())
                sha256.update(np.concatenate([np.zeros(0, "<i4"), *rows]).astype("<i4").tobytes())
            sets, set_of_question = part.option_sets
            sha256.update(part.pairs.astype("<i4").tobytes())
            sha256.update(set_of_question.astype("<i4").tobytes())
            part = sets
        elif isinstance(part, np.ndarray):
            sha256.update(np.ascontiguousarray(part).tobytes())
            part = (part.shape, str(part.dtype))
        sha256.update(f"{part!r}\n".encode())
    return sha256.hexdigest()[:16]
