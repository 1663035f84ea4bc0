"""The picture of `experiments.bench.population`: ratios with their range, and a roofline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.bench.population.report import WORDS

# Okabe, Ito (2008), "Color Universal Design": told apart by colour-blind readers.
_COLOURS = {
    "ours": "#0072B2",
    "hf_per_item": "#E69F00",
    "hf_padded": "#D55E00",
    "hf_prefix_cache": "#CC79A7",
    "jax_vmap": "#009E73",
}
_MARKERS = {
    "ours": "*",
    "hf_per_item": "o",
    "hf_padded": "s",
    "hf_prefix_cache": "D",
    "jax_vmap": "^",
}
_DPI = 150


def draw(path: Path, result: dict[str, Any]) -> None:
    """PNG of both panels. `result` is `report.make_result`'s."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    ratios(left, result)
    roofline(right, result)
    s = result["settings"]
    repeats = s["repeats"]
    figure.suptitle(
        f"{s['size']}, {s['dtype']}, {s['items']} items, {s['population']} prompts: "
        f"median and range of {repeats} interleaved repeat{'s' if repeats > 1 else ''}"
    )
    figure.savefig(path, dpi=_DPI, facecolor="white", format="png")


def ratios(axes: Axes, result: dict[str, Any]) -> None:
    """How many times as long each baseline takes, with the range over repeats."""
    names = list(result["ratios"])
    for row, name in enumerate(names):
        found = result["ratios"][name]
        low, high = found["median"] - found["min"], found["max"] - found["median"]
        axes.barh(row, found["median"], color=_COLOURS[name], height=0.6)
        axes.errorbar(found["median"], row, xerr=[[low], [high]], color="black", capsize=4)
        axes.annotate(
            f"{found['median']:.2f}", (found["max"], row), xytext=(6, 0),
            textcoords="offset points", va="center",
        )  # fmt: skip
    axes.axvline(1, color=_COLOURS["ours"], linewidth=2.2)
    axes.set_yticks(range(len(names)), [WORDS[name] for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(found["max"] for found in result["ratios"].values()))
    axes.set_xlabel("time, ours = 1")
    axes.spines[["top", "right"]].set_visible(False)


def roofline(axes: Axes, result: dict[str, Any]) -> None:
    """Useful FLOP/s over useful FLOPs per byte of weights read, under the measured ceilings.

    Activations are left out of the bytes, so points lie further right than their true intensity.
    """
    methods = result["methods"].values()
    xs = [found["useful_flops_per_weight_byte"] for found in methods]
    peaks = {
        name: found["median"] for name, found in result["matmul_peak_flops_per_second"].items()
    }
    ridge = max(peaks.values()) / result["memory_bytes_per_second"]
    span = np.geomspace(min(*xs, ridge) / 4, 4 * max(*xs, ridge), 200)
    for (name, peak), style in zip(peaks.items(), ("-", "--"), strict=False):
        roof = np.minimum(peak, span * result["memory_bytes_per_second"]) / 1e9
        axes.plot(span, roof, color="0.3", linestyle=style, label=f"matmul and memory, {name}")
    for name, found in result["methods"].items():
        axes.scatter(
            found["useful_flops_per_weight_byte"], found["useful_flops_per_second"] / 1e9,
            s=130 if name == "ours" else 45, color=_COLOURS[name], marker=_MARKERS[name],
            label=WORDS[name], zorder=3,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("useful FLOPs per byte of weights read")
    axes.set_ylabel("useful GFLOP/s")
    axes.grid(color="0.9", which="both")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
