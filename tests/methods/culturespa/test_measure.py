"""What is measured of models that fine-tuning left unchanged, and of general abilities."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxalign.core.errors import UserError
from jaxalign.lm.lora import Adapter, LoraConfig, init_adapter
from jaxalign.lm.model import open_model
from jaxalign.methods.culturespa import CultureSPASettings
from jaxalign.methods.culturespa.ability import Abilities, measured_abilities
from jaxalign.methods.culturespa.fine_tune import AdapterFiles
from jaxalign.methods.culturespa.inputs import Experiment
from jaxalign.methods.culturespa.measure import (
    Measured,
    abilities_record,
    changes,
    right_by_method,
    untrained_models,
)
from jaxalign.methods.culturespa.pipeline import run_culturespa
from jaxalign.methods.culturespa.result import guard_entry

COUNTRIES = ("USA", "CHN", "NGA")
SETTINGS = CultureSPASettings(countries=COUNTRIES, seeds=2)


def adapter(value: float) -> Adapter:
    weights = {"layers": {"q_a": np.ones((2, 2)), "q_b": np.full((2, 2), value)}}
    return Adapter(weights, SETTINGS.lora, None, "")


def test_adapters_are_read_when_they_are_asked_for(tmp_path):
    """Those of a large model do not fit into memory together."""
    files, lora = open_model(), LoraConfig(rank=2, targets=("q",))
    weights = init_adapter(files.config, lora, jax.random.key(0))
    Adapter(weights, lora, files.config, "pocket").save_peft(tmp_path / "joint")
    joint = AdapterFiles({(0, "joint"): tmp_path / "joint"}, files)
    both = joint | AdapterFiles({(0, "cct"): tmp_path / "not there"}, files)
    assert list(both) == [(0, "joint"), (0, "cct")]
    assert (0, "cct") in both
    assert (1, "cct") not in both
    np.testing.assert_array_equal(both[0, "joint"].weights["last"]["q_a"], weights["last"]["q_a"])
    with pytest.raises(UserError, match="not there"):
        both[0, "cct"]


def test_models_that_nothing_changed_are_named(tmp_path):
    """Without data there is no adapter; one that took no step adds nothing."""
    adapters = {(0, "joint"): adapter(0.1), (1, "joint"): adapter(0.0)}
    adapters |= {(s, f"specific-{c}"): adapter(0.1) for s in (0, 1) for c in COUNTRIES[:2]}
    adapters |= {(s, "rds"): adapter(0.1) for s in (0, 1)}
    experiment = Experiment(SETTINGS, None, None, tmp_path)
    found = untrained_models(experiment, {n for n, a in adapters.items() if changes(a)})
    assert found["joint"] == {"models": ["seed1 joint"], "all": False}
    assert found["specific"]["models"] == ["seed0 specific-NGA", "seed1 specific-NGA"]
    assert not found["specific"]["all"]
    assert found["cct"]["all"]
    assert "rds" not in found


class Halves:
    """Says that every model gets half of the questions of one task right, and none of another."""

    name = "made up: a, b"

    def __init__(self) -> None:
        self.measured = 0

    def measure(self, lm: object) -> Abilities:
        self.measured += 1
        return Abilities({"a": 0.5 * self.measured, "b": 0.0}, 10, 0.25)


def test_another_tool_measures_what_a_model_can_do_once(tmp_path):
    """Its accuracies are kept by model; the guard is their mean, and each task has its own."""
    test = Halves()
    experiment = Experiment(SETTINGS, None, None, tmp_path, ability_test=test)
    lm = SimpleNamespace(sha256="1f")
    for _ in range(2):
        found = {None: measured_abilities(experiment, lm, "base")}
        found[0, "joint"] = measured_abilities(experiment, lm, "seed0 joint")
    assert test.measured == 2
    right = right_by_method(experiment, {name: a.mean for name, a in found.items()})
    others = {name: {"all": True} for name in ("specific", "cct", "rds", "cds")}
    record = abilities_record(experiment, found)
    guard = guard_entry(Measured({}, right, {}, others, abilities=record), None)
    assert (guard["test"], guard["questions"], guard["chance"]) == (test.name, 10, 25.0)
    assert guard["before"] == 25.0
    # Seed 1 has no joint model: the unchanged one stands in for it.
    assert list(guard["after"]["joint"]["by_seed"]) == [50.0, 25.0]
    assert set(guard["after"]) == {"joint"}
    assert guard["tasks"]["a"] == {"before": 50.0, "after": {"joint": 75.0}}
    assert guard["tasks"]["b"] == {"before": 0.0, "after": {"joint": 0.0}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guard": "mmlu.csv", "guard_tasks": ("a",)}, "`guard` mmlu.csv: goes without"),
        ({"guard_task_folder": "tasks"}, "`guard_task_folder` tasks: needs `guard_tasks`"),
        ({"guard_tasks": ("a",)}, "`guard_tasks` needs `ability_test`"),
    ],
)
def test_tasks_need_what_measures_them(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run_culturespa(CultureSPASettings(out=tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
