"""`jaxalign cultural-bench`: CulturalBench, plainly, in character, by example, with tuned prompts.

    jaxalign cultural-bench --easy CulturalBench-Easy.csv --hard CulturalBench-Hard.csv \\
        --run runs/soft_prompt-20260101-120000

The second table of the soft-prompt paper (Masoud et al. 2025, arXiv 2503.16094). The files are the
user's own (kellycyy/CulturalBench on the Hugging Face hub; Chiu et al. 2024, arXiv 2410.02677). A
question of Hard is right only when all four of its true-or-false rows are: row by row, saying false
to everything would be right in 75 % and know nothing. `jaxalign.cultural_bench` does the same in
Python; `jaxalign.methods.cultural_bench.result` describes `result.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from jaxalign.commands.reports import cultural_bench_report
from jaxalign.commands.reports.cultural_bench import gate_note
from jaxalign.commands.reports.warnings import warning_notes
from jaxalign.core.progress import one_step
from jaxalign.methods.base import METHODS
from jaxalign.methods.cultural_bench import Settings, run_cultural_bench
from jaxalign.runs.console import print_abbreviations, print_notes, print_table, progress_bars


def measure(settings: Settings) -> None:
    """Run the benchmark; print its tables and write its report."""
    with progress_bars(settings.quiet) as on_progress:
        run = run_cultural_bench(settings, on_progress)
        if jax.process_index() == 0:
            with one_step("report", on_progress):
                cultural_bench_report(run.result, run.out)
    print_result(run.result)
    print(f"everything is in {run.out}")


def print_result(result: Mapping[str, Any]) -> None:
    """Print a table for each set: accuracy by method, differences, and what needs no model."""
    print_notes(warning_notes(result))
    for record in result["sets"].values():
        print_notes([gate_note(record)])
        is_hard = record["items"] > record["questions"]
        columns = ["", "questions", "accuracy [95 %]", "- naive [95 %]"]
        columns += ["rows right", "true row likeliest"] if is_hard else []
        columns += ["one answer, at most"]
        rows = []
        for key, method in record["methods"].items():
            hard = [_share(method["items"]), _share(method["picked"])] if is_hard else []
            rows.append(
                [
                    METHODS[key].label,
                    str(method["accuracy"]["questions"]),
                    _interval(method["accuracy"]),
                    _interval(method["minus"].get("naive"), signed=True),
                    *hard,
                    f"{method['answers']['most_common']}: {100 * method['answers']['share']:.0f} %",
                ]
            )
        what = "all four rows right" if is_hard else "four options"
        print_table(f"{record['name']}, % of questions ({what})", columns, rows)
        print(_trivial(record))
    for note in result["notes"]:
        print(f"note: {note}")
    methods = (key for record in result["sets"].values() for key in record["methods"])
    print_abbreviations(METHODS[key].label for key in methods)


def _trivial(record: Mapping[str, Any]) -> str:
    lines = record["trivial"]
    constant = max(range(len(lines["constant"])), key=lines["constant"].__getitem__)
    if record["items"] == record["questions"]:
        return (
            f"without a model: at random {100 * lines['chance']:.1f} %, always option "
            f"{constant + 1} {100 * lines['constant'][constant]:.1f} %"
        )
    always_false = f"{100 * lines['constant'][1]:.1f} % ({100 * lines['constant_items'][1]:.1f} %"
    return (
        f"without a model: at random {100 * lines['chance']:.2f} %, always false {always_false} of "
        f"the rows), one of the four rows at random {100 * (lines['one_true'] or 0):.1f} %"
    )


def _share(interval: Mapping[str, float] | None) -> str:
    return "–" if interval is None else f"{100 * interval['mean']:.1f}"


def _interval(interval: Mapping[str, float] | None, signed: bool = False) -> str:
    if interval is None:
        return "–"
    sign = "+" if signed else ""
    mean, low, high = (f"{100 * interval[name]:{sign}.1f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
