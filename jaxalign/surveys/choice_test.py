"""Questions with one right answer each, as multiple-choice tests have them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable

from jaxalign.core.errors import UserError
from jaxalign.surveys.survey import Item, spread_evenly


@dataclasses.dataclass(frozen=True)
class ChoiceTest:
    """Items of which each has one right answer.

    Attributes:
        name: Name of the test.
        source: Where the questions come from.
        items: The questions.
        answers: Position of the right option of each item.
        countries: The place that each question is about, as the file spells it; "" where the file
            does not say.
        groups: A label for each item. Items with the same label count as one question, which is
            right only when all of them are (CulturalBench Hard). Elsewhere labels differ.
        notes: What a reader of the file should be told, such as questions that were left out. Not
            part of `sha256`.

    Raises:
        UserError: If there are no items, or the lengths differ.
    """

    name: str
    source: str
    items: tuple[Item, ...]
    answers: tuple[int, ...]
    countries: tuple[str, ...]
    groups: tuple[str, ...]
    notes: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    def __post_init__(self) -> None:
        lengths = [len(x) for x in (self.items, self.answers, self.countries, self.groups)]
        if len(set(lengths)) != 1 or not self.items:
            raise UserError(f"test {self.name!r}: {lengths} items, answers, countries and groups")

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of everything that a score depends on."""
        fields = dataclasses.asdict(self)
        fields.pop("notes")
        text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()

    def at(self, positions: Iterable[int]) -> ChoiceTest:
        """Return the same test with only the items at some positions."""
        kept = list(positions)
        fields = ("items", "answers", "countries", "groups")
        chosen = {name: tuple(getattr(self, name)[q] for q in kept) for name in fields}
        return dataclasses.replace(self, **chosen)

    def spread(self, count: int | None) -> ChoiceTest:
        """Return the same test with `count` questions, spread evenly over it; None keeps all.

        A question has all of its items.
        """
        labels = list(dict.fromkeys(self.groups))
        if count is None or count >= len(labels):
            return self
        chosen = {labels[n] for n in spread_evenly(count, len(labels))}
        return self.at(q for q, label in enumerate(self.groups) if label in chosen)
