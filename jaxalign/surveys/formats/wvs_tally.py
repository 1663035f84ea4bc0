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
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.core.files import cache_folder, write_atomically
from jaxalign.surveys.formats.files import bad
from jaxalign.surveys.formats.wvs_cells import INTERVIEW, MISSING, MOST_CODES, WEIGHT

_CACHE_FORMAT = 2

RowHashes = Callable[[set[int]], dict[int, int]]
"""Returns a hash of the whole of each of some rows of a file."""


@dataclasses.dataclass(frozen=True)
class Block:
    """The answers of R consecutive respondents to Q items."""

    first_row: int  # in the file, whose header is row 1
    groups: tuple[str, ...]  # distinct: countries, or groups within them
    group_R: np.ndarray  # index into `groups`; -1 for a respondent who is in none
    weight_R: np.ndarray  # float64
    codes_RxQ: np.ndarray  # int16; MISSING, or a code in [0, MOST_CODES)
    interview_R: np.ndarray | None = None  # int64 hashes, if the file numbers its interviews
    rows_R: np.ndarray | None = None  # the respondents' rows, where blank ones stand between them

    def row(self, i: int) -> int:
        """Return the row of the file that holds respondent `i` of the block."""
        return self.first_row + i if self.rows_R is None else int(self.rows_R[i])


@dataclasses.dataclass(frozen=True)
class Tally:
    """The counts of a whole file. Weights are in the file's unit (about 1 for a respondent).

    Attributes:
        version: Version of the survey, such as "6-0".
        countries: The groups: C countries, or groups within countries.
        items: The Q items.
        weight_CxQxK: float64: sum of the weights of the respondents who gave code K.
        respondents_CxQxK: int64: number of the respondents who gave code K.
        people_Cx3: float64: number of respondents, and sums of their weights and squared weights.
        rows: Number of respondents.
        outside: Number of respondents that are in no group.
    """

    version: str
    countries: tuple[str, ...]
    items: tuple[str, ...]
    weight_CxQxK: np.ndarray
    respondents_CxQxK: np.ndarray
    people_Cx3: np.ndarray
    rows: int
    outside: int = 0

    def effective(self, c: int) -> float:
        """Return the effective number of respondents of a group: (sum of w)² / sum of w²."""
        _, total, squares = self.people_Cx3[c]
        return float(total**2 / squares) if squares > 0 else 0.0


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
        self._people: dict[str, np.ndarray] = {}
        self._interviews: dict[int, int] = {}  # hash of an interview -> its row
        self._suspects: dict[int, list[int]] = {}  # row -> later rows that look the same
        self._rows = self._outside = 0

    def add(self, block: Block) -> None:
        """Count one block. Raise UserError for a bad weight or code."""
        self._check_weights(block)
        if block.interview_R is not None:
            self._compare_interviews(block, block.interview_R)
        self._rows += len(block.group_R)
        # A respondent in no group is counted in one behind the last, which is dropped.
        group_R = np.where(block.group_R < 0, len(block.groups), block.group_R)
        # One bin for each (group, item, code): code K is in bin K + 1, MISSING in bin 0.
        shape = (len(block.groups) + 1, len(self._items), MOST_CODES + 1)
        cells_RxQ = block.codes_RxQ + np.arange(1, shape[1] * shape[2], shape[2])[None, :]
        cells_RxQ += (group_R * (shape[1] * shape[2]))[:, None]
        cells, size = cells_RxQ.reshape(-1), int(np.prod(shape))
        # Count respondents first, then sum their weights over the same bins; drop the missing.
        respondents = np.bincount(cells, minlength=size).reshape(shape)[..., 1:]
        if (respondents.any(axis=0) & ~self._allowed_QxK).any():
            raise self._unknown_code(block)
        weights = np.repeat(block.weight_R, shape[1])
        weights = np.bincount(cells, weights, minlength=size).reshape(shape)[..., 1:]
        people = [
            np.bincount(group_R, block.weight_R**power, minlength=shape[0]) for power in (0, 1, 2)
        ]
        self._outside += int(people[0][-1])
        for i, name in enumerate(block.groups):
            if name not in self._weights:
                self._weights[name] = np.zeros((shape[1], MOST_CODES))
                self._respondents[name] = np.zeros((shape[1], MOST_CODES), np.int64)
                self._people[name] = np.zeros(3)
            self._weights[name] += weights[i]
            self._respondents[name] += respondents[i]
            self._people[name] += [column[i] for column in people]

    def tally(self, version: str, hashes: RowHashes | None = None) -> Tally:
        """Return the sum of all blocks.

        Args:
            version: Version of the survey.
            hashes: Hashes of whole rows, by which interviews that look the same are judged.

        Raises:
            UserError: There were no respondents, or an interview is there twice.
        """
        if not self._rows:
            raise bad(self._path, "there are no respondents below the header")
        if self._suspects and hashes is not None:
            self._refuse_repeats(hashes)
        countries = tuple(sorted(name for name, people in self._people.items() if people[0]))
        shape = (len(countries), len(self._items), MOST_CODES)
        return Tally(
            version,
            countries,
            self._items,
            np.array([self._weights[c] for c in countries], np.float64).reshape(shape),
            np.array([self._respondents[c] for c in countries], np.int64).reshape(shape),
            np.array([self._people[c] for c in countries], np.float64).reshape(-1, 3),
            self._rows,
            self._outside,
        )

    def _check_weights(self, block: Block) -> None:
        wrong = ~(np.isfinite(block.weight_R) & (block.weight_R >= 0))
        if wrong.any():
            i = int(np.argmax(wrong))
            raise bad(
                self._path,
                f"weight {block.weight_R[i]:g} is missing or negative; all respondents need one",
                block.row(i),
                WEIGHT,
            )

    def _compare_interviews(self, block: Block, interview_R: np.ndarray) -> None:
        """Note the interviews that look like an earlier one: same number, group and answers."""
        factors = np.random.default_rng(0).integers(1, 2**62, block.codes_RxQ.shape[1])
        hashes_R = block.codes_RxQ.astype(np.int64) @ factors  # may overflow, which does no harm
        keys = zip(
            block.group_R.tolist(),
            interview_R.tolist(),
            block.weight_R.tolist(),
            hashes_R.tolist(),
            strict=True,
        )
        for i, (group, *key) in enumerate(keys):
            row = block.row(i)
            name = block.groups[group] if group >= 0 else ""
            first = self._interviews.setdefault(hash((name, *key)), row)
            if first != row:
                self._suspects.setdefault(first, []).append(row)

    def _refuse_repeats(self, hashes: RowHashes) -> None:
        """Raise UserError if two rows that look the same in the columns read are the same.

        Different respondents may have one number, and gave the same answers where few are read.
        """
        alike = [[first, *rows] for first, rows in self._suspects.items()]
        whole = hashes({row for rows in alike for row in rows})
        repeats = []
        for rows in alike:
            seen: dict[int, int] = {}
            for row in rows:
                first = seen.setdefault(whole[row], row)
                repeats += [(row, first)] if first != row else []
        if repeats:
            row, first = min(repeats)
            message = f"the interview is in row {first} already; is the file joined to itself?"
            raise bad(self._path, message, row, INTERVIEW)

    def _unknown_code(self, block: Block) -> UserError:
        known_RxQ = self._allowed_QxK[np.arange(len(self._items))[None, :], block.codes_RxQ]
        wrong_RxQ = ~known_RxQ & (block.codes_RxQ != MISSING)
        i, q = np.argwhere(wrong_RxQ)[0]
        codes = np.flatnonzero(self._allowed_QxK[q]).tolist()
        message = f"code {block.codes_RxQ[i, q]} is not one of the item's codes {codes}; correct "
        message += "it, or treat such codes as missing with `drop_unknown_codes`"
        return bad(self._path, message, block.row(int(i)), self._items[q])


def count(
    path: Path,
    blocks: Iterable[Block],
    items: Sequence[str],
    allowed: Sequence[Sequence[int]] | None,
    version: str,
    hashes: RowHashes | None = None,
) -> Tally:
    """Return the tally of all `blocks`; the arguments are those of `Counter` and `tally`."""
    counter = Counter(path, items, allowed)
    for block in blocks:
        counter.add(block)
    return counter.tally(version, hashes)


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
                arrays["people_Cx3"],
                int(arrays["rows"]),
                int(arrays["outside"]),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def save_tally(path: Path, tally: Tally) -> None:
    """Write a tally to the cache. A cache that cannot be written to is not an error."""
    fields = dataclasses.asdict(tally)
    with contextlib.suppress(OSError):
        write_atomically(path, lambda file: np.savez_compressed(file, **fields))
