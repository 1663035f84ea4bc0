"""What can be wrong with a file whatever its format, as functions from a good file to a bad one."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEEP = 100_000
REPEATS = 40_000

# Of any file: bytes -> bytes.
ANY_FILE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda good: b"",
    "blank lines alone": lambda good: b" \n\r\n\t\n" * 50,
    "zeros alone": lambda good: bytes(4096),
    "cut in half": lambda good: good[: len(good) // 2],
    "ELF instead": lambda good: b"\x7fELF\x02\x01\x01\x00" + bytes(range(256)) * 8,
    "a pickle instead": lambda good: b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00cos\nsystem\n.",
    "a web page instead": lambda good: b"<!DOCTYPE html><html><body>404: not found</body></html>",
    "git-lfs pointer": lambda good: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n"
    ),
}
# Of a text, besides.
TEXT = {
    "Latin-1": lambda good: good.replace(b"e", b"\xe9"),
    "UTF-32": lambda good: good.decode().encode("utf-32-le"),
    "half a UTF-8 character": lambda good: good[:-1] + b"\xe4\xbd",
    "a NUL byte inside": lambda good: good[: len(good) // 3] + b"\0" + good[len(good) // 3 :],
}
# Of JSON, besides.
JSON = {
    "nested 100,000 deep": lambda good: b"[" * DEEP + b"]" * DEEP,
    "objects nested 100,000 deep": lambda good: b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "nested deep inside": lambda good: (
        b'{"x":' + b"[" * DEEP + b"]" * DEEP + b"," + good.lstrip()[1:]
    ),
    "one key twice among 40,000": lambda good: (
        "{" + ",".join(f'"k{i}":{i}' for i in range(REPEATS)) + ',"k39999":0}'
    ).encode(),
    "a number of 10,000 digits": lambda good: b"1" * 10_000,
    "a text instead of a table": lambda good: b'"tables"',
    "null": lambda good: b"null",
    "a list of null": lambda good: b"[null]",
    "an empty object": lambda good: b"{}",
    "NaN": lambda good: b'{"a": NaN}',
    "a comment": lambda good: b"// notes\n" + good,
    "a trailing comma": lambda good: good.rstrip()[:-1] + b"," + good.rstrip()[-1:],
    "single quotes": lambda good: good.replace(b'"', b"'"),
}
# Instead of a file: (the path that the reader is given) -> nothing.


def _nothing(path: Path) -> None:
    path.unlink()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "gone")


NO_FILE: dict[str, Callable[[Path], None]] = {
    "no such file": _nothing,
    "a folder instead": _folder,
    "a link to itself": _loop,
    "a link to nothing": _dangling,
}


def changed(good: bytes, **fields: Any) -> bytes:
    """Return a JSON object with some fields replaced; those that are `...` are left out."""
    value = json.loads(good) | fields
    return json.dumps({k: v for k, v in value.items() if v is not ...}).encode()


def is_readable_by_all() -> bool:
    """Whether this process reads files that nobody may read, as root does."""
    return os.geteuid() == 0


def unreadable(path: Path) -> None:
    """Take everybody's right to read a file."""
    path.chmod(stat.S_IWUSR)
