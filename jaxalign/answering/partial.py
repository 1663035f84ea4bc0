"""An array that outlives its process: filled piece by piece, found again by the next run.

What is missing carries a value that no answer has, so the array is its own record of progress: a
kill at any moment leaves pieces whole or missing, or, torn, with something missing.
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
    """The array `folder/name.npy`, made and filled with `missing` where there is none yet.

    Assigning to it writes to the file. In memory only without a folder. On several processes each
    gets what process 0 found, and only process 0's is a file. Raises UserError for a file of
    another shape or none at all.
    """
    found = np.full(shape, missing, dtype)
    if folder is not None and jax.process_index() == 0:
        found = _open(Path(folder) / f"{name}.npy", found)
    if jax.process_count() > 1:
        content = multihost_utils.broadcast_one_to_all(np.asarray(found))
        return found if jax.process_index() == 0 else np.array(content)
    return found


def _open(path: Path, empty: np.ndarray) -> np.ndarray:
    if not path.exists():
        try:
            write_atomically(path, lambda file: np.save(file, empty))
        except OSError as error:
            raise UserError(f"{path.parent}: {error.strerror}; give another folder") from None
    try:
        found = np.lib.format.open_memmap(path, mode="r+")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be continued ({error}); delete it") from None
    if found.shape != empty.shape or found.dtype != empty.dtype:
        raise UserError(f"{path}: holds {found.dtype} {found.shape}, not {empty.shape}; delete it")
    return found


def digest(*parts: object) -> str:
    """Sixteen hexadecimal digits that stand for `parts`: texts, numbers, configs, conversations."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Conversations):
            for row in (*part.lead_ins, *part.questions):
                found.update(np.asarray([len(row), *row], "<i4").tobytes())
            found.update(np.asarray(part.pairs, "<i4").tobytes())
            part = part.options
        found.update(f"{part!r}\n".encode())
    return found.hexdigest()[:16]
