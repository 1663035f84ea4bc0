"""What is measured of models that fine-tuning left unchanged."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxalign.core.errors import UserError
from jaxalign.lm.lora import Adapter, LoraConfig, init_adapter
from jaxalign.lm.model import open_model
from jaxalign.methods.culturespa import CultureSPASettings
from jaxalign.methods.culturespa.fine_tune import AdapterFiles
from jaxalign.methods.culturespa.inputs import Experiment
from jaxalign.methods.culturespa.measure import changes, untrained_models

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
