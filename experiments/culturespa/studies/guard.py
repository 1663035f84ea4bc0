"""Whether fine-tuning broke what the model could do before: accuracy on questions with an answer.

    python -m experiments.culturespa.studies.guard runs/culturespa   # the run's own test
    python -m experiments.culturespa.studies.guard runs/culturespa --guard mmlu.csv   # any other

Every adapter of a finished run answers an MMLU-style file (CSV or JSON lines) before and after, by
exact likelihood of the options' numbers, without a system message; changes in points with Student's
interval over seeds, by topic too. Writes guard.json and guard.png into the run.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments.culturespa.studies.finished import Finished, read_config, read_finished
from experiments.culturespa.studies.retrain import weights
from jaxalign.commands.reports.culturespa_plots import save
from jaxalign.commands.reports.culturespa_tables import show_guard
from jaxalign.core.errors import UserError
from jaxalign.lm.lora import merge
from jaxalign.lm.peft import load_lora
from jaxalign.methods.culturespa.ask import right_answers
from jaxalign.methods.culturespa.result import GUARD_POINTS, guard_record
from jaxalign.methods.culturespa.step_measure import SPECIFIC, TUNED
from jaxalign.methods.culturespa.study import read_guard
from jaxalign.report.palette import BLUE, LINE, MUTED, VERMILION
from jaxalign.runs import write_json
from jaxalign.runs.console import Progress, main


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """Ask the adapters of a finished run questions with right answers."""

    run: tyro.conf.Positional[Path]
    """Directory of the run."""
    guard: Path | None = None
    """MMLU-style questions; default: the run's own test."""
    quiet: bool = False
    """No progress bar."""


def run(config: GuardConfig) -> None:
    """The whole study; see the module's docstring."""
    finished = read_finished(config.run)
    settings, study = read_config(finished)
    if config.guard is not None:
        name, test = read_guard(config.guard)
        study = dataclasses.replace(study, guard=test, guard_name=name)
    folders = sorted(finished.out.glob("seed*/adapters/*"))
    if not folders:
        raise UserError(f"{config.run}: holds no adapters")
    params = weights(study)
    right_Q = {("base", 0): right_answers(settings, study, params, finished.out, "base")}
    bar = Progress(len(folders), step="guard: model", unit="models", quiet=config.quiet)
    with bar:
        for done, folder in enumerate(folders, 1):
            seed, method = int(folder.parent.parent.name.removeprefix("seed")), folder.name
            lora, adapter = load_lora(folder, study.llama)
            full = merge(params, adapter, lora)
            label = f"seed{seed} {method}"
            right_Q[method, seed] = right_answers(settings, study, full, finished.out, label)
            bar.update(done)
    record = _record(right_Q, study.guard_name, finished)
    record["topics"] = _topics(right_Q, [item.topic or "all" for item, _ in study.guard])
    write_json(finished.out / "guard.json", record)
    draw(finished.out / "guard.png", record)
    show_guard(record)


def _record(
    right_Q: dict[tuple[str, int], np.ndarray], name: str, finished: Finished
) -> dict[str, Any]:
    """A country without a model of its own counts as the model before."""
    before = right_Q["base", 0]
    values = {"before": [float(before.mean())]}
    for method in (m for m in TUNED if m not in finished.untrained):
        names = [SPECIFIC + c for c in finished.countries] if method == "specific" else [method]
        values[method] = [
            float(np.mean([right_Q.get((name, seed), before).mean() for name in names]))
            for seed in finished.questions
        ]
    return guard_record(values, name, len(before))


def _topics(
    right_Q: dict[tuple[str, int], np.ndarray], topics: list[str]
) -> dict[str, dict[str, float]]:
    """Percent right by topic: before, and mean over all fine-tuned models."""
    after_Q = np.mean([r for (m, _), r in right_Q.items() if m != "base"], axis=0)
    out = {}
    for topic in sorted(set(topics)):
        here = np.array([t == topic for t in topics])
        out[topic] = {
            "questions": int(here.sum()),
            "before": float(100 * right_Q["base", 0][here].mean()),
            "after": float(100 * after_Q[here].mean()),
        }
    return out


def draw(path: Path, record: dict[str, Any]) -> None:
    """Accuracy of each method and seed beside the one before, with the points allowed."""
    names = list(record["after"])
    figure = Figure(figsize=(6.4, 0.5 * len(names) + 1.6), layout="constrained")
    axes = figure.add_subplot()
    before = record["before"]
    axes.axvspan(before - GUARD_POINTS, before + GUARD_POINTS, color=LINE, label="within a point")
    axes.axvline(before, color=MUTED, label="before fine-tuning")
    for y, name in enumerate(names):
        after = record["after"][name]
        axes.plot(after["by_seed"], [y] * len(after["by_seed"]), "|", color=VERMILION,
                  label="one seed" if y == 0 else None)  # fmt: skip
        axes.plot(after["mean"], y, "o", color=BLUE, label="mean" if y == 0 else None)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("% right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4,
                  frameon=False, fontsize=9)  # fmt: skip
    save(figure, path)


if __name__ == "__main__":
    main(run, GuardConfig)
