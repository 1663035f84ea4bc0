"""Abbreviations, spelled out: one table for reports, the terminal and `docs/glossary.md`.

A text that uses some of them gets a line that explains those alone, in the order in which they
appear. To add an abbreviation, add it here and in the glossary.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Term:
    """An abbreviation and what it stands for.

    Attributes:
        short: The abbreviation.
        meaning: What it stands for, and in a few words what that is.
        pattern: Regular expression that finds it in a text; default: the abbreviation as a word.
    """

    short: str
    meaning: str
    pattern: str = ""

    def position(self, text: str) -> int:
        """Return where a text uses the abbreviation first; -1 if it does not."""
        pattern = self.pattern or re.escape(self.short)
        found = re.search(rf"(?<![\w-])(?:{pattern})(?!\w)", text)
        return -1 if found is None else found.start()


TERMS = (
    # The survey of the soft-prompt paper, and its scores
    Term("VSM", "Values Survey Module 2013, Hofstede's questionnaire of 24 items"),
    Term("PDI", "power distance"),
    Term("IDV", "individualism"),
    Term("MAS", "masculinity"),
    Term("UAI", "uncertainty avoidance"),
    Term("LTO", "long-term orientation"),
    Term("IVR", "indulgence"),
    Term("C", "the free constant of a score, in points", r"C(?= =|:? PDI)|constant C|another C"),
    Term("WVS", "World Values Survey"),
    # Ways to ask
    Term("ICL", "in-context learning, examples of a country's answers before the question"),
    Term("P1", "culture-aware prompt, as a person of the country"),
    Term("P2", "cross-culture thinking, P1 with similar and different countries named"),
    Term("P3", "self-alignment, questions with the country's answers before the question"),
    # Searches
    Term("DE", "Differential Evolution"),
    Term("CMA-ES", "covariance matrix adaptation evolution strategy", r"(?:\w+_)?CMA[-_]ES"),
    Term("SNES", "separable natural evolution strategy"),
    Term("PSO", "particle swarm optimisation"),
    # CultureSPA
    Term("CRQPC", "culture-related QA pairs collecting, pairs whose answer the country changes"),
    Term("RDS", "random data sampling, as many pairs at random"),
    Term("CDS", "consistent data sampling, as many pairs whose answer stays the same"),
    Term("CCT", "cross-culture thinking, trained on pairs selected under P2"),
    Term("LoRA", "low-rank adaptation of a model's matrices"),
    Term("PEFT", "Hugging Face's library of parameter-efficient fine-tuning"),
    Term("MMLU", "Massive Multitask Language Understanding, a test of general knowledge"),
)
_BY_SHORT = {term.short: term for term in TERMS}


def meaning(short: str) -> str:
    """Return what an abbreviation stands for.

    >>> meaning("PDI")
    'power distance'
    """
    return _BY_SHORT[short].meaning


def terms_in(texts: Iterable[str]) -> tuple[Term, ...]:
    """Return the abbreviations that texts use, in the order in which they appear."""
    whole = "\n".join(texts)
    found = {term: position for term in TERMS if (position := term.position(whole)) >= 0}
    return tuple(sorted(found, key=found.__getitem__))


def abbreviations(texts: Iterable[str]) -> str:
    """Return a line that spells out what texts abbreviate; "" if they abbreviate nothing.

    >>> abbreviations(["the loss of DE, and PDI alone"])
    'Abbreviations: DE: Differential Evolution; PDI: power distance.'
    """
    found = [f"{term.short}: {term.meaning}" for term in terms_in(texts)]
    return f"Abbreviations: {'; '.join(found)}." if found else ""
