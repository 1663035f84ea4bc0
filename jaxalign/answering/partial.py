"""An array in a file that is filled piece by piece, and found again by the next run.

Entries that are still missing hold a value that no answer has, so the array is its own record of
progress. Whenever the process is killed, a piece is complete, missing, or written in part; the last
still holds missing entries and is computed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxalign.answering.blocks import Conversations
from jaxalign.core.errors import UserError
from jaxalign.core.files import write_atomically


def open_partial(
    folder: Path | None, name: str, shape: Sequence[int], dtype: Any, missing: float
) -> np.ndarray:
    """Open the array `folder/name.npy`, or make it where there is none yet.

    With several processes, each gets what process 0 read, and only process 0 writes a file.

    Args:
        folder: directory of the file; None keeps the array in memory.
        name: name of the file, without `.npy`.
        shape: of the array.
        dtype: of the array.
        missing: value of entries that have not been filled in.

    Returns:
        The array; assigning to it writes to the file.

    Raises:
        UserError: if the file is no array, or one of another shape or dtype.
    """
    array = np.full(shape, missing, dtype)
    if folder is not None and jax.process_index() == 0:
        array = _open(Path(folder) / f"{name}.npy", array)
    if jax.process_count() > 1:
        content = multihost_utils.broadcast_one_to_all(np.asarray(array))
        return array if jax.process_index() == 0 else np.array(content)
    return array


def _open(path: Path, empty: np.ndarray) -> np.ndarray:
    if not path.exists():
        try:
            write_atomically(path, lambda file: np.save(file, empty))
        except OSError as error:
            raise UserError(f"{path.parent}: {error.strerror}; give another folder") from None
    try:
        array = np.lib.format.open_memmap(path, mode="r+")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be continued ({error}); delete it") from None
    if array.shape != empty.shape or array.dtype != empty.dtype:
        raise UserError(f"{path}: holds {array.dtype} {array.shape}, not {empty.shape}; delete it")
    return array


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
