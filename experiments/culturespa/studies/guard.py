"""Did fine-tuning break what the model could do before? Accuracy on questions with right answers.

    python -m experiments.culturespa.studies.guard runs/culturespa   # the run's own questions
    python -m experiments.culturespa.studies.guard runs/culturespa --guard mmlu.csv   # any others
    python -m experiments.culturespa.studies.guard runs/culturespa --guard-tasks hellaswag

Every adapter of a finished run, and the unchanged model, answer an MMLU-style file (CSV or JSON
lines) by exact likelihood of the options' numbers, without a system message; or the tasks of
lm-evaluation-harness, as that asks them. Shows changes in
points with Student's interval over seeds. Writes guard.json, which also has accuracies by topic,
and guard.png into the run.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.culturespa.studies.finished import Finished, read_finished, reopen
from jaxalign.commands.evals.guard import HarnessTest
from jaxalign.commands.reports.culturespa_plots import save
from jaxalign.commands.reports.culturespa_tables import show_guard
from jaxalign.core.errors import UserError
from jaxalign.core.files import write_json
from jaxalign.core.progress import Progress
from jaxalign.lm.lora import Adapter
from jaxalign.methods.base import METHODS
from jaxalign.methods.culturespa.ability import measured_abilities
from jaxalign.methods.culturespa.answer import BASE, right_answers
from jaxalign.methods.culturespa.fine_tune import (
    ModelName,
    adapter_folder,
    adapter_names,
    label,
)
from jaxalign.methods.culturespa.inputs import Experiment, Inputs, read_guard
from jaxalign.methods.culturespa.measure import (
    TUNED,
    Measured,
    abilities_record,
    model_names,
    right_by_method,
)
from jaxalign.methods.culturespa.result import GUARD_POINTS, guard_entry, guard_record
from jaxalign.report.drawing import new_figure
from jaxalign.report.palette import BLUE, LINE, MUTED, VERMILION
from jaxalign.runs.console import main, progress_bars


@dataclasses.dataclass(frozen=True)
class GuardSettings:
    """Ask the adapters of a finished run questions with right answers."""

    run: tyro.conf.Positional[Path]
    """Directory of the run."""
    guard: Path | None = None
    """MMLU-style questions; default: those of the run."""
    guard_tasks: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness in their place; needs the extra `eval`."""
    guard_task_folder: Path | None = None
    """Folder with task files of your own, in the form of lm-evaluation-harness."""
    quiet: bool = False
    """Show no progress bar."""


def run(settings: GuardSettings) -> None:
    """Ask every adapter the questions, and write and print how accuracy changed."""
    finished = read_finished(settings.run)
    names = adapter_names(finished.out)
    if not names:
        raise UserError(f"{settings.run}: holds no adapters")
    harness = None
    if settings.guard_tasks:
        if settings.guard is not None:
            raise UserError(f"`guard` {settings.guard}: goes without `guard_tasks`")
        harness = HarnessTest(settings.guard_tasks, settings.guard_task_folder)
    with progress_bars(quiet=settings.quiet) as on_progress:
        experiment = reopen(finished, on_progress)
        if harness is not None:
            experiment = dataclasses.replace(experiment, ability_test=harness)
            record = measured_by_tasks(experiment, names, finished)
            write_json(finished.out / "guard.json", record)
            draw(finished.out / "guard.png", record)
            show_guard(record)
            return
        if settings.guard is not None:
            name, test = read_guard(settings.guard)
            inputs = dataclasses.replace(experiment.inputs, guard=test, guard_name=name)
            experiment = dataclasses.replace(experiment, inputs=inputs)
        elif not experiment.inputs.guard:
            raise UserError(f"{settings.run}: its guard was tasks; give `guard_tasks` or `guard`")
        before_Q, after_Q = ask_each(experiment, names)
    guard = experiment.inputs.guard
    record = make_record(before_Q, after_Q, experiment.inputs, finished)
    record["topics"] = by_topic(before_Q, after_Q, [item.topic or "all" for item, _ in guard])
    write_json(finished.out / "guard.json", record)
    draw(finished.out / "guard.png", record)
    show_guard(record)


def ask_each(
    experiment: Experiment, names: list[ModelName]
) -> tuple[np.ndarray, dict[ModelName, np.ndarray]]:
    """Return which questions the unchanged model answers right, and which each adapted one does."""
    lm, on_progress = experiment.lm, experiment.on_progress
    before_Q = right_answers(experiment, lm, BASE)
    after_Q = {}
    on_progress(Progress("guard: model", 0, len(names), "models"))
    for done, name in enumerate(names, 1):
        adapter = Adapter.load(adapter_folder(experiment.out, name), lm)
        after_Q[name] = right_answers(experiment, adapter.attach(lm), label(name))
        on_progress(Progress("guard: model", done, len(names), "models"))
    return before_Q, after_Q


def measured_by_tasks(
    experiment: Experiment, names: list[ModelName], finished: Finished
) -> dict[str, Any]:
    """Measure the unchanged model and every adapted one by tasks; return the guard's record."""
    lm, on_progress = experiment.lm, experiment.on_progress
    found = {None: measured_abilities(experiment, lm, BASE)}
    on_progress(Progress("guard: model", 0, len(names), "models"))
    for done, name in enumerate(names, 1):
        adapter = Adapter.load(adapter_folder(experiment.out, name), lm)
        found[name] = measured_abilities(experiment, adapter.attach(lm), label(name))
        on_progress(Progress("guard: model", done, len(names), "models"))
    measured = Measured(
        answers={},
        right=right_by_method(experiment, {name: a.mean for name, a in found.items()}),
        counts={},
        untrained={method: {"all": True} for method in finished.untrained},
        abilities=abilities_record(experiment, found),
    )
    return guard_entry(measured, experiment.inputs)


def make_record(
    before_Q: np.ndarray, after_Q: dict[ModelName, np.ndarray], inputs: Inputs, finished: Finished
) -> dict[str, Any]:
    """Return accuracies by method; the unchanged model stands in for a model that is not there."""
    values = {"before": [float(before_Q.mean())]}
    for method in (method for method in TUNED if method not in finished.untrained):
        models = model_names(finished.groups, method)
        values[method] = [
            float(np.mean([after_Q.get((seed, model), before_Q).mean() for model in models]))
            for seed in finished.questions
        ]
    return guard_record(values, inputs.guard_name, [item for item, _ in inputs.guard])


def by_topic(
    before_Q: np.ndarray, after_Q: dict[ModelName, np.ndarray], topics: list[str]
) -> dict[str, dict[str, float]]:
    """Return the percentage right by topic, before, and after as the mean of all models."""
    mean_Q = np.mean(list(after_Q.values()), axis=0)
    record = {}
    for topic in sorted(set(topics)):
        chosen_Q = np.array([t == topic for t in topics])
        record[topic] = {
            "questions": int(chosen_Q.sum()),
            "before": float(100 * before_Q[chosen_Q].mean()),
            "after": float(100 * mean_Q[chosen_Q].mean()),
        }
    return record


def draw(path: Path, record: dict[str, Any]) -> None:
    """Draw the accuracy of each method and seed beside the one before and the tolerated change."""

    names = list(record["after"])
    figure = new_figure((6.4, 0.5 * len(names) + 1.6))
    axes = figure.add_subplot()
    before = record["before"]
    axes.axvspan(before - GUARD_POINTS, before + GUARD_POINTS, color=LINE, label="within a point")
    axes.axvline(before, color=MUTED, label="before fine-tuning")
    for y, name in enumerate(names):
        mean, by_seed = record["after"][name]["mean"], record["after"][name]["by_seed"]
        seed_label, mean_label = ("one seed", "mean") if y == 0 else (None, None)
        axes.plot(by_seed, [y] * len(by_seed), "|", color=VERMILION, label=seed_label)
        axes.plot(mean, y, "o", color=BLUE, label=mean_label)
    axes.set_yticks(range(len(names)), [METHODS[name].title for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("% right")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path, legend="outside upper center")


if __name__ == "__main__":
    main(run, GuardSettings)
