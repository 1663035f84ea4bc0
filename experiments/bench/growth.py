"""Check that the cost of a search grows in proportion to candidates, items and generations.

    python -m experiments.bench.growth

A tiny random Llama answers generated items during a whole search. Each of the three numbers varies
over two decades while the other two are fixed. FLOPs and memory are read from the compiled program;
seconds are measured. A slope of 1 on log-log axes means proportional growth. All items share an
instruction and the prompt, which are computed once, so the slope for items is a little below 1.
Memory must not grow with generations, and with candidates only by their search vectors. Takes about
two minutes on two cores, most of it compilation.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.answering.cost import device_name
from jaxalign.answering.options import PreparedItems, option_log_probs, prepare_items
from jaxalign.answering.plan import Layout, plan_layout
from jaxalign.core.errors import UserError
from jaxalign.core.files import check_new_file
from jaxalign.core.progress import Progress
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.weights import init_params
from jaxalign.optim.evolve import Evolution, make_evolution
from jaxalign.optim.strategy import Strategy
from jaxalign.report.drawing import new_figure, save_figure
from jaxalign.report.palette import BLUE, GREEN, ORANGE
from jaxalign.runs import write_json
from jaxalign.runs.console import main, print_table, progress_bars
from jaxalign.runtime.program_facts import read_program
from jaxalign.runtime.sharding import make_mesh

AXES = ("candidates", "items", "generations")
MODEL = LlamaConfig(512, 64, 128, 3, 4, 2, 16, dtype="float32", param_dtype="float32")
PROMPT_TOKENS = 4
INSTRUCTION, ITEM_TOKENS, OPTIONS = (1, 2, 3, 4, 5, 6), 10, 4


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure how a search's cost grows."""

    candidates: tuple[int, ...] = (4, 20, 80, 400)
    """Numbers of candidates to measure."""
    items: tuple[int, ...] = (4, 20, 80, 400)
    """Numbers of survey items to measure."""
    generations: tuple[int, ...] = (1, 5, 20, 100)
    """Numbers of generations to measure."""
    chunk: int = 4
    """Number of candidates computed at a time. Numbers of candidates are padded to a multiple."""
    repeats: int = 3
    """Number of timed runs of each program after one warm-up; the fastest counts. 0 only compiles
    and reads the program."""
    plot: Path | None = Path("bench_growth.png")
    """File for the plot (PNG)."""
    json: Path | None = None
    """File for the figures (JSON)."""

    def __post_init__(self) -> None:
        check_new_file(self.json, "json")
        check_new_file(self.plot, "plot")


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of one search. The defaults are the values of the numbers that are not varied."""

    candidates: int = 16
    items: int = 16
    generations: int = 4


@dataclasses.dataclass(frozen=True)
class Point:
    """The figures of one compiled search, and which of its sizes is being varied (`axis`)."""

    axis: str
    size: Size
    dot_flops: int
    temporary_bytes: int
    seconds: float | None

    @property
    def value(self) -> int:
        """The size along the varied axis."""
        return getattr(self.size, self.axis)


def bench(config: Config) -> None:
    """Measure every size, print a table per axis, and write the figures and the plot.

    Raises:
        UserError: If a size is out of range.
    """
    if not all(getattr(config, axis) for axis in AXES):
        raise UserError(f"{', '.join(f'--{axis}' for axis in AXES)} need at least one number each")
    # Only one size differs from the defaults at a time.
    sizes = [
        (axis, dataclasses.replace(Size(), **{axis: value}))
        for axis in AXES
        for value in getattr(config, axis)
    ]
    smallest = min(min(dataclasses.astuple(size)) for _, size in sizes)
    if smallest < 1 or config.chunk < 1 or config.repeats < 0:
        raise UserError("sizes and --chunk must be at least 1, --repeats at least 0")
    if min(config.candidates) < 4:
        raise UserError(f"--candidates {min(config.candidates)}: the search needs 4 or more")
    points = []
    with progress_bars() as on_progress:
        on_progress(Progress("program", 0, len(sizes), "programs"))
        for axis, size in sizes:
            points.append(measure(axis, size, config.chunk, config.repeats))
            fields = {"last": axis}
            on_progress(Progress("program", len(points), len(sizes), "programs", fields=fields))
    slopes_by_axis = {axis: slopes([p for p in points if p.axis == axis]) for axis in AXES}
    show(points, slopes_by_axis)
    if config.json:
        result = {"device": device_name(), "points": points, "slopes": slopes_by_axis}
        write_json(config.json, result)
    if config.plot:
        plot(config.plot, points, slopes_by_axis)
        print(f"Wrote {config.plot}")


def measure(axis: str, size: Size, chunk: int, repeats: int) -> Point:
    """Compile a search of this size, read its FLOPs and memory, and time it.

    Args:
        axis: The size that is being varied.
        size: Candidates, items and generations of the search.
        chunk: Number of candidates computed at a time.
        repeats: Number of timed runs; 0 leaves the seconds out.
    """
    layout = generated_layout(size.items)
    evolution = make_search(size.candidates, chunk)
    context = prepare_items(MODEL, init_params(MODEL, jax.random.key(0)), layout)
    facts = read_program(evolution.lower(size.generations, context).compile())
    seconds = run_seconds(evolution, size, context, repeats) if repeats else None
    return Point(axis, size, facts.dot_flops, facts.memory.temporaries, seconds)


def generated_layout(items: int) -> Layout:
    """Return the token plan of items with 4 options that share nothing but the instruction."""
    random = np.random.default_rng(0)
    # Distinct first tokens: the items' branches split right after the instruction.
    texts = random.integers(10, 400, (items, ITEM_TOKENS))
    texts[:, 0] = 10 + np.arange(items) % 400
    options = [[(500 + o,)] for o in range(OPTIONS)]
    return plan_layout((), PROMPT_TOKENS, [[*INSTRUCTION, *t] for t in texts], [options] * items)


def make_search(candidates: int, chunk: int) -> Evolution:
    """Return a search for a prompt under which every item gets its first option."""

    # Any smooth fitness would do; what is measured is the evaluation of the prompts.
    def fitness(
        candidates_PxZ: jax.Array, country_P: jax.Array, context: PreparedItems
    ) -> jax.Array:
        prompts = candidates_PxZ.reshape(-1, PROMPT_TOKENS, MODEL.hidden_size)
        return -option_log_probs(MODEL, context, prompts, chunk)[..., 0].mean(-1)

    mesh = make_mesh(jax.devices()[:1])
    dims = PROMPT_TOKENS * MODEL.hidden_size
    return make_evolution(Strategy(population=candidates), dims, fitness, mesh, [("USA", 0)])


def run_seconds(evolution: Evolution, size: Size, context: PreparedItems, repeats: int) -> float:
    """Return the fastest of `repeats` runs in seconds, after one warm-up that is not counted."""
    shape = (1, size.candidates, evolution.num_dims)
    # A small spread around zero: the prompts' values do not matter, only their number.
    first = 0.02 * jax.random.normal(jax.random.key(1), shape, jnp.float32)
    state = evolution.init(first, context)
    # The fastest run is the least disturbed by other processes.
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        state, _ = evolution.run(state, size.generations, context)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def slopes(points: list[Point]) -> dict[str, float | None]:
    """Fit log(quantity) over log(varied number) by least squares; return the slopes.

    A slope is None where there are fewer than two points, or the quantity was not measured.
    """
    if len(points) < 2:
        return {"dot_flops": None, "seconds": None, "temporary_bytes": None}

    def slope(values: list[float | None]) -> float | None:
        if None in values:
            return None
        # On log-log axes a power law is a line, and its slope is the exponent.
        return float(np.polyfit(np.log([p.value for p in points]), np.log(values), 1)[0])

    names = ("dot_flops", "seconds", "temporary_bytes")
    return {name: slope([getattr(p, name) for p in points]) for name in names}


def show(points: list[Point], slopes_by_axis: dict[str, dict[str, float | None]]) -> None:
    """Print one table per axis with the slopes in its last row."""

    def decimals(value: float | None, digits: int) -> str:
        return "–" if value is None else f"{value:,.{digits}f}"

    for axis in AXES:
        rows = [
            [
                p.value,
                decimals(p.dot_flops / 1e9, 3),
                decimals(p.seconds, 3),
                decimals(p.temporary_bytes / 2**20, 2),
            ]
            for p in points
            if p.axis == axis
        ]
        slope = [decimals(s, 3) for s in slopes_by_axis[axis].values()]
        title = f"Growth with {axis}, on {device_name()}"
        columns = (axis, "GFLOP (compiled)", "seconds (measured)", "temporaries MiB (compiled)")
        print_table(title, columns, [*rows, ["slope", *slope]])


def plot(
    path: Path, points: list[Point], slopes_by_axis: dict[str, dict[str, float | None]]
) -> None:
    """Save a PNG of three log-log panels: FLOPs, seconds and memory over each number."""
    figure = new_figure((10.5, 3.8))
    panels = figure.subplots(1, len(AXES), sharey=True)
    for panel, axis in zip(panels, AXES, strict=True):
        axis_points = [p for p in points if p.axis == axis]
        sizes = [p.value for p in axis_points]
        for (name, label), colour, marker in zip(QUANTITIES.items(), COLOURS, "os^", strict=True):
            values = [getattr(p, name) for p in axis_points]
            if None in values:
                continue
            # Relative to the smallest size, so that the three quantities share one axis.
            relative = np.array(values) / values[0]
            slope = slopes_by_axis[axis][name]
            if slope is not None:
                label = f"{label}, slope {slope:.2f}"
            panel.loglog(sizes, relative, marker + "-", color=colour, label=label)
        # The dotted line is proportional growth from the smallest size.
        first = sizes[0]
        ends = np.array([first, sizes[-1]])
        panel.loglog(ends, ends / first, ":", color="black", label="proportional")
        panel.set(xlabel=axis)
        panel.grid(color="0.9")
        panel.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("times the smallest")
    save_figure(path, figure)


QUANTITIES = {"dot_flops": "FLOPs", "seconds": "seconds", "temporary_bytes": "temporaries"}
COLOURS = (BLUE, ORANGE, GREEN)


if __name__ == "__main__":
    main(bench, Config)
