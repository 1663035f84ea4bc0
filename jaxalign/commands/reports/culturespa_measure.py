"""What a CultureSPA run says about its own measure: validity, presentations, constant answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxalign.commands.reports import presentations, validity
from jaxalign.methods.base import METHODS
from jaxalign.report.document import Estimate, Section, Table, Text, section

Result = Mapping[str, Any]


def gate_of(result: Result) -> Mapping[str, Any] | None:
    """Return the validity gate of the unchanged model under P1."""
    return result["measure"]["validity"]


def measure_sections(result: Result) -> tuple[Section, ...]:
    """Return the sections on the instrument: its validity, the presentations and the answers."""
    measure, names = result["measure"], result["presentations"]["averaged"]
    correlations = {
        title: {"": record} for title, record in _titled(measure["correlation"]).items() if record
    }
    sections = (
        section(
            "Validity gate: does the survey measure anything on this model?",
            *validity.gate_blocks(
                {
                    "Unchanged model (P1)": measure["validity"],
                    "Joint model": measure["validity_joint"],
                }
            ),
        ),
        section(
            "What the scores owe to the presentation",
            Text("There was one presentation, so that nothing says what the answers owe to it.")
            if len(names) == 1
            else None,
            presentations.presentations_table(dict.fromkeys(names, "averaged")),
            _scores_table(result),
            presentations.correlations_table(correlations, {"": "Correlation"}, names[:2])
            if len(names) > 1
            else None,
        ),
        section(
            "What the answers are like",
            presentations.constants_table(
                "The mark (number or letter) given most often, and its share of the answers",
                "Method",
                _titled(measure["constant"]),
            ),
            validity.agreement_table(
                {
                    f"{title}, presentation {name}": record
                    for title, by_name in _titled(measure["agreement"]).items()
                    for name, record in by_name.items()
                }
            ),
            validity.dispersion_table(_titled(measure["dispersion"])),
            diversity_table(measure["diversity"]),
        ),
    )
    return tuple(s for s in sections if s.blocks)


def measure_sentences(result: Result) -> list[str]:
    """State what the answers owe to the presentation, and whether they vary at all."""
    measure, names = result["measure"], result["presentations"]["averaged"]
    signal = validity.allows_verdicts(gate_of(result))
    said = [
        f"{_title(method)}: {presentations.correlation_words(record, names[:2])}"
        for method, record in measure["correlation"].items()
        if method in ("p1", "joint")
    ]
    said.append(presentations.constant_words(_titled(measure["constant"])))
    said += [
        validity.dispersion_words(_title(method), measure["dispersion"].get(method), signal)
        for method in ("p1", "joint")
    ]
    said += [
        validity.agreement_words(f"{_title(method)}, presentation {name}", record)
        for method, by_name in measure["agreement"].items()
        for name, record in by_name.items()
    ]
    return [sentence for sentence in said if sentence]


def diversity_table(by_method: Mapping[str, Any]) -> Table:
    """Return how varied the answers of methods and of people are.

    Args:
        by_method: The entry "diversity" of `measure`, or one like it.
    """
    columns = {
        "spread": "Spread between countries",
        "options": "Options in use",
        "majority": "Share of the most likely",
        "coupling": "|r| of two items",
        "structure": "Correlations like people's",
    }
    rows = tuple(
        (
            _title(method),
            *(
                None
                if record[name]["mean"] is None
                else Estimate(
                    record[name]["mean"], *(record[name]["seed_interval"] or (None, None))
                )
                for name in columns
            ),
        )
        for method, record in by_method.items()
    )
    caption = (
        "How varied answers are, with 95 % intervals over seeds: spread of item means between "
        "countries in units of a scale's length; exp(entropy) of an answer; correlations of two "
        "items over countries, and how alike they are to people's"
    )
    return Table(caption, ("Answers of", *columns.values()), rows, 2)


def _scores_table(result: Result) -> Table | None:
    """Return each method's mean score in every presentation, beside the one of averaged answers."""
    by_name = result["presentations"].get("scores")
    if not by_name:
        return None
    rows = tuple(
        (
            _title(method),
            Estimate.read(record["mean"]),
            *(_mean(scores.get(method)) for scores in by_name.values()),
        )
        for method, record in result["methods"].items()
    )
    columns = ("Method", "Averaged answers", *(f"{name} alone" for name in by_name))
    caption = "Mean score in each presentation, with 95 % intervals over questions"
    return Table(caption, columns, rows, 2)


def _mean(record: Mapping[str, Any] | None) -> Estimate | None:
    return record and Estimate(record["mean"], *(record["interval"] or (None, None)))


def _title(method: str) -> str:
    title = METHODS[method].title if method in METHODS else method
    return title[0].upper() + title[1:]


def _titled(by_method: Mapping[str, Any]) -> dict[str, Any]:
    return {_title(method): record for method, record in by_method.items()}
