"""Former names of the conditions and of asking; goes once nothing imports it."""

from __future__ import annotations

from collections.abc import Sequence

from jaxalign.answering.ask import ask_after_messages as ask
from jaxalign.methods.conditions import InContext, Persona, Plain
from jaxalign.methods.conditions import draw_examples as icl_examples
from jaxalign.prompts import Message, Prompts
from jaxalign.surveys.survey import Item, Survey

BASELINES = ("naive", "persona", "icl")

__all__ = ["BASELINES", "ask", "icl_examples", "lead_in"]


def lead_in(
    baseline: str, prompts: Prompts, country: str, survey: Survey, examples: Sequence[Item]
) -> list[Message]:
    """What stands before the question: nothing, the persona line, or that and the examples."""
    if baseline == "naive":
        return Plain().lead_in(prompts)
    if baseline == "persona":
        return Persona(country).lead_in(prompts)
    return InContext(country, survey, tuple(examples)).lead_in(prompts)
