"""The figures of runs and reports: estimates on a line, radars, heat maps, curves, maps.

Each function takes numbers and returns a `Panel`, which `drawing` turns into PNG and SVG. A value
that is missing or not finite is not drawn.
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxalign.report.document import Estimate, Key, is_number
from jaxalign.report.drawing import Panel, cut, load_matplotlib, plain, save_panels
from jaxalign.report.palette import BLUE, GREEN, HEAT, INK, LINE, MUTED, ORANGE, SKY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import Rectangle

_LABEL_PT = 9
FEW = 5  # a curve of at most this many points shows each of them
BEST = Key("best soft prompt so far", BLUE, "-", "", 2.4)
MEDIAN = Key("median of the population", SKY, "-")
TARGET = Key("published scores", INK, "-", "", 2.4)


@dataclasses.dataclass(frozen=True)
class Series:
    """An entry of a legend and its values, one per row or axis."""

    key: Key
    values: tuple[Estimate | float | None, ...]


# Estimates on a line


def dots(
    title: str,
    rows: Sequence[str],
    series: Sequence[Series],
    unit: str,
    span: tuple[float, float] | None = None,
    width: float = 4.6,
) -> Panel:
    """Return a panel with one row per name, and in it each series' mean and interval.

    Args:
        title: Title of the panel.
        rows: Names of the rows, from top to bottom.
        series: Each with one value per row: a mark at the mean, a bar over the interval.
        unit: What the horizontal axis measures.
        span: Both ends of the horizontal axis, for panels that are compared (`common_span`);
            default: what the values need.
        width: Width of the panel in inches; two of 4.2 stand side by side.
    """
    # Bars lie in lanes, so that they do not cover each other; marks without a bar stay in the
    # middle.
    with_bars = [s for s in series if any(_has_interval(v) for v in s.values)]
    lanes = np.linspace(-0.24, 0.24, len(with_bars)) if len(with_bars) > 1 else [0.0]
    offset = {id(s): lane for s, lane in zip(with_bars, lanes, strict=False)}

    def draw(axes: Axes) -> None:
        for s in series:
            _dot_series(axes, s, offset.get(id(s), 0.0))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [plain(name) for name in rows])
        axes.set_xlabel(plain(unit), fontsize=_LABEL_PT, color=MUTED)
        if span is not None:
            axes.set_xlim(span)
        axes.grid(axis="x", color=LINE, linewidth=0.8)
        for y in range(1, len(rows)):
            axes.axhline(y - 0.5, color=LINE, linewidth=0.5)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)

    per_row = 0.22 + 0.12 * max(1, len(with_bars))
    return Panel(title, draw, (width, 0.75 + per_row * len(rows)))


def common_span(values: Iterable[Estimate | float | None]) -> tuple[float, float] | None:
    """Return both ends of an axis with room for all values and intervals; None without any."""
    estimates = [v if isinstance(v, Estimate) else Estimate(v) for v in values]
    ends = [x for e in estimates for x in (e.mean, e.low, e.high) if is_number(x)]
    if not ends:
        return None
    margin = 0.05 * (max(ends) - min(ends)) or 1.0
    return min(ends) - margin, max(ends) + margin


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


# Radars


def radar(
    title: str,
    axes_names: Sequence[str],
    series: Sequence[Series],
    low: float,
    high: float,
    size: tuple[float, float] = (3.35, 2.9),
    shaded: bool = False,
) -> Panel:
    """Return a panel with profiles around a circle, the first axis at the top, then clockwise.

    Args:
        title: Title of the panel.
        axes_names: Names of the axes.
        series: Each with one value per axis; a missing value leaves a gap in its line.
        low: Value in the middle; all panels of a figure take the same.
        high: Value at the rim.
        size: Width and height in inches.
        shaded: Whether to shade the first profile, which stays visible under a line that meets it.
    """
    angles = np.linspace(0, 2 * math.pi, len(axes_names), endpoint=False)

    def draw(axes: Axes) -> None:
        axes.set_theta_offset(math.pi / 2)
        axes.set_theta_direction(-1)
        for i, s in enumerate(series):
            values = np.array([_mean(v) for v in s.values])
            if shaded and i == 0 and np.isfinite(values).all():
                axes.fill(angles, values, color=LINE, alpha=0.6, linewidth=0, zorder=0)
            # Back to the first axis, so that the line closes.
            axes.plot(
                np.append(angles, angles[0]),
                np.append(values, values[0]),
                s.key.line or "-",
                color=s.key.colour,
                linewidth=s.key.width,
            )
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


def score_radars(
    axes_names: Sequence[str],
    profiles: Mapping[str, Mapping[str, Sequence[float | None]]],
    keys: Mapping[str, Key],
) -> list[Panel]:
    """Return one radar of scores per group.

    Args:
        axes_names: Names of the dimensions.
        profiles: By group, then by series, a score per dimension.
        keys: The series to draw, the published scores first: their area is shaded. The axes span 0
            to 100, or more where scores do.
    """
    values = [v for by in profiles.values() for name in keys for v in by[name] if is_number(v)]
    low, high = 25 * math.floor(min([0, *values]) / 25), 25 * math.ceil(max([100, *values]) / 25)
    return [
        radar(
            group,
            axes_names,
            [Series(key, tuple(by_series[name])) for name, key in keys.items()],
            low,
            high,
            shaded=True,
        )
        for group, by_series in profiles.items()
    ]


def _wrapped(name: str) -> str:
    """Return a long name broken into lines."""
    return plain("\n".join(textwrap.wrap(name, 12, break_long_words=False)) or name)


def _side(angle: float) -> str:
    """Return the alignment of a label, which begins, ends or is centred where it meets the rim."""
    across = math.sin(angle)
    return "center" if abs(across) < 0.2 else "left" if across > 0 else "right"


def _round_steps(low: float, high: float) -> list[float]:
    """Return about four round values above `low`, up to `high`."""
    # The smallest round step that is not shorter than a quarter of the range.
    span = high - low
    raw = span / 4
    step = next(s * 10**e for e in range(-4, 6) for s in (1, 2, 2.5, 5) if s * 10**e >= raw * 0.99)
    first = math.ceil(low / step) * step
    count = int((high - first) / step) + 1
    return [first + i * step for i in range(count) if first + i * step > low]


# Heat maps


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    row_label: str,
    column_label: str,
    digits: int = 0,
    marked: Sequence[tuple[int, int]] = (),
) -> Panel:
    """Return a panel of cells coloured by value, with the number in each.

    Args:
        title: Title of the panel.
        rows: Names of the rows.
        columns: Names of the columns.
        values: A row of values per row.
        row_label: What the rows are.
        column_label: What the columns are.
        digits: Decimals of the numbers.
        marked: (row, column) of the cells to be framed.
    """
    matplotlib = load_matplotlib()
    from matplotlib.colors import Normalize

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
        axes.set_xlabel(plain(column_label), fontsize=_LABEL_PT, color=MUTED)
        axes.set_ylabel(plain(row_label), fontsize=_LABEL_PT, color=MUTED)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)

    # Rows are a little lower than columns are wide; names need room in proportion to their length.
    cell = 0.36 if digits < 2 else 0.46  # inches, for the number
    aside, above = (0.85 + 0.08 * max(map(len, names)) for names in (rows, columns))
    size = (aside + cell * len(columns), above + 0.8 * cell * len(rows))
    return Panel(title, draw, size, wide=size[0] > 4)


def _frame(row: int, column: int, colour: str, width: float) -> Rectangle:
    from matplotlib.patches import Rectangle

    corner = (column + 0.06, row + 0.06)
    return Rectangle(corner, 0.88, 0.88, fill=False, edgecolor=colour, linewidth=width)


def _readable_on(colour: Sequence[float]) -> str:
    """Return black or white, whichever stands out (relative luminance of WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > 0.18 else "#ffffff"


# Curves


def curves(
    title: str,
    series: Sequence[Series],
    levels: Sequence[Series],
    x_label: str,
    y_label: str,
    top: float,
    bottom: float = 0.0,
    generations: Sequence[float] | None = None,
) -> Panel:
    """Return a panel with series over generations, the first being 1.

    Args:
        title: Title of the panel.
        series: Each with one value per generation.
        levels: Each with one value, drawn as a line across.
        x_label: What the horizontal axis counts.
        y_label: What the vertical axis measures.
        top: Upper end of the vertical axis.
        bottom: Its lower end.
        generations: The generation of each value, if they are not 1, 2, 3 ...
    """

    def draw(axes: Axes) -> None:
        for s in levels:
            if math.isfinite(level := _mean(s.values[0])):
                style = {"color": s.key.colour, "linestyle": s.key.line, "linewidth": s.key.width}
                axes.axhline(level, **style)
        for s in series:
            values = np.array([_mean(v) for v in s.values])
            x = np.arange(1, len(values) + 1) if generations is None else np.asarray(generations)
            marker = "o" if len(values) <= FEW else None  # one point is no line
            style = {"color": s.key.colour, "linewidth": s.key.width, "marker": marker}
            axes.plot(x, values, s.key.line, **style)
        last = max((len(s.values) for s in series), default=1)
        if generations is None:
            _count_generations(axes, last)
        axes.set_ylim(bottom, top)
        axes.grid(color=LINE, linewidth=0.8)
        axes.set_xlabel(x_label, fontsize=_LABEL_PT, color=MUTED)
        axes.set_ylabel(y_label, fontsize=_LABEL_PT, color=MUTED)

    return Panel(title, draw, (3.7, 2.7))


def convergence(
    losses: Mapping[str, tuple[Sequence[float | None], Sequence[float | None]]],
    baselines: Mapping[str, Mapping[str, float | None]],
    keys: Mapping[str, Key],
    y_label: str,
) -> tuple[list[Panel], list[Key]]:
    """Return one panel per group with the losses of a search over its generations, and the legend.

    Args:
        losses: By group, after each generation, the best loss so far and the population's median.
        baselines: By group and by name, the loss of a method without a search.
        keys: How the baselines look, by name.
        y_label: What a loss is, and its unit.
    """
    names = [name for name in keys if any(name in by_name for by_name in baselines.values())]
    levels = {
        group: [Series(keys[n], (by_name[n],)) for n in names if n in by_name]
        for group, by_name in ((group, baselines.get(group, {})) for group in losses)
    }
    series = {
        group: [Series(MEDIAN, tuple(median)), Series(BEST, tuple(best))]
        for group, (best, median) in losses.items()
    }
    # One scale for all panels, so that groups compare.
    shown = [v for g in series for s in (*series[g], *levels[g]) for v in s.values if is_number(v)]
    top = 1.08 * max(shown, default=1.0)
    panels = [curves(g, series[g], levels[g], "generation", y_label, top) for g in series]
    return panels, [BEST, MEDIAN, *(keys[name] for name in names)]


def _count_generations(axes: Axes, count: int) -> None:
    """Let the horizontal axis run over generations 1 to `count`, with ticks at whole ones."""
    from matplotlib.ticker import MaxNLocator

    aside = 0.5 if count <= FEW else 0
    axes.set_xlim(1 - aside, max(count, 1) + aside)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))


def save_training_losses(path: Path, losses: Mapping[str, Mapping[int, float | None]]) -> None:
    """Write a PNG and an SVG file of the losses of a fine-tuning.

    Args:
        path: The PNG file.
        losses: By name and by step, the loss in nats per answer token. The first name is drawn as a
            line, others with a mark at each point; a name without values is left out.
    """
    panel, keys = training_losses(losses)
    save_panels(path, [panel], keys)


def training_losses(
    losses: Mapping[str, Mapping[int, float | None]],
) -> tuple[Panel, list[Key]]:
    """Return the panel of `save_training_losses`, and its legend.

    The vertical axis is logarithmic where the largest loss would hide the smallest.
    """
    series: list[tuple[Key, dict[int, float]]] = []
    for (name, by_step), colour in zip(losses.items(), (SKY, ORANGE, BLUE, GREEN), strict=False):
        if by_step:
            marked = name != next(iter(losses)) or len(by_step) <= FEW
            key = Key(name, colour, "-", "o" if marked else "", 1.5)
            series.append((key, {step: _mean(value) for step, value in by_step.items()}))
    above_0 = [v for by_step in losses.values() for v in by_step.values() if v]
    logarithmic = bool(above_0) and max(above_0) > 10 * min(above_0)

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        for key, by_step in series:
            style = {"color": key.colour, "marker": key.marker or None, "linewidth": key.width}
            axes.plot(list(by_step), list(by_step.values()), **style)
        if logarithmic:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlabel("step", fontsize=_LABEL_PT, color=MUTED)
        axes.set_ylabel("loss in nats per answer token", fontsize=_LABEL_PT, color=MUTED)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
        axes.grid(color=LINE, linewidth=0.8)

    return Panel("", draw, (5.6, 3.6)), [key for key, _ in series]


# Maps


def point_map(title: str, groups: Sequence[tuple[Key, Mapping[str, tuple[float, float]]]]) -> Panel:
    """Return a panel of named points on a plane with equal scales.

    Args:
        title: Title of the panel.
        groups: How the points of a group look, and its points by name. A thin line joins a point of
            a later group to the point of the first group with the same name.
    """
    groups = [(key, points) for key, points in groups if points]
    points_Px2 = np.array([xy for _, points in groups for xy in points.values()], np.float64)
    low_2, high_2 = points_Px2.min(axis=0), points_Px2.max(axis=0)
    middle_2 = (low_2 + high_2) / 2
    reach = 0.6 * max((high_2 - low_2).max(), 1e-9)  # more than half: a margin for names
    inches = 5.0
    names = [cut(name, 18) for _, points in groups for name in points]
    # Axes take about 88 % of the panel's width; a point is 1/72 inch.
    beside = place_labels((points_Px2 - middle_2) * (72 * 0.88 * inches / (2 * reach)), names)

    def draw(axes: Axes) -> None:
        _join(axes, groups)
        offsets = iter(beside)
        for i, (key, points) in enumerate(groups):
            for name, xy in points.items():
                axes.plot(*xy, key.marker, color=key.colour, markersize=5.5, markeredgewidth=0)
                axes.annotate(
                    plain(name, 18),
                    xy,
                    next(offsets),
                    textcoords="offset points",
                    fontsize=7.5,
                    ha="center",
                    va="center",
                    color=MUTED if i else INK,
                )
        span = np.array([-reach, reach])
        axes.set(xlim=middle_2[0] + span, ylim=middle_2[1] + span)
        axes.set_aspect("equal")
        axes.grid(color=LINE, linewidth=0.6)
        axes.set_xlabel("first coordinate", fontsize=_LABEL_PT, color=MUTED)
        axes.set_ylabel("second coordinate", fontsize=_LABEL_PT, color=MUTED)

    return Panel(title, draw, (inches, inches), wide=len(names) > 8)


def _join(axes: Axes, groups: Sequence[tuple[Key, Mapping[str, tuple[float, float]]]]) -> None:
    first = groups[0][1]
    for _, points in groups[1:]:
        for name in (n for n in points if n in first):
            ends = np.array([first[name], points[name]]).T
            axes.plot(*ends, color=LINE, linewidth=0.9, zorder=1)


def place_labels(points_Px2: np.ndarray, names: Sequence[str]) -> list[tuple[float, float]]:
    """Return where the name of each point goes, as an offset from the point.

    A name takes the nearest position that covers no point and no name placed before, and that is
    not nearer to another point; if there is none, the one with the least overlap. All lengths are
    in typographic points.

    Args:
        points_Px2: float [P, 2], the points.
        names: Name of each point.
    """
    boxes = [np.array([2.6 + 2.45 * len(name), 4.4]) for name in names]  # half width and height
    taken = [(xy, np.array([3.5, 3.5])) for xy in points_Px2]
    offsets = []
    for xy, half in zip(points_Px2, boxes, strict=True):
        # Try eight directions, above right first, at four distances.
        angles = np.arange(8) * math.pi / 4 + math.pi / 4
        around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        tried = [way * (half + 3 + grow) for grow in (0, 6, 12, 20) for way in around]
        faults = [
            sum(_overlap(xy + t, half, *box) for box in taken) + _ambiguity(t, xy + t, points_Px2)
            for t in tried
        ]
        best = tried[int(np.argmin(faults))]
        taken.append((xy + best, half))
        offsets.append((float(best[0]), float(best[1])))
    return offsets


def _ambiguity(offset: np.ndarray, label_xy: np.ndarray, points_Px2: np.ndarray) -> float:
    """Return how much nearer than its own point other points are to a label."""
    distances = np.linalg.norm(points_Px2 - label_xy, axis=1)
    return float(2 * np.maximum(0, np.linalg.norm(offset) - distances).sum())


def _overlap(a: np.ndarray, half_a: np.ndarray, b: np.ndarray, half_b: np.ndarray) -> float:
    """Return the area that two boxes share, given their centres and half sizes."""
    sides = np.maximum(0, half_a + half_b - np.abs(a - b))
    return float(sides[0] * sides[1])


def _mean(value: Estimate | float | None) -> float:
    """Return a value's number; NaN, which is not drawn, if there is none."""
    value = value.mean if isinstance(value, Estimate) else value
    return float(value) if is_number(value) else math.nan
