"""The two sets of CulturalBench as they are asked: wording of the rows, countries, examples.

Easy is asked with its four options in the order of the file. Each row of Hard becomes a question of
its own, worded by `judgement.jinja`, with the options true and false. Options carry the numbers 1,
2, ... and not the letters of the published file, because a survey's items are answered by number
here.

Examples in context are other questions of the same set about the same country, with their right
answers. They are drawn once for each country, by the seed and the labels of its questions (so Easy
and Hard show the same ones), and left out of the score of the method that shows them. Of a question
of Hard two rows are shown, a true one and a false one: three false rows to one true would teach to
say false.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.core.templates import render
from jaxalign.surveys.choice_test import ChoiceTest
from jaxalign.surveys.formats import FORMATS, read_any
from jaxalign.surveys.formats.cultural_bench import (
    EASY,
    FALSE,
    HARD,
    TRUE,
    country_code,
    region_of,
)
from jaxalign.surveys.formats.files import FileStart
from jaxalign.surveys.survey import Item

SetName = Literal["easy", "hard"]
_TEST_OF: Mapping[SetName, str] = {"easy": EASY, "hard": HARD}
_FORMAT_OF: Mapping[SetName, str] = {"easy": "cultural-bench-easy", "hard": "cultural-bench-hard"}


@dataclasses.dataclass(frozen=True)
class BenchSet:
    """One of the two sets, ready to be asked.

    Attributes:
        key: "easy" or "hard".
        test: The questions of the file that are asked.
        items: Its items as a model is asked them.
        countries_Q: What each item's country is called in results: its ISO 3166 code, or as the
            file spells it where that is unknown.
        examples: By country, positions of the items that are shown as examples, in order. A country
            with too few questions has none.
    """

    key: SetName
    test: ChoiceTest
    items: tuple[Item, ...]
    countries_Q: tuple[str, ...]
    examples: Mapping[str, tuple[int, ...]]

    @property
    def example_questions(self) -> frozenset[str]:
        """Labels of the questions of which any row is shown as an example."""
        return frozenset(
            self.test.groups[position] for rows in self.examples.values() for position in rows
        )

    @property
    def unknown_countries(self) -> tuple[str, ...]:
        """Names of countries that CulturalBench does not ask about."""
        names = dict.fromkeys(self.test.countries)
        return tuple(name for name in names if region_of(name) is None)


def read_set(
    key: SetName,
    path: Path | str,
    judgement: str,
    *,
    countries: Sequence[str] = (),
    icl_examples: int = 3,
    seed: int = 0,
    limit: int | None = None,
) -> BenchSet:
    """Read one set and prepare it.

    Args:
        key: Which of the two sets the file has to hold.
        path: The file.
        judgement: Source of the text that words a row of Hard.
        countries: Codes or names of the countries to keep; none keeps all.
        icl_examples: Number of questions per country that are shown as examples.
        seed: Seed of the examples.
        limit: Number of questions to keep, spread evenly over the set; None keeps all.

    Raises:
        UserError: Something is wrong with the file, it holds something else, or has no question
            about a country that was asked for.
    """
    start = FileStart(Path(path))
    for other, name in _TEST_OF.items():
        if other != key and FORMATS[_FORMAT_OF[other]]().recognises(start):
            raise UserError(f"`{key}` {path}: this is {name}, not {_TEST_OF[key]}")
    # Read as what it should be, so that a message names the columns it lacks.
    test = read_any(path, _FORMAT_OF[key], quiet=True)  # the run tells its notes
    if countries:
        test = _about(test, [country_code(name) for name in countries], f"`{key}` {path}")
    test = test.spread(limit)
    codes_Q = tuple(map(country_code, test.countries))
    items = test.items if key == "easy" else judgements(test, judgement)
    examples = _examples(test, codes_Q, icl_examples, seed) if icl_examples else {}
    return BenchSet(key, test, items, codes_Q, examples)


def judgements(test: ChoiceTest, source: str) -> tuple[Item, ...]:
    """Return the rows of Hard as questions of their own, each of which proposes an answer."""
    return tuple(
        dataclasses.replace(
            item,
            stem="",
            text=render("judgement.jinja", source, question=item.stem, answer=item.text),
        )
        for item in test.items
    )


def _about(test: ChoiceTest, codes: Sequence[str], where: str) -> ChoiceTest:
    """Return the questions about some countries. Raise UserError for one that has none."""
    found = list(map(country_code, test.countries))
    for code in codes:
        if code not in found:
            known = ", ".join(sorted(set(found)))
            raise UserError(f"`countries` {code}: {where} has no question about it; it has {known}")
    kept = [q for q, code in enumerate(found) if code in codes]

    return test.at(kept)


def _examples(
    test: ChoiceTest, codes_Q: Sequence[str], count: int, seed: int
) -> dict[str, tuple[int, ...]]:
    """Draw each country's example rows; countries that would have no question left get none."""
    rows_of: dict[str, dict[str, list[int]]] = {}
    for q, (code, question) in enumerate(zip(codes_Q, test.groups, strict=True)):
        rows_of.setdefault(code, {}).setdefault(question, []).append(q)
    examples = {}
    for code, questions in rows_of.items():
        if len(questions) <= count:
            continue
        random = np.random.default_rng([seed, zlib.crc32(code.encode())])
        labels = sorted(questions)
        drawn = [labels[i] for i in random.permutation(len(labels))[:count]]
        rows = [row for label in drawn for row in _shown_rows(test, questions[label], random)]
        examples[code] = tuple(rows)
    return examples


def _shown_rows(test: ChoiceTest, rows: Sequence[int], random: np.random.Generator) -> list[int]:
    """Return the rows of one example question: the only one, or a true and a false one."""
    if len(rows) == 1:
        return list(rows)
    shown = []
    for truth in (TRUE, FALSE):
        of_truth = [row for row in rows if test.answers[row] == truth]
        if of_truth:
            shown.append(of_truth[int(random.integers(len(of_truth)))])
    return [shown[i] for i in random.permutation(len(shown))]
