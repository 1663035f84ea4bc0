"""A finished CultureSPA run, read again by its studies, and joint models trained on other data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from jaxalign.core.errors import UserError
from jaxalign.core.json_text import parse_json, reason
from jaxalign.core.progress import OnProgress, Progress, ignore
from jaxalign.lm.model import load_model
from jaxalign.methods.culturespa.answer import ask, in_styles
from jaxalign.methods.culturespa.fine_tune import ModelName, fine_tune, label, training_examples
from jaxalign.methods.culturespa.inputs import Experiment, Inputs, read_inputs, seed_folder
from jaxalign.methods.culturespa.measure import Read, readers
from jaxalign.methods.culturespa.select import TRAINED_UNDER, Selection
from jaxalign.methods.culturespa.settings import CultureSPASettings
from jaxalign.runs import Run
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.survey import Survey, load


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Study a finished CultureSPA run."""

    run: tyro.conf.Positional[Path]
    """Directory of the run."""


@dataclasses.dataclass(frozen=True)
class Answered:
    """What some models answered: positions of options [seeds, runs, C, Q], NaN for no answer.

    Attributes:
        mean: By name, in the mean over presentations.
        alone: By presentation and name, in each alone; empty if there is one only.
    """

    mean: dict[str, np.ndarray]
    alone: dict[str, dict[str, np.ndarray]]

    def __or__(self, other: Answered) -> Answered:
        alone = {form: self.alone[form] | other.alone[form] for form in self.alone}
        return Answered(self.mean | other.mean, alone)

    def renamed(self, old_names: Mapping[str, str]) -> Answered:
        """Return some of the answers under other names: {new: old}."""

        def choose(answers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {new: answers[old] for new, old in old_names.items()}

        return Answered(choose(self.mean), {form: choose(a) for form, a in self.alone.items()})


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a finished run left in its directory.

    Attributes:
        out: The directory.
        result: The content of `result.json`.
        questions: The written questions by seed.
        selected: The pairs trained on, by seed and model.
    """

    out: Path
    result: dict[str, Any]
    questions: dict[int, Survey]
    selected: dict[int, dict[str, Selection]]

    @property
    def groups(self) -> tuple[str, ...]:
        """The countries or other groups that the run aligned to."""
        return tuple(self.result["settings"]["countries"])

    @property
    def untrained(self) -> frozenset[str]:
        """Methods none of whose models was changed by fine-tuning."""
        models_of = self.result["untrained"]
        return frozenset(name for name, models in models_of.items() if models["all"])

    def answers(self) -> dict[str, np.ndarray]:
        """Return positions of options by method, float32 [seeds, runs, C, Q], NaN for no answer."""
        return _positions(_read_json(self.out / "answers.json")["methods"])

    def answered(self) -> Answered:
        """Return the same, and in each presentation alone if there are several."""
        alone = _read_json(self.out / "answers.json").get("presentations", {})
        return Answered(self.answers(), {form: _positions(found) for form, found in alone.items()})

    def require_joint_data(self) -> None:
        """Raise UserError if the joint model had nothing to train on."""
        if "joint" in self.untrained:
            raise UserError(f"{self.out}: its joint model was not trained; no data to divide")


def read_finished(out: Path) -> Finished:
    """Read a run's directory. Raises UserError if it is not a finished CultureSPA run."""
    result = _read_json(out / "result.json")
    if not isinstance(result, dict) or "selected" not in result:
        raise UserError(f"{out}: its result.json is not that of jaxalign culturespa")
    questions, selected = {}, {}
    for name in result["selected"]:
        seed = int(name.removeprefix("seed"))
        folder = seed_folder(out, seed)
        questions[seed] = load(folder / "questions.json")
        pairs = _read_json(folder / "selected" / "pairs.json")
        selected[seed] = {
            model: Selection.of(pairs[model]) for model in TRAINED_UNDER if model in pairs
        }
    return Finished(out, result, questions, selected)


def read_settings(finished: Finished) -> tuple[CultureSPASettings, Inputs]:
    """Return the run's own settings and what they name.

    Raises:
        UserError: If a file that they name has changed since.
    """
    settings = _filled(CultureSPASettings(), finished.result["settings"], "")
    settings = dataclasses.replace(settings, out=finished.out)
    inputs = read_inputs(settings)
    facts = inputs.facts()
    for name, then in finished.result["facts"].items():
        if json.loads(json.dumps(facts[name])) != then:
            raise UserError(f"{finished.out}: {name} is not what it was when the run started")
    return settings, inputs


def reopen(finished: Finished, on_progress: OnProgress = ignore) -> Experiment:
    """Load the model of a finished run, and return what the steps of the method need."""
    settings, inputs = read_settings(finished)
    return Experiment(settings, inputs, load_model(inputs.files), finished.out, on_progress)


def open_run(finished: Finished, folder: str, settings: Any) -> Run:
    """Open the directory of a study inside that of a run; an interrupted study continues there.

    Args:
        finished: The run.
        folder: Name of the study's directory.
        settings: The study's own settings, which must not change when it continues.
    """
    facts = finished.result["facts"] | {"settings": finished.result["settings"]}
    return Run.create(finished.out / folder, settings, facts, resume=True)


def joint_answers(
    experiment: Experiment,
    questions: Mapping[int, Survey],
    selections: Mapping[ModelName, Selection],
) -> Answered:
    """Train a joint model on each selection and ask it the survey under P1.

    Args:
        experiment: The run, with `out` the study's directory.
        questions: The written questions by seed.
        selections: The pairs to train on, by seed and name.

    Returns:
        The answers by the selection's name.
    """
    examples = {
        (seed, name): training_examples(experiment, questions[seed], selection, "joint", seed)
        for (seed, name), selection in selections.items()
    }
    adapters = fine_tune(experiment, "shared", examples)
    survey = experiment.inputs.survey
    asked = in_styles(experiment.inputs, ("p1",), experiment.groups, survey)
    replies: dict[str, list[Responses]] = {}
    task, total = "measure: model", len(selections)
    experiment.on_progress(Progress(task, 0, total, "models"))
    for done, model in enumerate(selections, 1):
        lm = experiment.lm
        if model in adapters:
            lm = adapters[model].attach(lm)
        key = f"{experiment.out.name} {label(model)}"
        (responses,) = ask(experiment, lm, key, asked, seed=model[0])
        replies.setdefault(model[1], []).append(responses["p1"])
        experiment.on_progress(Progress(task, done, total, "models"))

    def read_all(read: Read) -> dict[str, np.ndarray]:
        return {name: np.stack([read(r) for r in by_seed]) for name, by_seed in replies.items()}

    alone = readers(experiment.inputs).items()
    return Answered(read_all(Responses.answers), {form: read_all(read) for form, read in alone})


def _filled(settings: Any, recorded: dict[str, Any], prefix: str) -> Any:
    """Return `settings` with the recorded values, lists as tuples and paths as paths."""
    values = {}
    for field in dataclasses.fields(settings):
        name, default = prefix + field.name, getattr(settings, field.name)
        if dataclasses.is_dataclass(default):
            values[field.name] = _filled(default, recorded, f"{name}.")
        else:
            values[field.name] = _typed(recorded.get(name, default), str(field.type))
    return dataclasses.replace(settings, **values)


def _typed(value: Any, declared: str) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if isinstance(value, str) and "Path" in declared else value


def _positions(methods: Mapping[str, Any]) -> dict[str, np.ndarray]:
    arrays = {name: np.array(values, np.float32) for name, values in methods.items()}
    return {name: np.where(a < 0, np.nan, a).astype(np.float32) for name, a in arrays.items()}


def _read_json(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; is the run finished?") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({reason(error)}); is the run finished?") from None
