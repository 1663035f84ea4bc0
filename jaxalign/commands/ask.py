"""`jaxalign ask`: ask a model a survey or a test under any prompt styles, without training.

    jaxalign ask                                          # the pocket model, a simulated survey
    jaxalign ask --model smollm2 --survey culturespa_data/ --styles unaware p1
    jaxalign ask --survey culturespa_data/ --adapter joint=runs/culturespa/seed0/adapters/joint \\
        --styles unaware p1 --countries USA CHN NGA
    jaxalign ask --model smollm2 --presentations A B C D  # options in other orders, other numbers
    jaxalign ask --survey vsm --prompt runs/soft_prompt/prompts/*.safetensors --countries USA CHN

Prints the score of every way of asking beside what needs no model, and writes a report. A survey
that does not say how countries answered gives the answers and, where it holds the items of the VSM
2013, the six scores; a test gives the share of right answers. Nothing is sampled unless --reading
sampled is given. --presentations asks every question in several forms and averages over them, so
that a liking for a number or a place in the list does not pass for a view; --answer label reads the
options' texts instead of their numbers. A killed run continues with --resume and ends with the same
bits.
`jaxalign.ask_survey` does the same in Python, and `jaxalign.ask` asks a loaded model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxalign.commands.reports.ask import ask_report, statements, verdict_notes
from jaxalign.commands.reports.ask_measure import gate_of
from jaxalign.commands.reports.ask_tables import VERDICTS
from jaxalign.commands.reports.validity import judged
from jaxalign.core.progress import one_step
from jaxalign.methods.ask_survey import AskSettings, ask_survey
from jaxalign.runs.console import (
    print_abbreviations,
    print_notes,
    print_table,
    print_wrapped,
    progress_bars,
)
from jaxalign.stats.alignment import LINES

_MOST_SHOWN = 8  # presentations that are printed; all orders of five options are 120
_SHOWN_LINES = ("midpoint", "mean_of_others", "own_mean")


def ask(settings: AskSettings) -> None:
    """Ask, write the report, and print what it says in short."""
    with progress_bars(quiet=settings.quiet) as on_progress:
        run = ask_survey(settings, on_progress)
        with one_step("report", on_progress):
            ask_report(run.record, run.analyses, run.out)
    print_notes(verdict_notes(run.record))
    show(judged(run.record, gate_of(run.record)))
    for statement in statements(run.record, run.analyses):
        print_wrapped(f"- {statement}")
    titles = (row["title"] for row in run.record["rows"].values())
    print_abbreviations((*titles, *statements(run.record, run.analyses)))
    print(f"everything is in {run.out}")


def show(record: Mapping[str, Any]) -> None:
    """Print the scores by country, and differences with their intervals."""
    rows, lines = record["rows"], record["lines"]
    if not lines:
        return
    table = []
    for country in (*record["countries"], "mean"):
        mean = country == "mean"
        cells = [row["mean"] if mean else row["scores"].get(country) for row in rows.values()]
        beside = [lines[n]["mean"] if mean else lines[n]["countries"].get(country) for n in LINES]
        shown = dict(zip(LINES, beside, strict=True))
        table.append(
            [country, *(_score(cell) for cell in cells), *(shown[name] for name in _SHOWN_LINES)]
        )
    columns = ("", *(row["title"] for row in rows.values()), *(LINES[n] for n in _SHOWN_LINES))
    print_table("Cultural alignment score × 100", columns, table)
    presentations = record["measure"]["presentations"]
    if 1 < len(presentations) <= _MOST_SHOWN:
        alone = {key: row["presentations"] for key, row in record["measure"]["rows"].items()}
        table = [
            [rows[key]["title"], *(each[name]["mean"] for name in presentations)]
            for key, each in alone.items()
        ]
        print_table("Mean score in each presentation", ("", *presentations), table)
    for difference in record["differences"]:
        a, b = (rows[difference[key]]["title"] for key in ("a", "b"))
        if difference["value"] is not None:
            print(
                f"{a} − {b}: {difference['value']:+.2f} [{difference['low']:+.2f}, "
                f"{difference['high']:+.2f}], {VERDICTS[difference['verdict']]}"
            )


def _score(record: Mapping[str, float] | None) -> float | None:
    return None if record is None else record["value"]
