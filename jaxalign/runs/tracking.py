"""A run's metrics where people watch their runs: `--track wandb` or `--track tensorboard`.

The rows of `metrics.jsonl` are sent on as they are written, nothing else is measured for it. A run
that is resumed continues the same tracked run: the rows after its checkpoint come again, with the
same values.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from jaxalign.core.errors import UserError

TrackerName = Literal["wandb", "tensorboard"]
_PACKAGES: Mapping[TrackerName, str] = {"wandb": "wandb", "tensorboard": "tensorboardX"}
TENSORBOARD = "tensorboard"  # the folder of its events in a run's directory


class Tracker(Protocol):
    """Where metrics are sent."""

    def log(self, phase: str, axis: str, step: int, values: Mapping[str, float]) -> None:
        """Send the values of one step.

        Args:
            phase: The part of the run that counts these steps, such as "joint"; "" for the whole.
            axis: What is counted, such as "generation".
            step: The count.
            values: Value by name, such as "USA/best".
        """

    def close(self, failed: bool) -> None:
        """Send what is left, and end."""


def check_tracker(name: TrackerName | None) -> None:
    """Raise UserError if the package of a tracker is not installed."""
    if name is None:
        return
    found = importlib.util.find_spec(_PACKAGES[name])
    # A folder of that name has no origin: W&B keeps its files in ./wandb.
    if found is None or found.origin is None:
        raise UserError(
            f"`track` {name}: the package {_PACKAGES[name]} is not installed; "
            f"pip install 'jaxalign[{name}]'"
        )


def open_tracker(
    name: TrackerName, out: Path, run_id: str, settings: Mapping[str, Any], resumed: bool
) -> Tracker:
    """Begin to track a run, or continue.

    Args:
        name: Which tracker.
        out: The run's directory.
        run_id: What stays the same when the run is resumed.
        settings: The run's settings.
        resumed: Whether the run is resumed.

    Raises:
        UserError: The package is not installed, or the service cannot be reached as it is set up.
    """
    check_tracker(name)
    if name == "wandb":
        return _WandB(out, run_id, settings)
    return _TensorBoard(out / TENSORBOARD, resumed)


def numbers(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the finite numbers of a row, those of inner objects as "outer/inner".

    >>> dict(numbers({"loss": 0.5, "USA": {"best": 3, "worst": float("inf")}, "note": "x"}))
    {'loss': 0.5, 'USA/best': 3.0}
    """
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{key}/")
        elif not isinstance(value, str | bytes | None):
            with contextlib.suppress(TypeError, ValueError):  # a list is no number
                if math.isfinite(number := float(value)):
                    yield f"{prefix}{key}", number


class _TensorBoard:
    """Event files, one folder a phase: TensorBoard forgets a phase's later steps by its own."""

    def __init__(self, folder: Path, resumed: bool) -> None:
        self._folder, self._resumed = folder, resumed
        self._writers: dict[str, Any] = {}

    def log(self, phase: str, axis: str, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX import SummaryWriter

        if phase not in self._writers:
            folder = self._folder / phase
            # Files are named by the second they begin in, so a quick resume would overwrite one.
            number = len(list(folder.glob("events.out.tfevents.*")))
            purge = {"purge_step": step} if self._resumed else {}
            self._writers[phase] = SummaryWriter(
                str(folder), filename_suffix=f".{number:04}", **purge
            )
        writer = self._writers[phase]
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()  # a kill must not take what the checkpoint has left behind

    def close(self, failed: bool) -> None:
        for writer in self._writers.values():
            writer.close()


class _WandB:
    """A run of Weights & Biases. Each phase has an axis of its own, as its steps begin anew."""

    def __init__(self, out: Path, run_id: str, settings: Mapping[str, Any]) -> None:
        import wandb

        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "jaxalign"),
                name=out.name,
                id=run_id,
                resume="allow",
                dir=str(out),
                config=dict(settings),
                settings=wandb.Settings(console="off"),  # the terminal is ours
            )
        except wandb.errors.Error as error:  # nobody is logged in, or no such project
            raise UserError(
                f"`track` wandb: {error}; log in by wandb login, or set WANDB_MODE=offline"
            ) from None
        self._axes: set[str] = set()

    def log(self, phase: str, axis: str, step: int, values: Mapping[str, float]) -> None:
        prefix = f"{phase}/" if phase else ""
        if prefix not in self._axes:
            self._axes.add(prefix)
            self._run.define_metric(f"{prefix}{axis}")
            self._run.define_metric(f"{prefix}*", step_metric=f"{prefix}{axis}")
        named = {f"{prefix}{name}": value for name, value in values.items()}
        self._run.log({f"{prefix}{axis}": step, **named})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
