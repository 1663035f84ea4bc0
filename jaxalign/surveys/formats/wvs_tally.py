"""Weighted counts of answers by country, item and code, summed block by block, and their cache.

The counts are small (countries x items x codes), however many respondents there are, so that a
file of any length is read in constant memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.core.files import cache_folder, write_atomically
from jaxalign.surveys.formats.files import bad

MOST_CODES = 64  # codes 0...63; the longest scale has 11, lists of parties or years have far more
MISSING = -1
_CACHE_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Block:
    """The answers of R consecutive respondents to Q items."""

    first_row: int  # in the file, whose header is row 1
    countries: tuple[str, ...]  # distinct, three letters each
    country_R: np.ndarray  # index into `countries`
    weight_R: np.ndarray  # float64
    codes_RxQ: np.ndarray  # int16; MISSING, or a code in [0, MOST_CODES)
    interview_R: np.ndarray | None = None  # float64, if the file numbers its interviews


@dataclasses.dataclass(frozen=True)
class Tally:
    """The counts of a whole file. Weights are in the file's unit (about 1 for a respondent)."""

    version: str
    countries: tuple[str, ...]
    items: tuple[str, ...]
    weight_CxQxK: np.ndarray  # float64: sum of the weights of the respondents who gave code K
    respondents_CxQxK: np.ndarray  # int64: number of the respondents who gave code K
    rows: int


class Counter:
    """Sums blocks. `allowed` holds the codes that each item may have; None allows any."""

    def __init__(
        self, path: Path, items: Sequence[str], allowed: Sequence[Sequence[int]] | None
    ) -> None:
        self._path, self._items = path, tuple(items)
        self._allowed_QxK = np.ones((len(items), MOST_CODES), bool)
        for q, codes in enumerate(allowed or ()):
            self._allowed_QxK[q] = np.isin(np.arange(MOST_CODES), codes)
        self._weights: dict[str, np.ndarray] = {}
        self._respondents: dict[str, np.ndarray] = {}
        self._interviews: dict[int, int] = {}  # hash of an interview -> its row
        self._rows = 0

    def add(self, block: Block) -> None:
        """Count one block. Raise UserError for a bad weight or code, or a repeated interview."""
        self._check_weights(block)
        if block.interview_R is not None:
            self._check_interviews(block, block.interview_R)
        # One bin for each (country, item, code): code K is in bin K + 1, MISSING in bin 0.
        shape = (len(block.countries), len(self._items), MOST_CODES + 1)
        cells_RxQ = block.codes_RxQ + np.arange(1, shape[1] * shape[2], shape[2])[None, :]
        cells_RxQ += (block.country_R * (shape[1] * shape[2]))[:, None]
        cells = cells_RxQ.reshape(-1)
        # Count respondents first, then sum their weights over the same bins; drop the missing.
        respondents = np.bincount(cells, minlength=np.prod(shape)).reshape(shape)[..., 1:]
        if (respondents.any(axis=0) & ~self._allowed_QxK).any():
            raise self._unknown_code(block)
        weights = np.repeat(block.weight_R, shape[1])
        weights = np.bincount(cells, weights, minlength=np.prod(shape)).reshape(shape)[..., 1:]
        for i, name in enumerate(block.countries):
            if name not in self._weights:
                self._weights[name] = np.zeros((shape[1], MOST_CODES))
                self._respondents[name] = np.zeros((shape[1], MOST_CODES), np.int64)
            self._weights[name] += weights[i]
            self._respondents[name] += respondents[i]
        self._rows += len(block.country_R)

    def tally(self, version: str) -> Tally:
        """Return the sum of all blocks. Raise UserError if there were none."""
        if not self._rows:
            raise bad(self._path, "there are no respondents below the header")
        countries = tuple(sorted(self._weights))
        return Tally(
            version,
            countries,
            self._items,
            np.stack([self._weights[c] for c in countries]),
            np.stack([self._respondents[c] for c in countries]),
            self._rows,
        )

    def _check_weights(self, block: Block) -> None:
        wrong = ~(np.isfinite(block.weight_R) & (block.weight_R >= 0))
        if wrong.any():
            i = int(np.argmax(wrong))
            raise bad(
                self._path,
                f"weight {block.weight_R[i]:g} is missing or negative; all respondents need one",
                block.first_row + i,
                "W_WEIGHT",
            )

    def _check_interviews(self, block: Block, interview_R: np.ndarray) -> None:
        """Raise UserError for an interview that was counted before: the same number, country and
        answers."""
        factors = np.random.default_rng(0).integers(1, 2**62, block.codes_RxQ.shape[1])
        hashes_R = block.codes_RxQ.astype(np.int64) @ factors  # may overflow, which does no harm
        for i, answers in enumerate(hashes_R.tolist()):
            country, number = block.countries[block.country_R[i]], float(interview_R[i])
            row = block.first_row + i
            first = self._interviews.setdefault(hash((country, number, answers)), row)
            if first != row:
                message = f"interview {number:.0f} of {country} is in row {first} already; "
                message += "is the file joined to itself?"
                raise bad(self._path, message, row, "D_INTERVIEW")

    def _unknown_code(self, block: Block) -> UserError:
        known_RxQ = self._allowed_QxK[np.arange(len(self._items))[None, :], block.codes_RxQ]
        wrong_RxQ = ~known_RxQ & (block.codes_RxQ != MISSING)
        i, q = np.argwhere(wrong_RxQ)[0]
        codes = np.flatnonzero(self._allowed_QxK[q]).tolist()
        message = f"code {block.codes_RxQ[i, q]} is not one of the item's codes {codes}; correct "
        message += "it, or treat such codes as missing with `drop_unknown_codes`"
        return bad(self._path, message, block.first_row + int(i), self._items[q])


def count(
    path: Path,
    blocks: Iterable[Block],
    items: Sequence[str],
    allowed: Sequence[Sequence[int]] | None,
    version: str,
) -> Tally:
    """Return the tally of all `blocks`; the arguments are those of `Counter` and `tally`."""
    counter = Counter(path, items, allowed)
    for block in blocks:
        counter.add(block)
    return counter.tally(version)


def default_cache_folder() -> Path:
    """Return the folder `surveys` of the user's cache."""
    return cache_folder("surveys")


def cache_name(file_sha256: str, suffix: str, settings: object) -> str:
    """Return the file name of a tally, from a file's content and how it was read."""
    text = json.dumps([_CACHE_FORMAT, file_sha256, suffix, settings])
    return f"wvs-{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"


def load_tally(path: Path) -> Tally | None:
    """Return a tally from the cache; None if there is none or it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Tally(
                str(arrays["version"]),
                tuple(arrays["countries"].tolist()),
                tuple(arrays["items"].tolist()),
                arrays["weight_CxQxK"],
                arrays["respondents_CxQxK"],
                int(arrays["rows"]),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def save_tally(path: Path, tally: Tally) -> None:
    """Write a tally to the cache. A cache that cannot be written to is not an error."""
    fields = dataclasses.asdict(tally)
    with contextlib.suppress(OSError):
        write_atomically(path, lambda file: np.savez_compressed(file, **fields))
