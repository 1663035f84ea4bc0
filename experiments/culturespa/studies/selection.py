"""What the way of selecting data does to the joint model (CultureSPA's Figure 4).

    python -m experiments.culturespa.studies.selection runs/culturespa
    python -m experiments.culturespa.studies.selection runs/culturespa --thresholds 0.02 0.05 0.1

Of a finished run: the joint models trained on changed (CRQPC), random (RDS) and unchanged (CDS)
pairs, country by country, and their paired differences, over the items that both answered in every
run of a seed. With thresholds it also trains joint models on the pairs whose two distributions are
farther apart than that, changed answer or not; those data are more or fewer. Writes selection.json
and strategies.png into the run; what was trained is in RUN/selection-..., and a study that was
stopped goes on. Without thresholds it takes seconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.culturespa.studies.finished import Finished, read_config, read_finished
from experiments.culturespa.studies.retrain import joint_answers, open_run, weights, with_out
from jaxalign.commands.reports.culturespa_plots import strategies
from jaxalign.commands.reports.culturespa_tables import bounds
from jaxalign.methods.culturespa.ask import ask, plan
from jaxalign.methods.culturespa.result import (
    SELECTION,
    difference,
    method_record,
    paired,
    run_scores,
)
from jaxalign.methods.culturespa.select import Divergence, Selection, crqpc, diverged, divergence
from jaxalign.methods.culturespa.settings import Config
from jaxalign.methods.culturespa.study import Study
from jaxalign.runs import may_change, write_json
from jaxalign.runs.console import main, print_table
from jaxalign.stats.bootstrap import count_draws


@dataclasses.dataclass(frozen=True)
class SelectionConfig:
    """Compare ways of selecting a finished run's training data."""

    run: tyro.conf.Positional[Path] = may_change(Path("runs/culturespa"))
    """Directory of the run."""
    thresholds: tuple[float, ...] = ()
    """Divergences beyond which a pair is selected; one joint model each."""
    measure: Divergence = "jensen_shannon"
    """How far apart the unaware and the culture-aware distribution are."""
    quiet: bool = may_change(False)
    """No progress bars."""


def run(config: SelectionConfig) -> None:
    """The whole study; see the module's docstring."""
    finished = read_finished(config.run)
    settings, study = read_config(finished)
    settings = with_out(settings, finished.out, config.quiet)
    answers = own_answers(finished)
    sizes = {n: _size(finished, m) for n, m in SELECTION.items()} | {"p1": 0}
    if config.thresholds:
        chosen = by_divergence(config, settings, study, finished)
        folder = "-".join(["selection", *dict.fromkeys(name for _, name in chosen)])
        with open_run(finished, folder, config) as opened:
            answers |= joint_answers(settings, study, opened, finished, chosen)
        for (_, name), some in chosen.items():
            sizes[name] = sizes.get(name, 0) + len(some.pairs)
    record = compare(settings, study, answers, sizes)
    write_json(finished.out / "selection.json", record)
    strategies(finished.out / "strategies.png", record["strategies"])
    show(finished, record)


def own_answers(finished: Finished) -> dict[str, np.ndarray]:
    """Answers [seeds, runs, C, Q] of the run's own models, and of P1."""
    answers = finished.answers()
    trained = {n: m for n, m in SELECTION.items() if m not in finished.untrained}
    return {name: answers[method] for name, method in (trained | {"p1": "p1"}).items()}


def compare(
    settings: Config, study: Study, answers: Mapping[str, np.ndarray], sizes: Mapping[str, int]
) -> dict[str, Any]:
    """`selection.json`: a strategy's scores are over what it answered, a difference over what both
    answered; see `paired`."""
    draws = count_draws(len(study.survey.items), settings.resamples, settings.first_seed)

    def minus(a: str, b: str) -> dict[str, Any]:
        return difference(*paired(answers[a], answers[b], study, draws))

    return {
        "strategies": {
            name: method_record(settings, run_scores(a, study, draws)) | {"pairs": sizes[name]}
            for name, a in answers.items()
        },
        "minus_p1": {name: minus(name, "p1") for name in answers if name != "p1"},
        "differences": {
            f"{a}_minus_{b}": minus(a, b)
            for a, b in (("crqpc", "rds"), ("rds", "cds"), ("crqpc", "cds"))
            if a in answers and b in answers
        },
    }


def _size(finished: Finished, method: str) -> int:
    return sum(len(some[method].pairs) for some in finished.selected.values())


def by_divergence(
    config: SelectionConfig, settings: Config, study: Study, finished: Finished
) -> dict[tuple[int, str], Selection]:
    """CRQPC by the distance of distributions, for every threshold and seed."""
    params, chosen = weights(study), {}
    for seed, questions in finished.questions.items():
        asking = plan(study, ("unaware", "p1"), settings.countries, questions.items)
        replies = ask(settings, study, params, asking, finished.out, "base", settings.quiet, seed)
        aware, unaware = replies["p1"].answered, replies["unaware"].answered
        apart_CxQ = divergence(
            unaware.distribution_CxQxO[0], aware.distribution_CxQxO, questions.items,
            config.measure,
        )  # fmt: skip
        for threshold in config.thresholds:
            marked = diverged(apart_CxQ, threshold)
            chosen[seed, f"{config.measure}-{threshold:g}"] = crqpc(
                marked, aware.most_likely_CxQ, settings.countries, questions.items
            )
    return chosen


def show(finished: Finished, record: dict[str, Any]) -> None:
    rows = [
        [name, row["pairs"], *row["countries"].values(), row["mean"], bounds(row["interval"]),
         bounds(row["seed_interval"])]
        for name, row in record["strategies"].items()
    ]  # fmt: skip
    columns = ["", "pairs", *finished.countries, "mean", "questions [95 %]", "seeds [95 %]"]
    print_table("Joint model by selection (all seeds' pairs)", columns, rows)
    named = {f"{n} − p1": d for n, d in record["minus_p1"].items()}
    named |= {n.replace("_minus_", " − "): d for n, d in record["differences"].items()}
    rows = [
        [name, d["value"], bounds(d["interval"], "+"), bounds(d["seed_interval"], "+"),
         d["verdict"]]
        for name, d in named.items()
    ]  # fmt: skip
    print_table("Differences, paired", ["", "points", *columns[-2:], ""], rows)


if __name__ == "__main__":
    main(run, SelectionConfig)
