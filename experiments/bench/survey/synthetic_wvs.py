"""Write files with the columns of World Values Survey 7 and random answers, as CSV and .sav.

The files have the survey's shape and none of its content. They serve benchmarks and tests.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from jaxalign.surveys.formats.wvs_scales import published_codes

ROWS, COLUMNS = 97_220, 600  # about the size of version 6 of the file
COUNTRIES = 64
_ROWS_AT_ONCE = 4000
_ASKED = ("B_COUNTRY_ALPHA", "W_WEIGHT", *(f"Q{i}" for i in range(1, 291)), "Q234A")
OnRows = Callable[[int], None]  # called with the number of rows written so far


def column_names(columns: int) -> tuple[str, ...]:
    """Return the survey's columns, followed by as many others as needed."""
    return (*_ASKED[:columns], *(f"X{i}" for i in range(1, columns - len(_ASKED) + 1)))


def write_csv(
    path: Path, rows: int, columns: int, seed: int = 0, on_rows: OnRows | None = None
) -> None:
    """Write a CSV of `rows` respondents, calling `on_rows` after each block of rows."""
    texts = np.array([str(code) for code in range(-5, 11)], dtype=object)
    with open(path, "w", encoding="utf-8") as file:
        file.write(",".join(column_names(columns)) + "\n")
        for done, country_R, weight_R, codes_RxC in _respondents(rows, columns, seed):
            starts = zip(country_R.tolist(), weight_R.tolist(), texts[codes_RxC + 5], strict=True)
            for country, weight, cells in starts:
                file.write(f"{_country(country)},{weight!r},{','.join(cells)}\n")
            if on_rows is not None:
                on_rows(done)


def write_sav(
    path: Path, rows: int, columns: int, seed: int = 0, on_rows: OnRows | None = None
) -> None:
    """Write the same respondents as a compressed .sav file; `columns` must be a multiple of 8.

    Compression codes come in groups of eight, followed by the values that have no code. Here these
    are the country and the weight, both in the first group of a row, so that every row has the same
    length.
    """
    if columns % 8:
        raise ValueError(f"columns={columns}: must be a multiple of 8")
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
            if on_rows is not None:
                on_rows(done)


def _respondents(
    rows: int, columns: int, seed: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield blocks of respondents: rows so far, country, weight and codes.

    Codes are those of the published scale (1 to 10 in columns without one), and -5 to -1 (missing)
    in 8 % of the cells.
    """
    rng = np.random.default_rng(seed)
    scales = [published_codes(name) or range(1, 11) for name in column_names(columns)[2:]]
    first_C = np.array([scale[0] for scale in scales])
    end_C = np.array([scale[-1] + 1 for scale in scales])
    for start in range(0, rows, _ROWS_AT_ONCE):
        n = min(_ROWS_AT_ONCE, rows - start)
        codes_RxC = rng.integers(first_C, end_C, (n, columns - 2))
        missing = rng.random(codes_RxC.shape) < 0.08
        codes_RxC[missing] = -rng.integers(1, 6, int(missing.sum()))
        country_R = (start + np.arange(n)) * COUNTRIES // rows
        yield start + n, country_R, rng.gamma(8, 1 / 8, n).round(6), codes_RxC


def _country(index: int) -> str:
    return "C" + chr(65 + index // 26) + chr(65 + index % 26)


def sav_header(rows: int, names: tuple[str, ...]) -> bytes:
    """Return the dictionary of an SPSS system file: the short names, then the long ones."""
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
