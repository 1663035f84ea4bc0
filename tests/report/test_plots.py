"""Plots: a PNG comes out whatever the number of countries, dimensions and finite values."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from jaxalign.report import plots


def png_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels."""
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", header[16:24])


@pytest.mark.parametrize("count", [1, 4, 6])
def test_convergence(tmp_path: Path, count: int) -> None:
    best = np.linspace(80, 10, 30)
    median = np.where(np.arange(30) < 5, np.inf, best + 20)  # overflow at the start
    countries = [f"C{i}" for i in range(count)]
    plots.convergence(
        tmp_path / "c.png",
        {country: (best, median) for country in countries},
        {country: {"naive": 81.0, "persona": 70.0, "icl": 60.0} for country in countries},
    )
    width, height = png_size(tmp_path / "c.png")
    assert 840 <= width <= 1700
    assert height <= 1000


def test_convergence_of_one_generation_without_baselines(tmp_path: Path) -> None:
    plots.convergence(tmp_path / "c.png", {"USA": ([3.0], [np.inf])}, {})
    png_size(tmp_path / "c.png")


@pytest.mark.parametrize("count", [1, 2, 5, 160])
def test_generations_are_counted_from_one_and_each_is_seen(tmp_path, monkeypatch, count) -> None:
    """As in metrics.jsonl and in the report; whole ticks; one generation is a visible point."""
    made = []
    monkeypatch.setattr(plots, "_finish", lambda figure, *_: made.append(figure))
    curve = np.linspace(9.0, 1.0, count)
    plots.convergence(tmp_path / "c.png", {"USA": (curve, curve)}, {}, "loss + penalty")
    (axes,) = made[0].axes
    made[0].canvas.draw()
    low, high = axes.get_xlim()
    ticks = [t for t in axes.get_xticks() if low <= t <= high]
    assert ticks
    assert all(t == round(t) and 1 <= t <= count for t in ticks)
    for line in axes.lines:
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, count + 1))
        assert (line.get_marker() == "o") == (count <= plots.FEW)
    assert made[0].get_supylabel() == "loss + penalty"


@pytest.mark.parametrize(
    "dimensions", [plots.DIMENSIONS, ("PDI", "IDV", "MAS", "UAI"), ("PDI", "IDV"), ("PDI",)]
)
def test_radar(tmp_path: Path, dimensions: tuple[str, ...]) -> None:
    six = np.linspace(-30, 130, len(dimensions))  # scores may leave 0 to 100
    profile = {"target": six, "naive": six + 3, "icl": six - 3, "tuned": six}
    plots.radar(tmp_path / "r.png", {"USA": profile, "CHN": profile}, dimensions)
    png_size(tmp_path / "r.png")


def test_same_picture_twice_and_no_global_state(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    for name in ("a.png", "b.png"):
        plots.convergence(tmp_path / name, {"USA": ([3.0, 2.0], [5.0, 4.0])}, {})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert dict(matplotlib.rcParams) == before


def test_needs_no_pyplot() -> None:
    code = "import sys, jaxalign.report.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
