"""Draw the plot of `experiments.bench.population`: ratios with their range, and a roofline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.bench.population.report import LABELS
from jaxalign.report.drawing import new_figure, save_figure
from jaxalign.report.palette import BLUE, GREEN, ORANGE, PURPLE, VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    "ours": BLUE,
    "hf_per_item": ORANGE,
    "hf_padded": VERMILION,
    "hf_prefix_cache": PURPLE,
    "jax_vmap": GREEN,
}
_MARKERS = {
    "ours": "*",
    "hf_per_item": "o",
    "hf_padded": "s",
    "hf_prefix_cache": "D",
    "jax_vmap": "^",
}


def draw(path: Path, result: dict[str, Any]) -> None:
    """Save a PNG with both panels.

    Args:
        path: File to write.
        result: What `report.make_result` returned.
    """
    figure = new_figure((12, 4))
    left, right = figure.subplots(1, 2)
    ratios(left, result)
    roofline(right, result)
    s = result["settings"]
    repeats = s["repeats"]
    figure.suptitle(
        f"{s['model_name']}, {s['dtype']}, {s['items']} items, {s['population']} prompts: "
        f"median and range of {repeats} interleaved repeat{'s' if repeats > 1 else ''}"
    )
    save_figure(path, figure)


def ratios(axes: Axes, result: dict[str, Any]) -> None:
    """Draw each baseline's time relative to jaxalign's, with the range over repeats."""
    names = list(result["ratios"])
    for row, name in enumerate(names):
        ratio = result["ratios"][name]
        low, high = ratio["median"] - ratio["min"], ratio["max"] - ratio["median"]
        axes.barh(row, ratio["median"], color=_COLOURS[name], height=0.6)
        axes.errorbar(ratio["median"], row, xerr=[[low], [high]], color="black", capsize=4)
        axes.annotate(
            f"{ratio['median']:.2f}",
            (ratio["max"], row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
    # The line marks jaxalign's own time.
    axes.axvline(1, color=_COLOURS["ours"], linewidth=2.2)
    axes.set_yticks(range(len(names)), [LABELS[name] for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(ratio["max"] for ratio in result["ratios"].values()))
    axes.set_xlabel("time relative to jaxalign")
    axes.spines[["top", "right"]].set_visible(False)


def roofline(axes: Axes, result: dict[str, Any]) -> None:
    """Draw useful FLOP/s over useful FLOPs per byte of weights, under the measured ceilings.

    The bytes do not include activations, so points lie further right than their true intensity.
    """
    methods = result["methods"].values()
    xs = [figures["useful_flops_per_weight_byte"] for figures in methods]
    peaks = {name: p["median"] for name, p in result["matmul_peak_flops_per_second"].items()}
    # The ridge is where the memory ceiling meets the compute ceiling.
    ridge = max(peaks.values()) / result["memory_bytes_per_second"]
    # A factor of 4 around all points and the ridge.
    span = np.geomspace(min(*xs, ridge) / 4, 4 * max(*xs, ridge), 200)
    for (name, peak), style in zip(peaks.items(), ("-", "--"), strict=False):
        roof = np.minimum(peak, span * result["memory_bytes_per_second"]) / 1e9
        axes.plot(span, roof, color="0.3", linestyle=style, label=f"matmul and memory, {name}")
    for name, figures in result["methods"].items():
        axes.scatter(
            figures["useful_flops_per_weight_byte"],
            figures["useful_flops_per_second"] / 1e9,
            s=130 if name == "ours" else 45,
            color=_COLOURS[name],
            marker=_MARKERS[name],
            label=LABELS[name],
            zorder=3,
        )
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("useful FLOPs per byte of weights read")
    axes.set_ylabel("useful GFLOP/s")
    axes.grid(color="0.9", which="both")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
