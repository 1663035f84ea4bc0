"""Joint models trained anew on other parts of a finished run's data, and how they answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.culturespa.studies.finished import Finished
from jaxalign.lm.checkpoint import load_checkpoint
from jaxalign.lm.lora import merge
from jaxalign.lm.weights import Params, param_shardings
from jaxalign.methods.culturespa.ask import ask, plan
from jaxalign.methods.culturespa.select import Selection
from jaxalign.methods.culturespa.settings import Config
from jaxalign.methods.culturespa.step_select import examples
from jaxalign.methods.culturespa.step_tune import Name, tune
from jaxalign.methods.culturespa.study import Study
from jaxalign.runs import Run
from jaxalign.runs.console import Progress


def weights(study: Study) -> Params:
    return load_checkpoint(study.folder, study.llama, param_shardings(study.llama, study.mesh))


def open_run(finished: Finished, folder: str, asked: Any) -> Run:
    """The run directory of a study inside a run's; what it holds is continued."""
    facts = finished.result["facts"] | {"settings": finished.result["settings"]}
    return Run.create(finished.out / folder, asked, facts, resume=True)


def joint_answers(
    config: Config,
    study: Study,
    run: Run,
    finished: Finished,
    chosen: Mapping[Name, Selection],
) -> dict[str, np.ndarray]:
    """Answers [seeds, runs, C, Q] under P1 of a joint model for each selection."""
    params = weights(study)
    data = {
        (seed, name): examples(config, study, finished.questions[seed], some, "p1")
        for (seed, name), some in chosen.items()
    }
    found = tune(config, study, params, run, "shared", data)
    asking = plan(study, ("p1",), config.countries, study.survey.items)
    answers: dict[str, list[np.ndarray]] = {}
    bar = Progress(len(chosen), step="measure: model", unit="models", quiet=config.quiet)
    with bar:
        for done, (seed, name) in enumerate(chosen, 1):
            trained = found.get((seed, name))
            full = params if trained is None else merge(params, trained, config.lora)
            label = f"{run.out.name} seed{seed} {name}"
            replies = ask(config, study, full, asking, run.out, label, quiet=True, seed=seed)
            answers.setdefault(name, []).append(replies["p1"].answers_NxCxQ)
            bar.update(done)
    return {name: np.stack(each) for name, each in answers.items()}


def with_out(config: Config, out: Path, quiet: bool) -> Config:
    return dataclasses.replace(config, out=out, quiet=quiet)
