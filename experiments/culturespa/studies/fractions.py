"""How much of the selected data does a joint model need? (CultureSPA's study of quantity.)

    python -m experiments.culturespa.studies.fractions runs/culturespa
    python -m experiments.culturespa.studies.fractions runs/culturespa --fractions 0.25 0.5

Trains a joint model on each fraction of each country's CRQPC pairs, for every seed, with the run's
own settings; smaller fractions are parts of larger ones. Training lasts one epoch, so less data
also means fewer steps. The whole data are the run's own joint model, no data is P1. Writes
fractions.json and fractions.png into the run, and the adapters to RUN/fractions-...; an interrupted
study continues. Takes about twice as long as the run's own fine-tuning.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.culturespa.studies.finished import joint_answers, open_run, read_finished, reopen
from jaxalign.commands.reports.culturespa_plots import save
from jaxalign.commands.reports.culturespa_tables import INTERVALS, mean_cells
from jaxalign.core.errors import UserError
from jaxalign.core.files import write_json
from jaxalign.methods.culturespa.result import Scored
from jaxalign.methods.culturespa.select import fraction
from jaxalign.report.drawing import new_figure
from jaxalign.report.palette import BLUE, LINE, MUTED, VERMILION
from jaxalign.runs import may_change
from jaxalign.runs.console import main, print_table, progress_bars


@dataclasses.dataclass(frozen=True)
class FractionsSettings:
    """Retrain a finished run's joint model on fractions of its data."""

    run: tyro.conf.Positional[Path] = may_change(Path("runs/culturespa"))
    """Directory of the run."""
    fractions: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Shares of each country's pairs, each more than 0 and less than 1."""
    quiet: bool = may_change(False)
    """Show no progress bars."""


def run(settings: FractionsSettings) -> None:
    """Train and measure the joint models, and write and print how they score."""
    shares = sorted(set(settings.fractions))
    if not shares or not all(0 < share < 1 for share in shares):
        raise UserError(f"`fractions` {shares}: more than 0 and less than 1 each")
    finished = read_finished(settings.run)
    finished.require_joint_data()
    selections = {
        (seed, f"{share:g}"): fraction(selected["joint"], share, seed)
        for share in shares
        for seed, selected in finished.selected.items()
    }
    folder = "fractions-" + "-".join(f"{share:g}" for share in shares)
    with progress_bars(quiet=settings.quiet) as on_progress:
        experiment = reopen(finished, on_progress)
        with open_run(finished, folder, settings) as opened:
            study = dataclasses.replace(experiment, out=opened.out)
            answered = joint_answers(study, finished.questions, selections)
    scored = Scored(experiment.settings, experiment.inputs, answered.mean, answered.alone)
    pairs = dict.fromkeys(answered.mean, 0)
    for (_, name), selection in selections.items():
        pairs[name] += len(selection)
    result = finished.result
    record = {"0": result["methods"]["p1"] | {"pairs": 0}}
    record |= {name: scored.method(name) | {"pairs": count} for name, count in pairs.items()}
    all_pairs = sum(len(selected["joint"]) for selected in finished.selected.values())
    record["1"] = result["selection"]["crqpc"] | {"pairs": all_pairs}
    write_json(finished.out / "fractions.json", record)
    draw(finished.out / "fractions.png", record)
    rows = [[name, row["pairs"], *mean_cells(row)] for name, row in record.items()]
    columns = ("fraction of the pairs", "pairs", "mean score", *INTERVALS)
    print_table("The joint model by how much of its data it is trained on", columns, rows)


def draw(path: Path, record: dict[str, Any]) -> None:
    """Draw the mean score over the fraction of pairs, with intervals over questions and seeds."""

    known = {name: row for name, row in record.items() if row["mean"] is not None}
    x = np.array([float(name) for name in known])
    rows = list(known.values())
    figure = new_figure((6.4, 4.0))
    axes = figure.add_subplot()
    bands = np.array([row["interval"] for row in rows]).reshape(-1, 2)
    axes.fill_between(x, *bands.T, color=LINE, label="95 %, questions")
    for share, row in zip(x, rows, strict=True):
        by_seed = row["by_seed"]
        axes.plot([share] * len(by_seed), by_seed, "_", color=MUTED, markersize=8)
        if row["seed_interval"] is not None:
            axes.plot([share, share], row["seed_interval"], color=VERMILION, linewidth=1.6)
    axes.plot([], [], "_", color=MUTED, label="one seed")
    axes.plot([], [], color=VERMILION, label="95 %, seeds")
    axes.plot(x, [row["mean"] for row in rows], "o-", color=BLUE, label="mean")
    axes.set_xlabel("fraction of the selected pairs (0: P1, not fine-tuned)")
    axes.set_ylabel("alignment score × 100")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path, legend="outside upper center")


if __name__ == "__main__":
    main(run, FractionsSettings)
