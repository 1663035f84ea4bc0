"""Does cost grow in proportion to candidates, items and generations, and no faster?

    python -m experiments.bench.growth

A tiny random Llama answers generated items for a whole search. Each of the three is taken over two
decades while the others stand still; FLOPs and memory are read from the compiled program, seconds
are measured. A slope of 1 on log-log axes is proportional growth. Items share an instruction and
the prompt, computed once, so that their slope is a little below 1; memory must not grow with
generations, and with candidates by their search vectors alone. About two minutes on two cores, most
of it compilation.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from jaxalign.answering.cost import device_name
from jaxalign.answering.options import Context, make_context, option_log_probs
from jaxalign.answering.plan import Layout, plan_layout
from jaxalign.core.errors import UserError
from jaxalign.core.files import check_new_file
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.weights import init_params
from jaxalign.optim.evolve import Evolution, make_evolution
from jaxalign.optim.strategy import Strategy
from jaxalign.runs import write_json
from jaxalign.runs.console import Progress, main, print_table
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
    items: tuple[int, ...] = (4, 20, 80, 400)
    generations: tuple[int, ...] = (1, 5, 20, 100)
    chunk: int = 4
    """Candidates computed at a time; round numbers of candidates up to it."""
    repeats: int = 3
    """Runs of each program after a first one; the fastest counts. 0: compile and read only."""
    plot: Path | None = Path("bench_growth.png")
    """Picture of the tables."""
    json: Path | None = None
    """File for the numbers."""

    def __post_init__(self) -> None:
        check_new_file(self.json, "--json")
        check_new_file(self.plot, "--plot")


@dataclasses.dataclass(frozen=True)
class Size:
    """What one program searches; what is not varied stands at these values."""

    candidates: int = 16
    items: int = 16
    generations: int = 4


@dataclasses.dataclass(frozen=True)
class Point:
    """One program."""

    axis: str
    size: Size
    dot_flops: int
    temporary_bytes: int
    seconds: float | None

    @property
    def value(self) -> int:
        return getattr(self.size, self.axis)


def bench(config: Config) -> None:
    """The whole benchmark; see the module's docstring."""
    if not all(getattr(config, axis) for axis in AXES):
        raise UserError(f"{', '.join(f'--{axis}' for axis in AXES)} need at least one number each")
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
    with Progress(len(sizes), step="program", unit="programs") as bar:
        for axis, size in sizes:
            points.append(measure(axis, size, config.chunk, config.repeats))
            bar.update(len(points), {"last": axis})
    found = {axis: slopes([p for p in points if p.axis == axis]) for axis in AXES}
    show(points, found)
    if config.json:
        write_json(config.json, {"device": device_name(), "points": points, "slopes": found})
    if config.plot:
        plot(config.plot, points, found)
        print(f"plotted in {config.plot}")


def measure(axis: str, size: Size, chunk: int, repeats: int) -> Point:
    """Compile a dispatch of this size, read it, run it."""
    layout = generated_layout(size.items)
    evolution = make_search(size.candidates, chunk)
    context = make_context(MODEL, init_params(MODEL, jax.random.key(0)), layout)
    facts = read_program(evolution.lower(size.generations, context).compile())
    seconds = run_seconds(evolution, size, context, repeats) if repeats else None
    return Point(axis, size, facts.dot_flops, facts.memory.temporaries, seconds)


def generated_layout(items: int) -> Layout:
    """Items that differ from their first token after the instruction on, 4 options each."""
    random = np.random.default_rng(0)
    texts = random.integers(10, 400, (items, ITEM_TOKENS))
    texts[:, 0] = 10 + np.arange(items) % 400
    options = [[(500 + o,)] for o in range(OPTIONS)]
    return plan_layout((), PROMPT_TOKENS, [[*INSTRUCTION, *t] for t in texts], [options] * items)


def make_search(candidates: int, chunk: int) -> Evolution:
    """Differential Evolution of a prompt whose first option every item should get."""

    def fitness(candidates_PxZ: jax.Array, country_P: jax.Array, context: Context) -> jax.Array:
        prompts = candidates_PxZ.reshape(-1, PROMPT_TOKENS, MODEL.hidden_size)
        return -option_log_probs(MODEL, context, prompts, chunk)[..., 0].mean(-1)

    mesh = make_mesh(jax.devices()[:1])
    dims = PROMPT_TOKENS * MODEL.hidden_size
    return make_evolution(Strategy(population=candidates), dims, fitness, mesh, [("USA", 0)])


def run_seconds(evolution: Evolution, size: Size, context: Context, repeats: int) -> float:
    """The fastest of several dispatches, after one that is not counted."""
    shape = (1, size.candidates, evolution.num_dims)
    first = 0.02 * jax.random.normal(jax.random.key(1), shape, jnp.float32)
    state = evolution.init(first, context)
    taken = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        state, _ = evolution.run(state, size.generations, context)
        jax.block_until_ready(state)
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


def slopes(points: list[Point]) -> dict[str, float | None]:
    """Least-squares slope of each quantity's logarithm over the varied number's logarithm."""
    if len(points) < 2:
        return {"dot_flops": None, "seconds": None, "temporary_bytes": None}

    def slope(values: list[float | None]) -> float | None:
        if None in values:
            return None
        return float(np.polyfit(np.log([p.value for p in points]), np.log(values), 1)[0])

    names = ("dot_flops", "seconds", "temporary_bytes")
    return {name: slope([getattr(p, name) for p in points]) for name in names}


def show(points: list[Point], found: dict[str, dict[str, float | None]]) -> None:
    """A table per axis, its slopes below."""
    for axis in AXES:
        rows = [
            [p.value, f"{p.dot_flops / 1e9:,.3f}",
             "–" if p.seconds is None else f"{p.seconds:.3f}", f"{p.temporary_bytes / 2**20:,.2f}"]
            for p in points
            if p.axis == axis
        ]  # fmt: skip
        slope = ["–" if s is None else f"{s:.3f}" for s in found[axis].values()]
        title = f"Growth with {axis}, on {device_name()}"
        columns = (axis, "GFLOP (compiled)", "seconds (measured)", "temporaries MiB (compiled)")
        print_table(title, columns, [*rows, ["slope", *slope]])


def plot(path: Path, points: list[Point], found: dict[str, dict[str, float | None]]) -> None:
    """PNG of three log-log panels: FLOPs, seconds and memory over each number."""
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    panels = figure.subplots(1, len(AXES), sharey=True)
    for panel, axis in zip(panels, AXES, strict=True):
        some = [p for p in points if p.axis == axis]
        for (name, words), colour, mark in zip(QUANTITIES.items(), COLOURS, "os^", strict=True):
            values = [getattr(p, name) for p in some]
            if None in values:
                continue
            relative = np.array(values) / values[0]
            label = (
                words if found[axis][name] is None else f"{words}, slope {found[axis][name]:.2f}"
            )
            panel.loglog([p.value for p in some], relative, mark + "-", color=colour, label=label)
        first = some[0].value
        ends = np.array([first, some[-1].value])
        panel.loglog(ends, ends / first, ":", color="black", label="proportional")
        panel.set(xlabel=axis)
        panel.grid(color="0.9")
        panel.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("times the smallest")
    figure.savefig(path, dpi=150, facecolor="white", format="png")


QUANTITIES = {"dot_flops": "FLOPs", "seconds": "seconds", "temporary_bytes": "temporaries"}
COLOURS = ("#0072B2", "#E69F00", "#009E73")  # Okabe and Ito's


if __name__ == "__main__":
    main(bench, Config)
