"""Prompt styles of CultureSPA: who a question is put to, and what stands before it.

    unaware   a real person with own values, of no named culture
    p1        culture-aware: that person, of the country
    p2        cross-culture thinking: p1 and the countries most like it and most unlike it
    p3        self-alignment: `unaware`, then related questions with the country's majority answers
    p1p3      p1, then those questions           p2p3      p2, then those questions

Nearness of countries (p2) and majority answers (p3) are read from a survey. The paper reads them
from the very survey that the model is tested on. `examples="leak_free"` takes both from another
one, and from no topic of the question asked; `Interviews.leaky` says which style reads the test.

Method: Xu, Leng, Yu and Xiong, NAACL 2025 (CultureSPA, arXiv 2410.12971). The texts are this
package's own (`jaxalign/prompts`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.core.templates import render
from jaxalign.methods.prompting import icl_examples
from jaxalign.prompts import Message, Prompts, icl_messages, load_prompts, read_prompt
from jaxalign.stats.alignment import between_countries
from jaxalign.surveys.hofstede import country_name
from jaxalign.surveys.survey import Item, Survey
from jaxalign.surveys.tables import make_tables

Style = Literal["unaware", "p1", "p2", "p3", "p1p3", "p2p3"]
Examples = Literal["paper", "leak_free"]
STYLES: tuple[Style, ...] = ("unaware", "p1", "p2", "p3", "p1p3", "p2p3")


@dataclasses.dataclass(frozen=True)
class Texts:
    """Prompt texts as jinja2 sources. `cross_culture` sees `persona`, the rendered persona line,
    and `similar` and `different`, lists of country names; `unaware` sees nothing."""

    prompts: Prompts
    unaware: str
    cross_culture: str


def load_texts(folder: Path | None = None) -> Texts:
    """The package's texts, each replaced by `folder/NAME.jinja` where that file exists."""
    prompts = load_prompts(folder)  # refuses a folder that is not there
    own = [read_prompt("unaware", folder), read_prompt("cross_culture", folder)]
    return Texts(prompts, *own)


def _system(name: str, source: str, **values: object) -> Message:
    text = render(f"{name}.jinja", source, trim_blocks=False, **values)
    return {"role": "system", "content": text}


def named(country: str) -> str:
    """A country's name in English; of a survey's own groups and names, what it calls them."""
    try:
        return country_name(country)
    except UserError:
        return country


def similar_and_different(
    survey: Survey, country: str, countries: Sequence[str], count: int = 3
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The `count` countries most like `country`, nearest first, and the most unlike, farthest
    first, by alignment of majority answers. Equal ones stay in the order of `countries`.

    Where there are not 2 x `count` others with answers to the same items, the near half of them and
    the rest. Raises UserError where the survey lacks a country, and where there is no other at all.
    """
    others = [other for other in countries if other != country]
    score = between_countries(make_tables(survey, [country, *others]))[0, 1:]
    known = int(np.sum(~np.isnan(score)))
    if not known:
        raise UserError(
            f"{country} and {', '.join(others) or 'others'} answered no item of {survey.name!r} in "
            "common; leave the country out"
        )
    nearest = np.argsort(-score, kind="stable")  # NaN comes last in either order
    farthest = np.argsort(score, kind="stable")
    near, far = min(count, (known + 1) // 2), min(count, known // 2)
    return tuple(others[i] for i in nearest[:near]), tuple(others[i] for i in farthest[:far])


@dataclasses.dataclass(frozen=True)
class Interviews:
    """How every style asks. `survey` is the one the model is tested on.

    `source` is where `leak_free` reads countries from; it must be another survey.
    """

    texts: Texts
    survey: Survey
    countries: tuple[str, ...]
    examples: Examples = "paper"
    source: Survey | None = None
    count: int = 5
    neighbours: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.examples not in ("paper", "leak_free"):
            raise UserError(f"examples={self.examples!r}; paper or leak_free")
        if self.examples == "leak_free":
            _check_source(self.survey, self.source)

    @property
    def shown(self) -> Survey:
        """The survey whose answers prompts may contain."""
        return self.survey if self.examples == "paper" else self.source

    def leaky(self, style: Style) -> bool:
        """Whether a prompt of this style depends on answers of the test survey."""
        return self.examples == "paper" and style not in ("unaware", "p1")

    def lead_in(self, style: Style, country: str, item: Item) -> list[Message]:
        """What stands before `item`: the system message and, for p3, the examples' turns."""
        if style not in STYLES:
            raise UserError(f"style {style!r} is unknown; choose from {', '.join(STYLES)}")
        if style != "unaware":
            self._check_country(country)
        first = self._line(style.removesuffix("p3") or "unaware", country)
        if not style.endswith("p3"):
            return [first]
        majority = self._majorities[country]
        shown = [(example, majority[example.id]) for example in self.examples_for(item)]
        return [first, *icl_messages(self.texts.prompts, shown)]

    def conversation(self, style: Style, country: str, item: Item) -> list[Message]:
        """The lead-in and the question."""
        return [*self.lead_in(style, country, item), self.texts.prompts.user(item)]

    def groups(self, style: Style, items: Sequence[Item]) -> list[list[int]]:
        """Positions in `items`, together where a country's lead-in is the same for all of them."""
        if not style.endswith("p3"):
            return [list(range(len(items)))] if items else []
        found: dict[tuple[str, ...], list[int]] = {}
        for q, item in enumerate(items):
            found.setdefault(tuple(e.id for e in self.examples_for(item)), []).append(q)
        return list(found.values())

    def examples_for(self, item: Item) -> tuple[Item, ...]:
        """The questions that p3 shows before `item`, the same for every country.

        paper: other questions of the test survey, those of the item's topic first. leak_free: of
        the other survey, of other topics. In an order drawn by the seed, so that items of a topic
        share them. As many as there are where those are fewer than `count`; UserError for none.
        """
        others = [e for e in self._order if (e.stem, e.text) != (item.stem, item.text)]
        if self.examples == "paper":
            others.sort(key=lambda example: example.topic != item.topic)
        else:
            others = [example for example in others if example.topic != item.topic]
        if not others:
            raise UserError(
                f"item {item.id!r}: {' '.join(self.countries)} all answered no question of "
                f"{self.shown.name!r} that may be shown before it; give a survey with more of them"
            )
        return tuple(others[: self.count])

    @functools.cached_property
    def _order(self) -> tuple[Item, ...]:
        """Every item that all countries answered, topics taking turns, as the seed draws them."""
        answers = [self.shown.distributions.get(country, {}) for country in self.countries]
        answered = sum(all(item.id in given for given in answers) for item in self.shown.items)
        return icl_examples(self.shown, self.countries, answered, self.seed)

    @functools.cached_property
    def _majorities(self) -> dict[str, dict[str, int]]:
        return {country: self.shown.majority(country) for country in self.countries}

    @functools.cached_property
    def _neighbours(self) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        return {
            country: similar_and_different(self.shown, country, self.countries, self.neighbours)
            for country in self.countries
        }

    def _line(self, style: str, country: str) -> Message:
        """The system message."""
        if style == "unaware":
            return _system("unaware", self.texts.unaware)
        persona = self.texts.prompts.system(named(country))
        if style == "p1":
            return persona
        near, far = (list(map(named, group)) for group in self._neighbours[country])
        return _system(
            "cross_culture", self.texts.cross_culture,
            persona=persona["content"], similar=near, different=far,
        )  # fmt: skip

    def _check_country(self, country: str) -> None:
        if country not in self.countries:
            raise UserError(f"country {country!r} is not among {' '.join(self.countries)}")


def _check_source(survey: Survey, source: Survey | None) -> None:
    """Raise UserError unless `source` can stand in for the test survey without being it."""
    if source is None:
        raise UserError("examples='leak_free' needs another survey to take answers from")
    tested = {(item.stem, item.text) for item in survey.items}
    if shared := [item.id for item in source.items if (item.stem, item.text) in tested]:
        raise UserError(
            f"{source.name!r} shares {len(shared)} questions with the test survey "
            f"{survey.name!r} ({shared[0]}, ...): examples from it would not be leak-free"
        )
