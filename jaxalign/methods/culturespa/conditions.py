"""CultureSPA's prompt styles as conditions that any survey may be asked under."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxalign.methods.base import Condition
from jaxalign.methods.culturespa.styles import NO_GROUP, Style, StylePrompts, groups_asked
from jaxalign.prompts import Message, Prompts
from jaxalign.surveys.survey import Item


@dataclasses.dataclass(frozen=True)
class InStyle(Condition):
    """One of CultureSPA's prompt styles, for one group.

    Attributes:
        style: "unaware", "p1", "p2", "p3", "p1p3" or "p2p3".
        prompts: the texts, and the survey that groups' answers are read from.
        group: the group that is asked for; None for "unaware", which names none.

    >>> from jaxalign.methods.culturespa.styles import StylePrompts, load_texts
    >>> from jaxalign.pocket.society import held_out_survey
    >>> prompts = StylePrompts(load_texts(), held_out_survey(), ("USA", "CHN"))
    >>> InStyle("p1", prompts, "CHN").name
    'p1 CHN'
    """

    style: Style
    prompts: StylePrompts = dataclasses.field(repr=False)
    group: str | None = None

    @property
    def name(self) -> str:
        """Label of the condition in results."""
        return self.style if self.group is None else f"{self.style} {self.group}"

    def lead_ins(
        self, prompts: Prompts, items: Sequence[Item]
    ) -> tuple[list[list[Message]], np.ndarray]:
        """Return what stands before each item: p3 shows other examples on other topics."""
        different, number_Q = [], np.zeros(len(items), int)
        for positions in self.prompts.same_lead_in(self.style, items):
            number_Q[positions] = len(different)
            first, group = items[positions[0]], self.group or NO_GROUP[0]
            different.append(self.prompts.lead_in(self.style, group, first, like=prompts))
        return different, number_Q


def in_style(style: Style, prompts: StylePrompts, groups: Sequence[str]) -> tuple[InStyle, ...]:
    """Return a style's conditions: one for each group, or a single one if it names none."""
    return tuple(InStyle(style, prompts, group or None) for group in groups_asked(style, groups))
