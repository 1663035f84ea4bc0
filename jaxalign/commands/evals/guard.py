"""The guard of CultureSPA by lm-evaluation-harness: how much a model gets right in its tasks.

    jaxalign culturespa --model LLAMA --guard-tasks hellaswag arc_easy

Tasks and their data are the harness's and the user's. They are loaded before a run begins, so that
a task that does not exist, or has no accuracy, ends nothing that took hours.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.commands.evals.lm_eval import JaxalignLM, TemplateLM
from jaxalign.commands.evals.subject import Subject
from jaxalign.core.errors import UserError
from jaxalign.lm.model import LM
from jaxalign.methods.culturespa.ability import Abilities

_ACCURACIES = ("acc", "exact_match", "acc_norm")  # the first that a task has counts
_log = logging.getLogger("jaxalign")


class HarnessTest:
    """Tasks of lm-evaluation-harness as an ability test (`run_culturespa`).

    Attributes:
        name: The harness with its version, and the tasks.
    """

    def __init__(self, tasks: Sequence[str], folder: Path | None = None) -> None:
        """Load the tasks with their data.

        Args:
            tasks: Names of tasks or of groups of tasks.
            folder: Task files of the user's own.

        Raises:
            UserError: The harness is not installed, a task is unknown or cannot be loaded, or has
                none of the metrics acc, exact_match and acc_norm.
        """
        if TemplateLM is object:
            raise UserError(
                "`guard_tasks`: lm-evaluation-harness is not installed: "
                "pip install 'jaxalign[eval]'"
            )
        from lm_eval.tasks import TaskManager

        if folder is not None and not folder.is_dir():
            raise UserError(f"`guard_task_folder` {folder}: no such folder")
        self._manager = TaskManager(include_path=None if folder is None else str(folder))
        for task in tasks:
            if task not in self._manager.all_tasks:
                raise UserError(
                    f"`guard_tasks` {task}: unknown to lm-evaluation-harness; tasks of your own "
                    "need `guard_task_folder`"
                )
        try:
            loaded = self._manager.load(list(tasks))
        except Exception as error:  # whatever reading foreign data can raise
            words = str(error).splitlines() or [type(error).__name__]
            raise UserError(f"`guard_tasks` {' '.join(tasks)}: not loaded: {words[0]}") from error
        # The single tasks behind each name that was given.
        self._parts = {name: [name] for name in loaded["tasks"]}
        for name, group in loaded.get("groups", {}).items():
            self._parts[name] = [task.task_name for task in group.get_all_tasks()]
        for name in tasks:
            if name not in self._parts:
                raise UserError(
                    f"`guard_tasks` {name}: a tag; name its tasks: {', '.join(loaded['tasks'])}"
                )
        for name, task in loaded["tasks"].items():
            if not any(metric in task.aggregation() for metric in _ACCURACIES):
                raise UserError(
                    f"`guard_tasks` {name}: has no accuracy ({', '.join(task.aggregation())}); the "
                    f"guard needs {', '.join(_ACCURACIES)}"
                )
        self.tasks = tuple(tasks)
        version = importlib.metadata.version("lm_eval")
        self.name = f"lm-evaluation-harness {version}: {', '.join(tasks)}"

    def measure(self, lm: LM) -> Abilities:
        """Return a model's accuracy in every task, that of a group as the mean of its tasks.

        An adapter beside the model's weights counts.
        """
        from lm_eval import simple_evaluate

        results = simple_evaluate(
            JaxalignLM.of(Subject(lm)),
            tasks=list(self.tasks),
            task_manager=self._manager,
            bootstrap_iters=0,
        )
        found = results["results"]
        accuracy = {
            task: float(np.mean([_accuracy(found[part]) for part in self._parts[task]]))
            for task in self.tasks
        }
        counts = results["n-samples"].values()
        chances = [_chance(rows) for rows in results["samples"].values()]
        _log.info(f"guard: {', '.join(f'{t} {100 * a:.1f} %' for t, a in accuracy.items())}")
        return Abilities(accuracy, sum(n["effective"] for n in counts), float(np.mean(chances)))


def _accuracy(metrics: Mapping[str, Any]) -> float:
    """Return a task's accuracy; the harness writes metrics as "acc,none", with the filter."""
    by_name = {name.partition(",")[0]: value for name, value in reversed(metrics.items())}
    return float(next(by_name[name] for name in _ACCURACIES if name in by_name))


def _chance(samples: Sequence[Mapping[str, Any]]) -> float:
    """Return what guessing gets right: one of the choices; nothing where replies are free."""
    responses = [sample["filtered_resps"] for sample in samples]
    choices = [len(r) for r in responses if len(r) > 1]
    return float(np.mean([1 / n for n in choices])) if choices else 0.0
