"""Which learning rate a joint model is fine-tuned with best, told by questions it has not seen.

    python -m experiments.culturespa.studies.learning_rate runs/culturespa
    python -m experiments.culturespa.studies.learning_rate runs/culturespa --rates 3e-5 1e-4 3e-4

Of a finished run: each seed's selected pairs (CRQPC) without a share of the questions, trained on
with every rate, all rates and seeds side by side in one program, a seed's models from one start and
in one order. The loss on the questions held out is measured before, ten times on the way and after.
No survey answer is looked at, so the rate that is lowest here can be used for a run whose scores
are to be believed; take seeds that this run does not have. Writes learning_rate.json and
learning_rate.png into the run; a study that was stopped goes on. Takes as long as the run's own
fine-tuning of so many models.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments.culturespa.studies.finished import Finished, read_config, read_finished
from experiments.culturespa.studies.retrain import open_run, weights, with_out
from jaxalign.commands.reports.culturespa_plots import save
from jaxalign.core.errors import UserError
from jaxalign.methods.culturespa.select import Selection, hold_out
from jaxalign.methods.culturespa.settings import Config
from jaxalign.methods.culturespa.step_select import examples
from jaxalign.methods.culturespa.step_tune import Name, label, train
from jaxalign.methods.culturespa.study import Study
from jaxalign.report.palette import BLUE, MUTED, VERMILION
from jaxalign.runs import MetricsFile, Run, may_change, write_json
from jaxalign.runs.console import main, print_table
from jaxalign.stats.intervals import seed_interval
from jaxalign.training.packing import Example

_GROUP = "shared"  # a step of these models has as many examples as the joint model's


@dataclasses.dataclass(frozen=True)
class LearningRateConfig:
    """Compare learning rates by the loss on questions that are not trained on."""

    run: tyro.conf.Positional[Path] = may_change(Path("runs/culturespa"))
    """Directory of the run."""
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    """The highest of a training, at the end of its warm-up."""
    share: float = 0.2
    """Of each seed's questions, that is held out."""
    quiet: bool = may_change(False)
    """No progress bar."""


def run(config: LearningRateConfig) -> None:
    """The whole study; see the module's docstring."""
    shown = [f"{rate:g}" for rate in config.rates]
    if len(set(shown)) < max(2, len(shown)) or not 0 < min(config.rates) <= max(config.rates) < 1:
        raise UserError(f"--rates {list(config.rates)}: two or more between 0 and 1, none twice")
    finished = read_finished(config.run)
    if "joint" in finished.untrained:
        raise UserError(f"{config.run}: its joint model was not trained; there are no data to part")
    settings, study = read_config(finished)
    settings = with_out(settings, finished.out, config.quiet)
    parts = {s: hold_out(some["joint"], config.share, s) for s, some in finished.selected.items()}
    names = [(seed, rate) for rate in shown for seed in parts]
    sides = [
        {name: _examples(settings, study, finished, name, parts[name[0]][i]) for name in names}
        for i in (0, 1)
    ]
    rates = {name: float(name[1]) for name in names}
    folder = "-".join(["learning_rate", f"{config.share:g}", *shown])
    with open_run(finished, folder, config) as opened:
        train(settings, study, weights(study), opened, _GROUP, sides[0], rates, sides[1])
        found = losses(opened, names)
    record = make_record(found, {seed: len(p[1].pairs) for seed, p in parts.items()})
    write_json(finished.out / "learning_rate.json", record)
    draw(finished.out / "learning_rate.png", record)
    show(record)


def _examples(
    settings: Config, study: Study, finished: Finished, name: Name, side: Selection
) -> list[Example]:
    return examples(settings, study, finished.questions[name[0]], side, "p1")


def losses(opened: Run, names: list[Name]) -> dict[Name, dict[str, Any]]:
    """Of every model: the loss of its last quarter of steps, and the held-out ones by step."""
    rows = MetricsFile(opened.out / "training" / f"{_GROUP}.jsonl", "step").read()
    found = {}
    for name in names:
        mine = [(row["step"], row[label(name)]) for row in rows if label(name) in row]
        trained = [row["loss"] for _, row in mine if "loss" in row]
        last = trained[-max(1, len(trained) // 4) :]
        found[name] = {
            "training": float(np.mean(last)),
            "held_out": {at: row["held_out_loss"] for at, row in mine if "held_out_loss" in row},
        }
    return found


def make_record(found: dict[Name, dict[str, Any]], pairs: dict[int, int]) -> dict[str, Any]:
    """Means over seeds, by rate, and the rate whose held-out loss is the lowest at the end."""
    rates: dict[str, Any] = {}
    for rate in dict.fromkeys(rate for _, rate in found):
        mine = [losses for (_, other), losses in found.items() if other == rate]
        curve_SxL = np.array([list(losses["held_out"].values()) for losses in mine])
        steps, ends_S = list(mine[0]["held_out"]), curve_SxL[:, -1]
        interval = seed_interval(ends_S) if len(ends_S) > 1 else None
        rates[rate] = {
            "training": float(np.mean([losses["training"] for losses in mine])),
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
    rows = [
        [rate, f"{row['training']:.3f}", f"{row['held_out']:.3f}", _bounds(row["seed_interval"]),
         *_lowest(row["curve"])]
        for rate, row in record["rates"].items()
    ]  # fmt: skip
    columns = ["rate", "training", "held out", "seeds [95 %]", "lowest", "after step"]
    print_table("Loss of the joint model, nats an answer token", columns, rows)
    print(
        f"held out before training: {record['before']:.3f}; the lowest after it is at "
        f"--train.learning-rate {record['lowest']}"
    )


def _bounds(interval: list[float] | None) -> str:
    return "–" if interval is None else "[{:.3f}, {:.3f}]".format(*interval)


def _lowest(curve: dict[int, float]) -> tuple[str, int]:
    step = min(curve, key=curve.get)
    return f"{curve[step]:.3f}", step


def draw(path: Path, record: dict[str, Any]) -> None:
    """`learning_rate.png`."""
    rates = [float(rate) for rate in record["rates"]]
    order, rows = np.argsort(rates), list(record["rates"].values())
    x = np.array(rates)[order]
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for rate, row in zip(rates, rows, strict=True):
        axes.plot([rate] * len(row["by_seed"]), row["by_seed"], "_", color=MUTED, markersize=8)
    axes.plot([], [], "_", color=MUTED, label="held out, one seed")
    for key, words, colour in (
        ("held_out", "held out", BLUE),
        ("training", "trained on", VERMILION),
    ):
        axes.plot(x, np.array([row[key] for row in rows])[order], "o-", color=colour, label=words)
    axes.axhline(record["before"], color=MUTED, linestyle="--", label="held out, before training")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss, nats an answer token")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4,
                  frameon=False, fontsize=9)  # fmt: skip
    save(figure, path)


if __name__ == "__main__":
    main(run, LearningRateConfig)
