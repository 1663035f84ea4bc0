"""The methods that results compare, and what a question is asked under.

A `Method` is a way of getting a model's answers: asking plainly, naming a country, tuning a soft
prompt. Results, tables, plots and reports all take its key, its labels and its colour from the list
below, so that a method is called and drawn alike wherever it appears. To add one, add it here.

    SOFT_PROMPT_METHODS     compared by `jaxalign soft-prompt`
    CULTURAL_BENCH_METHODS  compared by `jaxalign cultural-bench`
    CULTURESPA_METHODS      compared by `jaxalign culturespa`
    PROMPTED, FINE_TUNED    its prompts for the unchanged model, and its fine-tuned models
    SELECTIONS              the same CultureSPA model by how its training data were selected
    METHODS                 all of them, by key

A `Condition` is what a single question is asked under: the messages before it, and optionally a
soft prompt or an adapter. `jaxalign.methods.conditions` has the ready-made ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from jaxalign.lm.lora import Adapter
from jaxalign.prompts import Message, Prompts
from jaxalign.report.document import Key
from jaxalign.report.palette import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    YELLOW,
)
from jaxalign.surveys.survey import Item


@dataclasses.dataclass(frozen=True)
class Method:
    """A way of getting answers from a model, as results and reports name and draw it."""

    key: str
    """Name in `result.json`."""
    label: str
    """Short name, for columns of a table."""
    title: str
    """Name in words, for legends and reports."""
    description: str
    """What the method does, in one sentence."""
    color: str
    """Colour in figures, from `jaxalign.report.palette`."""
    line: str = "-"
    """Matplotlib's line style."""
    marker: str = "o"
    """Matplotlib's marker."""
    width: float = 2.0
    """Line width in points."""

    def legend(self) -> Key:
        """Return the method's entry in the legend of a report's figure."""
        return Key(self.title, self.color, self.line, self.marker, self.width)


NAIVE = Method(
    key="naive",
    label="naive",
    title="plain question",
    description="The question alone, under the model's chat template.",
    color=ORANGE,
    line="--",
    marker="o",
)
PERSONA = Method(
    key="persona",
    label="persona",
    title="persona line",
    description="A system message that names the country, then the question.",
    color=PURPLE,
    line="-.",
    marker="s",
)
ICL = Method(
    key="icl",
    label="ICL",
    title="examples in context",
    description="The persona line, then questions of another survey with the country's answers.",
    color=GREEN,
    line=":",
    marker="^",
)
START = Method(
    key="start",
    label="start",
    title="soft prompt before tuning",
    description="The soft prompt that the search starts from.",
    color=SKY,
    line="-",
    marker="v",
)
TUNED = Method(
    key="tuned",
    label="tuned",
    title="tuned soft prompt",
    description="The soft prompt with the lowest loss that the search found.",
    color=BLUE,
    line="-",
    marker="D",
    width=2.4,
)
GRADIENT = Method(
    key="gradient",
    label="gradient",
    title="same prompt by gradients",
    description="The control for the search: the same soft prompt tuned by Adam.",
    color=YELLOW,
    line="--",
    marker="P",
)
# Not a method of its own: each tuned prompt scored against the other countries.
PERMUTED = Method(
    key="permuted",
    label="others' tuned",
    title="other countries' tuned prompts",
    description="The mean of the other countries' tuned prompts, scored against this country.",
    color=VERMILION,
    line="",
    marker="X",
)

ADAPTED = Method(
    key="adapted",
    label="adapter",
    title="adapted model",
    description="The question alone, put to the model with a low-rank adapter.",
    color=INK,
    marker="s",
)
ADAPTED_PERSONA = Method(
    key="adapted_persona",
    label="adapter, persona",
    title="adapted model, persona line",
    description="The persona line and the question, put to the model with a low-rank adapter.",
    color=MUTED,
    marker="v",
)

UNAWARE = Method(
    key="unaware",
    label="unaware",
    title="unaware",
    description="The model asked as nobody in particular: no country is named.",
    color=ORANGE,
)
P1 = Method(
    key="p1",
    label="P1",
    title="culture-aware (P1)",
    description="The model asked to answer as a person of the country.",
    color=PURPLE,
)
P2 = Method(
    key="p2",
    label="P2",
    title="cross-culture thinking (P2)",
    description="P1, with the most similar and the most different countries named as well.",
    color=SKY,
)
P3 = Method(
    key="p3",
    label="P3",
    title="self-alignment (P3)",
    description="Questions with the country's answers before the question.",
    color=GREEN,
)
P1_P3 = Method(
    key="p1p3",
    label="P1 + P3",
    title="P1 + P3",
    description="P1 and the questions with answers of P3.",
    color=PURPLE,
    line="--",
)
P2_P3 = Method(
    key="p2p3",
    label="P2 + P3",
    title="P2 + P3",
    description="P2 and the questions with answers of P3.",
    color=SKY,
    line="--",
)
JOINT = Method(
    key="joint",
    label="joint",
    title="CultureSPA joint",
    description="One model fine-tuned on all countries' changed answers, asked under P1.",
    color=BLUE,
)
SPECIFIC = Method(
    key="specific",
    label="specific",
    title="CultureSPA specific",
    description="One model per country, fine-tuned on that country's changed answers alone.",
    color=VERMILION,
)
CCT = Method(
    key="cct",
    label="CCT",
    title="CultureSPA CCT",
    description="One model fine-tuned on answers that changed under P2, asked under P2.",
    color=INK,
)
CRQPC = dataclasses.replace(
    JOINT,
    key="crqpc",
    label="CRQPC",
    title="CRQPC (changed)",
    description="The joint model: trained on answers that differ from the unaware model's.",
)
RDS = Method(
    key="rds",
    label="RDS",
    title="RDS (random)",
    description="A joint model trained on as many answers drawn at random.",
    color=YELLOW,
)
CDS = Method(
    key="cds",
    label="CDS",
    title="CDS (unchanged)",
    description="A joint model trained on as many answers equal to the unaware model's.",
    color=MUTED,
)

SOFT_PROMPT_METHODS = (NAIVE, PERSONA, ICL, START, TUNED, GRADIENT)
CULTURAL_BENCH_METHODS = (NAIVE, PERSONA, ICL, TUNED, PERMUTED, ADAPTED, ADAPTED_PERSONA)
PROMPTED = (UNAWARE, P1, P2, P3, P1_P3, P2_P3)
FINE_TUNED = (JOINT, SPECIFIC, CCT, RDS, CDS)
CULTURESPA_METHODS = (*PROMPTED, JOINT, SPECIFIC, CCT)
SELECTIONS = (CRQPC, RDS, CDS)
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.key: method
        for methods in (
            SOFT_PROMPT_METHODS,
            CULTURAL_BENCH_METHODS,
            CULTURESPA_METHODS,
            SELECTIONS,
        )
        for method in methods
    }
)


def soft_prompt_methods(algorithm: str, reading: str) -> dict[str, Method]:
    """Return the soft-prompt methods by key, with the labels that fit one run.

    Args:
        algorithm: name of the run's optimizer. The tuned prompt's label is that name, "DE" for
            Differential Evolution.
        reading: the reading of answers that was tuned, "expected" or "most_likely". The gradient
            control always tunes the expected one, and says so where the search did not.

    >>> methods = soft_prompt_methods("DifferentialEvolution", "most_likely")
    >>> [method.label for method in methods.values()]
    ['naive', 'persona', 'ICL', 'start', 'DE', 'gradient (tuned expected)']
    """
    methods = {method.key: method for method in SOFT_PROMPT_METHODS}
    label = "DE" if algorithm == "DifferentialEvolution" else algorithm
    methods["tuned"] = dataclasses.replace(TUNED, label=label)
    if reading != "expected":
        methods["gradient"] = dataclasses.replace(
            GRADIENT,
            label=f"{GRADIENT.label} (tuned expected)",
            title=f"{GRADIENT.title} (expected reading)",
        )
    return methods


class PlacedPrompt(Protocol):
    """A soft prompt and where it stands: what a condition may carry."""

    @property
    def embeddings_MxD(self) -> Any:  # float32 [M, D], numpy or jax
        """Embeddings of the prompt's M virtual tokens, float32 [M, D]."""

    @property
    def placement(self) -> str:
        """Return "front", "system" or "after", as in `jaxalign.answering.conversations`."""


class Condition(Protocol):
    """What a question is asked under.

    A class of its own needs `name`; it inherits the rest from here where it adds nothing: no group,
    no messages before the question, no soft prompt, no adapter.
    """

    group: str | None = None
    """The group whose answers are asked for, such as a country's ISO 3166 code."""
    soft_prompt: PlacedPrompt | None = None
    """A soft prompt for the question. The question is then the only message besides it."""
    adapter: Adapter | None = None
    """A low-rank adapter to be used on top of the model's weights."""

    @property
    def name(self) -> str:
        """Label of the condition in results, different for each of the conditions asked."""

    def lead_in(self, prompts: Prompts) -> list[Message]:
        """Return the messages that come before the question, worded by `prompts`."""
        return []

    def lead_ins(
        self, prompts: Prompts, items: Sequence[Item]
    ) -> tuple[list[list[Message]], np.ndarray]:
        """Return what stands before each item, for conditions where that depends on the item.

        Returns:
            The different lead-ins, and int [Q], the position of each item's among them.
        """
        return [self.lead_in(prompts)], np.zeros(len(items), int)
