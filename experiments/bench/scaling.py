"""Read weak and strong scaling of the search over devices from its compiled programs.

    python -m experiments.bench.scaling                       # 1, 2, 4, 8 simulated devices
    python -m experiments.bench.scaling --topologies v5e:2x2 v5e:4x4 v5e:8x8 v5e:16x16

The benchmark compiles a few generations (ask, evaluate every candidate on the 24 items, tell) from
shapes alone, for meshes of several sizes. From each compiled program it reads how much one device
computes, how many bytes it exchanges with the others, and how much memory it needs. Scaling is
perfect if each device does an even share of the work that the cost formula gives for all
candidates. Nothing is executed and no seconds are shown, because simulated devices share one
processor. A program takes about 5 s to compile.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Literal

import jax
from jax.sharding import Mesh

from jaxalign.answering.conversations import soft_prompt_layout
from jaxalign.answering.cost import candidate_flops
from jaxalign.answering.plan import Layout
from jaxalign.core.errors import UserError
from jaxalign.core.files import check_new_file
from jaxalign.lm.config import PRESETS, DType, LlamaConfig
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.methods.soft_prompt import search
from jaxalign.methods.soft_prompt.space import SoftPromptConfig
from jaxalign.optim.strategy import Strategy
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.prompts import load_prompts
from jaxalign.report.drawing import new_figure, save_figure
from jaxalign.report.palette import BLUE, GREEN, ORANGE, PURPLE
from jaxalign.runs import write_json
from jaxalign.runs.console import main, print_table
from jaxalign.runtime.platform import lowering_for
from jaxalign.runtime.program_facts import ProgramFacts, read_program
from jaxalign.runtime.sharding import make_mesh
from jaxalign.runtime.topology import described_devices, parse_topology
from jaxalign.surveys.survey import vsm

SMALL = LlamaConfig(32_000, 512, 1536, 8, 8, 4, 64)


@dataclasses.dataclass(frozen=True)
class Config:
    """Read what one device computes and exchanges as devices are added."""

    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of simulated devices."""
    per_device: int = 16
    """Number of candidates per device in weak scaling, and on the largest mesh in strong
    scaling."""
    chunk: int = 4
    """Number of candidates that a device evaluates at a time."""
    generations: int = 3
    """Number of generations in one program."""
    model: Literal["small", "llama3-8b", "llama3.2-1b"] = "small"
    """Model whose shapes are compiled; small has 8 layers of width 512 and a vocabulary of
    32,000."""
    dtype: DType = "float32"
    """Data type of weights and activations."""
    topologies: tuple[str, ...] = ()
    """TPU slices for which weak scaling is compiled ahead of time, such as v5e:2x2 v5e:16x16. Needs
    libtpu (pip install 'jaxalign[tpu]'), no TPU."""
    plot: Path | None = Path("bench_scaling.png")
    """File for the plot (PNG)."""
    json: Path | None = None
    """File for the figures (JSON)."""

    def __post_init__(self) -> None:
        check_new_file(self.json, "json")
        check_new_file(self.plot, "plot")


@dataclasses.dataclass(frozen=True)
class Point:
    """The figures of one mesh and population, for one device and one generation.

    Attributes:
        times_perfect: `device_flops` divided by an even share of the formula's FLOPs.
        population_bytes: Size of all candidates' search vectors, for comparison.
    """

    series: str
    devices: int
    population: int
    device_flops: float
    times_perfect: float
    exchanged_bytes: float
    population_bytes: int
    temporary_bytes: int
    collectives: tuple[str, ...]


def bench(config: Config) -> None:
    """Compile and read all meshes, print one table, and write the figures and the plot.

    Raises:
        UserError: If a setting is out of range, or there are too few devices.
    """
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
            # Weak: the same share for every device. Strong: the same total for every mesh.
            population = config.per_device * (n if series == "weak" else max(config.devices))
            points.append(scaling_point(series, llama, layout, mesh, population, config))
    for name, mesh in zip(config.topologies, described, strict=True):
        series, population = f"weak, {name.split(':')[0]}", config.per_device * mesh.devices.size
        with lowering_for(parse_topology(name).platform):
            points.append(scaling_point(series, llama, layout, mesh, population, config))
    show(points)
    if config.json:
        write_json(config.json, {"model": config.model, "points": points})
    if config.plot:
        plot(config.plot, points)
        print(f"Wrote {config.plot}")


def scaling_point(
    series: str, llama: LlamaConfig, layout: Layout, mesh: Mesh, population: int, config: Config
) -> Point:
    """Compile the search for `mesh` (of real or described devices) and read its figures."""
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
    """Return the figures of one generation on one device.

    Args:
        series: Name of the scaling series.
        facts: What was read from the program, which runs `generations` generations.
        llama: Shape of the model.
        layout: Token plan of the items.
        mesh: Devices of the program.
        population: Number of candidates.
        generations: Number of generations in the program.
    """
    # What one device would do if the formula's work were divided evenly.
    share = population * candidate_flops(llama, layout).total / mesh.devices.size
    # The program is one device's; its loop over generations is counted as often as it runs.
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
    """Lower the search of `experiments.soft_prompt` for one country from shapes alone."""
    return search.lower_search(
        llama,
        layout,
        Strategy(population=population),
        SoftPromptConfig(length=layout.prompt_length),
        mesh,
        entries=[("USA", 0)],
        chunk=chunk,
        generations=generations,
    )


def values_layout(prompt_length: int = 16) -> Layout:
    """Return the token plan of the 24 items in the pocket tokenizer, with the prompt in front."""
    tokens, items = Tokenizer.load(MODEL_FOLDER), vsm().items
    return soft_prompt_layout(tokens, load_prompts(None), items, "front", prompt_length)


def simulated_devices(count: int) -> list[jax.Device]:
    """Return at least `count` simulated CPU devices.

    Raises:
        UserError: If JAX has already started with fewer devices.
    """
    with contextlib.suppress(RuntimeError):  # JAX has started, so its devices cannot change
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(
            f"--devices {count}: JAX has already started with {len(devices)} simulated devices; "
            "take fewer, or start a new process"
        )
    return devices


def described_mesh(name: str) -> Mesh:
    """Return a mesh with all chips of a slice along the population axis.

    Raises:
        UserError: If the topology is unknown, or its compiler is not installed.
    """
    return make_mesh(described_devices(parse_topology(name)))


def show(points: list[Point]) -> None:
    """Print the table of all meshes."""
    cells = {
        "series": lambda p: p.series,
        "devices": lambda p: p.devices,
        "candidates": lambda p: p.population,
        "GFLOP per device": lambda p: f"{p.device_flops / 1e9:,.1f}",
        "times an even share": lambda p: f"{p.times_perfect:.4f}",
        "bytes exchanged": lambda p: f"{p.exchanged_bytes:,.0f}",
        "bytes of the population": lambda p: f"{p.population_bytes:,}",
        "temporaries MiB": lambda p: f"{p.temporary_bytes / 2**20:,.0f}",
        "collectives": lambda p: ", ".join(sorted(set(p.collectives))) or "none",
    }
    print_table(
        "Scaling over the population axis, one generation on one device, from compiled programs",
        tuple(cells),
        [[cell(p) for cell in cells.values()] for p in points],
    )


def plot(path: Path, points: list[Point]) -> None:
    """Save a PNG of the work of one device and the bytes it exchanges over devices, log-log."""
    figure = new_figure((9, 3.6))
    from matplotlib.ticker import NullLocator

    left, right = figure.subplots(1, 2)
    for series, colour in zip(dict.fromkeys(p.series for p in points), COLOURS, strict=False):
        line = [p for p in points if p.series == series]
        n = [p.devices for p in line]
        left.loglog(n, [p.device_flops / 1e9 for p in line], "o-", color=colour, label=series)
        # The dotted line is the formula's work, divided evenly.
        even_share = [p.device_flops / p.times_perfect / 1e9 for p in line]
        label = "even share" if colour == COLOURS[0] else ""
        left.loglog(n, even_share, ":", color="black", label=label)
        right.loglog(n, [p.population_bytes for p in line], "--", color=colour)
        # A single device exchanges nothing, and zero has no place on a logarithmic axis.
        exchanged = [(p.devices, p.exchanged_bytes) for p in line if p.exchanged_bytes]
        if exchanged:
            right.loglog(*zip(*exchanged, strict=True), "o-", color=colour, label=series)
    left.set(xlabel="devices", ylabel="GFLOP per generation and device")
    right.set(
        xlabel="devices",
        ylabel="bytes",
        title="exchanged (dots), population itself (dashes)",
    )
    for axes in (left, right):
        axes.set_xticks([p.devices for p in points], [str(p.devices) for p in points], minor=False)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(color="0.9")
    left.legend(frameon=False)
    save_figure(path, figure)


COLOURS = (BLUE, ORANGE, GREEN, PURPLE)


if __name__ == "__main__":
    main(bench, Config)
