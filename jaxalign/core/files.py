"""Files that survive a kill: the one atomic writer, JSON, and lines that can be rewound.

Every file that jaxalign replaces is written by `write_atomically`: under another name in the same
folder, flushed to the disk, then renamed. A reader sees the old file or the new one, never half of
one, and a process killed in the middle leaves the old one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import io
import json
import math
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.core.json_text import parse_json

LONGEST_NAME = 255  # bytes of a file's name, on all common file systems
_LONGEST_PATH = 4095
_SHOWN_PATH = 60  # characters of a path in a message about its length

Plain = dict[str, Any] | list[Any] | str | int | float | bool | None


def plain(value: Any, where: str = "value") -> Plain:
    """Return `value` in JSON's own types.

    Dataclasses and mappings become objects, arrays (of numpy and JAX) and sequences become lists,
    sets become sorted lists, paths become texts, members of an enumeration their names. A float32
    becomes the float64 of equal value, which JSON keeps exactly.

    Args:
        value: What to convert.
        where: What `value` is called in error messages.

    Raises:
        ValueError: A NaN or an infinity, named by its place in `value`.
        TypeError: A type that has no JSON form.
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
    if _is_array(value):
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


def _is_array(value: Any) -> bool:
    """Whether `value` is an array of numpy, JAX or another library, told without importing it."""
    return hasattr(value, "__array__") and not isinstance(value, type)


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Replace `path` as a whole, or leave it as it was.

    Folders that are missing are made. The file is readable by everybody (mode 0644).

    Args:
        path: The file to write.
        content: Its bytes, or a function that writes them to the open binary file it is given.

    Raises:
        OSError: The file cannot be written. Whatever `content` raises comes through too.
    """
    with naming(path):
        _replace(path, content)


def write_array(path: Path, array: np.ndarray) -> None:
    """Replace `path`, a .npy file, as a whole, or leave it as it was.

    numpy itself would write past Python, and its error says neither which file nor why.
    """
    content = io.BytesIO()
    np.save(content, array)
    write_atomically(path, content.getvalue())


@contextlib.contextmanager
def naming(path: Path | str, always: bool = True) -> Iterator[None]:
    """Give a system's error that is raised inside the block the name of the file it is about.

    The system does not say which file a write was to, and nobody knows the name of a temporary one.

    Args:
        path: The file or folder.
        always: Whether to put it in place of a name that the error has already.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and (always or error.filename is None):
            error.filename = os.fspath(path)
        raise


def _replace(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name of the file may be as long as a name can be.
    handle, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{_shortened(path.name)}.", suffix=".tmp"
    )
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o644)  # mkstemp's 0600 would hide results from colleagues
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name on an empty file
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _shortened(name: str) -> str:
    """Return the beginning of a name, so that more may be added to it (255 bytes are the most)."""
    return os.fsencode(name)[:200].decode(errors="ignore")


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` as UTF-8, atomically."""
    write_atomically(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON, atomically.

    Raises:
        ValueError: `value` holds a NaN or an infinity; nothing is written.
        TypeError: `value` holds something without a JSON form; nothing is written.
    """
    text = json.dumps(plain(value, path.name), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Replace `path` by one line of JSON per row, atomically."""

    def write(file: BinaryIO) -> None:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

    write_atomically(path, write)


def write_all(file: io.RawIOBase, content: bytes) -> None:
    """Write to an unbuffered file. On a disk that is nearly full a write may take a part only."""
    while content:
        content = content[file.write(content) :]


@contextlib.contextmanager
def staging_folder(folder: Path, last: str) -> Iterator[Path]:
    """Yield an empty folder inside `folder` whose files are moved into it when the block ends.

    For files that belong together. If the block raises, none of them is moved. The file named
    `last` is moved after all others, so `folder` is complete once it holds that file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (
        naming(folder, always=False),
        tempfile.TemporaryDirectory(prefix=".incomplete-", dir=folder) as name,
    ):
        yield Path(name)
        for path in sorted(Path(name).iterdir(), key=lambda p: (p.name == last, p.name)):
            os.replace(path, folder / path.name)


def _sync_directory(folder: Path) -> None:
    """Make a rename last through a power cut, where the file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network file systems refuse; the rename itself has happened
    finally:
        os.close(handle)


def cache_folder(name: str) -> Path:
    """Return the folder `name` of the user's cache, which need not exist yet.

    The cache is the folder around $JAXALIGN_CACHE, which is the compilation cache, else
    $XDG_CACHE_HOME/jaxalign, else ~/.cache/jaxalign; without a home, in the temporary folder.
    """
    if given := os.environ.get("JAXALIGN_CACHE"):
        return Path(given).parent / name
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "jaxalign" / name
    try:
        return Path.home() / ".cache" / "jaxalign" / name
    except RuntimeError:  # no HOME, and a user whom the system does not know, as in containers
        return Path(tempfile.gettempdir()) / f"jaxalign-{os.getuid()}" / name


def check_path(path: str | os.PathLike, parameter: str) -> None:
    """Refuse a path that no file can have, which would fail wherever it is looked at first.

    Raises:
        UserError: A part of it is longer than file systems allow, or it holds a NUL character.
    """
    text = os.fspath(path)
    shown = text if len(text) <= _SHOWN_PATH else f"{text[:_SHOWN_PATH]}..."
    if "\0" in text:
        raise UserError(f"`{parameter}` {shown!r}: holds a NUL character; give another path")
    longest = max((len(os.fsencode(part)) for part in Path(text).parts), default=0)
    if longest > LONGEST_NAME or len(os.fsencode(text)) > _LONGEST_PATH:
        raise UserError(
            f"`{parameter}` {shown}: the name is too long for a file, which has at most "
            f"{LONGEST_NAME} bytes; give a shorter one"
        )


def check_new_file(path: Path | None, parameter: str) -> None:
    """Check, before any work is done, that a file can be written to `path`.

    Args:
        path: The file to be written; None if none is wanted.
        parameter: Name of the parameter that holds `path`, for the message.

    Raises:
        UserError: `path` is a folder, or its folder does not exist.
    """
    if path is None:
        return
    check_path(path, parameter)
    if path.is_dir():
        raise UserError(f"`{parameter}` {path}: a folder; name a file in it")
    if not path.absolute().parent.is_dir():
        raise UserError(f"`{parameter}` {path}: no such folder; create it first")


class MetricsFile:
    """A file with one JSON object per line, ordered by an integer field such as "generation".

    Beside it, in a hidden file, is a checksum of each line, so that a line that is lost or has
    changed is noticed. Lines that have none yet are taken as they are.

    A resumed run calls `rewind(n)` with the step of its checkpoint and writes the later rows again.
    The file then ends up equal to that of an uninterrupted run, provided that rows hold no clock
    readings and that the rows of a step are written before the step's checkpoint.
    """

    def __init__(self, path: Path, step: str = "generation", gapless: bool = False) -> None:
        """Use a file, which need not exist yet.

        Args:
            path: The file.
            step: The field that orders the rows.
            gapless: Whether each row's step is one more than that of the row before.
        """
        self.path, self.step, self.gapless = path, step, gapless

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one line and flush it. A NaN or an infinity is written as null."""
        fields = plain(finite_or_none(dict(row)), self.path.name)
        if not isinstance(fields[self.step], int):
            raise TypeError(f"{self.path.name}: {self.step}={fields[self.step]!r} is not an int")
        line = json.dumps(fields, ensure_ascii=False, allow_nan=False)
        if not self.path.exists():
            self._sums.unlink(missing_ok=True)
        # One write of one line: a kill can tear only the last line, and `rewind` drops that.
        with naming(self.path), self.path.open("ab", buffering=0) as file:
            write_all(file, line.encode() + b"\n")
            # A checkpoint is on the disk before the next row, so its own rows must be there too.
            os.fsync(file.fileno())
        with naming(self._sums), self._sums.open("ab", buffering=0) as file:
            write_all(file, _sum(line.encode() + b"\n"))

    def rewind(self, last: int) -> None:
        """Drop every row after step `last`, and a torn last line.

        Raises:
            UserError: An earlier line is not a row of this file, or not what was written; or, where
                rows are without gaps, one before step `last` is missing, doubled or out of order.
        """
        if not self.path.exists():
            self._check_reaches(None, last)
            self._sums.unlink(missing_ok=True)
            return
        keep, before = 0, None  # bytes of the file that stay; step of the row before
        for start, end, fields in self._lines():
            if fields is None or fields[self.step] > last:
                keep = start
                break
            keep, found = end, fields[self.step]
            if self.gapless and before is not None and found != before + 1:
                raise UserError(
                    f"{self.path}: after the row of {self.step} {before} comes that of {found}; "
                    "restore the file, or start a new run"
                )
            before = found
        self._check_reaches(before, last)
        os.truncate(self.path, keep)
        lines = self.path.read_bytes().splitlines(keepends=True)
        write_atomically(self._sums, b"".join(map(_sum, lines)))

    def put_in_order(self, key: Callable[[dict[str, Any]], Any]) -> None:
        """Sort the rows, all of which are complete, by a key."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        ordered = sorted(lines, key=lambda line: key(json.loads(line)))
        if ordered != lines:
            self._replace_lines(ordered)

    def replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write these rows in place of all that are there."""
        texts = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
        self._replace_lines([text.encode() + b"\n" for text in texts])

    def _replace_lines(self, lines: Sequence[bytes]) -> None:
        self._sums.unlink(missing_ok=True)  # none are better than those of other lines
        write_atomically(self.path, b"".join(lines))
        write_atomically(self._sums, b"".join(map(_sum, lines)))

    def _check_reaches(self, found: int | None, last: int) -> None:
        """Raise UserError where rows up to step `last` are needed and the last there is before."""
        if self.gapless and last > 0 and (found is None or found < last):
            ends = f"ends at {self.step} {found}" if found is not None else "has no row"
            raise UserError(
                f"{self.path}: {ends}, but the run was at {last}; restore the file, or start a new "
                "run"
            )

    def read(self) -> list[dict[str, Any]]:
        """Return every complete row."""
        if not self.path.exists():
            return []
        return [fields for _, _, fields in self._lines() if fields is not None]

    @property
    def _sums(self) -> Path:
        return self.path.with_name(f".{self.path.name}.sums")

    def _lines(self) -> Iterator[tuple[int, int, dict[str, Any] | None]]:
        """Yield each line's byte range and fields; fields are None for a torn last line."""
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror})") from None
        sums = self._sums.read_bytes() if self._sums.exists() else b""
        start = 0
        # Lines of JSON hold no other character that breaks a line.
        for number, line in enumerate(content.splitlines(keepends=True), 1):
            end = start + len(line)
            complete = line.endswith(b"\n")
            try:
                fields = parse_json(line) if complete else None
            except ValueError:
                fields = {}
            if complete and (
                not isinstance(fields, dict) or type(fields.get(self.step)) is not int
            ):
                if end == len(content):
                    fields = None
                else:
                    raise UserError(
                        f"{self.path}, line {number}: not a JSON object with an integer "
                        f"{self.step!r}; restore the file, or start a new run"
                    )
            known = sums[(number - 1) * _SUM_BYTES : number * _SUM_BYTES]
            if fields is not None and len(known) == _SUM_BYTES and known != _sum(line):
                raise UserError(
                    f"{self.path}, line {number}: not what was written there (its checksum is in "
                    f"{self._sums.name}); restore the file, or start a new run"
                )
            yield start, end, fields
            start = end


_SUM_BYTES = 9


def _sum(line: bytes) -> bytes:
    """Return the CRC-32 of a line as a line of its own."""
    return b"%08x\n" % zlib.crc32(line)


def finite_or_none(value: Any) -> Any:
    """Return `value` with every NaN and infinity replaced by None.

    A loss may overflow; the run goes on, and JSON shows null.
    """
    if _is_array(value):
        value = np.asarray(value).tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {k: finite_or_none(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(v) for v in value]
    return value
