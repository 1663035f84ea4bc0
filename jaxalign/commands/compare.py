"""Compare runs by what they answered: scores, paired differences and a plot.

    jaxalign compare runs/soft_prompt-a runs/soft_prompt-b runs/culturespa

All runs must have asked a survey that says how people answered, in part the same items and
countries. Nothing is computed on the model. `jaxalign.methods.compare` does the same in Python.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro

from jaxalign.commands.reports.compare import compare_report, method_words
from jaxalign.commands.reports.warnings import warning_notes
from jaxalign.core.errors import UserError
from jaxalign.core.files import write_json
from jaxalign.methods.compare import compare_runs
from jaxalign.report.document import Estimate
from jaxalign.report.wording import verdict, with_bounds
from jaxalign.runs.console import print_notes, print_table


@dataclasses.dataclass(frozen=True)
class CompareSettings:
    """Compare runs by what they answered; the first is what the others are compared with."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of finished runs."""
    out: Path | None = None
    """Directory of the comparison; default: runs/compare-<date>-<time>."""
    seed: int = 0
    """Seed of the bootstrap over items."""


def compare(settings: CompareSettings) -> None:
    """Compare the runs, write the report, and print the tables."""
    out = settings.out or Path("runs") / time.strftime("compare-%Y%m%d-%H%M%S")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"`out` {out}: is there already, and not an empty folder; give another")
    record = compare_runs(settings.runs, settings.seed)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "result.json", record)
    compare_report(record, out)
    show(record)
    print(f"everything is in {out}")


def show(record: Mapping[str, Any]) -> None:
    """Print the scores of all runs, and the differences from the first."""
    print_notes(warning_notes(record))
    over = f"{record['items']} items, {len(record['countries'])} countries"
    rows = [
        [row["run"], method_words(row["method"]), with_bounds(Estimate.read(row), 3)]
        for row in record["rows"]
    ]
    title = f"Similarity to people ({over} that all runs have; 1 is people's own answers)"
    print_table(title, ("run", "method", "score [95 %]"), rows)
    if record["differences"]:
        rows = [
            [
                row["a"],
                method_words(row["method"]),
                with_bounds(Estimate.read(row), 3, signed=True),
                verdict(Estimate.read(row)),
            ]
            for row in record["differences"]
        ]
        title = f"Minus {record['runs'][0]}, paired by item"
        print_table(title, ("run", "method", "difference [95 %]", "it is"), rows)
