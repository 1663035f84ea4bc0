"""Which learning rate suits the joint model best, judged by questions it has not seen?

    python -m experiments.culturespa.studies.learning_rate runs/culturespa
    python -m experiments.culturespa.studies.learning_rate runs/culturespa --rates 3e-5 1e-4 3e-4

Holds out a share of the questions of each seed's selected pairs (CRQPC) and trains on the rest with
every rate: all rates and seeds side by side in one program, the models of a seed from one start and
with their examples in one order. The loss on the held-out questions is measured before, ten times
on the way, and after. No answer to the survey is looked at, so the rate with the lowest loss can be
used for a run whose scores are meant to be believed; give that run other seeds than this one.
Writes learning_rate.json and learning_rate.png into the run; an interrupted study continues. Takes
as long as the run takes to fine-tune as many models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.culturespa.studies.finished import open_run, read_finished, reopen
from jaxalign.commands.reports.culturespa_plots import save
from jaxalign.commands.reports.culturespa_tables import INTERVALS, bounds
from jaxalign.core.errors import UserError
from jaxalign.core.files import MetricsFile, write_json
from jaxalign.methods.culturespa.fine_tune import ModelName, label, train, training_examples
from jaxalign.methods.culturespa.select import hold_out
from jaxalign.report.drawing import new_figure
from jaxalign.report.palette import BLUE, MUTED, VERMILION
from jaxalign.runs import Run, may_change
from jaxalign.runs.console import main, print_table, progress_bars
from jaxalign.stats.intervals import seed_interval

_PROGRAM = "shared"  # a step has as many examples as one of the joint model


@dataclasses.dataclass(frozen=True)
class LearningRateSettings:
    """Compare learning rates by the loss on questions that are not trained on."""

    run: tyro.conf.Positional[Path] = may_change(Path("runs/culturespa"))
    """Directory of the run."""
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    """Learning rates to compare: the highest of a training, reached at the end of its warm-up."""
    share: float = 0.2
    """Share of each seed's questions that is held out."""
    quiet: bool = may_change(False)
    """Show no progress bar."""


def run(settings: LearningRateSettings) -> None:
    """Train with every rate, and write and print the losses."""
    shown, rates = [f"{rate:g}" for rate in settings.rates], settings.rates
    if len(set(shown)) < max(2, len(shown)) or not 0 < min(rates) <= max(rates) < 1:
        raise UserError(f"`rates` {list(rates)}: two or more between 0 and 1, none twice")
    finished = read_finished(settings.run)
    finished.require_joint_data()
    sides = {
        seed: hold_out(selected["joint"], settings.share, seed)
        for seed, selected in finished.selected.items()
    }
    names = [(seed, rate) for rate in shown for seed in sides]
    folder = "-".join(["learning_rate", f"{settings.share:g}", *shown])
    with progress_bars(quiet=settings.quiet) as on_progress:
        experiment = reopen(finished, on_progress)
        # Side 0 of each seed's pairs is trained on, side 1 is held out.
        trained_on, held_out = (
            {
                name: training_examples(
                    experiment,
                    finished.questions[name[0]],
                    sides[name[0]][side],
                    "joint",
                    name[0],
                )
                for name in names
            }
            for side in (0, 1)
        )
        with open_run(finished, folder, settings) as opened:
            study = dataclasses.replace(experiment, out=opened.out)
            rate_of = {name: float(name[1]) for name in names}
            trained = train(study, _PROGRAM, trained_on, rate_of, held_out)
            losses = read_losses(opened, rates_that_train(names, trained))
    record = make_record(losses, {seed: len(held) for seed, (_, held) in sides.items()})
    write_json(finished.out / "learning_rate.json", record)
    draw(finished.out / "learning_rate.png", record)
    show(record)


def rates_that_train(names: list[ModelName], trained: Mapping[ModelName, Any]) -> list[ModelName]:
    """Return the models of those rates at which the loss stayed finite for every seed.

    Raises:
        UserError: There is no such rate.
    """
    failed = {name[1] for name in names if name not in trained}
    for rate in sorted(failed, key=float):
        print(f"learning rate {rate}: the loss is not finite; left out")
    left = [(seed, rate) for seed, rate in names if rate not in failed]
    if not left:
        raise UserError("`rates`: the loss is finite at none of them; give lower ones")
    return left


def read_losses(opened: Run, names: list[ModelName]) -> dict[ModelName, dict[str, Any]]:
    """Return each model's mean training loss over its last quarter of steps, and the held-out
    losses by step."""
    rows = MetricsFile(opened.out / "training" / f"{_PROGRAM}.jsonl", "step").read()
    losses = {}
    for name in names:
        own_rows = [(row["step"], row[label(name)]) for row in rows if label(name) in row]
        trained = [row["loss"] for _, row in own_rows if "loss" in row]
        held_out = {step: row["held_out_loss"] for step, row in own_rows if "held_out_loss" in row}
        last = trained[-max(1, len(trained) // 4) :]
        losses[name] = {"training": float(np.mean(last)), "held_out": held_out}
    return losses


def make_record(losses: dict[ModelName, dict[str, Any]], pairs: dict[int, int]) -> dict[str, Any]:
    """Return means over seeds by rate, and the rate whose held-out loss is lowest at the end."""
    rates: dict[str, Any] = {}
    for rate in dict.fromkeys(rate for _, rate in losses):
        by_seed = [each for (_, other), each in losses.items() if other == rate]
        curve_SxL = np.array([list(each["held_out"].values()) for each in by_seed])
        steps, ends_S = list(by_seed[0]["held_out"]), curve_SxL[:, -1]
        interval = seed_interval(ends_S) if len(ends_S) > 1 else None
        rates[rate] = {
            "training": float(np.mean([each["training"] for each in by_seed])),
            "held_out": float(ends_S.mean()),
            "seed_interval": None if interval is None else interval.bounds,
            "by_seed": ends_S,
            "curve": dict(zip(steps, curve_SxL.mean(axis=0).tolist(), strict=True)),
        }
    return {
        "rates": rates,
        "before": next(iter(rates.values()))["curve"][0],
        "lowest": min(rates, key=lambda rate: rates[rate]["held_out"]),
        "pairs_held_out": {f"seed{seed}": count for seed, count in pairs.items()},
    }


def show(record: dict[str, Any]) -> None:
    """Print the losses by rate, and the rate with the lowest one."""
    rows = []
    for rate, row in record["rates"].items():
        step = min(row["curve"], key=row["curve"].get)
        rows.append(
            [
                rate,
                f"{row['training']:.3f}",
                f"{row['held_out']:.3f}",
                bounds(row["seed_interval"], digits=3),
                f"{row['curve'][step]:.3f}",
                step,
            ]
        )
    columns = [
        "learning rate",
        "loss on training pairs",
        "loss on held-out pairs",
        INTERVALS[1],
        "lowest on the way",
        "after step",
    ]
    print_table("Loss of the joint model in nats per answer token", columns, rows)
    print(
        f"loss on held-out pairs before training: {record['before']:.3f}; the lowest after it is "
        f"at --train.learning-rate {record['lowest']}"
    )


def draw(path: Path, record: dict[str, Any]) -> None:
    """Draw training and held-out loss over the learning rate."""

    rates = [float(rate) for rate in record["rates"]]
    order, rows = np.argsort(rates), list(record["rates"].values())
    x = np.array(rates)[order]
    figure = new_figure((6.4, 4.0))
    axes = figure.add_subplot()
    for rate, row in zip(rates, rows, strict=True):
        axes.plot([rate] * len(row["by_seed"]), row["by_seed"], "_", color=MUTED, markersize=8)
    axes.plot([], [], "_", color=MUTED, label="held out, one seed")
    for key, words, color in (
        ("held_out", "held out", BLUE),
        ("training", "trained on", VERMILION),
    ):
        losses = np.array([row[key] for row in rows])[order]
        axes.plot(x, losses, "o-", color=color, label=words)
    axes.axhline(record["before"], color=MUTED, linestyle="--", label="held out, before training")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss, nats per answer token")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path, legend="outside upper center")


if __name__ == "__main__":
    main(run, LearningRateSettings)
