"""The first lines of every report: does the survey measure anything on this model?

The numbers are those of `jaxalign.stats.validity`, `jaxalign.stats.agreement` and
`jaxalign.stats.lines`; nothing is computed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jaxalign.report.document import Estimate, Note, Table, Text
from jaxalign.report.wording import IDENTICAL, MINUS, NO_SIGNAL, countries, number, with_bounds

Record = Mapping[str, Any]

_EXPLANATION = (
    "The model was asked as a person of each country, and its answers were averaged over the "
    "presentations. Two things must hold before any score on this model is read. Where its answers "
    "differ between countries, they must differ the way people's do: the correlation of deviations "
    "from the mean over countries needs an interval above 0. And its answers must be closer to "
    "people's than a uniform answer, one that takes every option equally often. Similarity is 1 "
    "where the shares of all options are the people's own."
)
_FAILED = f"Every verdict below therefore reads “{NO_SIGNAL}”: a difference and its absence alike."


def has_signal(gate: Record | None) -> bool | None:
    """Return whether the validity gate is passed; None where that cannot be told."""
    return None if gate is None else gate["passes"]


def allows_verdicts(gate: Record | None) -> bool:
    """Return whether verdicts may be read: the gate does not say that they may not."""
    return has_signal(gate) is not False


def gate_note(gate: Record | None, failed: str = _FAILED) -> Note:
    """Return the verdict of the validity gate, the first line of a report.

    Args:
        gate: Record of the gate; None if it was not made.
        failed: What follows from a gate that is not passed.
    """
    if gate is None:
        return Note(
            "No survey with people's answers was asked under personas, so that nothing here says "
            "whether the instrument carries signal on this model.",
            "label",
            "Validity gate: not made.",
        )
    lead = _VERDICTS[gate["passes"]]
    sentence = re.sub(r"(?<=[\[( ])-(?=\d)", MINUS, gate["sentence"])
    text = sentence + (f" {failed}" if gate["passes"] is False else "")
    return Note(text, "label", f"Validity gate: {lead}.")


def judged(record: Any, gate: Record | None) -> Any:
    """Return a record of results in which every `verdict` reads as the validity gate allows.

    Args:
        record: Any nesting of dictionaries and lists; it is left alone.
        gate: Record of the gate.
    """
    if allows_verdicts(gate):
        return record
    if isinstance(record, Mapping):
        return {
            key: NO_SIGNAL if _is_verdict(key, value) else judged(value, gate)
            for key, value in record.items()
        }
    return [judged(value, gate) for value in record] if isinstance(record, list) else record


def _is_verdict(key: str, value: Any) -> bool:
    """Return whether an entry judges a difference.

    That there are no answers, or that two sets of answers are the same, judges nothing.
    """
    facts = ("no answers", IDENTICAL)
    return key == "verdict" and isinstance(value, str) and value not in facts


def gate_blocks(by_name: Mapping[str, Record | None]) -> list[Text | Table]:
    """Return the numbers behind the verdict.

    Args:
        by_name: Records of the gate, by what each is over or about; the first is the verdict.
    """
    known = {name: gate for name, gate in by_name.items() if gate}
    if not known:
        return []
    gates = list(known.values())
    gate, rows = gates[0], []
    for name, words, needed in _MEASURED:
        rows.append((words, *(Estimate.read(g[name]) for g in gates), needed))
    if any(g["permutation"] for g in gates):
        count = next(g["permutation"]["assignments"] for g in gates if g["permutation"])
        words = f"Permutation test, p-value of {count:,} assignments of personas to countries"
        values = [(g["permutation"] or {}).get("p_value") for g in gates]
        rows.append((words, *values, ""))
    rows.append(("Verdict", *(_VERDICTS[g["passes"]] for g in gates), "both"))
    return [
        Text(_EXPLANATION),
        Table(
            f"Validity gate: {countries(gate['countries'])}, {gate['items']} items with an order; "
            "95 % intervals over presentations, countries and items",
            ("Measured", *known, "Needed"),
            tuple(rows),
            3,
        ),
    ]


_MEASURED = (
    ("correlation", "Correlation of personas' deviations with people's", "interval above 0"),
    ("over_uniform", "Similarity to people, personas minus a uniform answer", "interval above 0"),
    ("similarity", "Similarity of personas to people", ""),
    ("uniform_similarity", "Similarity of a uniform answer to people", ""),
)
_VERDICTS = {True: "passed", False: "not passed", None: "cannot be told"}


# Do personas differ as people do?


def dispersion_words(name: str, dispersion: Record | None, signal: bool) -> str:
    """State whether answers for different countries are more alike than people's."""
    if not dispersion or dispersion["ratio"] is None:
        return ""
    ratio = Estimate.read(dispersion["ratio"])
    if not signal:
        words = NO_SIGNAL
    elif ratio.has_interval and ratio.high < 1:
        words = "more alike than people"
    elif ratio.has_interval and ratio.low > 1:
        words = "more different than people"
    else:
        words = "no clear difference (the interval contains 1)"
    return (
        f"{name}: item means differ between countries by {number(dispersion['personas'], 3)} of a "
        f"scale's length (standard deviation), people's by {number(dispersion['people'], 3)}, a "
        f"ratio of {with_bounds(ratio, 2)}: {words}."
    )


def dispersion_table(rows: Mapping[str, Record | None]) -> Table | None:
    """Return the spread of answers between countries, of personas and of people.

    Args:
        rows: By way of answering, a record of `jaxalign.stats.agreement.PersonaDispersion`.
    """
    cells = tuple(
        (name, d["personas"], d["people"], Estimate.read(d["ratio"]))
        for name, d in rows.items()
        if d
    )
    caption = "Spread of item means between countries, in units of a scale's length"
    columns = ("Asked as", "The model", "People", "Ratio (below 1: more alike than people)")
    return Table(caption, columns, cells, 3) if cells else None


# Do repeated questionnaires agree?


def agreement_words(name: str, agreement: Record | None) -> str:
    """State how far repeated sampled questionnaires agree."""
    if not agreement:
        return ""
    icc = Estimate.read(agreement["icc"])
    alike = (
        f"an intraclass correlation of {with_bounds(icc, 2)}"
        if icc
        else "no intraclass correlation, because the answers do not vary"
    )
    return (
        f"{name}: repeated questionnaires agree with {alike}; {number(100 * agreement['flips'], 0)}"
        f" % of {agreement['items']} items flip, that is, are not answered alike every time."
    )


def agreement_table(rows: Mapping[str, Record | None]) -> Table | None:
    """Return how far repeated sampled questionnaires agree.

    Args:
        rows: By way of answering, a record of `jaxalign.stats.agreement.ReplicateAgreement`.
    """
    cells = tuple(
        (
            name,
            Estimate.read(a["icc"]),
            a["icc_mean"],
            100 * a["flips"],
            100 * a["disagreement"],
            a["repetitions"],
            a["items"],
        )
        for name, a in rows.items()
        if a
    )
    columns = (
        "Asked as",
        "Intraclass correlation, single",
        "of their mean",
        "Items that flip, %",
        "Two replies differ, %",
        "Replies per item",
        "Items",
    )
    caption = (
        "Agreement of repeated sampled questionnaires: 1 where repetitions are equal, 0 where they "
        "vary as much within an item as between items"
    )
    return Table(caption, columns, cells, (0, 2, 2, 0, 0, 1, 0)) if cells else None
