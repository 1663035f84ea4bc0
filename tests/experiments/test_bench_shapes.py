"""The benchmark of real shapes: what it refuses, what it writes, and a tiny run from end to end."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.bench.shapes import __main__ as shapes
from experiments.bench.shapes.__main__ import Config, bench, refuse_short_memory, write_model
from jaxalign.core.errors import UserError
from jaxalign.lm.mesh import weight_bytes
from jaxalign.lm.model import load_model

TINY = {"model": "smollm2-135m", "layers": 2}


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    llama = Config(out=tmp_path / "found").llama
    with pytest.raises(
        UserError, match=r"19\.2 GiB of memory are needed, but 16\.0 are free; take"
    ):
        refuse_short_memory(llama, ("bfloat16", "int8"), 2**34)
    refuse_short_memory(llama, ("int8",), 2**34)
    monkeypatch.setattr(shapes, "free_host_bytes", lambda: 2**30)
    monkeypatch.setattr(shapes, "check_space", lambda *_: None)
    with pytest.raises(UserError, match="of memory are needed"):
        bench(Config(scratch=tmp_path, out=tmp_path / "found"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "gpt"}, "`model` 'gpt': choose from"),
        ({"layers": 1}, "`layers` 1"),
        ({"stages": ()}, "`stages`: name at least one"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(UserError, match=message):
        Config(**changes)


@pytest.mark.long
def test_written_weights_are_read_again(tmp_path):
    llama = Config(**TINY, out=tmp_path / "found").llama
    write_model(tmp_path / "model", llama)
    lm = load_model(tmp_path / "model", dtype="bfloat16")
    assert lm.config.num_hidden_layers == 2
    embed = np.asarray(lm.params["embed"], np.float32)
    assert embed.std() == pytest.approx(llama.initializer_range, rel=0.05)


@pytest.mark.long
def test_a_tiny_run(tmp_path):
    found = bench(
        Config(**TINY, weights=("int8",), stages=("answers",), scratch=tmp_path, out=tmp_path / "x")
    )
    (row,) = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert row == found["rows"][0]
    llama = Config(**TINY).llama
    assert row["weight_bytes"] == weight_bytes(llama, 1, "int8")
    assert row["peak_bytes"] > row["weight_bytes"]
    assert "| int8 | answers: 24 items |" in (tmp_path / "x.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.md"]
