"""The pictures of a report: estimates on a line, radars, heat maps, curves.

Each function takes numbers and returns a `Panel`, which `drawing.save` turns into files.
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from jaxalign.report.document import Estimate, Key, is_number
from jaxalign.report.drawing import Panel, cut, plain
from jaxalign.report.palette import HEAT, INK, LINE, MUTED
from jaxalign.report.plots import FEW, count_generations

_LABEL_PT = 9


@dataclasses.dataclass(frozen=True)
class Series:
    """A legend entry and its values, one per row or axis."""

    key: Key
    values: tuple[Estimate | float | None, ...]


def dots(title: str, rows: Sequence[str], series: Sequence[Series], unit: str) -> Panel:
    """A row per name; in it each series' mean as a mark, its interval as a bar."""
    banded = [s for s in series if any(_has_interval(v) for v in s.values)]
    lanes = np.linspace(-0.24, 0.24, len(banded)) if len(banded) > 1 else [0.0]
    offset = {id(s): lane for s, lane in zip(banded, lanes, strict=False)}

    def draw(axes: Axes) -> None:
        for s in series:
            _dot_series(axes, s, offset.get(id(s), 0.0))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [plain(name) for name in rows])
        axes.set_xlabel(plain(unit), fontsize=_LABEL_PT, color=MUTED)
        axes.grid(axis="x", color=LINE, linewidth=0.8)
        for y in range(1, len(rows)):
            axes.axhline(y - 0.5, color=LINE, linewidth=0.5)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)

    per_row = 0.22 + 0.12 * max(1, len(banded))
    return Panel(title, draw, (4.6, 0.75 + per_row * len(rows)))


def _dot_series(axes: Axes, series: Series, offset: float) -> None:
    key = series.key
    for y, value in enumerate(series.values):
        estimate = value if isinstance(value, Estimate) else Estimate(value)
        if not estimate.known:
            continue
        y_shown = y + offset
        if estimate.has_interval:
            axes.plot([estimate.low, estimate.high], [y_shown] * 2, color=key.colour, linewidth=1.8)
        size = 11 if key.marker == "|" else 6
        style = {"markeredgewidth": 1.8} if key.marker == "|" else {"markeredgewidth": 0}
        axes.plot(estimate.mean, y_shown, key.marker, color=key.colour, markersize=size, **style)


def _has_interval(value: Estimate | float | None) -> bool:
    return isinstance(value, Estimate) and value.has_interval


def radar(
    title: str,
    axes_names: Sequence[str],
    series: Sequence[Series],
    low: float,
    high: float,
    size: tuple[float, float] = (3.35, 2.9),
) -> Panel:
    """Profiles around a circle, the first axis at the top and the rest clockwise. A missing value
    leaves a gap in its line. All panels of a figure take the same `low` and `high`."""
    angles = np.linspace(0, 2 * math.pi, len(axes_names), endpoint=False)

    def draw(axes: Axes) -> None:
        axes.set_theta_offset(math.pi / 2)
        axes.set_theta_direction(-1)
        for s in series:
            values = np.array([_mean(v) for v in s.values])
            axes.plot(
                np.append(angles, angles[0]), np.append(values, values[0]), s.key.line or "-",
                color=s.key.colour, linewidth=s.key.width,
            )  # fmt: skip
        axes.set_xticks(angles, [_wrapped(name) for name in axes_names], fontsize=8)
        for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
            label.set_horizontalalignment(_side(angle))
        axes.tick_params(axis="x", pad=2)
        axes.set_ylim(low, high)
        axes.set_yticks(_round_steps(low, high))
        axes.tick_params(axis="y", labelsize=7, labelcolor=MUTED)
        axes.set_rlabel_position(180 / len(axes_names))
        axes.grid(color=LINE, linewidth=0.8)

    return Panel(title, draw, size, polar=True)


def _wrapped(name: str) -> str:
    """A long name on two or more lines."""
    return plain("\n".join(textwrap.wrap(name, 12, break_long_words=False)) or name)


def _side(angle: float) -> str:
    """A label beside the circle begins, ends or is centred where it touches it."""
    across = math.sin(angle)
    return "center" if abs(across) < 0.2 else "left" if across > 0 else "right"


def _round_steps(low: float, high: float) -> list[float]:
    span = high - low
    raw = span / 4
    step = next(s * 10**e for e in range(-4, 6) for s in (1, 2, 2.5, 5) if s * 10**e >= raw * 0.99)
    first = math.ceil(low / step) * step
    return [
        first + i * step for i in range(int((high - first) / step) + 1) if first + i * step > low
    ]


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    row_words: str,
    column_words: str,
    digits: int = 0,
    marked: Sequence[tuple[int, int]] = (),
) -> Panel:
    """Cells coloured by value with the number in each; `marked` (row, column) cells are framed."""
    rows, columns = ([cut(n, 18) for n in names] for names in (rows, columns))
    array = np.array([[_mean(v) for v in row] for row in values], np.float64)
    finite = array[np.isfinite(array)]
    norm = Normalize(*((finite.min(), finite.max()) if finite.size else (0, 1)))
    colours = matplotlib.colormaps[HEAT]

    def draw(axes: Axes) -> None:
        axes.pcolormesh(np.ma.masked_invalid(array), cmap=colours, norm=norm, edgecolors="none")
        for (r, c), value in np.ndenumerate(array):
            shown = f"{value:.{digits}f}" if math.isfinite(value) else "–"
            ink = _readable_on(colours(norm(value))) if math.isfinite(value) else INK
            axes.text(c + 0.5, r + 0.5, shown, ha="center", va="center", fontsize=7.5, color=ink)
        for r, c in marked:
            for colour, width in (("#ffffff", 3.2), ("#000000", 1.2)):
                axes.add_patch(_frame(r, c, colour, width))
        axes.set_xticks(np.arange(len(columns)) + 0.5, [plain(n) for n in columns], rotation=90)
        axes.set_yticks(np.arange(len(rows)) + 0.5, [plain(n) for n in rows])
        axes.invert_yaxis()
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.set_xlabel(plain(column_words), fontsize=_LABEL_PT, color=MUTED)
        axes.set_ylabel(plain(row_words), fontsize=_LABEL_PT, color=MUTED)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)

    cell = 0.36 if digits < 2 else 0.46  # inches, for the number
    aside, above = (0.85 + 0.08 * max(map(len, names)) for names in (rows, columns))
    size = (aside + cell * len(columns), above + 0.8 * cell * len(rows))
    return Panel(title, draw, size, wide=size[0] > 4)


def _frame(row: int, column: int, colour: str, width: float) -> matplotlib.patches.Rectangle:
    return matplotlib.patches.Rectangle(
        (column + 0.06, row + 0.06), 0.88, 0.88, fill=False, edgecolor=colour, linewidth=width
    )


def _readable_on(colour: Sequence[float]) -> str:
    """Black or white, whichever stands out (relative luminance of WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > 0.18 else "#ffffff"


def curves(
    title: str,
    series: Sequence[Series],
    levels: Sequence[Series],
    x_words: str,
    y_words: str,
    top: float,
) -> Panel:
    """Series over generations, the first being 1, and `levels` (one value each) as lines across."""

    def draw(axes: Axes) -> None:
        for s in levels:
            if math.isfinite(level := _mean(s.values[0])):
                style = {"color": s.key.colour, "linestyle": s.key.line, "linewidth": s.key.width}
                axes.axhline(level, **style)
        for s in series:
            values = np.array([_mean(v) for v in s.values])
            x = np.arange(1, len(values) + 1)
            marker = "o" if len(values) <= FEW else None  # one point is no line
            axes.plot(
                x, values, s.key.line, color=s.key.colour, linewidth=s.key.width, marker=marker
            )
        count_generations(axes, max((len(s.values) for s in series), default=1))
        axes.set_ylim(0, top)
        axes.grid(color=LINE, linewidth=0.8)
        axes.set_xlabel(x_words, fontsize=_LABEL_PT, color=MUTED)
        axes.set_ylabel(y_words, fontsize=_LABEL_PT, color=MUTED)

    return Panel(title, draw, (3.7, 2.7))


def _mean(value: Estimate | float | None) -> float:
    """A value's number; NaN, which is not drawn, where there is none."""
    value = value.mean if isinstance(value, Estimate) else value
    return float(value) if is_number(value) else math.nan
