"""Metrics that are sent on to TensorBoard and to Weights & Biases, also of a resumed run."""

from __future__ import annotations

import dataclasses
import importlib.machinery
import importlib.util
import struct
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jaxalign.core.errors import UserError
from jaxalign.runs import Run, check_run, may_change
from jaxalign.runs.tracking import TENSORBOARD, TrackerName, check_tracker


@dataclasses.dataclass(frozen=True)
class Config:
    population: int = 64
    track: TrackerName | None = may_change(None)


ROWS = [{"generation": n, "USA": {"best": 10.0 - n, "worst": float("nan")}} for n in range(4)]


def tracked(out: Path, track: TrackerName) -> None:
    """Log three rows, be stopped, and log those after the checkpoint again."""
    run = Run.create(out, Config(track=track), {})
    for row in ROWS[:3]:
        run.log(row)
    run.track({"step": 7, "loss": 1.5}, phase="joint")
    run.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    with Run.create(out, Config(track=track), {}, resume=True) as run:
        run.rewind(0)
        for row in ROWS[1:]:
            run.log(row)
        run.track({"step": 5, "loss": 1.25}, phase="joint")


def events(folder: Path) -> Iterator[Event]:
    """Yield the events of a folder's files: each has a length, a sum, its content and a sum."""
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda path: path.suffix):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            yield Event.FromString(content[place + 12 : place + 12 + length])
            place += 12 + length + 4


def test_tensorboard_shows_what_a_resumed_run_ended_with(tmp_path):
    tracked(tmp_path / "run", "tensorboard")
    folder = tmp_path / "run" / TENSORBOARD
    values: dict[int, dict[str, float]] = {}
    restarts = 0
    for event in events(folder):
        if event.session_log.status == SessionLog.START:
            restarts += 1
            values = {step: found for step, found in values.items() if step < event.step}
        for value in event.summary.value:
            values.setdefault(event.step, {})[value.tag] = value.simple_value
    assert restarts == 1
    assert values == {n: {"USA/best": 10.0 - n} for n in range(4)}
    assert [e.step for e in events(folder / "joint") if e.summary.value] == [7, 5]


def test_tensorboards_own_reader_reads_them(tmp_path):
    pytest.importorskip("tensorboard")
    reader = importlib.import_module(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator
    tracked(tmp_path / "run", "tensorboard")
    found = reader(str(tmp_path / "run" / TENSORBOARD)).Reload()
    assert [(e.step, e.value) for e in found.Scalars("USA/best")] == [
        (n, 10.0 - n) for n in range(4)
    ]


class FakeRun:
    def __init__(self) -> None:
        self.axes: dict[str, str | None] = {}
        self.logged: list[dict[str, float]] = []
        self.exit_codes: list[int] = []

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axes[name] = step_metric

    def log(self, values: dict[str, float]) -> None:
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


@pytest.fixture
def wandb(monkeypatch) -> types.ModuleType:
    """A module with the parts of wandb that are used; `calls` holds what init was given."""
    module: Any = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None, origin="here")
    module.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
    module.Settings = dict
    module.calls, module.run, module.refuses = [], FakeRun(), False

    def init(**given: Any) -> FakeRun:
        if module.refuses:
            raise module.errors.Error("No API key configured")
        module.calls.append(given)
        return module.run

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_continues_the_same_run(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "values")
    tracked(tmp_path / "run", "wandb")
    first, second = wandb.calls
    assert first == second
    assert first["resume"] == "allow"
    assert (first["name"], first["project"], first["dir"]) == (
        "run",
        "values",
        str(tmp_path / "run"),
    )
    assert first["config"]["population"] == 64
    assert wandb.run.axes == {
        "generation": None,
        "*": "generation",
        "joint/step": None,
        "joint/*": "joint/step",
    }
    assert wandb.run.logged[0] == {"generation": 0, "USA/best": 10.0}
    assert wandb.run.logged[-1] == {"joint/step": 5, "joint/loss": 1.25}
    assert wandb.run.exit_codes == [1, 0]
    other = tmp_path / "other"
    Run.create(other, Config(32, track="wandb"), {}).close()
    assert wandb.calls[-1]["id"] != first["id"]


def test_a_service_that_refuses_is_one_line_and_frees_the_directory(tmp_path, wandb):
    wandb.refuses = True
    with pytest.raises(UserError, match=r"`track` wandb: No API key.*WANDB_MODE=offline"):
        Run.create(tmp_path / "run", Config(track="wandb"), {})
    Run.create(tmp_path / "run", Config(), {}, resume=True).close()


def test_a_missing_package_is_one_line_before_the_long_work(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, package in (("wandb", "wandb"), ("tensorboard", "tensorboardX")):
        said = rf"`track` {name}: the package {package} is not .*pip install 'jaxalign\[{name}\]'"
        with pytest.raises(UserError, match=said):
            check_run(tmp_path / "run", Config(track=name))
    check_tracker(None)
    folder = importlib.machinery.ModuleSpec("wandb", None)  # ./wandb, where W&B keeps its files
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: folder)
    with pytest.raises(UserError, match="not installed"):
        check_tracker("wandb")
