"""Panels drawn once, kept twice: all in one PNG, and each as SVG that can live inside a page.

Explicit Figure objects, no pyplot. The SVG keeps its text as text, follows the page's light and
dark colours, and holds no address and no identifier that another picture could also use.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxalign.report.document import Drawing, Key
from jaxalign.report.palette import INK, LINE, MUTED, THEMED

_DPI = 150
_PIXELS_PER_INCH = 110  # CSS pixels; 96 would be life size, too small beside a page's text
_TITLE = {"fontsize": 11, "fontweight": "bold", "color": INK}


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes: `draw` fills it. Size in inches; `wide` ones scroll on a phone."""

    title: str
    draw: Callable[[Axes], None]
    size: tuple[float, float] = (4.8, 3.4)
    polar: bool = False
    wide: bool = False


def drawings(name: str, panels: Sequence[Panel]) -> tuple[Drawing, ...]:
    """Each panel for a page. `name` tells a report's figures apart."""
    return tuple(_drawing(panel, f"{name}-{i}-") for i, panel in enumerate(panels))


def plain(text: str, most: int = 38) -> str:
    """Text that matplotlib does not take for mathematics, cut where it would leave no room; the
    table of a figure has it whole."""
    return cut(text, most).replace("$", r"\$")


def save_png(path: Path, panels: Sequence[Panel], keys: Sequence[Key] = ()) -> None:
    """All panels and a legend in one file."""
    width, height = (max(panel.size[side] for panel in panels) for side in (0, 1))
    columns = min(len(panels), max(1, int(13 / width)))
    rows = -(-len(panels) // columns)
    legend = 0.3 * -(-len(keys) // 3)
    figure = Figure(figsize=(width * columns, height * rows + legend), layout="constrained")
    for i, panel in enumerate(panels):
        _fill(figure, panel, (rows, columns, i + 1))
    if keys:
        handles, columns = [_handle(key) for key in keys], max(1, int(figure.get_figwidth() / 2.3))
        place = "outside upper center"
        figure.legend(handles=handles, loc=place, ncols=columns, frameon=False, fontsize=9)
    figure.savefig(path, dpi=_DPI, facecolor="white", format="png")


def _drawing(panel: Panel, prefix: str) -> Drawing:
    figure = Figure(figsize=panel.size, layout="constrained")
    _fill(figure, panel, (1, 1, 1))
    buffer = io.StringIO()
    # Real text rather than outlines, and the same bytes from the same data.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "jaxalign"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return Drawing(
        inline_svg(buffer.getvalue(), prefix), panel.size[0] * _PIXELS_PER_INCH, panel.wide
    )


def cut(text: str, most: int) -> str:
    """At most so many characters, the last an ellipsis where some are missing."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _fill(figure: Figure, panel: Panel, place: tuple[int, int, int]) -> None:
    axes = figure.add_subplot(*place, projection="polar" if panel.polar else None)
    _quiet(axes)
    panel.draw(axes)
    if panel.title:
        axes.set_title(plain(panel.title), **_TITLE)


def _quiet(axes: Axes) -> None:
    """Ink for what is read, lines that stay behind the data."""
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=9)
    for spine in axes.spines.values():
        spine.set_color(LINE)
    if axes.name != "polar":
        axes.spines[["top", "right"]].set_visible(False)


def _handle(key: Key) -> Line2D:
    style = {"linestyle": key.line or "none", "marker": key.marker or None}
    return Line2D([], [], color=key.colour, label=plain(key.words), linewidth=key.width, **style)


def inline_svg(document: str, prefix: str) -> str:
    """An SVG document as an element of a page."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    box = re.search(r'viewBox="([^"]+)"', svg).group(1)
    svg = re.sub(
        r"<svg[^>]*>", f'<svg viewBox="{box}" aria-hidden="true" focusable="false">', svg, count=1
    )
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}', svg)
    svg = svg.replace("url(#", f"url(#{prefix}")
    svg = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 system-ui, sans-serif", svg)
    for drawn, written in THEMED.items():
        svg = svg.replace(drawn, written).replace(drawn.upper(), written)
    return re.sub(r">\s+<", "><", svg).strip()
