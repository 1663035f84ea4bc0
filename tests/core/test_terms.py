"""Abbreviations are found as words, in the order of the text, and only where they are used."""

from __future__ import annotations

import pytest

from jaxalign.core.terms import TERMS, abbreviations, meaning, terms_in


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("below the plain question in DEU and PDIs", []),
        ("P1 + P3, then P2", ["P1", "P3", "P2"]),
        ("UAI weighs more than PDI (C = 50)", ["UAI", "PDI", "C"]),
        ("presentations A, B, C and D", []),
        ("The constant C is free. Losses with another C differ.", ["C"]),
        ("tuned by Sep_CMA_ES or CMA-ES, not by xSNES", ["CMA-ES"]),
        ("C: PDI 12, IDV 3", ["C", "PDI", "IDV"]),
    ],
)
def test_terms_are_found_as_words(text: str, found: list[str]) -> None:
    assert [term.short for term in terms_in([text])] == found


def test_a_line_spells_out_what_is_used() -> None:
    assert abbreviations(["nothing here"]) == ""
    line = abbreviations(["RDS", "and DE"])
    assert line == f"Abbreviations: RDS: {meaning('RDS')}; DE: {meaning('DE')}."
    assert len({term.short for term in TERMS}) == len(TERMS)
