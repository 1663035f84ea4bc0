"""Which questions are most like a question: by their words, or by a file that ranks them.

P3 shows the survey's questions that are most like the one asked. CultureSPA (Xu et al. 2025)
released the order it used, as a JSON file; `read_ranking` reads it. Without such a file questions
are compared by their words (`WordSimilarity`). On the 259 items of that release, 71 % of the five
nearest questions by words are among the released five, and 77 % of these are of the item's topic.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.surveys.formats.files import bad, read_json, read_table, read_text, sha256_of_file
from jaxalign.surveys.survey import Item

_WORD = re.compile(r"\w\w+")
_DECIMALS = 9  # below these, the order would depend on how a machine sums


class Similarity(Protocol):
    """Orders questions by how like another one they are."""

    def rank(self, item: Item, candidates: Sequence[Item]) -> list[Item]:
        """Return the candidates that are like `item` at all, the most similar first."""


class WordSimilarity:
    """Cosine similarity of questions' words, weighted by how rare they are (TF-IDF).

    A word is a run of two or more letters or digits, in lower case; options are left out. A word
    weighs log((1 + n) / (1 + d)) + 1 if d of the n questions have it, times how often the question
    does. These are the conventions of scikit-learn's `TfidfVectorizer`.

    Args:
        items: The questions that may be shown; they give the words and their weights.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        counts = [_words(item) for item in items]
        with_word = Counter(word for count in counts for word in count)
        self._column = {word: w for w, word in enumerate(sorted(with_word))}
        documents_W = np.array([with_word[word] for word in self._column], float)
        self._weight_W = np.log((1 + len(items)) / (1 + documents_W)) + 1
        self._place = {item: q for q, item in enumerate(items)}
        self._vectors_QxW = np.stack([self._vector(count) for count in counts])

    def to_all(self, item: Item) -> np.ndarray:
        """Return the similarity of `item` to every question, float64 [Q] in [0, 1]."""
        return np.round(self._vectors_QxW @ self._vector(_words(item)), _DECIMALS)

    def rank(self, item: Item, candidates: Sequence[Item]) -> list[Item]:
        """Return all candidates, the most similar first; equal ones stay in their order.

        Args:
            item: Any question; words that the questions to be shown lack do not count.
            candidates: Some of the questions to be shown.
        """
        similarity_Q = self.to_all(item)
        return sorted(candidates, key=lambda other: -similarity_Q[self._place[other]])

    def _vector(self, count: Counter[str]) -> np.ndarray:
        vector_W = np.zeros(len(self._column))
        for word, times in count.items():
            if (w := self._column.get(word)) is not None:
                vector_W[w] = times * self._weight_W[w]
        length = math.sqrt(float(vector_W @ vector_W))
        return vector_W / length if length else vector_W


def _words(item: Item) -> Counter[str]:
    return Counter(_WORD.findall(f"{item.stem} {item.text}".lower()))


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The order of questions that a file gives.

    Attributes:
        path: The file.
        sha256: Hash of its bytes.
        ranked: The ids of the questions most like each item's, the most similar first.
    """

    path: Path
    sha256: str
    ranked: Mapping[str, tuple[str, ...]] = dataclasses.field(repr=False)

    def rank(self, item: Item, candidates: Sequence[Item]) -> list[Item]:
        """Return the candidates that the file ranks, in its order.

        Raises:
            UserError: If the file says nothing about the item.
        """
        if item.id not in self.ranked:
            raise UserError(f"{self.path}: no ranking for item {item.id!r}; add it to the file")
        by_id = {candidate.id: candidate for candidate in candidates}
        return [by_id[name] for name in self.ranked[item.id] if name in by_id]


def read_ranking(path: Path | str) -> Ranking:
    """Read which questions are most like each question.

    Two forms are read:

        {"Q1": ["Q5", "Q4", ...], "Q2": [...]}       JSON, as CultureSPA released it
        item,similar                                 CSV, a line per pair, the most similar first
        Q1,Q5
        Q1,Q4

    Ids that no survey has may be in the file; they are skipped when questions are chosen.

    Raises:
        UserError: If the file cannot be read, has neither form, or ranks a question twice.
    """
    path = Path(path)
    text = read_text(path)
    ranked: dict[str, list[str]] = {}
    if text.lstrip().startswith(("{", "[")):
        content = read_json(path)
        if not isinstance(content, dict):
            raise bad(path, 'the top level must be an object such as {"Q1": ["Q5", "Q4"]}')
        for item, names in content.items():
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise bad(path, f"item {item!r}: must be a list of the ids of other items")
            ranked[item] = names
    else:
        for _, cells in read_table(path, ("item", "similar"), text).rows:
            ranked.setdefault(cells["item"].strip(), []).append(cells["similar"].strip())
    for item, names in ranked.items():
        if repeated := [name for name, times in Counter(names).items() if times > 1]:
            raise bad(path, f"item {item!r}: ranks {repeated[0]!r} twice")
    return Ranking(path, sha256_of_file(path), {i: tuple(names) for i, names in ranked.items()})
