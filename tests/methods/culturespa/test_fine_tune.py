"""A model whose loss is not finite is named, the others are kept, and it alone is trained again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxalign.core.errors import UserError
from jaxalign.methods.culturespa import CultureSPASettings, fine_tune
from jaxalign.methods.culturespa.settings import check_settings
from jaxalign.training.step import TrainConfig

NAMES = [(0, "joint"), (0, "cct"), (1, "joint")]


class SavedAdapter:
    def save_peft(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "README.md").write_text("what it is")
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
        (folder / "adapter_config.json").write_text("{}")


@pytest.fixture
def calls(monkeypatch):
    """What is trained, with the rates; the joint model of seed 1 fails above a rate of 0.01."""
    made = []

    def train(experiment, program, examples, rates=None, *, shape, set_aside):
        made.append((program, sorted(examples), rates))
        failing = (1, "joint")
        rate = experiment.settings.train.learning_rate if rates is None else rates[failing]
        if failing in examples and rate > 0.01:
            set_aside["seed1 joint"] = 7
        return {n: SavedAdapter() for n in examples if n != failing or not set_aside}

    monkeypatch.setattr(fine_tune, "train", train)
    return made


def tune(out: Path, retry: float | None = None) -> fine_tune.AdapterFiles:
    settings = CultureSPASettings(train=TrainConfig(learning_rate=0.1), retry=retry)
    experiment = SimpleNamespace(settings=settings, out=out, lm=SimpleNamespace(files=None))
    (out / "training").mkdir(exist_ok=True)
    return fine_tune.fine_tune(experiment, "shared", {name: ["a row"] for name in NAMES})


def test_the_others_are_kept_and_it_alone_is_trained_again(calls, tmp_path):
    says = r"1 model is not finite: seed1 joint \(step 7, learning rate 0\.1\).*`retry` below 0\.1"
    with pytest.raises(UserError, match=says):
        tune(tmp_path)
    assert fine_tune.adapter_names(tmp_path) == [(0, "cct"), (0, "joint")]
    # Without another rate, nothing is trained a second time.
    with pytest.raises(UserError, match=says):
        tune(tmp_path)
    with pytest.raises(UserError, match=r"learning rate 0\.05\).*`retry` below 0\.05"):
        tune(tmp_path, retry=0.05)
    assert len(tune(tmp_path, retry=0.001)) == 3
    assert len(tune(tmp_path)) == 3
    failing = NAMES[2:]
    assert calls == [
        ("shared", sorted(NAMES), None),
        ("shared-retry-0.05", failing, {failing[0]: 0.05}),
        ("shared-retry-0.001", failing, {failing[0]: 0.001}),
    ]
    left, again = fine_tune.read_set_aside(tmp_path)
    assert left == {}
    assert again == {"seed1 joint": {"step": 7, "learning_rate": 0.05, "trained_at": 0.001}}


def test_a_record_that_is_no_record_is_named(calls, tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "set_aside.json").write_text(json.dumps(["seed1 joint"]))
    with pytest.raises(UserError, match=r"set_aside\.json: holds a list, not a JSON object"):
        tune(tmp_path)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(UserError, match=r"`retry` .*: must be above 0 and finite"):
        check_settings(CultureSPASettings(retry=rate))
