"""What does the selection of training data do to the joint model? (CultureSPA's Figure 4.)

    python -m experiments.culturespa.studies.selection runs/culturespa
    python -m experiments.culturespa.studies.selection runs/culturespa --thresholds 0.02 0.05 0.1

Compares a finished run's joint models trained on changed (CRQPC), random (RDS) and unchanged (CDS)
pairs, country by country, with their paired differences over the items that both answered in every
run of a seed. With thresholds it also trains joint models on the pairs whose two distributions are
farther apart than that, whether or not the answer changed; the number of pairs then differs. Writes
selection.json and strategies.png into the run; what was trained is in RUN/selection-..., and an
interrupted study continues. Without thresholds it takes seconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro

from experiments.culturespa.studies.finished import (
    Answered,
    Finished,
    joint_answers,
    open_run,
    read_finished,
    read_settings,
    reopen,
)
from jaxalign.commands.reports.culturespa_plots import plot_selections
from jaxalign.commands.reports.culturespa_tables import (
    INTERVALS,
    mean_cells,
    show_differences,
    title,
)
from jaxalign.core.files import write_json
from jaxalign.core.progress import OnProgress
from jaxalign.methods.culturespa.answer import BASE, ask, in_styles
from jaxalign.methods.culturespa.fine_tune import ModelName
from jaxalign.methods.culturespa.inputs import Experiment, Inputs
from jaxalign.methods.culturespa.result import SELECTION_MODELS, Scored
from jaxalign.methods.culturespa.select import Divergence, Selection, crqpc, diverged, divergence
from jaxalign.methods.culturespa.settings import CultureSPASettings
from jaxalign.runs import may_change
from jaxalign.runs.console import main, print_table, progress_bars


@dataclasses.dataclass(frozen=True)
class SelectionSettings:
    """Compare ways of selecting a finished run's training data."""

    run: tyro.conf.Positional[Path] = may_change(Path("runs/culturespa"))
    """Directory of the run."""
    thresholds: tuple[float, ...] = ()
    """Divergences above which a pair is selected; one joint model is trained for each."""
    measure: Divergence = "jensen_shannon"
    """Measure of how far apart the unaware and the culture-aware distribution are."""
    quiet: bool = may_change(False)
    """Show no progress bars."""


def run(settings: SelectionSettings) -> None:
    """Compare the selections, and write, draw and print how their models score."""
    finished = read_finished(settings.run)
    original, inputs = read_settings(finished)
    answered = answers_of_run(finished)
    pairs = {
        name: sum(len(selected[model]) for selected in finished.selected.values())
        for name, model in SELECTION_MODELS.items()
    }
    pairs["p1"] = 0
    if settings.thresholds:
        with progress_bars(quiet=settings.quiet) as on_progress:
            answered |= answers_by_threshold(settings, finished, pairs, on_progress)
    record = compare(original, inputs, answered, pairs)
    write_json(finished.out / "selection.json", record)
    plot_selections(finished.out / "strategies.png", record["strategies"])
    show(finished, record)


def answers_of_run(finished: Finished) -> Answered:
    """Return the answers of the run's models by selection, and of P1."""
    trained = {s: m for s, m in SELECTION_MODELS.items() if m not in finished.untrained}
    return finished.answered().renamed(trained | {"p1": "p1"})


def answers_by_threshold(
    settings: SelectionSettings,
    finished: Finished,
    pairs: dict[str, int],
    on_progress: OnProgress,
) -> Answered:
    """Train and ask a joint model for each threshold; adds its number of pairs to `pairs`."""
    experiment = reopen(finished, on_progress)
    selections = by_divergence(settings, experiment, finished)
    for (_, name), selection in selections.items():
        pairs[name] = pairs.get(name, 0) + len(selection)
    folder = "-".join(["selection", *dict.fromkeys(name for _, name in selections)])
    with open_run(finished, folder, settings) as opened:
        study = dataclasses.replace(experiment, out=opened.out)
        return joint_answers(study, finished.questions, selections)


def by_divergence(
    settings: SelectionSettings, experiment: Experiment, finished: Finished
) -> dict[ModelName, Selection]:
    """Select pairs by the distance of their two distributions, for every threshold and seed."""
    selections = {}
    groups = experiment.groups
    for seed, questions in finished.questions.items():
        items = questions.items
        asked = in_styles(experiment.inputs, ("unaware", "p1"), groups, questions)
        (responses,) = ask(experiment, experiment.lm, BASE, asked, seed, experiment.on_progress)
        aware, unaware = responses["p1"], responses["unaware"]
        divergence_CxQ = divergence(
            unaware.distributions()[0], aware.distributions(), items, settings.measure
        )
        for threshold in settings.thresholds:
            chosen_CxQ = diverged(divergence_CxQ, threshold)
            name = f"{settings.measure}-{threshold:g}"
            selections[seed, name] = crqpc(chosen_CxQ, aware.most_likely_positions(), groups, items)
    return selections


def compare(
    original: CultureSPASettings,
    inputs: Inputs,
    answered: Answered,
    pairs: Mapping[str, int],
) -> dict[str, Any]:
    """Return `selection.json`.

    A strategy's scores are over the items it answered, a difference is over those that both
    answered (`paired`).

    Args:
        original: Settings of the run.
        inputs: What they name.
        answered: Answers by selection, and of P1.
        pairs: Number of pairs trained on, over all seeds.
    """
    names = answered.mean
    scored = Scored(original, inputs, names, answered.alone)
    return {
        "strategies": {name: scored.method(name) | {"pairs": pairs[name]} for name in names},
        "minus_p1": {name: scored.difference(name, "p1") for name in names if name != "p1"},
        "differences": {
            f"{a}_minus_{b}": scored.difference(a, b)
            for a, b in (("crqpc", "rds"), ("rds", "cds"), ("crqpc", "cds"))
            if a in names and b in names
        },
    }


def show(finished: Finished, record: dict[str, Any]) -> None:
    """Print the scores by selection, and their paired differences."""
    rows = [
        [
            title(name),
            row["pairs"],
            *row["countries"].values(),
            *mean_cells(row),
        ]
        for name, row in record["strategies"].items()
    ]
    columns = ["selection", "pairs of all seeds", *finished.groups, "mean", *INTERVALS]
    print_table("Score × 100 of the joint model by how its data were selected", columns, rows)
    minus_p1 = {f"{name}_minus_p1": d for name, d in record["minus_p1"].items()}
    show_differences(minus_p1 | record["differences"])


if __name__ == "__main__":
    main(run, SelectionSettings)
