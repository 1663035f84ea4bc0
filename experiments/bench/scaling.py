"""Weak and strong scaling of the compiled search over the population axis, without running it.

    python -m experiments.bench.scaling                       # 1, 2, 4, 8 simulated devices
    python -m experiments.bench.scaling --topologies v5e:2x2 v5e:4x4 v5e:8x8 v5e:16x16

Compiles one dispatch of generations (ask, 24 items answered by every candidate, tell) from shapes
alone for meshes of several sizes, and reads out of each compiled program what one device computes,
what it exchanges with others, and what it holds. Perfect scaling is the formula's work of all
candidates shared out evenly. Nothing is executed, so seconds are not shown: simulated devices share
one processor. A program takes about 5 s to compile.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from jaxalign.answering.conversations import soft_prompt_layout
from jaxalign.answering.cost import candidate_flops
from jaxalign.answering.options import make_context
from jaxalign.answering.plan import Layout
from jaxalign.core.errors import UserError
from jaxalign.core.files import check_new_file
from jaxalign.lm.config import PRESETS, DType, LlamaConfig
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.lm.weights import abstract_params
from jaxalign.methods.soft_prompt.objective import Objective, make_fitness
from jaxalign.methods.soft_prompt.space import Space
from jaxalign.optim.evolve import make_evolution
from jaxalign.optim.strategy import Strategy
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.prompts import load_prompts
from jaxalign.runs import write_json
from jaxalign.runs.console import main, print_table
from jaxalign.runtime.program_facts import ProgramFacts, read_program
from jaxalign.runtime.sharding import make_mesh, replicated
from jaxalign.runtime.topology import described_devices, parse_topology
from jaxalign.stats.vsm import make_scorer
from jaxalign.surveys.survey import vsm_survey

SMALL = LlamaConfig(32_000, 512, 1536, 8, 8, 4, 64)


@dataclasses.dataclass(frozen=True)
class Config:
    """What one device does as devices are added, read from compiled programs."""

    devices: tuple[int, ...] = (1, 2, 4, 8)
    per_device: int = 16
    """Candidates per device in weak scaling; strong scaling has this many on the largest mesh."""
    chunk: int = 4
    """Candidates evaluated at a time on a device."""
    generations: int = 3
    model: Literal["small", "llama3-8b", "llama3.2-1b"] = "small"
    """Shapes only; small: 8 layers of width 512, vocabulary 32,000."""
    dtype: DType = "float32"
    topologies: tuple[str, ...] = ()
    """TPU slices such as v5e:2x2 v5e:4x4 v5e:8x8 v5e:16x16: weak scaling compiled ahead of time for
    chips that are not here. Needs libtpu (pip install 'jaxalign[tpu]')."""
    plot: Path | None = Path("bench_scaling.png")
    """Picture of the table."""
    json: Path | None = None
    """File for the table's numbers."""

    def __post_init__(self) -> None:
        check_new_file(self.json, "--json")
        check_new_file(self.plot, "--plot")


@dataclasses.dataclass(frozen=True)
class Point:
    """One mesh, one population; numbers are of one device and one generation."""

    series: str
    devices: int
    population: int
    device_flops: float
    times_perfect: float  # device_flops over an even share of the formula's
    exchanged_bytes: float
    population_bytes: int  # of all candidates' search vectors, for scale
    temporary_bytes: int
    collectives: tuple[str, ...]


def bench(config: Config) -> None:
    """The whole benchmark; see the module's docstring."""
    if not config.devices:
        raise UserError("--devices needs at least one number")
    if min(*config.devices, config.per_device, config.chunk, config.generations) < 1:
        raise UserError("--devices, --per-device, --chunk and --generations must be at least 1")
    llama = SMALL if config.model == "small" else PRESETS[config.model]
    llama = llama.replace(dtype=config.dtype, param_dtype=config.dtype)
    layout, devices = values_layout(), simulated_devices(max(config.devices))
    described = [described_mesh(name) for name in config.topologies]
    points = []
    for series in ("weak", "strong"):
        for n in config.devices:
            mesh = make_mesh(devices[:n])
            population = config.per_device * (n if series == "weak" else max(config.devices))
            points.append(scaling_point(series, llama, layout, mesh, population, config))
    for name, mesh in zip(config.topologies, described, strict=True):
        series, population = f"weak, {name.split(':')[0]}", config.per_device * mesh.devices.size
        points.append(scaling_point(series, llama, layout, mesh, population, config))
    show(points)
    if config.json:
        write_json(config.json, {"model": config.model, "points": points})
    if config.plot:
        plot(config.plot, points)
        print(f"plotted in {config.plot}")


def scaling_point(
    series: str, llama: LlamaConfig, layout: Layout, mesh: Mesh, population: int, config: Config
) -> Point:
    """Compile the search for `mesh`, of devices or of a described topology, and read it."""
    lowered = lower_search(llama, layout, mesh, population, config.generations, config.chunk)
    facts = read_program(lowered.compile())
    return read_point(series, facts, llama, layout, mesh, population, config.generations)


def read_point(
    series: str,
    facts: ProgramFacts,
    llama: LlamaConfig,
    layout: Layout,
    mesh: Mesh,
    population: int,
    generations: int,
) -> Point:
    """What the program of `generations` generations says about one of them on one device."""
    share = population * candidate_flops(llama, layout).total / mesh.devices.size
    flops = facts.dot_flops / generations
    return Point(
        series=series,
        devices=mesh.devices.size,
        population=population,
        device_flops=flops,
        times_perfect=flops / share,
        exchanged_bytes=facts.collective_bytes / generations,
        population_bytes=4 * population * layout.prompt_length * llama.hidden_size,
        temporary_bytes=facts.memory.temporaries,
        collectives=tuple(c.kind for c in facts.collectives),
    )


def lower_search(
    llama: LlamaConfig, layout: Layout, mesh: Mesh, population: int, generations: int, chunk: int
) -> jax.stages.Lowered:
    """A dispatch of `experiments.soft_prompt` for one country, from shapes alone."""
    M, D = layout.prompt_length, llama.hidden_size
    fitness = make_fitness(llama, "expected", chunk)
    strategy = Strategy(population=population)
    evolution = make_evolution(strategy, M * D, fitness, mesh, [("USA", 0)])
    objective = abstract_objective(llama, layout)
    whole = replicated(mesh)
    on_mesh = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), objective
    )
    return evolution.lower(generations, on_mesh)


def abstract_objective(llama: LlamaConfig, layout: Layout) -> Objective:
    """`Objective` for one country in the full space, its leaves `jax.ShapeDtypeStruct`."""

    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    def context(params):
        return make_context(llama, params, layout)

    return Objective(
        interview=jax.eval_shape(context, abstract_params(llama)),
        scorer=jax.eval_shape(lambda: make_scorer(vsm_survey())),
        space=Space(array(1, layout.prompt_length, llama.hidden_size), array(), None),
        target_Cx6=array(1, 6),
        used_6=array(6, dtype=bool),
        penalty=array(),
    )


def values_layout(prompt_length: int = 16) -> Layout:
    """The 24 items of the values module as the pocket tokenizer writes them, prompt in front."""
    tokens, items = Tokenizer.load(MODEL_FOLDER), vsm_survey().items
    return soft_prompt_layout(tokens, load_prompts(None), items, "front", prompt_length)


def simulated_devices(count: int) -> list[jax.Device]:
    """So many CPU devices; UserError where JAX has already started with fewer."""
    with contextlib.suppress(RuntimeError):  # JAX has started: what there is must do
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"{count} simulated devices are needed, JAX has {len(devices)}")
    return devices


def described_mesh(name: str) -> Mesh:
    """All chips of a slice along the population axis. UserError where there is no compiler."""
    return make_mesh(described_devices(parse_topology(name)))


def show(points: list[Point]) -> None:
    """The table."""
    rows = [
        [
            p.series, p.devices, p.population, f"{p.device_flops / 1e9:,.1f}",
            f"{p.times_perfect:.4f}", f"{p.exchanged_bytes:,.0f}", f"{p.population_bytes:,}",
            f"{p.temporary_bytes / 2**20:,.0f}", ", ".join(sorted(set(p.collectives))) or "none",
        ]
        for p in points
    ]  # fmt: skip
    print_table(
        "Scaling over the population axis, one generation on one device, from compiled programs",
        ("series", "devices", "candidates", "GFLOP", "times perfect", "bytes exchanged",
         "bytes of the population", "temporaries MiB", "exchanges"),
        rows,
    )  # fmt: skip


def plot(path: Path, points: list[Point]) -> None:
    """PNG: work of one device over the number of devices, and bytes exchanged, log-log."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for series, colour in zip(dict.fromkeys(p.series for p in points), COLOURS, strict=False):
        some = [p for p in points if p.series == series]
        n = [p.devices for p in some]
        left.loglog(n, [p.device_flops / 1e9 for p in some], "o-", color=colour, label=series)
        perfect = [p.device_flops / p.times_perfect / 1e9 for p in some]
        left.loglog(n, perfect, ":", color="black", label="perfect" if colour == COLOURS[0] else "")
        right.loglog(n, [p.population_bytes for p in some], "--", color=colour)
        apart = [(p.devices, p.exchanged_bytes) for p in some if p.exchanged_bytes]
        if apart:
            right.loglog(*zip(*apart, strict=True), "o-", color=colour, label=series)
    left.set(xlabel="devices", ylabel="GFLOP a generation, one device")
    right.set(
        xlabel="devices", ylabel="bytes", title="exchanged (dots); population itself (dashes)"
    )
    for axes in (left, right):
        axes.set_xticks([p.devices for p in points], [str(p.devices) for p in points], minor=False)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(color="0.9")
    left.legend(frameon=False)
    figure.savefig(path, dpi=150, facecolor="white", format="png")


COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")  # Okabe and Ito's


if __name__ == "__main__":
    main(bench, Config)
