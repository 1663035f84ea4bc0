"""Seeded files with the columns of World Values Survey 7 and random answers, as CSV and .sav.

They have the survey's shape and none of its content: for benchmarks and tests.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

ROWS, COLUMNS = 97_220, 600  # of version 6, about
COUNTRIES = 64
_ROWS_AT_ONCE = 4000
_ASKED = ("B_COUNTRY_ALPHA", "W_WEIGHT", *(f"Q{i}" for i in range(1, 291)), "Q234A")
Tell = Callable[[int], None]  # called with the rows written so far


def column_names(columns: int) -> tuple[str, ...]:
    """The survey's own columns first, then as many others as it takes."""
    return (*_ASKED[:columns], *(f"X{i}" for i in range(1, columns - len(_ASKED) + 1)))


def write_csv(path: Path, rows: int, columns: int, seed: int = 0, tell: Tell | None = None) -> None:
    """A CSV of `rows` respondents; `tell` hears of its growth."""
    texts = np.array([str(code) for code in range(-5, 11)], dtype=object)
    with open(path, "w", encoding="utf-8") as file:
        file.write(",".join(column_names(columns)) + "\n")
        for done, country_R, weight_R, codes_RxC in _respondents(rows, columns, seed):
            starts = zip(country_R.tolist(), weight_R.tolist(), texts[codes_RxC + 5], strict=True)
            for country, weight, cells in starts:
                file.write(f"{_country(country)},{weight!r},{','.join(cells)}\n")
            if tell is not None:
                tell(done)


def write_sav(path: Path, rows: int, columns: int, seed: int = 0, tell: Tell | None = None) -> None:
    """The same respondents as a compressed .sav file; `columns` is a multiple of 8.

    Compression codes come in groups of eight, then the values that no code stands for: here the
    country and the weight, both in a row's first group, so that every row has the same length.
    """
    if columns % 8:
        raise ValueError(f"columns={columns}; a multiple of 8")
    with open(path, "wb") as file:
        file.write(sav_header(rows, column_names(columns)))
        for done, country_R, weight_R, codes_RxC in _respondents(rows, columns, seed):
            out_RxB = np.empty((len(country_R), columns + 16), np.uint8)
            out_RxB[:, :2] = 253  # "the value itself follows"
            out_RxB[:, 2:8] = codes_RxC[:, :6] + 100
            names = b"".join(_country(c).encode().ljust(8) for c in country_R.tolist())
            out_RxB[:, 8:16] = np.frombuffer(names, np.uint8).reshape(-1, 8)
            out_RxB[:, 16:24] = weight_R.astype("<f8")[:, None].view(np.uint8)
            out_RxB[:, 24:] = codes_RxC[:, 6:] + 100
            file.write(out_RxB.tobytes())
            if tell is not None:
                tell(done)


def _respondents(
    rows: int, columns: int, seed: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """(rows so far, country, weight, codes): codes 1...10, and -5...-1 in 8 % of the cells."""
    rng = np.random.default_rng(seed)
    for start in range(0, rows, _ROWS_AT_ONCE):
        n = min(_ROWS_AT_ONCE, rows - start)
        codes_RxC = rng.integers(1, 11, (n, columns - 2))
        missing = rng.random(codes_RxC.shape) < 0.08
        codes_RxC[missing] = -rng.integers(1, 6, int(missing.sum()))
        country_R = (start + np.arange(n)) * COUNTRIES // rows
        yield start + n, country_R, rng.gamma(8, 1 / 8, n).round(6), codes_RxC


def _country(index: int) -> str:
    return "C" + chr(65 + index // 26) + chr(65 + index % 26)


def sav_header(rows: int, names: tuple[str, ...]) -> bytes:
    """The dictionary of an SPSS system file: short names, then the long ones."""
    head = b"$FL2" + b"@(#) SPSS DATA FILE".ljust(60)
    head += struct.pack("<5id", 2, len(names), 1, 0, rows, 100.0)
    head += b"01 Jan 26" + b"00:00:00" + b" " * 64 + b"\0" * 3
    for i, name in enumerate(names):
        width = 3 if name == "B_COUNTRY_ALPHA" else 0  # characters; 0 is a number
        shape = 1 << 16 | 3 << 8 if width else 5 << 16 | 8 << 8 | 6
        head += struct.pack("<6i", 2, width, 0, 0, shape, shape) + f"V{i:05}".encode().ljust(8)
    long_names = "\t".join(f"V{i:05}={name}" for i, name in enumerate(names)).encode()
    for subtype, content in ((13, long_names), (20, b"UTF-8")):
        head += struct.pack("<4i", 7, subtype, 1, len(content)) + content
    return head + struct.pack("<2i", 999, 0)
