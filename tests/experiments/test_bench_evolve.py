"""Test the benchmark of ask and tell: what it times, what it leaves out, and the shares."""

from __future__ import annotations

import json

import jax
import pytest

from experiments.bench import evolve as b
from jaxalign.core.errors import UserError
from jaxalign.optim.evolve import make_evolution
from jaxalign.optim.strategy import Strategy
from jaxalign.runtime.sharding import make_mesh


def config(tmp_path, **changes) -> b.Config:
    small = {"populations": (4, 8), "dims": (8,), "repeats": 1}
    files = {"plot": tmp_path / "evolve.png", "json": tmp_path / "evolve.json"}
    return b.Config(**(small | files | changes))


@pytest.mark.long
def test_measures_shows_and_saves(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(b, "matmul_peak", lambda dtype: 1e12)
    b.bench(config(tmp_path, accelerator_bandwidth=1e12, accelerator_flops_per_second=1e15))
    out = capsys.readouterr().out
    assert "s on this device at 70 % of the measured matrix product rate" in out
    assert "ms on the assumed accelerator" in out
    assert "Largest share of a generation on this device" in out
    rows = json.loads((tmp_path / "evolve.json").read_text())["rows"]
    assert [(r["population"], r["dims"]) for r in rows] == [(4, 8), (8, 8)]
    for row in rows:
        assert row["least_bytes"] == 4 * 4 * row["population"] * 8
        assert row["least_bytes"] < row["moved_bytes"]
        assert row["moved_seconds"] == pytest.approx(row["moved_bytes"] / 1e12)
        assert row["share"] == pytest.approx(row["seconds"] / row["generation_seconds"])
    assert rows[1]["generation_seconds"] == pytest.approx(2 * rows[0]["generation_seconds"])
    theirs, ours = rows[0]["accelerator_seconds"], rows[0]["generation_seconds"]
    assert 4 * 5e-3 < theirs < 4 * 15e-3, "about 8 TFLOP at 1e15 FLOP/s"
    assert ours == pytest.approx(theirs * 1e15 / 0.7e12), "the same work at 70 % of the peak here"
    assert rows[0]["moved_share"] == pytest.approx(rows[0]["moved_seconds"] / theirs)
    assert (tmp_path / "evolve.png").stat().st_size > 1000


def test_what_does_not_fit_is_left_out_with_the_reason(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(b, "matmul_peak", lambda dtype: 1e12)
    monkeypatch.setattr(b, "available_bytes", lambda device: 1000)
    b.bench(config(tmp_path, populations=(4,)))
    out = capsys.readouterr().out
    assert "Not timed: DifferentialEvolution, 4 × 8: needs" in out
    assert "Largest share of a generation on this device" not in out
    assert "Largest share of a generation on the accelerator" in out
    (row,) = json.loads((tmp_path / "evolve.json").read_text())["rows"]
    assert row["seconds"] is None
    assert row["share"] is None
    assert row["moved_share"] > 0


@pytest.mark.long
def test_bytes_moved_grow_with_candidates_and_dimensions():
    """Four times as many numbers move four times as many bytes, so no loop hides any of them."""
    mesh = make_mesh(jax.devices()[:1])

    def moved(population, dims):
        strategy = Strategy(population=population)
        evolution = make_evolution(strategy, dims, b.first_coordinate, mesh, [("USA", 0)])
        return b.program_bytes(evolution.lower(1).compile())

    few = moved(16, 4096)
    assert moved(32, 8192) == pytest.approx(4 * few, rel=0.02)
    assert few > 20 * (4 * 16 * 4096), "threefry's five rounds go through memory on CPU"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dims": (0,)}, "at least 1"),
        ({"populations": ()}, "at least one"),
        ({"accelerator_bandwidth": 0.0}, "above 0"),
        ({"populations": (2,)}, "too small"),
        ({"algorithms": ("Guessing",)}, "is unknown"),
    ],
)
def test_bad_input_before_anything_is_timed(tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        b.bench(config(tmp_path, **change))
    assert not list(tmp_path.iterdir())
