"""Named points on a plane: countries and personas, each name beside its own point."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from jaxalign.report.document import Key
from jaxalign.report.drawing import Panel, cut, plain
from jaxalign.report.palette import INK, LINE, MUTED

_LABEL_PT = 9


def point_map(title: str, groups: Sequence[tuple[Key, Mapping[str, tuple[float, float]]]]) -> Panel:
    """Named points on a plane with equal scales. A name in two groups is joined by a thin line."""
    groups = [(key, points) for key, points in groups if points]
    every = np.array([xy for _, points in groups for xy in points.values()], np.float64)
    middle = (every.min(axis=0) + every.max(axis=0)) / 2
    reach = 0.6 * max((every.max(axis=0) - every.min(axis=0)).max(), 1e-9)  # a margin for names
    inches = 5.0
    names = [cut(name, 18) for _, points in groups for name in points]
    beside = place_labels((every - middle) * (72 * 0.88 * inches / (2 * reach)), names)

    def draw(axes: Axes) -> None:
        _join(axes, groups)
        offsets = iter(beside)
        for i, (key, points) in enumerate(groups):
            words_colour = MUTED if i else INK
            for name, xy in points.items():
                axes.plot(*xy, key.marker, color=key.colour, markersize=5.5, markeredgewidth=0)
                axes.annotate(
                    plain(name, 18), xy, next(offsets), textcoords="offset points", fontsize=7.5,
                    ha="center", va="center", color=words_colour,
                )  # fmt: skip
        axes.set(
            xlim=middle[0] + np.array([-reach, reach]), ylim=middle[1] + np.array([-reach, reach])
        )
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
    """Where each name goes, as an offset from its point: the nearest place that covers no point
    and no name placed before and is not nearer to another point, else the one that offends least.
    All in typographic points."""
    boxes = [np.array([2.6 + 2.45 * len(name), 4.4]) for name in names]  # half width and height
    taken = [(xy, np.array([3.5, 3.5])) for xy in points_Px2]
    found = []
    for xy, half in zip(points_Px2, boxes, strict=True):
        angles = np.arange(8) * math.pi / 4 + math.pi / 4  # above right first
        around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        tried = [way * (half + 3 + grow) for grow in (0, 6, 12, 20) for way in around]
        faults = [
            sum(_overlap(xy + t, half, *box) for box in taken) + _doubt(t, xy + t, points_Px2)
            for t in tried
        ]
        best = tried[int(np.argmin(faults))]
        taken.append((xy + best, half))
        found.append((float(best[0]), float(best[1])))
    return found


def _doubt(offset: np.ndarray, place: np.ndarray, points_Px2: np.ndarray) -> float:
    """How much nearer than its own point other points are to a name at `place`."""
    distances = np.linalg.norm(points_Px2 - place, axis=1)
    return float(2 * np.maximum(0, np.linalg.norm(offset) - distances).sum())


def _overlap(a: np.ndarray, half_a: np.ndarray, b: np.ndarray, half_b: np.ndarray) -> float:
    sides = np.maximum(0, half_a + half_b - np.abs(a - b))
    return float(sides[0] * sides[1])
