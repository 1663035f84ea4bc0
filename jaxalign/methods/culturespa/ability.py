"""General abilities measured by another tool, in place of the guard's own questions.

The guard asks whether fine-tuning broke what a model could do before. Any tool that gives a model
accuracies by task can answer that: `run_culturespa` takes it as an argument, because tools that
evaluate models stand above the methods. `jaxalign culturespa --guard-tasks` passes
lm-evaluation-harness.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Protocol

import numpy as np

from jaxalign.core.files import write_json
from jaxalign.core.json_text import read_object
from jaxalign.lm.model import LM
from jaxalign.methods.culturespa.inputs import Experiment


@dataclasses.dataclass(frozen=True)
class Abilities:
    """What a model can do.

    Attributes:
        accuracy: Accuracy in [0, 1] by task.
        questions: Number of questions of all tasks.
        chance: Accuracy in [0, 1] of guessing, mean over tasks.
    """

    accuracy: dict[str, float]
    questions: int
    chance: float

    @property
    def mean(self) -> float:
        """Mean accuracy over tasks."""
        return float(np.mean(list(self.accuracy.values())))


class AbilityTest(Protocol):
    """A tool that measures what a model can do."""

    name: str
    """Name of the tool, and of its tasks, for reports and for what is kept."""

    def measure(self, lm: LM) -> Abilities:
        """Measure a model, with an adapter beside its weights if there is one."""


def measured_abilities(experiment: Experiment, lm: LM, name: str) -> Abilities:
    """Measure a model by the run's ability test, or read what was measured before.

    Args:
        experiment: The run, whose directory keeps what was measured.
        lm: The model: the unchanged one, or one with an adapter beside its weights.
        name: Its name; what was measured is kept under it.
    """
    test = experiment.ability_test
    key = hashlib.sha256(f"{lm.sha256} {name} {test.name}".encode()).hexdigest()[:16]
    path = experiment.out / "guard" / f"{key}.json"
    if path.exists():
        kept = read_object(path)
        return Abilities(kept["accuracy"], kept["questions"], kept["chance"])
    found = test.measure(lm)
    path.parent.mkdir(exist_ok=True)
    write_json(path, {"model": name, "test": test.name, **dataclasses.asdict(found)})
    return found
