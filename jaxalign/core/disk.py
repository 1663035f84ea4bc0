"""Disks that are full or may not be written to: asked before long work, explained in one line.

A run that cannot write stops as a killed one does: every file it keeps is whole or not there, so it
can be resumed once there is room.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from jaxalign.core.errors import UserError

# What a write may fail with through no fault of the program.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit (ulimit -f)",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it accessible",
    errno.EPERM: "make it accessible",
    errno.EIO: "check the disk",
    errno.ESTALE: "check the disk",
    errno.ENAMETOOLONG: "give a shorter path",
}
# Libraries in C++ raise errors of their own that hold the system's text and mostly the file's name.
_TEXTS = {os.strerror(number): number for number in (*_NO_ROOM, errno.EROFS, errno.EACCES)}
_RESERVE_BYTES = 2**24  # for reports, plots and logs, which are not counted one by one


def free_bytes(path: Path) -> int:
    """Return how much this user may still write to the file system that holds, or would hold, a
    path; 0 where it has no room for another file."""
    found = os.statvfs(_existing(path))
    if not found.f_blocks:  # a file system that does not say
        return sys.maxsize
    if found.f_files and not found.f_favail:
        return 0
    return found.f_bavail * found.f_frsize


def check_space(path: Path | str, needed_bytes: float, parameter: str) -> None:
    """Check, before long work, that what it will write has room.

    What lies in the directory already is not asked for again, so that a run can be resumed on a
    disk that is nearly full. A bucket has no limit that can be asked for.

    Args:
        path: Directory that is written to, which need not exist yet; a bucket's address is skipped.
        needed_bytes: Size of everything that will be there at once.
        parameter: Name of the parameter that holds the directory, for the message.

    Raises:
        UserError: There is not enough room.
    """
    if "://" in str(path):
        return
    path = Path(path)
    more = max(needed_bytes - _used_bytes(path), 0) + _RESERVE_BYTES
    free = free_bytes(path)
    if more > free:
        raise UserError(
            f"`{parameter}` {path}: this run will write {_size(more)} there, and {_size(free)} are "
            f"free; free some space, or give another `{parameter}`"
        )


def cannot_write(error: BaseException) -> str | None:
    """Say in one line that a file could not be written, and why.

    Args:
        error: What was raised. Whatever led to it is looked at as well.

    Returns:
        The file or directory, the reason and how much is free; None for any other error.
    """
    for each in _chain(error):
        found = _read(each)
        if found is None:
            continue
        number, path = found
        reason = os.strerror(number).lower()
        if path is not None and number in (errno.ENOSPC, errno.EDQUOT):
            with contextlib.suppress(OSError):
                reason += f", {_size(free_bytes(path))} are free"
        where = "a file" if path is None else str(_shown(path))
        verb = "opened" if number in (errno.EACCES, errno.EPERM) else "written"
        return f"{where} cannot be {verb} ({reason}); {_REMEDIES[number]}"
    return None


def _shown(path: Path) -> Path:
    """Return the step of a checkpoint in place of a file somewhere in its temporary folder."""
    for folder in reversed((path, *path.parents)):  # from the root
        if ".orbax-checkpoint-tmp" in folder.name:
            return folder.with_name(folder.name.partition(".")[0])
    return path


def _read(error: BaseException) -> tuple[int, Path | None] | None:
    """Return the number of a system's error and the file it is about."""
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        name = error.filename2 or error.filename
        named = isinstance(name, str | bytes | os.PathLike)
        return error.errno, Path(os.fsdecode(name)) if named else None
    text = str(error)
    for known, number in _TEXTS.items():
        if known in text:
            quoted = re.search(r"[\"'](/[^\"']+)[\"']", text)
            return number, Path(quoted.group(1)) if quoted else None
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, those in its group, and those that led to it."""
    waiting, seen = [error], set()
    while waiting:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += getattr(each, "exceptions", ())
        waiting += [each.__cause__] if each.__cause__ is not None else []
        # A bug in what handles an error must keep its traceback, but not where there is no room.
        earlier = each.__context__
        if isinstance(earlier, OSError) and earlier.errno in _NO_ROOM:
            waiting.append(earlier)


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if os.path.exists(folder))


def _used_bytes(folder: Path) -> int:
    """Return the size of the files below a folder."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_size
            except OSError:  # gone in the meantime
                continue
    return total


def _size(count: float) -> str:
    """Return a number of bytes in words.

    >>> _size(3_400_000), _size(5e10)
    ('3.2 MiB', '46.6 GiB')
    """
    mib = count / 2**20
    return f"{mib:,.1f} MiB" if mib < 1024 else f"{mib / 1024:,.1f} GiB"
