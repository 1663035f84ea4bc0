"""What a run of `jaxalign ask` says about its own measure: validity, presentations, answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxalign.commands.reports import presentations, validity
from jaxalign.report.document import Estimate, Section, Table, section

Record = Mapping[str, Any]


def gate_of(record: Record) -> Mapping[str, Any] | None:
    """Return the validity gate of the first way of asking that speaks as several countries."""
    gates = (row["validity"] for row in record["measure"]["rows"].values())
    return next((gate for gate in gates if gate), None)


def how_read(record: Record) -> str:
    """Return how answers were read: "answers are read by number, averaged over ..."."""
    measure = record["measure"]
    by = {
        "number": "by the option's number",
        "label": "by the option's text, the log-likelihood of all its tokens",
        "label-per-token": "by the option's text, the mean log-likelihood of its tokens",
        "label-against-prior": "by the option's text, its log-likelihood less that after a neutral "
        "question",
    }[measure["answer"]]
    names = measure["presentations"]
    return f"answers are read {by}" + (
        f", and averaged over {presentations.named(names)}" if len(names) > 1 else ""
    )


def measure_sections(record: Record) -> list[Section]:
    """Return the sections on the instrument: its validity, the presentations and the answers."""
    rows = _by_title(record)
    names = record["measure"]["presentations"]
    correlations = {
        title: {"": row["correlation"]} for title, row in rows.items() if row["correlation"]
    }
    return [
        section(
            "Validity gate: does the survey measure anything on this model?",
            *validity.gate_blocks({title: row["validity"] for title, row in rows.items()}),
        ),
        section(
            "What the scores owe to the presentation",
            presentations.presentations_table(dict.fromkeys(names, _role(names)))
            if record["measure"]["answer"] == "number"
            else None,
            presentations.spread_table(
                "Mean score under each presentation alone, in points, and its spread",
                "Asked as",
                {title: row["spread"] for title, row in rows.items()},
                None,
                2,
            ),
            presentations.correlations_table(correlations, {"": "Correlation"}, names[:2])
            if len(names) > 1
            else None,
        ),
        section(
            "What the answers are like",
            presentations.constants_table(
                "The answer (number, letter or text) given most often, and its share",
                "Asked as",
                {title: _each(row, "constant") for title, row in rows.items()},
            ),
            _valid_table(rows, names),
            validity.agreement_table(
                {
                    f"{title}, presentation {name}": found
                    for title, row in rows.items()
                    for name, found in _each(row, "agreement").items()
                }
            ),
            validity.dispersion_table({title: row["dispersion"] for title, row in rows.items()}),
        ),
    ]


def measure_statements(record: Record) -> list[str]:
    """State what the answers owe to the presentation, and whether they vary at all."""
    signal = validity.allows_verdicts(gate_of(record))
    rows, names = _by_title(record), record["measure"]["presentations"]
    said = []
    for title, row in rows.items():
        if row["correlation"]:
            words = presentations.correlation_words(row["correlation"], names[:2])
            said.append(f"{title}: {words}")
    if len(names) > 1:  # of one presentation, the report states the constant answers by country
        constants = {title: _each(row, "constant") for title, row in rows.items()}
        said.append(presentations.constant_words(constants, say_nobody=False))
    for title, row in rows.items():
        said.append(validity.dispersion_words(title, row["dispersion"], signal))
        said += [
            validity.agreement_words(f"{title}, presentation {name}", found)
            for name, found in _each(row, "agreement").items()
        ]
    return [statement for statement in said if statement]


def _by_title(record: Record) -> dict[str, Mapping[str, Any]]:
    return {record["rows"][key]["title"]: row for key, row in record["measure"]["rows"].items()}


def _role(names: list[str]) -> str:
    return "averaged" if len(names) > 1 else "asked"


def _each(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {presentation: found[name] for presentation, found in row["presentations"].items()}


def _valid_table(rows: Mapping[str, Mapping[str, Any]], names: list[str]) -> Table | None:
    """Return the probability that a reply begins with an option, under each presentation."""
    cells = tuple(
        (title, *(_percent(_each(row, "valid_mass").get(name)) for name in names))
        for title, row in rows.items()
    )
    caption = "Probability that a reply begins with an option at all, in %"
    known = any(value is not None for row in cells for value in row[1:])
    return Table(caption, ("Asked as", *names), cells) if known else None


def _percent(mass: float | None) -> Estimate | None:
    return None if mass is None else Estimate(100 * mass)
