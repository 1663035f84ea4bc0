"""The bench of asking and telling: what it times, leaves out, and puts in proportion."""

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


def test_measures_shows_and_saves(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(b, "matmul_peak", lambda dtype: 1e12)
    b.bench(config(tmp_path, accelerator_bandwidth=1e12, accelerator_flops_per_second=1e15))
    out = capsys.readouterr().out
    assert "s here, at 70 % of the matrix products measured" in out
    assert "ms on the accelerator (assumed)" in out
    assert "largest share here" in out
    rows = json.loads((tmp_path / "evolve.json").read_text())["rows"]
    assert [(r["population"], r["dims"]) for r in rows] == [(4, 8), (8, 8)]
    for row in rows:
        assert row["least_bytes"] == 4 * 4 * row["population"] * 8
        assert row["least_bytes"] < row["moved_bytes"]
        assert row["moved_seconds"] == pytest.approx(row["moved_bytes"] / 1e12)
        assert row["share"] == pytest.approx(row["seconds"] / row["generation_seconds"])
    assert rows[1]["generation_seconds"] == pytest.approx(2 * rows[0]["generation_seconds"])
    theirs, ours = rows[0]["accelerator_seconds"], rows[0]["generation_seconds"]
    assert 4 * 5e-3 < theirs < 4 * 15e-3, "some 8 TFLOP at 1e15 a second"
    assert ours == pytest.approx(theirs * 1e15 / 0.7e12), "the same work at 70 % of the peak here"
    assert rows[0]["moved_share"] == pytest.approx(rows[0]["moved_seconds"] / theirs)
    assert (tmp_path / "evolve.png").stat().st_size > 1000


def test_what_does_not_fit_is_left_out_with_the_reason(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(b, "matmul_peak", lambda dtype: 1e12)
    monkeypatch.setattr(b, "available_bytes", lambda device: 1000)
    b.bench(config(tmp_path, populations=(4,)))
    out = capsys.readouterr().out
    assert "left out: DifferentialEvolution, 4 × 8: needs" in out
    assert "largest share here" not in out
    assert "largest share of accelerator" in out
    (row,) = json.loads((tmp_path / "evolve.json").read_text())["rows"]
    assert row["seconds"] is None
    assert row["share"] is None
    assert row["moved_share"] > 0


def test_bytes_moved_grow_with_candidates_and_dimensions():
    """Four times the numbers, four times the bytes: none of it is hidden in a loop."""
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
