"""World Values Survey 7 as CSV, read in blocks of bytes that numpy parses.

Almost every cell that is needed is a code of one or two characters, so a block is parsed without
making a Python object for each cell: find the delimiters, look at the last two bytes of each needed
cell, and translate the pair by a table. The few cells that are written differently are read one by
one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxalign.surveys.formats.files import bad, check_header, header_of, read_start, shown
from jaxalign.surveys.formats.wvs_tally import MISSING, MOST_CODES, Block

BLOCK_BYTES = 2 << 20  # about the second-level cache; larger blocks were not faster
_MOST_RECORD_BYTES = 64 << 20
_ODD = -2  # stands for a cell that the table of two-byte cells does not know
_MANY_ODD = 0.05  # share of a block's cells
_NEWLINE, _QUOTE = 10, 34


@dataclasses.dataclass(frozen=True)
class Header:
    """The first row: the columns, what separates cells, and where the data begin."""

    columns: tuple[str, ...]
    delimiter: str
    data_at: int  # bytes
    version: str  # the first respondent's `version` cell, "" if there is none


def read_header(path: Path) -> Header:
    """Return the header of a CSV. Raise UserError if the file has none."""
    start = read_start(path)
    end = start.find(b"\n") + 1
    if not end:
        raise bad(path, "there are no rows below the header")
    text = start[:end].decode("utf-8-sig", errors="replace")
    delimiter = max(",;", key=lambda d: len(header_of(text, d)))
    columns = header_of(text, delimiter)
    if len(columns) < 2:
        raise bad(path, f"the header {shown(text)} is delimited by neither , nor ;", 1)
    check_header(path, columns)
    second = start[end:].split(b"\n", 1)[0].decode("utf-8", errors="replace")
    cells = dict(zip(columns, header_of(second, delimiter), strict=False))
    return Header(tuple(columns), delimiter, end, cells.get("version", ""))


def iter_blocks(
    path: Path, header: Header, items: Sequence[str], block_bytes: int = BLOCK_BYTES
) -> Iterator[Block]:
    """Yield the respondents of a CSV, a few thousand at a time.

    Row numbers count records. They are line numbers unless a cell holds a line break.
    """
    parser = _Parser(path, header, tuple(items))
    row, rest = 2, b"\n"  # each block begins with the line end before its first record
    with open(path, "rb") as file:
        file.seek(header.data_at)
        while True:
            read = file.read(block_bytes)
            block = rest + read if read else b"\n" + rest.strip(b"\r\n") + b"\n"
            ends, lines = parser.separators(block, row, final=not read)
            if len(lines) > 1:
                parsed = parser.parse(block, ends, lines, row)
                row += len(parsed.weight_R)
                yield parsed
            if not read:
                return
            rest = block[lines[-1] :]


class _Parser:
    """Parses blocks of one file, whose columns it knows."""

    def __init__(self, path: Path, header: Header, items: tuple[str, ...]) -> None:
        self._path, self._items = path, items
        self._columns = header.columns
        self._delimiter = ord(header.delimiter)
        at = {name: i for i, name in enumerate(header.columns)}
        self._country, self._weight = at["B_COUNTRY_ALPHA"], at["W_WEIGHT"]
        self._interview = at.get("D_INTERVIEW")
        self._at_Q = _as_slice([at[name] for name in items])
        self._code_of_pair = _pair_table(header.delimiter)

    def separators(self, block: bytes, row: int, final: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return where cells end and where records end.

        Both go from the block's first byte, which is a line end, to the end of its last complete
        record.
        """
        bytes_N = np.frombuffer(block, np.uint8)
        line_end = bytes_N == _NEWLINE
        separates = bytes_N == self._delimiter
        separates |= line_end
        if b'"' in block:  # delimiters between quotation marks are text
            outside = np.bitwise_xor.accumulate((bytes_N == _QUOTE).view(np.uint8)) == 0
            separates &= outside
            line_end &= outside
        lines = np.flatnonzero(line_end)
        if final and lines[-1] != len(block) - 1:
            opened = row + len(lines) - 1
            raise bad(self._path, "a quotation mark is opened and never closed", opened)
        if len(lines) == 1 and len(block) > _MOST_RECORD_BYTES:
            raise bad(self._path, "no line end in 64 MB; is a quotation mark never closed?", row)
        # Blank lines at the end of a block may be the file's last: leave them to the next block.
        keep = len(lines)
        while keep > 1 and not block[lines[keep - 2] : lines[keep - 1]].strip(b"\r\n"):
            keep -= 1
        lines = lines[:keep]
        return np.flatnonzero(separates[: lines[-1] + 1]), lines

    def parse(self, block: bytes, ends: np.ndarray, lines: np.ndarray, row: int) -> Block:
        """Return the needed cells of complete records."""
        width = len(self._columns)
        self._check_widths(ends, lines, row)
        starts_RxC = ends[:-1].reshape(-1, width)  # the separator before a cell
        ends_RxC = ends[1:].reshape(-1, width)

        def cells(column: int) -> list[bytes]:
            starts, ends = starts_RxC[:, column] + 1, ends_RxC[:, column]
            return [block[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]

        # Countries first: a second header is recognised best by naming no country.
        names, country_R = self._countries(cells(self._country), row)
        codes_RxQ = self._codes(block, starts_RxC[:, self._at_Q], ends_RxC[:, self._at_Q], row)
        interviews = None if self._interview is None else cells(self._interview)
        return Block(
            row,
            names,
            country_R,
            self._numbers(cells(self._weight), row, "W_WEIGHT"),
            codes_RxQ,
            None if interviews is None else self._numbers(interviews, row, "D_INTERVIEW"),
        )

    def _check_widths(self, ends: np.ndarray, lines: np.ndarray, row: int) -> None:
        """Raise UserError unless every record has as many cells as the header."""
        width = len(self._columns)
        if len(ends) == width * (len(lines) - 1) + 1 and (ends[::width] == lines).all():
            return
        counts = np.diff(np.searchsorted(ends, lines))
        i = int(np.argmax(counts != width))
        why = "is the file cut short?" if counts[i] < width else "is it delimited otherwise?"
        raise bad(self._path, f"{counts[i]} cells where the header has {width}; {why}", row + i)

    def _codes(self, block: bytes, starts: np.ndarray, ends: np.ndarray, row: int) -> np.ndarray:
        """Return int16 [R, Q]: the codes, MISSING for negative codes and empty cells.

        `starts` and `ends` are the positions of the separators before and after each cell.
        """
        bytes_N = np.frombuffer(block, np.uint8)
        # Each pair of neighbouring bytes as one number, to look up the last two bytes of a cell.
        pairs = np.left_shift(bytes_N[:-1], 8, dtype=np.uint16)
        pairs |= bytes_N[1:]
        pairs[-1] = 0  # where an empty first cell looks, and no other
        codes_RxQ = self._look_up(pairs, starts, ends)
        odd = codes_RxQ == _ODD
        if odd.mean() > _MANY_ODD:  # every cell is quoted, or written as 4.0
            starts, ends = _trimmed(bytes_N, starts, ends)
            codes_RxQ = self._look_up(pairs, starts, ends)
            odd = codes_RxQ == _ODD
        known: dict[bytes, int] = {}
        for i, q in np.argwhere(odd).tolist():
            cell = block[starts[i, q] + 1 : ends[i, q]]
            if cell not in known:
                known[cell] = self._odd_code(cell, row + i, self._items[q])
            codes_RxQ[i, q] = known[cell]
        return codes_RxQ

    def _look_up(self, pairs: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Translate the two bytes before each end; in an empty cell the last is a separator."""
        codes = self._code_of_pair[pairs[ends - 2]]
        codes[ends - starts > 3] = _ODD
        return codes

    def _odd_code(self, cell: bytes, row: int, item: str) -> int:
        """Read a cell that is not one or two plain characters: '"3"', '4.0', ' 2', '-5\\r', ''."""
        text = cell.decode("utf-8", errors="replace").strip(' "\r')
        try:
            return check_code(float(text) if text else -1.0)
        except (ValueError, OverflowError):
            message = f"{shown(text)} is not a code: codes are whole numbers below {MOST_CODES}"
            raise bad(self._path, message, row, item) from None

    def _countries(self, cells: list[bytes], row: int) -> tuple[tuple[str, ...], np.ndarray]:
        """Return the distinct countries, and the index of each respondent's country."""
        index: dict[bytes, int] = {}
        country_R = np.array([index.setdefault(cell, len(index)) for cell in cells])
        names = [cell.decode("utf-8", errors="replace").strip(' "\r') for cell in index]
        for cell, name in zip(index, names, strict=True):
            check_country(self._path, name, row + cells.index(cell))
        return tuple(names), country_R

    def _numbers(self, cells: list[bytes], row: int, column: str) -> np.ndarray:
        """Return float64 [R]; NaN for an empty cell."""
        try:
            return np.array([float(cell) for cell in cells])
        except ValueError:  # quoted, empty or worse: one by one
            return np.array([self._number(cell, row + i, column) for i, cell in enumerate(cells)])

    def _number(self, cell: bytes, row: int, column: str) -> float:
        text = cell.decode("utf-8", errors="replace").strip(' "\r')
        try:  # a decimal comma is usual where the delimiter is a semicolon
            return float(text.replace(",", ".") or "nan")
        except ValueError:
            raise bad(self._path, f"{shown(text)} is not a number", row, column) from None


def _trimmed(
    bytes_N: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells' bounds without quotation marks, and then without a final `.0`."""
    quoted = (bytes_N[starts + 1] == _QUOTE) & (bytes_N[ends - 1] == _QUOTE) & (ends - starts > 2)
    starts, ends = starts + quoted, ends - quoted
    whole = (bytes_N[ends - 1] == ord("0")) & (bytes_N[ends - 2] == ord(".")) & (ends - starts > 3)
    return starts, ends - 2 * whole


def check_code(value: float) -> int:
    """Return a cell's number as a code. Raise ValueError unless it is whole and small enough."""
    if value != int(value) or value >= MOST_CODES:
        raise ValueError
    return int(value) if value >= 0 else MISSING


def check_country(path: Path, country: str, row: int) -> None:
    """Raise UserError for what is not an alpha-3 code, such as a second header in joined files.

    The survey's own files always have such codes; other surveys may name groups as they like.
    """
    if country == "B_COUNTRY_ALPHA":
        message = "the header is repeated; were files joined? Give one file"
        raise bad(path, message, row, "B_COUNTRY_ALPHA")
    if not (len(country) == 3 and country.isascii() and country.isalpha() and country.isupper()):
        message = f"{shown(country)} is not a country code of three capital letters"
        raise bad(path, message, row, "B_COUNTRY_ALPHA")


def _as_slice(columns: list[int]) -> slice | np.ndarray:
    """Return neighbouring columns as a slice, which is faster to take than a list of them."""
    if columns == list(range(columns[0], columns[0] + len(columns))):
        return slice(columns[0], columns[0] + len(columns))
    return np.array(columns)


def _pair_table(delimiter: str) -> np.ndarray:
    """Return int16 [65536]: the code that a cell's last byte and the byte before it stand for."""
    table = np.full(1 << 16, _ODD, np.int16)
    digits = range(ord("0"), ord("9") + 1)
    for last in digits:
        for before in (ord(delimiter), _NEWLINE, _QUOTE):  # a cell of one character
            table[before << 8 | last] = last - ord("0")
        table[ord("-") << 8 | last] = MISSING
        for tens in digits:
            code = 10 * (tens - ord("0")) + last - ord("0")
            table[tens << 8 | last] = code if code < MOST_CODES else _ODD
    return table
