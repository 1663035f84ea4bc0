"""Checksums beside files that a run reads again, so that one that has changed is noticed.

The checksum of `NAME` is in the hidden file `.NAME.sum`. A file without one is taken as it is: a
process may be killed between the two, and runs of earlier versions have none.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from jaxalign.core.errors import UserError
from jaxalign.core.files import write_text

_BLOCK = 2**22  # bytes read at a time


@contextlib.contextmanager
def sealed(*paths: Path) -> Iterator[None]:
    """Keep checksums of the files that the block writes, each whole or not at all."""
    for path in paths:
        # No checksum is better than that of the file before, wherever a kill falls.
        seal_of(path).unlink(missing_ok=True)
    yield
    for path in paths:
        write_text(seal_of(path), _digest(path) + "\n")


def change(path: Path) -> str | None:
    """Return what has happened to a file since it was sealed; None for nothing.

    A file that was never sealed has not changed, whether it is there or not.
    """
    try:
        expected = seal_of(path).read_bytes()
    except FileNotFoundError:
        return None
    if not path.is_file():
        return "is missing"
    if expected == _digest(path).encode() + b"\n":
        return None
    return f"is not what was written (its checksum is in {seal_of(path).name})"


def check_sealed(path: Path, remedy: str = "restore the file, or start a new run") -> None:
    """Check a file before it is read again.

    Raises:
        UserError: It has changed since it was sealed.
    """
    if (what := change(path)) is not None:
        raise UserError(f"{path}: {what}; {remedy}")


def seal_of(path: Path) -> Path:
    """Return the file that holds the checksum of a file."""
    return path.with_name(f".{path.name}.sum")


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
