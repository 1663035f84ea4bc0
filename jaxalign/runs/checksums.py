"""Whether a checkpoint is whole, and whose it is: a list of its files with their checksums.

Orbax notices a checkpoint that is missing a file or was cut short, but not a bit that flipped in an
array, and takes a step that was renamed or copied from another run. So each saved step gets a file
with what it holds: the step, the run's identity, and size and BLAKE2b hash of every other file. It
is written once orbax has finished the step.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etils import epath

NAME = "checksums.json"
_BLOCK = 2**22  # bytes read at a time


def write_checksums(folder: epath.Path, step: int, identity: str) -> None:
    """List the files of a finished step, in the step's own folder.

    Args:
        folder: The step's folder.
        step: Its number.
        identity: Text that stands for the run, such as a hash of its settings.
    """
    listed = {"step": step, "identity": identity, "files": _files(folder)}
    # Under another name first, so that a list that is there is whole.
    partial = folder / f"{NAME}.part"
    partial.write_text(json.dumps(listed, indent=1, sort_keys=True))
    partial.replace(folder / NAME)


def damage(folder: epath.Path, step: int, identity: str) -> str | None:
    """Return what is wrong with a step in words, or None if it is what was saved.

    Args:
        folder: The step's folder.
        step: The number that it should have.
        identity: The run that it should be of.
    """
    path = folder / NAME
    if not path.exists():
        return f"it has no {NAME}: whoever saved it was stopped before it was finished"
    try:
        listed = json.loads(path.read_text())
        kept, saved_step, saved_for = listed["files"], listed["step"], listed["identity"]
        assert isinstance(kept, dict)
    except Exception as error:  # any content, and whatever a bucket's library raises
        return f"its {NAME} cannot be read ({' '.join(str(error).split())[:80]})"
    if saved_step != step:
        return f"it was saved as step {saved_step}"
    if saved_for != identity:
        return "another run, or the same one with another seed or other settings, saved it"
    found = _files(folder)
    for name in sorted(kept.keys() | found.keys()):
        if name not in found:
            return f"its file {name} is missing"
        if name not in kept:
            return f"its file {name} was not saved with it"
        if kept[name] != found[name]:
            return f"its file {name} is not what was saved"
    return None


def _files(folder: epath.Path) -> dict[str, list[Any]]:
    """Return size and hash of each file below a folder, by its path in it."""
    files = {}
    for path in _below(folder):
        name = path.relative_to(folder).as_posix()
        if name in (NAME, f"{NAME}.part"):
            continue
        digest, size = hashlib.blake2b(digest_size=16), 0
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                size += len(block)
        files[name] = [size, digest.hexdigest()]
    return files


def _below(folder: epath.Path) -> list[epath.Path]:
    found = []
    for path in sorted(folder.iterdir()):
        found += _below(path) if path.is_dir() else [path]
    return found
