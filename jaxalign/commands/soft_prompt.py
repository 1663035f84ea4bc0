"""Soft prompts tuned by Differential Evolution until survey answers give a country's six scores.

    python -m experiments.soft_prompt                        # the pocket Llama
    python -m experiments.soft_prompt --model /path/to/Meta-Llama-3-8B-Instruct \\
        --countries USA CHN IND SAU --population 256 --generations 200

One soft prompt per country, compared with the model asked plainly (naive), in character (persona)
and by example (ICL). Method: Masoud, Ferianc, Treleaven and Rodrigues 2025 (arXiv 2503.16094).

The default run takes two minutes on two idle CPU cores with nothing compiled before, for 10,304
candidates. It ends at a loss of 0.1 (USA), 30.2 (CHN), 7.0 (IND) and 16.0 (SAU), where plain
questions have 18.6, 227.6, 145.0 and 151.7. Its prompts score 0.982, 0.911, 0.960 and 0.952 on the
held-out survey. Model and survey are simulated: the numbers describe the software, not people.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from jaxalign.commands.reports import soft_prompt_record as record
from jaxalign.commands.reports import soft_prompt_report
from jaxalign.commands.reports.presentations import named
from jaxalign.commands.reports.soft_prompt_statements import statements, verdict_notes
from jaxalign.commands.reports.warnings import warning_notes
from jaxalign.core.progress import one_step
from jaxalign.methods.base import soft_prompt_methods
from jaxalign.methods.soft_prompt.result import reading_words, readings
from jaxalign.methods.soft_prompt.settings import Settings
from jaxalign.methods.soft_prompt.tune import run_soft_prompt
from jaxalign.report.wording import number
from jaxalign.runs.console import (
    print_abbreviations,
    print_notes,
    print_table,
    print_wrapped,
    progress_bars,
)
from jaxalign.stats.lines import TRIVIAL_NAMES

# Columns of the table of losses that need no model.
_LINES = ("all_middle", "smallest_integer")
# Columns of the held-out table: an entry of `result.json`, and the method whose label it has.
_HELD_OUT = {
    "before": "naive",
    "persona": "persona",
    "icl": "icl",
    "start": "start",
    "after": "tuned",
}


def tune_prompts(settings: Settings) -> None:
    """Run the experiment; write its report with the plots, and print its tables."""
    with progress_bars(settings.quiet) as on_progress:
        run = run_soft_prompt(settings, on_progress)
        if jax.process_index() == 0:
            with one_step("report", on_progress):
                soft_prompt_report(run.result, run.out)
    print_result(run.result)
    if run.seconds:
        print(f"search: {run.seconds:.0f} s for up to {run.candidates:,} candidates")
    print(f"everything is in {run.out}; talk to the result: jaxalign chat {run.out}")


def print_result(result: Mapping[str, Any]) -> None:
    """Print what the report says: its verdicts, losses and held-out scores, and what came out."""
    print_notes((*warning_notes(result), *verdict_notes(result)))
    _print_losses(result)
    _print_held_out(result)
    for statement in statements(result):
        print_wrapped(f"- {statement}")
    algorithm, reading = result["settings"]["strategy.algorithm"], readings(result)[0]
    labels = (method.label for method in soft_prompt_methods(algorithm, reading).values())
    print_abbreviations((*labels, *statements(result)))


def _print_losses(result: Mapping[str, Any]) -> None:
    reading, other = readings(result)
    methods = soft_prompt_methods(result["settings"]["strategy.algorithm"], reading)
    compared, tuned = record.methods(result), methods["tuned"].label
    sides = record.tuned_on(result), record.never_tuned_on(result)
    rows, others = [], {"naive": methods["naive"].label, "tuned": tuned} if sides[1] else {}
    digits = record.loss_digits(result)
    lines = _LINES if record.has_scores(result) else ("uniform",)
    for country, entry in result["countries"].items():
        trivial = result["trivial"][country]
        rows.append(
            [
                country,
                *(
                    loss if digits == 1 else number(loss, digits)
                    for loss in (
                        *(entry[key][reading]["loss"] for key in compared),
                        *(entry[key]["untuned"][reading]["loss"] for key in others),
                        entry["tuned"][other]["loss"],
                        *(trivial.get(name) for name in lines),
                    )
                ),
            ]
        )
    unit = "sum of score differences" if "dimensions" in result else result["settings"]["objective"]
    where = ", ".join(sides[1]) + (" averaged" if len(sides[1]) > 1 else "")
    averaged = " averaged" if len(sides[0]) > 1 else ""
    print_table(
        f"Loss on the tuned survey ({unit}; {reading_words(reading)} reading; {named(sides[0])}"
        f"{averaged})",
        [
            "",
            *(methods[key].label for key in compared),
            *(f"{label} on {where}, never tuned on" for label in others.values()),
            f"{tuned} {reading_words(other)}",
            *(TRIVIAL_NAMES[name] for name in lines),
        ],
        rows,
    )


def _print_held_out(result: Mapping[str, Any]) -> None:
    reading, _ = readings(result)
    methods = soft_prompt_methods(result["settings"]["strategy.algorithm"], reading)
    tuned, survey = methods["tuned"].label, result["held_out"]
    lines = result["measure"]["lines"]
    kind = "simulated" if survey["simulated"] else survey["survey"]
    print_table(
        f"Held-out survey ({kind}, {survey['items']} items; 1 is the country's own answers)",
        [
            "",
            *(methods[name].label for name in _HELD_OUT.values()),
            f"others' {tuned}",
            f"{tuned} - strongest of these baselines [95 %]",
            *(key.label for key in record.HELD_OUT_LINES.values()),
        ],
        [
            [
                country,
                *(_mean(entry["held_out"][name]) for name in (*_HELD_OUT, "permuted")),
                _interval(entry["held_out"]["after_minus_strongest"]),
                *(_number(lines.get(country, {}).get(name)) for name in record.HELD_OUT_LINES),
            ]
            for country, entry in result["countries"].items()
        ],
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _mean(interval: Mapping[str, float] | None) -> str:
    return "–" if interval is None else f"{interval['mean']:.3f}"


def _interval(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return "–"
    return f"{interval['mean']:+.3f} [{interval['low']:+.3f}, {interval['high']:+.3f}]"
