"""A finished run of `experiments.culturespa`, read again by the studies of its parts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from jaxalign.core.errors import UserError
from jaxalign.methods.culturespa.select import Pair, Selection
from jaxalign.methods.culturespa.settings import Config
from jaxalign.methods.culturespa.step_select import TRAINED
from jaxalign.methods.culturespa.study import Study, read_study
from jaxalign.surveys.survey import Survey, load


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Study a finished run of experiments.culturespa."""

    run: tyro.conf.Positional[Path]
    """Directory of the run."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a run left behind."""

    out: Path
    result: dict[str, Any]
    questions: dict[int, Survey]  # by seed
    selected: dict[int, dict[str, Selection]]

    @property
    def countries(self) -> tuple[str, ...]:
        return tuple(self.result["settings"]["countries"])

    @property
    def untrained(self) -> frozenset[str]:
        """Methods all of whose models are the model as it came."""
        found = self.result.get("untrained", {})
        return frozenset(name for name, models in found.items() if models["all"])

    def answers(self) -> dict[str, np.ndarray]:
        """Positions of options, float32 [seeds, runs, C, Q] by method; NaN for no answer."""
        methods = _json(self.out / "answers.json")["methods"]
        arrays = {name: np.array(values, np.float32) for name, values in methods.items()}
        return {name: np.where(a < 0, np.nan, a).astype(np.float32) for name, a in arrays.items()}


def read_finished(out: Path) -> Finished:
    """Raises UserError where `out` is no finished run."""
    result = _json(out / "result.json")
    if not isinstance(result, dict) or "selected" not in result:
        raise UserError(f"{out}: not a run of experiments.culturespa")
    questions, selected = {}, {}
    for name in result["selected"]:
        seed = int(name.removeprefix("seed"))
        questions[seed] = load(out / name / "questions.json")
        pairs = _json(out / name / "selected" / "pairs.json")
        selected[seed] = {
            m: Selection(tuple(Pair(*row) for row in pairs[m])) for m in TRAINED if m in pairs
        }
    return Finished(out, result, questions, selected)


def read_config(finished: Finished) -> tuple[Config, Study]:
    """The run's own settings, and what they name. Raises UserError where that has changed."""
    config = _fill(Config(), finished.result["settings"], "")
    config = dataclasses.replace(config, out=finished.out)
    study = read_study(config)
    for name, then in finished.result["facts"].items():
        if json.loads(json.dumps(study.facts()[name])) != then:
            raise UserError(f"{finished.out}: {name} is no longer what it was then")
    return config, study


def _fill(config: Any, settings: dict[str, Any], prefix: str) -> Any:
    """`config` with the recorded values, lists as tuples and paths as paths."""
    values = {}
    for field in dataclasses.fields(config):
        name, now = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(now):
            values[field.name] = _fill(now, settings, f"{name}.")
        else:
            values[field.name] = _typed(settings.get(name, now), str(field.type))
    return dataclasses.replace(config, **values)


def _typed(value: Any, declared: str) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if isinstance(value, str) and "Path" in declared else value


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); is the run finished?") from None
