"""Does it help to train toward the distribution of a persona's answers, not its likeliest option?

    python -m experiments.culturespa.studies.targets runs/culturespa
    python -m experiments.culturespa.studies.targets runs/culturespa --presentations A B C D
    python -m experiments.culturespa.targets --model smollm2 ...     # without a finished run

Trains the joint and the specific models of a finished run again, on the same pairs, from the same
starts and with the examples in the same order, toward the other target (`--train.target`): the
probabilities of all options instead of the most likely one, or the reverse. Both are then compared,
paired by question and seed: the alignment score over all of the run's presentations and in each
alone, how varied the answers are beside people's (`jaxalign.stats.diversity`), and the guard.
`--presentations` asks in other forms than the run was trained in. Writes targets.json into the run;
what was trained is in RUN/targets, and an interrupted study continues. Takes as long as the run's
own joint and specific models.

In a single presentation a model already answers with the distribution that it is trained toward, so
that only the probability of no option at all is left to learn; in several, it is the mean over them
that it is trained toward in each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.culturespa.studies.finished import open_run, read_finished, reopen
from jaxalign.commands.reports.culturespa_measure import diversity_table
from jaxalign.commands.reports.culturespa_tables import INTERVALS, bounds, mean_cells
from jaxalign.core.files import write_json
from jaxalign.methods.base import JOINT, P1, SPECIFIC
from jaxalign.methods.culturespa.answer import COMPARED, answer_survey, answer_written
from jaxalign.methods.culturespa.fine_tune import (
    AdapterFiles,
    adapter_folder,
    fine_tune,
    seed_tokens,
    specific,
)
from jaxalign.methods.culturespa.inputs import Experiment
from jaxalign.methods.culturespa.instrument import diversity_record, over_seeds
from jaxalign.methods.culturespa.measure import Measured, measure
from jaxalign.methods.culturespa.result import Scored, guard_record
from jaxalign.methods.culturespa.select import TRAINED_UNDER, Selection
from jaxalign.methods.culturespa.styles import Style
from jaxalign.report.document import Estimate, Table
from jaxalign.runs import may_change
from jaxalign.runs.console import main, print_table, progress_bars
from jaxalign.surveys.presentations import check_presentations
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.survey import Survey

METHODS = (JOINT.key, SPECIFIC.key)
TARGETS = ("option", "distribution")


@dataclasses.dataclass(frozen=True)
class TargetsSettings:
    """Compare training targets on the pairs of a finished run."""

    run: tyro.conf.Positional[Path] = may_change(Path("runs/culturespa"))
    """Directory of the run."""
    presentations: tuple[str, ...] | None = may_change(None)
    """Forms to ask both models in; default: those of the run."""
    quiet: bool = may_change(False)
    """Show no progress bars."""


def run(settings: TargetsSettings) -> None:
    """Train toward the other target, and write and print the comparison."""
    if settings.presentations is not None:
        check_presentations(settings.presentations)
    finished = read_finished(settings.run)
    finished.require_joint_data()
    with progress_bars(quiet=settings.quiet) as on_progress:
        experiment = reopen(finished, on_progress)
        with open_run(finished, "targets", settings) as opened:
            own = experiment.settings.train.target
            other = TARGETS[own == TARGETS[0]]
            study = toward(experiment, other, opened.out)
            answered = answer_written(experiment, finished.questions)
            trained = train(study, finished.questions, finished.selected, answered)
            folders = {name: adapter_folder(experiment.out, name) for name in trained}
            of_run = AdapterFiles(folders, experiment.lm.files)
            forms = settings.presentations or experiment.inputs.presentations
            survey = answer_survey(shown_in(experiment, forms), COMPARED)
            measured = {
                own: measure(shown_in(experiment, forms), of_run, survey),
                other: measure(shown_in(study, forms), trained, survey),
            }
    record = compare(shown_in(experiment, forms), measured)
    record["trained_in"] = list(experiment.inputs.presentations)
    write_json(finished.out / "targets.json", record)
    show(record)


def toward(experiment: Experiment, target: str, folder: Path) -> Experiment:
    """Return an experiment that trains toward a target, in a directory of its own."""
    train = dataclasses.replace(experiment.settings.train, target=target)
    settings = dataclasses.replace(experiment.settings, train=train)
    return dataclasses.replace(experiment, settings=settings, out=folder)


def shown_in(experiment: Experiment, forms: tuple[str, ...]) -> Experiment:
    """Return an experiment whose survey is shown in other forms than its examples."""
    inputs = dataclasses.replace(experiment.inputs, presentations=forms)
    return dataclasses.replace(experiment, inputs=inputs)


def train(
    study: Experiment,
    questions: Mapping[int, Survey],
    selected: Mapping[int, Mapping[str, Selection]],
    answered: Mapping[int, Mapping[Style, Responses]],
) -> AdapterFiles:
    """Train the joint and the specific models toward the study's target.

    Args:
        study: The experiment; its target and its directory count.
        questions: The written questions by seed.
        selected: The pairs by seed and model.
        answered: What the unchanged model answers to the questions, by seed and style.
    """
    style = TRAINED_UNDER[JOINT.key]
    joint, specifics = {}, {}
    for seed, selections in selected.items():
        tokens = seed_tokens(study, questions[seed])
        responses = None
        if study.settings.train.target == "distribution":
            responses = answered[seed][style]
        joint[seed, JOINT.key] = tokens.examples(selections[JOINT.key], style, responses)
        for group, selection in selections[JOINT.key].by_group().items():
            specifics[seed, specific(group)] = tokens.examples(selection, style, responses)
    return fine_tune(study, "shared", joint) | fine_tune(study, "specific", specifics)


def compare(experiment: Experiment, measured: Mapping[str, Measured]) -> dict[str, Any]:
    """Return `targets.json`.

    Args:
        experiment: The run.
        measured: What the models of each target answer.
    """
    inputs, settings = experiment.inputs, experiment.settings
    named = {f"{m} {t}": (m, t) for m in METHODS for t in TARGETS}
    first = measured[TARGETS[0]]

    def answers(of: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        found = {name: of[target][method] for name, (method, target) in named.items()}
        return {P1.key: of[TARGETS[0]][P1.key]} | found

    alone = {
        form: answers({t: each.by_presentation[form] for t, each in measured.items()})
        for form in first.by_presentation
    }
    scored = Scored(settings, inputs, answers({t: m.answers for t, m in measured.items()}), alone)
    shares = answers({t: m.shares for t, m in measured.items()})
    varied = diversity_record(inputs, shares)
    right = {name: measured[target].right[method] for name, (method, target) in named.items()}
    items = [item for item, _ in inputs.guard]
    record = {
        "presentations": list(inputs.presentations),
        "scores": {name: scored.method(name) for name in (P1.key, *named)},
        "by_presentation": {
            form: {name: each.method(name)["mean"] for name in (P1.key, *named)}
            for form, each in scored.alone.items()
        },
        "minus_p1": {name: scored.difference(name, P1.key) for name in named},
        "distribution_minus_option": {
            method: {
                "score": scored.difference(f"{method} distribution", f"{method} option"),
                "guard": over_seeds(
                    100 * np.subtract(right[f"{method} distribution"], right[f"{method} option"])
                ),
                "diversity": {
                    name: _minus(varied[f"{method} distribution"], varied[f"{method} option"], name)
                    for name in varied["people"]
                },
            }
            for method in METHODS
        },
        "diversity": varied,
        "guard": guard_record({"before": first.right["before"]} | right, inputs.guard_name, items),
        "untrained": {
            target: {m: found for m, found in each.untrained.items() if m in METHODS}
            for target, each in measured.items()
        },
    }
    record["verdict"] = [verdict(record, method) for method in METHODS]
    return record


def _minus(a: Mapping[str, Any], b: Mapping[str, Any], name: str) -> dict[str, Any]:
    pairs = list(zip(a[name]["by_seed"], b[name]["by_seed"], strict=True))
    return over_seeds([None if None in pair else pair[0] - pair[1] for pair in pairs])


def verdict(record: Mapping[str, Any], method: str) -> str:
    """Say in words what the distribution as a target changes for a method."""
    found = record["distribution_minus_option"][method]
    score, guard, varied = found["score"], found["guard"], found["diversity"]

    def told(difference: Mapping[str, Any], more: str, less: str) -> str:
        interval = difference["seed_interval"]
        if difference["mean"] is None:
            return "not defined"
        if interval is None or interval[0] <= 0 <= interval[1]:
            return "not told apart"
        return more if difference["mean"] > 0 else less

    def with_bounds(value: float | None, interval: Any, digits: int) -> str:
        if value is None:
            return "–"
        return f"{value:+.{digits}f} {bounds(interval, '+', digits=digits)}"

    people = record["diversity"]["people"]["options"]["mean"]
    option, distribution = (
        record["diversity"][f"{method} {target}"]["options"]["mean"] for target in TARGETS
    )
    return (
        f"{method}: with the distribution as the target, the score is {score['verdict']} "
        f"({with_bounds(score['value'], score['interval'], 1)} points over questions, "
        f"{bounds(score['seed_interval'], '+')} over seeds); the guard is "
        f"{told(guard, 'higher', 'lower')} "
        f"({with_bounds(guard['mean'], guard['seed_interval'], 1)} points); answers use "
        f"{distribution:.2f} options instead of {option:.2f} (people {people:.2f}), the spread "
        f"between countries is {told(varied['spread'], 'larger', 'smaller')} "
        f"({with_bounds(varied['spread']['mean'], varied['spread']['seed_interval'], 3)})"
    )


def show(record: Mapping[str, Any]) -> None:
    """Print scores, differences, diversity, guard and the verdict."""
    forms = record["by_presentation"]
    change = record["guard"]["change"]
    rows = [
        [
            name,
            *mean_cells(row),
            *(by_name[name] for by_name in forms.values()),
            change[name]["mean"] if name in change else None,
            bounds(change[name]["seed_interval"], "+") if name in change else None,
        ]
        for name, row in record["scores"].items()
    ]
    columns = ["model and target", "mean", *INTERVALS, *(f"{form} alone" for form in forms)]
    print_table(
        f"Score × 100, answers averaged over {', '.join(record['presentations'])}; the guard's "
        "change in points",
        [*columns, "guard", INTERVALS[1]],
        rows,
    )
    table = diversity_table(record["diversity"])
    print_table(table.caption, list(table.columns), [_cells(table, row) for row in table.rows])
    for sentence in record["verdict"]:
        print(sentence)


def _cells(table: Table, row: tuple) -> list[str | None]:
    def cell(value: Any) -> str | None:
        if isinstance(value, Estimate):
            shown = f"{value.mean:.2f}"
            if value.has_interval:
                shown += f" {bounds((value.low, value.high), digits=2)}"
            return shown
        return value

    return [cell(value) for value in row]


if __name__ == "__main__":
    main(run, TargetsSettings)
