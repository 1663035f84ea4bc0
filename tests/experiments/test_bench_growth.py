"""Test that FLOPs and bytes grow in proportion to candidates, items and generations."""

from __future__ import annotations

import functools
import json

import pytest

from experiments.bench import growth as g
from jaxalign.answering.cost import candidate_flops
from jaxalign.core.errors import UserError

CHUNK = 4


@functools.cache
def point(candidates: int = 4, items: int = 4, generations: int = 2) -> g.Point:
    return g.measure("candidates", g.Size(candidates, items, generations), CHUNK, repeats=0)


@pytest.mark.long
def test_seconds_are_measured():
    assert g.measure("items", g.Size(4, 4, 2), CHUNK, repeats=1).seconds > 0


@pytest.mark.long
def test_work_is_the_formulas_for_each_candidate_and_generation():
    each = candidate_flops(g.MODEL, g.generated_layout(4)).total
    assert point().dot_flops == 4 * 2 * each
    assert point(candidates=12).dot_flops == 3 * point().dot_flops
    assert point(generations=6).dot_flops == 3 * point().dot_flops


@pytest.mark.long
def test_items_cost_no_more_than_in_proportion():
    assert 2 * point().dot_flops < point(items=12).dot_flops <= 3 * point().dot_flops
    each = candidate_flops(g.MODEL, g.generated_layout(12)).total
    assert point(items=12).dot_flops == 4 * 2 * each


@pytest.mark.long
def test_memory_is_flat_in_generations_and_nearly_so_in_candidates():
    assert point(generations=6).temporary_bytes == point().temporary_bytes
    vector_bytes = 4 * g.PROMPT_TOKENS * g.MODEL.hidden_size
    grown = point(candidates=12).temporary_bytes - point().temporary_bytes
    assert grown <= 8 * (5 * vector_bytes)  # see test_population_program


def test_formula_over_two_decades():
    """Check the formula, which equals the compiled programs above, from 4 to 400 items."""
    flops = {n: candidate_flops(g.MODEL, g.generated_layout(n)).total for n in (4, 40, 400)}
    points = [g.Point("items", g.Size(items=n), f, 1, None) for n, f in flops.items()]
    assert 0.9 < g.slopes(points)["dot_flops"] <= 1.02
    assert g.slopes(points)["seconds"] is None


def test_slopes_of_known_powers():
    sizes = [g.Size(generations=n) for n in (1, 10, 100)]
    points = [
        g.Point("generations", s, 7 * s.generations, 9, 0.5 * s.generations**2) for s in sizes
    ]
    assert g.slopes(points) == pytest.approx(
        {"dot_flops": 1.0, "seconds": 2.0, "temporary_bytes": 0.0}, abs=1e-9
    )
    assert g.slopes(points[:1])["dot_flops"] is None


def test_items_are_distinct():
    layout = g.generated_layout(400)
    assert len(layout.answers) == 400
    assert layout.common_length == g.PROMPT_TOKENS + len(g.INSTRUCTION)


def test_bench_shows_and_saves(tmp_path, capsys, monkeypatch):
    def measure(axis, size, chunk, repeats):
        work = size.candidates * size.items * size.generations
        return g.Point(axis, size, 1000 * work, 2**20, 1e-3 * work)

    monkeypatch.setattr(g, "measure", measure)
    one = g.Config(
        candidates=(4, 40),
        items=(4, 40),
        generations=(2,),
        plot=tmp_path / "growth.png",
        json=tmp_path / "growth.json",
    )
    g.bench(one)
    out = capsys.readouterr().out
    assert all(f"Growth with {axis}" in out for axis in g.AXES)
    saved = json.loads((tmp_path / "growth.json").read_text())
    assert [p["axis"] for p in saved["points"]] == [*["candidates"] * 2, *["items"] * 2, g.AXES[2]]
    assert saved["slopes"]["items"]["dot_flops"] == pytest.approx(1)
    assert saved["slopes"]["generations"]["seconds"] is None, "one point has no slope"
    assert (tmp_path / "growth.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"items": (0,)}, "at least 1"),
        ({"chunk": 0}, "at least 1"),
        ({"repeats": -1}, "at least 0"),
        ({"candidates": (3, 8)}, "needs 4 or more"),
        ({"generations": ()}, "at least one"),
    ],
)
def test_bad_input(change, words):
    with pytest.raises(UserError, match=words):
        g.bench(g.Config(**change))
