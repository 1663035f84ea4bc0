"""SPSS system files (.sav) in numpy: the dictionary, then some of the columns, block by block.

Format: the description in GNU PSPP's developer manual, "System File Format". A file is a header, a
dictionary of variables, and rows of 8-byte elements: a number takes one element, a string one for
every 8 characters. In the usual compression a row is instead a code of one byte per element (code
minus bias is the value), eight codes at a time, each eight followed by those elements that no code
stands for. Reading the codes with numpy is several times as fast as making an object of every cell.

Read here: little-endian files, compressed so or not at all. Others raise `SavError`.
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
    """The file is damaged, or of a kind that only a full reader takes."""


@dataclasses.dataclass(frozen=True)
class Variable:
    """One column. `element` is its first element's place in a row."""

    name: str
    element: int
    width: int  # characters; 0 is a number
    missing: tuple[float, ...] = ()  # declared missing: these values...
    missing_range: tuple[float, float] | None = None  # ...and what is from the one to the other


@dataclasses.dataclass(frozen=True)
class Dictionary:
    """What a file says of itself before its data."""

    variables: dict[str, Variable]
    elements: int  # in a row
    rows: int | None  # None where the file does not say
    compressed: bool
    bias: float
    data_at: int  # bytes


def read_dictionary(path: Path) -> Dictionary:
    """The file's dictionary. Raises SavError, OSError."""
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
    """The dictionary's variables by short name, the elements in a row, and the long names."""
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
        elif kind == 4:  # the variables they are of
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
    """A variable record; None where it only continues a string."""
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
    """Some columns, some thousand rows at a time: float64, NaN where missing, or bytes.

    Raises SavError where the data end within a row.
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
    """Rows as they are: no codes, and the needed elements [R] as 8 bytes each."""
    size = 8 * dictionary.elements
    while block := file.read(max(1, block_bytes // size) * size):
        if len(block) % size:
            raise SavError("cut short")
        words_RxE = np.frombuffer(block, "<u8").reshape(-1, dictionary.elements)
        yield None, {e: words_RxE[:, e] for v in variables for e in _elements(v)}


def _compressed(
    file: BinaryIO, dictionary: Dictionary, variables: Sequence[Variable], block_bytes: int
) -> Iterator[Rows]:
    """Codes uint8 [R, E], and for each needed element [R] the 8 bytes where no code has them."""
    width = dictionary.elements
    needed = {e for v in variables for e in _elements(v)}
    rest, codes, elements = b"", np.zeros(0, np.uint8), np.zeros(0, "<u8")
    ended = False
    while not ended and (read := file.read(block_bytes)):
        block = rest + read
        words = np.frombuffer(block[: len(block) // 8 * 8], "<u8")
        commands, used, ended = _commands(words)
        rest = block[8 * used :]
        more = words[commands].view(np.uint8)
        data = np.ones(used, bool)
        data[commands] = False
        codes = np.concatenate((codes, more[(more != _CODE_PADDING) & (more != _CODE_END)]))
        elements = np.concatenate((elements, words[:used][data]))
        rows = len(codes) // width
        whole, codes = codes[: rows * width], codes[rows * width :]
        at = np.flatnonzero(whole == _CODE_ELEMENT)
        yield whole.reshape(-1, width), _scattered(at, elements[: len(at)], rows, width, needed)
        elements = elements[len(at) :]
    if len(codes) or (rest and not ended):
        raise SavError("cut short")


def _commands(words: np.ndarray) -> tuple[np.ndarray, int, bool]:
    """Which of `words` hold codes, how many words up to the last that is there with its elements,
    and whether the codes say that the data end."""
    one_each_Wx8 = (words.view(np.uint8) == _CODE_ELEMENT).view("<u8")
    asking = np.flatnonzero(one_each_Wx8)  # words that, if they are codes, have elements behind
    # Bytes of 0 and 1, added up by a multiplication whose highest byte is their sum.
    many = (one_each_Wx8[asking] * np.uint64(0x0101010101010101)) >> np.uint64(56)
    is_code = np.ones(len(words), bool)
    at, used = 0, len(words)
    for word, follow in zip(asking.tolist(), many.tolist(), strict=True):
        if word < at:
            continue  # it is an element itself
        if word + follow >= len(words):
            used = word
            break
        at = word + 1 + follow
        is_code[word + 1 : at] = False
    commands = np.flatnonzero(is_code[:used])
    ends = (words[commands].view(np.uint8) == _CODE_END).reshape(-1, 8).any(axis=1)
    if ends.any():  # what comes after the code for the end is no data
        last = int(np.argmax(ends))
        used = int(commands[last + 1]) if last + 1 < len(commands) else used
        return commands[: last + 1], used, True
    return commands, used, False


def _scattered(
    at: np.ndarray, elements: np.ndarray, rows: int, width: int, needed: set[int]
) -> dict[int, np.ndarray]:
    """The elements that follow the codes, by their place in a row; zero where a code has it."""
    row, place = np.divmod(at, width)
    out = {}
    for element in np.unique(place).tolist():
        if element in needed:
            out[element] = np.zeros(rows, "<u8")
            here = place == element
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
    """The next `size` bytes. A damaged size must not ask for more memory than the file has."""
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
