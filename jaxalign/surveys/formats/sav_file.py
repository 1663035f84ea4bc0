"""Read SPSS system files (.sav) with numpy: the dictionary, then some columns, block by block.

Format: see GNU PSPP's developer manual, "System File Format". A file is a header, a dictionary of
variables, and rows of 8-byte elements: a number takes one element, a string one for every 8
characters. With the usual compression, a row has a one-byte code for each element instead, whose
value is code minus bias. Codes come eight at a time, and each eight are followed by those elements
that no code can stand for. Reading the codes with numpy is several times as fast as making an
object for every cell.

This module reads little-endian files, uncompressed or compressed in this way. Others raise
`SavError`.
"""

from __future__ import annotations

import dataclasses
import functools
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

_CODE_PADDING, _CODE_END, _CODE_ELEMENT, _CODE_BLANKS, _CODE_MISSING = 0, 252, 253, 254, 255
_BLANKS = b" " * 8
BLOCK_BYTES = 4 << 20


class SavError(Exception):
    """The file is damaged, or of a kind that only a full reader can read."""


@dataclasses.dataclass(frozen=True)
class Variable:
    """One column. `element` is the position of its first element in a row."""

    name: str
    element: int
    width: int  # characters; 0 is a number
    missing: tuple[float, ...] = ()  # values that are declared missing
    missing_range: tuple[float, float] | None = None  # values in this range are missing too


@dataclasses.dataclass(frozen=True)
class Dictionary:
    """What a file says about its columns before the data."""

    variables: dict[str, Variable]
    elements: int  # in a row
    rows: int | None  # None if the file does not say
    compressed: bool
    bias: float
    data_at: int  # bytes


def read_dictionary(path: Path) -> Dictionary:
    """Return the file's dictionary. Raise SavError or OSError."""
    with open(path, "rb") as file:
        magic, _, layout, _, compression, _, rows, bias, _ = _unpack(file, "<4s60s5id84s")
        if magic != b"$FL2" or layout not in (2, 3) or compression not in (0, 1):
            raise SavError(f"layout {layout}, compression {compression}")
        variables, elements, long_names = _records(file)
        named = {long_names.get(v.name, v.name): v for v in variables}
        return Dictionary(
            {name: dataclasses.replace(v, name=name) for name, v in named.items()},
            elements,
            rows if rows >= 0 else None,
            compression == 1,
            bias,
            file.tell(),
        )


def _records(file: BinaryIO) -> tuple[list[Variable], int, dict[str, str]]:
    """Return the dictionary's variables, the elements in a row, and long names by short name."""
    variables: list[Variable] = []
    long_names: dict[str, str] = {}
    elements = 0
    while True:
        (kind,) = _unpack(file, "<i")
        if kind == 2:
            variable = _variable(file, elements)
            variables += [variable] if variable is not None else []
            elements += 1
        elif kind == 3:  # value labels
            for _ in range(_count(file)):
                length = _take(file, 9)[8]
                _take(file, -(length + 1) % 8 + length)
        elif kind == 4:  # the variables that have those labels
            _take(file, 4 * _count(file))
        elif kind == 6:  # lines of a note
            _take(file, 80 * _count(file))
        elif kind == 7:
            subtype, size, count = _unpack(file, "<3i")
            content = _take(file, size * count)
            if subtype == 13:
                pairs = (pair.split("=", 1) for pair in _text(content).split("\t") if "=" in pair)
                # A string of over 255 characters is several variables here: the first is named.
                long_names = {short.strip(): name.strip() for short, name in pairs}
        elif kind == 999:
            _take(file, 4)
            if not variables:
                raise SavError("no variables")
            ends = [v.element for v in variables[1:]] + [elements]
            if any(_elements(v).stop > end for v, end in zip(variables, ends, strict=True)):
                raise SavError("a string without room")
            return variables, elements, long_names
        else:
            raise SavError(f"record {kind}")


def _variable(file: BinaryIO, element: int) -> Variable | None:
    """Return the variable of a record; None if it only continues a string."""
    width, has_label, missing, _, _, name = _unpack(file, "<5i8s")
    if has_label:
        length = _count(file)
        _take(file, length + -length % 4)
    if not -3 <= missing <= 3:
        raise SavError(f"{missing} missing values")
    values = _unpack(file, f"<{abs(missing)}d") if missing else ()
    if width < 0:
        return None
    if width:  # a string's missing values are text
        values, missing = (), 0
    within = (values[0], values[1]) if missing < 0 else None
    return Variable(_text(name).strip(), element, width, values[2:] if within else values, within)


def iter_columns(
    path: Path, dictionary: Dictionary, names: Sequence[str], block_bytes: int = BLOCK_BYTES
) -> Iterator[dict[str, np.ndarray]]:
    """Yield some columns, a few thousand rows at a time.

    Numbers are float64, NaN where missing; strings are bytes.

    Raises:
        SavError: The data end within a row.
    """
    variables = [dictionary.variables[name] for name in names]
    chunks = _compressed if dictionary.compressed else _plain
    with open(path, "rb") as file:
        file.seek(dictionary.data_at)
        for codes_RxE, values_RxE in chunks(file, dictionary, variables, block_bytes):
            yield {v.name: _column(v, codes_RxE, values_RxE, dictionary.bias) for v in variables}


Rows = tuple[np.ndarray | None, dict[int, np.ndarray]]


def _plain(
    file: BinaryIO, dictionary: Dictionary, variables: Sequence[Variable], block_bytes: int
) -> Iterator[Rows]:
    """Yield rows of an uncompressed file: no codes, and the needed elements [R], 8 bytes each."""
    size = 8 * dictionary.elements
    while block := file.read(max(1, block_bytes // size) * size):
        if len(block) % size:
            raise SavError("cut short")
        words_RxE = np.frombuffer(block, "<u8").reshape(-1, dictionary.elements)
        yield None, {e: words_RxE[:, e] for v in variables for e in _elements(v)}


def _compressed(
    file: BinaryIO, dictionary: Dictionary, variables: Sequence[Variable], block_bytes: int
) -> Iterator[Rows]:
    """Yield rows of a compressed file: codes uint8 [R, E], and for each needed element [R] the 8
    bytes that no code stands for."""
    width = dictionary.elements
    needed = {e for v in variables for e in _elements(v)}
    rest, codes, elements = b"", np.zeros(0, np.uint8), np.zeros(0, "<u8")
    ended = False
    while not ended and (read := file.read(block_bytes)):
        block = rest + read
        words = np.frombuffer(block[: len(block) // 8 * 8], "<u8")
        # A word holds either eight codes or one element.
        commands, used, ended = _commands(words)
        rest = block[8 * used :]
        more = words[commands].view(np.uint8)
        data = np.ones(used, bool)
        data[commands] = False
        codes = np.concatenate((codes, more[(more != _CODE_PADDING) & (more != _CODE_END)]))
        elements = np.concatenate((elements, words[:used][data]))
        # Complete rows are handed out; codes and elements of a started row wait for the next block.
        rows = len(codes) // width
        whole, codes = codes[: rows * width], codes[rows * width :]
        at = np.flatnonzero(whole == _CODE_ELEMENT)
        yield whole.reshape(-1, width), _scattered(at, elements[: len(at)], rows, width, needed)
        elements = elements[len(at) :]
    if len(codes) or (rest and not ended):
        raise SavError("cut short")


def _commands(words: np.ndarray) -> tuple[np.ndarray, int, bool]:
    """Find the words that hold codes.

    Returns:
        Positions of those words; how many words can be used, which is up to the last codes whose
        elements are all there; and whether a code says that the data end.
    """
    one_each_Wx8 = (words.view(np.uint8) == _CODE_ELEMENT).view("<u8")
    asking = np.flatnonzero(one_each_Wx8)  # words that need elements if they hold codes
    # Eight bytes of 0 or 1 are summed by a multiplication that leaves the sum in the highest byte.
    many = (one_each_Wx8[asking] * np.uint64(0x0101010101010101)) >> np.uint64(56)
    is_code = np.ones(len(words), bool)
    at, used = 0, len(words)
    for word, follow in zip(asking.tolist(), many.tolist(), strict=True):
        if word < at:
            continue  # the word is an element itself
        if word + follow >= len(words):
            used = word
            break
        at = word + 1 + follow
        is_code[word + 1 : at] = False
    commands = np.flatnonzero(is_code[:used])
    ends = (words[commands].view(np.uint8) == _CODE_END).reshape(-1, 8).any(axis=1)
    if ends.any():  # nothing after the code for the end is data
        last = int(np.argmax(ends))
        used = int(commands[last + 1]) if last + 1 < len(commands) else used
        return commands[: last + 1], used, True
    return commands, used, False


def _scattered(
    at: np.ndarray, elements: np.ndarray, rows: int, width: int, needed: set[int]
) -> dict[int, np.ndarray]:
    """Return the elements that follow the codes, by position in a row; zero where there is none."""
    row, position = np.divmod(at, width)
    out = {}
    for element in np.unique(position).tolist():
        if element in needed:
            out[element] = np.zeros(rows, "<u8")
            here = position == element
            out[element][row[here]] = elements[here]
    return out


def _column(
    variable: Variable, codes_RxE: np.ndarray | None, words: dict[int, np.ndarray], bias: float
) -> np.ndarray:
    if variable.width:
        return _string(variable, codes_RxE, words)
    element = variable.element
    if codes_RxE is None:
        values = words[element].view("<f8")
    else:
        codes_R = codes_RxE[:, element]
        values = _value_of_code(bias)[codes_R]
        if element in words:
            values = np.where(codes_R == _CODE_ELEMENT, words[element].view("<f8"), values)
    missing = values <= -np.finfo(np.float64).max  # how the format writes "missing"
    for value in variable.missing:
        missing |= values == value
    if variable.missing_range is not None:
        low, high = variable.missing_range
        missing |= (values >= low) & (values <= high)
    return np.where(missing, np.nan, values)


def _string(
    variable: Variable, codes_RxE: np.ndarray | None, words: dict[int, np.ndarray]
) -> np.ndarray:
    parts = []
    for element in _elements(variable):
        rows = len(codes_RxE) if codes_RxE is not None else len(words[element])
        part_Rx8 = np.frombuffer(_BLANKS, np.uint8)[None, :].repeat(rows, axis=0)
        if element in words:
            stored = np.ascontiguousarray(words[element]).view(np.uint8).reshape(-1, 8)
            here = slice(None) if codes_RxE is None else codes_RxE[:, element] == _CODE_ELEMENT
            part_Rx8[here] = stored[here]
        parts.append(part_Rx8)
    cells_RxB = np.ascontiguousarray(np.concatenate(parts, axis=1))
    return cells_RxB.view(f"S{cells_RxB.shape[1]}")[:, 0]


def _elements(variable: Variable) -> range:
    return range(variable.element, variable.element + max(1, -(-variable.width // 8)))


@functools.cache
def _value_of_code(bias: float) -> np.ndarray:
    values = np.arange(256) - bias
    values[_CODE_MISSING] = np.nan
    values[_CODE_BLANKS] = np.nan  # blanks are no number
    values.flags.writeable = False
    return values


def _unpack(file: BinaryIO, shape: str) -> tuple:
    return struct.unpack(shape, _take(file, struct.calcsize(shape)))


def _take(file: BinaryIO, size: int) -> bytes:
    """Return the next `size` bytes. A damaged size must not allocate more than the file has."""
    if not 0 <= size <= 1 << 28:
        raise SavError(f"a record of {size} bytes")
    content = file.read(size)
    if len(content) != size:
        raise SavError("cut short")
    return content


def _count(file: BinaryIO) -> int:
    (count,) = _unpack(file, "<i")
    if count < 0:
        raise SavError(f"a count of {count}")
    return count


def _text(content: bytes) -> str:
    return content.decode("utf-8", errors="replace")
