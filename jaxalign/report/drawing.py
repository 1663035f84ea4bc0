"""Panels that are drawn once and kept three times: all in one PNG and in one SVG file, and each as
SVG inside a page.

Figures are matplotlib objects made without pyplot, so neither a display nor the back end that a
notebook has chosen (MPLBACKEND) matters, and no global state outlives a call. The SVG keeps its
text as text, follows the light and dark colours of the page, and holds no address and no identifier
that another drawing could also use.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from jaxalign.core.files import write_atomically
from jaxalign.report.document import Drawing, Key
from jaxalign.report.palette import INK, LINE, MUTED, THEMED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_DPI = 150
_PIXELS_PER_INCH = 110  # CSS pixels; 96 would be life size, too small beside a page's text
_TITLE = {"fontsize": 11, "fontweight": "bold", "color": INK}
_MOST_INCHES, _LEAST_INCHES = 13, 5.6  # width of a PNG; the least leaves room for a legend
_KEY_INCHES = 2.3  # width of an entry of a legend


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: Text above the axes; "" for none.
        draw: Fills the axes.
        size: Width and height in inches.
        polar: Whether the axes are polar.
        wide: Whether the drawing scrolls on a phone instead of being shrunk to its width.
    """

    title: str
    draw: Callable[[Axes], None]
    size: tuple[float, float] = (4.8, 3.4)
    polar: bool = False
    wide: bool = False


def drawings(name: str, panels: Sequence[Panel]) -> tuple[Drawing, ...]:
    """Return each panel as SVG for a page; `name` tells the figures of a report apart."""
    return tuple(_drawing(panel, f"{name}-{i}-") for i, panel in enumerate(panels))


def save_panels(path: Path, panels: Sequence[Panel], keys: Sequence[Key] = ()) -> None:
    """Write all panels, below one legend, to a PNG file and an SVG file beside it.

    Args:
        path: The PNG file; its folder is made if it is missing.
        panels: Arranged in rows, from left to right.
        keys: Entries of the legend.
    """

    width, height = (max(panel.size[side] for panel in panels) for side in (0, 1))
    # As few rows as fit into the width, filled evenly: four panels are two rows of two, not 3 + 1.
    rows = -(-len(panels) // max(1, int(_MOST_INCHES / width)))
    columns = -(-len(panels) // rows)
    across = max(width * columns, _LEAST_INCHES)
    keys_in_a_row = max(2, int(across / _KEY_INCHES))
    legend = 0.3 * -(-len(keys) // keys_in_a_row)
    figure = new_figure((across, height * rows + legend))
    for i, panel in enumerate(panels):
        _fill(figure, panel, (rows, columns, i + 1))
    if keys:
        figure.legend(
            handles=[_handle(key) for key in keys],
            loc="outside upper center",
            ncols=keys_in_a_row,
            frameon=False,
            fontsize=9,
        )
    save_figure(path, figure)


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG file, and as an SVG file of the same name for print.

    The same figure gives the same bytes. The text of the SVG is outlines, so that it looks alike
    wherever it is opened, whatever fonts are there.

    Args:
        path: The PNG file; its folder is made if it is missing.
        figure: What to write. It keeps the layout that the PNG file has been given.
    """
    write_atomically(
        path, lambda file: figure.savefig(file, dpi=_DPI, facecolor="white", format="png")
    )
    figure.set_layout_engine("none")
    with load_matplotlib().rc_context({"svg.fonttype": "path", "svg.hashsalt": "jaxalign"}):
        write_atomically(
            svg_beside(path),
            lambda file: figure.savefig(
                file, facecolor="white", format="svg", metadata={"Date": None}
            ),
        )


def svg_beside(png: Path) -> Path:
    """Return the SVG file that is written beside a PNG file."""
    return png.with_suffix(".svg")


def load_matplotlib() -> ModuleType:
    """Import matplotlib, whatever back end the environment names.

    A program that a notebook starts inherits MPLBACKEND, and matplotlib refuses to be imported if
    that back end is not installed here. None is needed: figures are written to files.
    """
    if "matplotlib" in sys.modules:
        return sys.modules["matplotlib"]
    given = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if given is not None:
            os.environ["MPLBACKEND"] = given
    if given:  # for whoever uses pyplot in this process later on
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = given
    return matplotlib


def new_figure(size: tuple[float, float]) -> Figure:
    """Return an empty figure of this width and height in inches, made without pyplot."""
    load_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def plain(text: str, most: int = 38) -> str:
    """Return text that matplotlib does not take for mathematics.

    It is cut to `most` characters where it would leave no room; the table of a figure has it whole.
    """
    return cut(text, most).replace("$", r"\$")


def cut(text: str, most: int) -> str:
    """Return at most `most` characters of a text, the last an ellipsis if some are missing."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _drawing(panel: Panel, prefix: str) -> Drawing:
    matplotlib = load_matplotlib()
    figure = new_figure(panel.size)
    _fill(figure, panel, (1, 1, 1))
    buffer = io.StringIO()
    # Real text rather than outlines, and the same bytes from the same data.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "jaxalign"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return Drawing(
        inline_svg(buffer.getvalue(), prefix), panel.size[0] * _PIXELS_PER_INCH, panel.wide
    )


def _fill(figure: Figure, panel: Panel, position: tuple[int, int, int]) -> None:
    axes = figure.add_subplot(*position, projection="polar" if panel.polar else None)
    _style(axes)
    panel.draw(axes)
    if panel.title:
        axes.set_title(plain(panel.title), **_TITLE)


def _style(axes: Axes) -> None:
    """Draw what is read in ink, and keep the grid behind the data."""
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=9)
    for spine in axes.spines.values():
        spine.set_color(LINE)
    if axes.name != "polar":
        axes.spines[["top", "right"]].set_visible(False)


def _handle(key: Key) -> Line2D:
    from matplotlib.lines import Line2D

    style = {"linestyle": key.line or "none", "marker": key.marker or None}
    return Line2D([], [], color=key.colour, label=plain(key.label), linewidth=key.width, **style)


def inline_svg(document: str, prefix: str) -> str:
    """Return an SVG document as an element of a page.

    Args:
        document: What matplotlib wrote.
        prefix: Put before every identifier, so that those of two drawings differ.
    """
    # Drop what stands around the picture: the XML header, metadata, styles, comments, a fixed size.
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    box = re.search(r'viewBox="([^"]+)"', svg).group(1)
    svg = re.sub(
        r"<svg[^>]*>", f'<svg viewBox="{box}" aria-hidden="true" focusable="false">', svg, count=1
    )
    # Rename identifiers, and the references to them.
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}', svg)
    svg = svg.replace("url(#", f"url(#{prefix}")
    # Use the font of the page, and its colours.
    svg = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 system-ui, sans-serif", svg)
    for drawn, written in THEMED.items():
        svg = svg.replace(drawn, written).replace(drawn.upper(), written)
    return re.sub(r">\s+<", "><", svg).strip()
