"""How much of the selected data a joint model needs (CultureSPA's study of quantity).

    python -m experiments.culturespa.studies.fractions runs/culturespa
    python -m experiments.culturespa.studies.fractions runs/culturespa --fractions 0.25 0.5

Of a finished run: a joint model for each fraction of each country's CRQPC pairs, smaller ones
inside larger ones, for every seed, with the run's own settings; one epoch, so fewer data are also
fewer steps. The whole data are the run's own joint model, none is P1. Writes fractions.json and
fractions.png into the run, and the adapters to RUN/fractions-...; a study that was stopped goes on.
Takes about as long as twice the run's own fine-tuning.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments.culturespa.studies.finished import Finished, read_config, read_finished
from experiments.culturespa.studies.retrain import joint_answers, open_run, with_out
from jaxalign.commands.reports.culturespa_plots import save
from jaxalign.commands.reports.culturespa_tables import bounds
from jaxalign.core.errors import UserError
from jaxalign.methods.culturespa.result import method_record, run_scores
from jaxalign.methods.culturespa.select import fraction
from jaxalign.report.palette import BLUE, LINE, MUTED, VERMILION
from jaxalign.runs import may_change, write_json
from jaxalign.runs.console import main, print_table
from jaxalign.stats.bootstrap import count_draws


@dataclasses.dataclass(frozen=True)
class FractionsConfig:
    """Retrain a finished run's joint model on fractions of its data."""

    run: tyro.conf.Positional[Path] = may_change(Path("runs/culturespa"))
    """Directory of the run."""
    fractions: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Shares of each country's pairs, more than 0 and less than 1."""
    quiet: bool = may_change(False)
    """No progress bars."""


def run(config: FractionsConfig) -> None:
    """The whole study; see the module's docstring."""
    shares = sorted(set(config.fractions))
    if not shares or not all(0 < share < 1 for share in shares):
        raise UserError(f"--fractions {shares}: more than 0 and less than 1 each")
    finished = read_finished(config.run)
    if "joint" in finished.untrained:
        raise UserError(f"{config.run}: its joint model was not trained; there are no data to part")
    settings, study = read_config(finished)
    settings = with_out(settings, finished.out, config.quiet)
    chosen = {
        (seed, f"{share:g}"): fraction(some["joint"], share, seed)
        for share in shares
        for seed, some in finished.selected.items()
    }
    folder = "fractions-" + "-".join(f"{share:g}" for share in shares)
    with open_run(finished, folder, config) as opened:
        answers = joint_answers(settings, study, opened, finished, chosen)
    draws = count_draws(len(study.survey.items), settings.resamples, settings.first_seed)
    found = {n: method_record(settings, run_scores(a, study, draws)) for n, a in answers.items()}
    pairs = {
        f"{share:g}": sum(len(s.pairs) for (_, name), s in chosen.items() if name == f"{share:g}")
        for share in shares
    }
    record = {
        "0": finished.result["methods"]["p1"] | {"pairs": 0},
        **{name: row | {"pairs": pairs[name]} for name, row in found.items()},
        "1": finished.result["selection"]["crqpc"]
        | {"pairs": sum(len(s["joint"].pairs) for s in finished.selected.values())},
    }
    write_json(finished.out / "fractions.json", record)
    draw(finished, record)
    rows = [
        [name, row["pairs"], row["mean"], bounds(row["interval"]), bounds(row["seed_interval"])]
        for name, row in record.items()
    ]
    columns = ("fraction", "pairs", "mean", "questions [95 %]", "seeds [95 %]")
    print_table("Joint model by fraction of its data", columns, rows)


def draw(finished: Finished, record: dict[str, Any]) -> None:
    """`fractions.png`."""
    known = {name: row for name, row in record.items() if row["mean"] is not None}
    x = np.array([float(name) for name in known])
    rows = list(known.values())
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    bands = np.array([r["interval"] for r in rows]).reshape(-1, 2)
    axes.fill_between(x, *bands.T, color=LINE, label="95 %, questions")
    for at, row in zip(x, rows, strict=True):
        axes.plot([at] * len(row["by_seed"]), row["by_seed"], "_", color=MUTED, markersize=8)
        if row["seed_interval"] is not None:
            axes.plot([at, at], row["seed_interval"], color=VERMILION, linewidth=1.6)
    axes.plot([], [], "_", color=MUTED, label="one seed")
    axes.plot([], [], color=VERMILION, label="95 %, seeds")
    axes.plot(x, [r["mean"] for r in rows], "o-", color=BLUE, label="mean")
    axes.set_xlabel("fraction of the selected pairs (0: P1, not fine-tuned)")
    axes.set_ylabel("alignment score × 100")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4,
                  frameon=False, fontsize=9)  # fmt: skip
    save(figure, finished.out / "fractions.png")


if __name__ == "__main__":
    main(run, FractionsConfig)
