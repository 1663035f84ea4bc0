"""Test the decoding benchmark: its cases, its FLOPs, what it refuses, and a tiny run."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.bench import models
from experiments.bench.decode.__main__ import Config, bench, check, figures
from experiments.bench.decode.work import OWN_TOKENS, Case, Timed, Work
from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig

TINY = LlamaConfig(256, 32, 48, 2, 4, 2, 8)


def test_the_grid_holds_every_number_of_prompts_with_every_length():
    config = Config(batch=(16, 64), requests=(13,), runs=(3,), prompt_tokens=(256, 768))
    assert len(config.cases) == 8
    assert config.cases[1] == Case("batch", 16, 768, 32)


def test_what_prompts_share():
    batch, requests, runs = (Case(kind, 5, 40, 4) for kind in ("batch", "requests", "runs"))
    for case in (batch, requests, runs):
        tokens = case.tokens(1000, 3)
        assert tokens.shape == (5, 40)
        np.testing.assert_array_equal(tokens, case.tokens(1000, 3))
        alike = (tokens == tokens[0]).all(axis=0)
        assert alike[: case.shared_tokens].all()
    assert not (batch.tokens(1000, 3) == batch.tokens(1000, 3)[0]).all(axis=0).any()
    own = requests.tokens(1000, 3)[:, -OWN_TOKENS:]
    assert len(np.unique(own, axis=0)) == 5
    assert runs.shared_tokens == 40


def test_prefill_flops_by_hand():
    """Per layer q, o of 32 x 32, k, v of 32 x 16, three of 32 x 48; 4 heads of 8; the head once."""
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
    one = 2 * (2 * 10 * layer + 4 * 55 * 32) + 2 * 32 * 256
    assert Case("batch", 3, 10, 4).prefill_flops(TINY) == 3 * one


def test_ratios_are_those_of_the_same_repeat(tmp_path):
    work, case = Work(TINY, tmp_path, 0, 1), Case("batch", 2, 10, 5)
    ours = [Timed(1.0, 2.0, []), Timed(2.0, 1.0, [])]
    theirs = [Timed(2.0, 2.0, []), Timed(6.0, 4.0, [])]
    peaks = {"jax": [1e9, 2e9], "torch": [2e9, 1e9]}
    found = figures(work, case, {"jaxalign": ours, "transformers": theirs}, peaks)
    ratios = found["ratios"]["transformers"]
    assert ratios["prefill"] == {"median": 2.5, "min": 2.0, "max": 3.0}
    assert ratios["decode"] == {"median": 2.5, "min": 1.0, "max": 4.0}
    assert found["tokens_per_second"]["jaxalign"]["decode"]["max"] == 8.0
    share = found["prefill_share_of_fastest_peak"]["jaxalign"]
    assert share["max"] == pytest.approx(case.prefill_flops(TINY) / 1.0 / 2e9)


def test_no_speed_without_equal_replies():
    peer = {"largest_shortfall": 0.0, "mean_shortfall": 0.1}
    check("float32", "jaxalign", {"largest_shortfall": 1e-4, "mean_shortfall": 0.0}, peer)
    with pytest.raises(UserError, match=r"jaxalign takes tokens that are 0\.01 below"):
        check("float32", "jaxalign", {"largest_shortfall": 1e-2, "mean_shortfall": 0.0}, peer)
    check("bfloat16", "jaxalign", {"largest_shortfall": 9.0, "mean_shortfall": 0.12}, peer)
    with pytest.raises(UserError, match=r"\(mean shortfall\), more than 0\.12"):
        check("bfloat16", "jaxalign", {"largest_shortfall": 0.0, "mean_shortfall": 0.2}, peer)


@pytest.mark.parametrize(
    "settings",
    [
        {"batch": ()},
        {"batch": (0,)},
        {"new_tokens": 1},
        {"requests": (3,), "prompt_tokens": (16,)},
        {"repeats": 0},
        {"seed": -1},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(UserError):
        Config(**settings)


@pytest.mark.reference
def test_a_tiny_benchmark_end_to_end(tmp_path, capfd, monkeypatch):
    """Both tools write the same tokens, and the file holds what the tables show."""
    monkeypatch.setitem(models.SHAPES, "tiny", TINY)
    file = tmp_path / "decode.json"
    grid = {"batch": (3,), "requests": (4,), "runs": (3,), "prompt_tokens": (40,)}
    bench(Config(**grid, new_tokens=6, repeats=2, json=file))
    assert "3 prompts x 40 tokens" in capfd.readouterr().out
    cases = json.loads(file.read_text())["cases"]
    assert [list(case["seconds"]) for case in cases] == [
        ["jaxalign", "transformers"],
        *2 * [["jaxalign", "transformers", "transformers_cached"]],
    ]
    for case in cases:
        replies = case["replies"]["jaxalign"]
        assert replies["same_as_transformers"] == case["case"]["prompts"]
        assert len(case["seconds"]["jaxalign"]["prefill"]) == 2
