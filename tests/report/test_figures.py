"""Figures: a picture comes out whatever the number of groups, dimensions and finite values."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxalign.report import figures
from jaxalign.report.document import Key
from jaxalign.report.drawing import Panel, drawings, save_panels
from jaxalign.report.palette import GREEN, ORANGE, PURPLE

KEYS = {
    "naive": Key("plain question", ORANGE, "--"),
    "persona": Key("persona line", PURPLE, "-."),
    "icl": Key("examples in context", GREEN, ":"),
}


def png_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels."""
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", header[16:24])


def drawn(panel: Panel) -> Axes:
    figure = Figure()
    axes = figure.add_subplot(projection="polar" if panel.polar else None)
    panel.draw(axes)
    figure.canvas.draw()
    return axes


@pytest.mark.parametrize("count", [1, 4, 6])
def test_convergence(tmp_path: Path, count: int) -> None:
    best = np.linspace(80, 10, 30)
    median = np.where(np.arange(30) < 5, np.inf, best + 20)  # overflow at the start
    groups = [f"C{i}" for i in range(count)]
    panels, keys = figures.convergence(
        {group: (best, median) for group in groups},
        {group: {"naive": 81.0, "persona": 70.0, "icl": 60.0} for group in groups},
        KEYS,
        "loss in points",
    )
    save_panels(tmp_path / "c.png", panels, keys)
    width, height = png_size(tmp_path / "c.png")
    assert 840 <= width <= 1950
    assert height <= 1000
    assert width == round(150 * {1: 5.6, 4: 2 * 3.7, 6: 3 * 3.7}[count])  # rows are filled evenly
    assert [key.label for key in keys][:2] == [figures.BEST.label, figures.MEDIAN.label]
    assert len(keys) == 5
    largest = max(v for v in (*best, *median, 81.0) if np.isfinite(v))
    for panel in panels:  # one scale for all, so that groups compare
        assert drawn(panel).get_ylim() == pytest.approx((0.0, 1.08 * largest))


def test_convergence_of_one_generation_without_baselines(tmp_path: Path) -> None:
    panels, keys = figures.convergence({"USA": ([3.0], [np.inf])}, {}, KEYS, "loss in points")
    save_panels(tmp_path / "c.png", panels, keys)
    png_size(tmp_path / "c.png")
    assert len(keys) == 2


@pytest.mark.parametrize("count", [1, 2, 5, 160])
def test_generations_are_counted_from_one_and_each_is_seen(count: int) -> None:
    """As in metrics.jsonl; whole ticks; one generation is a visible point."""
    curve = np.linspace(9.0, 1.0, count)
    (panel,), _ = figures.convergence({"USA": (curve, curve)}, {}, {}, "loss + penalty")
    axes = drawn(panel)
    low, high = axes.get_xlim()
    ticks = [t for t in axes.get_xticks() if low <= t <= high]
    assert ticks
    assert all(t == round(t) and 1 <= t <= count for t in ticks)
    for line in axes.lines:
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, count + 1))
        assert (line.get_marker() == "o") == (count <= figures.FEW)
    assert axes.get_ylabel() == "loss + penalty"


@pytest.mark.parametrize(
    "dimensions",
    [
        ("PDI", "IDV", "MAS", "UAI", "LTO", "IVR"),
        ("PDI", "IDV", "MAS", "UAI"),
        ("PDI", "IDV"),
        ("PDI",),
    ],
)
def test_score_radars(tmp_path: Path, dimensions: tuple[str, ...]) -> None:
    six = np.linspace(-30, 130, len(dimensions))  # scores may leave 0 to 100
    profile = {"target": six, "naive": six + 3, "icl": six - 3, "unused": six}
    keys = {"target": figures.TARGET, "naive": KEYS["naive"], "icl": KEYS["icl"]}
    panels = figures.score_radars(dimensions, {"USA": profile, "CHN": profile}, keys)
    save_panels(tmp_path / "r.png", panels, list(keys.values()))
    png_size(tmp_path / "r.png")
    for panel in panels:
        axes = drawn(panel)
        assert len(axes.lines) == 3
        assert len(axes.patches) == 1  # the area of the published scores
        low, high = axes.get_ylim()
        assert low == -50
        assert high == (150 if len(dimensions) > 1 else 100)
        for line in axes.lines:
            assert line.get_ydata()[0] == line.get_ydata()[-1]


def test_training_losses(tmp_path: Path) -> None:
    losses = {"trained on": {s: 9.0 / s for s in range(1, 31)}, "held out": {0: 2.0, 30: None}}
    panel, keys = figures.training_losses(losses)
    axes = drawn(panel)
    assert [key.label for key in keys] == ["trained on", "held out"]
    assert [line.get_marker() for line in axes.lines] == ["None", "o"]
    assert axes.get_yscale() == "log"  # 9 would hide 0.3
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), [2.0, np.nan])
    figures.save_training_losses(tmp_path / "loss.png", losses)
    png_size(tmp_path / "loss.png")


def test_training_losses_of_few_steps_and_without_held_out_ones() -> None:
    panel, keys = figures.training_losses({"trained on": {1: 2.0, 2: 1.5}, "held out": {}})
    axes = drawn(panel)
    assert axes.get_yscale() == "linear"
    assert axes.get_ylim()[0] == 0
    assert [line.get_marker() for line in axes.lines] == ["o"]
    assert len(keys) == 1


def test_same_picture_twice_and_no_global_state(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    panels, keys = figures.convergence({"USA": ([3.0, 2.0], [5.0, 4.0])}, {}, {}, "loss")
    for name in ("a.png", "b.png"):
        save_panels(tmp_path / name, panels, keys)
    for ending in ("png", "svg"):
        first, second = (tmp_path / f"{name}.{ending}" for name in "ab")
        assert first.read_bytes() == second.read_bytes()
    svg = (tmp_path / "a.svg").read_text("utf-8")
    assert "<dc:date>" not in svg
    assert "<text" not in svg  # outlines: no font has to be there
    ElementTree.fromstring(svg)
    assert drawings("a", panels) == drawings("a", panels)
    assert dict(matplotlib.rcParams) == before


WITHOUT_PYPLOT = """
import sys
from pathlib import Path
from jaxalign.report import figures
from jaxalign.report.drawing import drawings, save_panels
assert "matplotlib" not in sys.modules, "imported before it is needed"
heat = figures.heat_map("t", ["a"], ["b"], [[1.0]], "r", "c")
save_panels(Path(sys.argv[1]), [heat])
panels, keys = figures.convergence({"USA": ([3.0, 2.0], [5.0, 4.0])}, {}, {}, "loss")
save_panels(Path(sys.argv[1]), panels, keys)
drawings("a", panels)
assert "matplotlib.pyplot" not in sys.modules
"""


@pytest.mark.parametrize(
    "back_end", ["module://no_such.backend", "module://matplotlib_inline.backend_inline", "other"]
)
def test_neither_pyplot_nor_the_back_end_of_a_notebook_is_used(
    tmp_path: Path, back_end: str
) -> None:
    """A notebook leaves MPLBACKEND in the environment of the processes it starts. (Case S2.)"""
    environment = os.environ | {"MPLBACKEND": back_end}
    command = [sys.executable, "-c", WITHOUT_PYPLOT, str(tmp_path / "a.png")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    png_size(tmp_path / "a.png")


def test_matplotlib_is_imported_where_it_is_used() -> None:
    """So that `--help` needs none, and every import of it ignores the back end."""
    root = Path(__file__).parents[2]
    rooms = (root / room for room in ("jaxalign", "experiments", "tpu"))
    for path in sorted(file for room in rooms for file in room.rglob("*.py")):
        text = path.read_text("utf-8")
        if "matplotlib" in text:
            assert "pyplot" not in text.replace("without pyplot", "").replace("uses pyplot", "")
            assert not re.search(r"^(import|from) matplotlib", text, re.MULTILINE), path
            if path.name != "drawing.py":
                assert "import matplotlib\n" not in text, f"{path}: use load_matplotlib"
