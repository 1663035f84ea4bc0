"""Times asking and telling alone: the search's own share of a generation.

    python -m experiments.bench_evolve
    python -m experiments.bench_evolve --populations 64 256 --dims 4096 --algorithms SNES

The fitness is one coordinate of the candidate, so that a generation is nothing but the algorithm.
Beside the seconds stand the bytes that the compiled program reads and writes a generation, and how
long a device with --bandwidth would take to move them. It is the program of this machine: on a CPU
the random numbers' rounds go through memory, which a GPU or TPU fuses, so the estimate is high;
arithmetic is left out. At least, every member would be read and written once, every candidate
written once and read once. Both times are put against a generation of Llama-3-8B on the 24 items,
whose time is work over an *assumed* rate (--generation-flops-per-second), not a measurement. Where
this runs on a CPU, the measured share compares a CPU's seconds with an accelerator's: nobody would
see it. The goal is a share of at most 2 percent.

On two busy cores (AMD EPYC) nearly all of the time is threefry's random bits, one for each
coordinate: 0.25 s for 1,024 candidates of 8,192 dimensions, where copying them takes 0.03 s.
All sizes take three minutes and 10 GB.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.bench_scaling import values_layout
from jaxalign.compiled import read_hlo
from jaxalign.console import main, print_table
from jaxalign.errors import UserError
from jaxalign.evolve import Evolution, make_evolution
from jaxalign.llama.config import PRESETS
from jaxalign.memory import available_bytes, needed_bytes
from jaxalign.records import write_json
from jaxalign.sharding import make_mesh
from jaxalign.strategy import DIFFERENTIAL_EVOLUTION, Strategy, check_strategy
from jaxalign.throughput import candidate_flops, device_name
from tpu.plan_traffic import memory_traffic_bytes


@dataclasses.dataclass(frozen=True)
class Config:
    """Time the search's own work, without a model."""

    algorithms: tuple[str, ...] = (DIFFERENTIAL_EVOLUTION,)
    """Any of evosax's. Those with a full covariance are for few dimensions."""
    populations: tuple[int, ...] = (64, 256, 1024, 4096)
    dims: tuple[int, ...] = (512, 8192, 65_536, 81_920)
    """Of the search vector; 65,536 is a prompt of 16 tokens of an 8B model, every number free."""
    repeats: int = 3
    """Generations timed after a first one; the median counts. 0: compile and read only."""
    generation_flops_per_second: float = 0.7 * 790e12
    """Assumed rate of the model's part: 70 % of what an H200 is expected to reach in bfloat16."""
    bandwidth: float = 4.8e12
    """Bytes a second of that device's memory; an H200's by its data sheet."""
    plot: Path | None = Path("bench_evolve.png")
    """Picture of the table."""
    json: Path | None = None
    """File for the table's numbers."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One algorithm, population and dimension; shares are of a generation at 8B."""

    algorithm: str
    population: int
    dims: int
    seconds: float | None  # of one generation's asking and telling here; None: left out
    least_bytes: int
    moved_bytes: int  # that the program compiled here reads and writes
    moved_seconds: float  # moved_bytes over the bandwidth
    generation_seconds: float  # of the model's part at 8B, by the assumed rate
    left_out: str | None = None

    @property
    def share(self) -> float | None:
        return None if self.seconds is None else self.seconds / self.generation_seconds

    @property
    def moved_share(self) -> float:
        return self.moved_seconds / self.generation_seconds


def bench(config: Config) -> None:
    """The whole benchmark; see the module's docstring."""
    check_config(config)
    work = candidate_flops(PRESETS["llama3-8b"], values_layout()).total
    candidate_seconds = work / config.generation_flops_per_second
    print(
        f"assumed, not measured: {config.generation_flops_per_second / 1e12:.0f} TFLOP/s for the "
        f"model's part: {1e3 * candidate_seconds:.1f} ms a candidate of {work / 1e12:.2f} TFLOP"
    )
    if jax.devices()[0].platform == "cpu":
        print("asking and telling run on a CPU here, the model's part would on an accelerator")
    rows = []
    for algorithm in config.algorithms:
        for dims in config.dims:
            for population in config.populations:
                row = measure(config, algorithm, population, dims, candidate_seconds)
                rows.append(row)
                if row.left_out:
                    print(f"left out: {algorithm}, {population} × {dims:,}: {row.left_out}")
    show(rows)
    if config.json:
        shares = [{"share": r.share, "moved_share": r.moved_share} for r in rows]
        numbers = [dataclasses.asdict(r) | s for r, s in zip(rows, shares, strict=True)]
        write_json(config.json, {"device": device_name(), "config": config, "rows": numbers})
    if config.plot:
        plot(config.plot, rows)
        print(f"plotted in {config.plot}")


def check_config(config: Config) -> None:
    """UserError before anything long starts."""
    if not (config.algorithms and config.populations and config.dims):
        raise UserError("--algorithms, --populations and --dims need at least one value each")
    if min(*config.populations, *config.dims) < 1 or config.repeats < 0:
        raise UserError("--populations and --dims must be at least 1, --repeats at least 0")
    if min(config.generation_flops_per_second, config.bandwidth) <= 0:
        raise UserError("--generation-flops-per-second and --bandwidth must be above 0")
    for algorithm in config.algorithms:
        for population in config.populations:
            check_strategy(Strategy(algorithm=algorithm, population=population))


def measure(
    config: Config, algorithm: str, population: int, dims: int, candidate_seconds: float
) -> Row:
    """Compile, ask whether it fits, time."""
    strategy = Strategy(algorithm=algorithm, population=population)
    mesh = make_mesh(jax.devices()[:1])
    evolution = make_evolution(strategy, dims, first_coordinate, mesh, 0, ("USA",))
    compiled = evolution.lower(1).compile()
    needed = needed_bytes(compiled) + 4 * population * dims
    free = available_bytes(jax.devices()[0])
    moved_bytes = program_bytes(compiled)
    row = Row(
        algorithm, population, dims, None, 4 * (4 * population * dims), moved_bytes,
        moved_bytes / config.bandwidth, population * candidate_seconds,
    )  # fmt: skip
    if free is not None and needed > 0.8 * free:
        reason = f"needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
        return dataclasses.replace(row, left_out=reason)
    if config.repeats == 0:
        return dataclasses.replace(row, left_out="--repeats is 0")
    return dataclasses.replace(row, seconds=generation_seconds(evolution, config.repeats))


def program_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes that one generation of one country reads and writes."""
    text = compiled.as_text()
    one_country = dict.fromkeys(read_hlo(text).unknown_loops, 1)
    return memory_traffic_bytes(read_hlo(text, one_country), text)


def first_coordinate(candidates_PxZ: jax.Array, country_P: jax.Array, context: None) -> jax.Array:
    """A fitness that costs nothing."""
    return candidates_PxZ[:, 0]


def generation_seconds(evolution: Evolution, repeats: int) -> float:
    """Median seconds of one generation, after one that is not counted."""
    shape = (1, evolution.search.strategy.population, evolution.num_dims)
    state = evolution.init(jax.random.normal(jax.random.key(0), shape, jnp.float32))
    taken = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        state, _ = evolution.run(state, 1)
        jax.block_until_ready(state)
        taken.append(time.perf_counter() - began)
    return float(np.median(taken[1:]))


def show(rows: list[Row]) -> None:
    """A table per algorithm; shares in percent."""
    for algorithm in dict.fromkeys(r.algorithm for r in rows):
        print_table(
            f"{algorithm}: asking and telling on {device_name()}, one generation",
            ("candidates", "dimensions", "ms here", "MB moved", "times the least",
             "ms at bandwidth", "s at 8B", "% here", "% at bandwidth"),
            [_cells(r) for r in rows if r.algorithm == algorithm],
        )  # fmt: skip
    for what, share in (("here", Row.share.fget), ("at bandwidth", Row.moved_share.fget)):
        worst = max((r for r in rows if share(r) is not None), key=share, default=None)
        if worst is not None:
            says = "within" if share(worst) <= 0.02 else "beyond"
            print(
                f"largest share {what}: {100 * share(worst):.3f} % ({worst.algorithm}, "
                f"{worst.population} × {worst.dims:,}), {says} the goal of 2 %"
            )


def _cells(row: Row) -> list[object]:
    return [
        row.population,
        row.dims,
        None if row.seconds is None else round(1e3 * row.seconds, 1),
        round(row.moved_bytes / 1e6, 1),
        round(row.moved_bytes / row.least_bytes, 1),
        f"{1e3 * row.moved_seconds:.4f}",
        round(row.generation_seconds, 1),
        "–" if row.share is None else f"{100 * row.share:.3f}",
        f"{100 * row.moved_share:.5f}",
    ]


def plot(path: Path, rows: list[Row]) -> None:
    """PNG: share of a generation over dimensions, measured and by bytes, beside the goal of 2 %."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    markers = dict(zip(dict.fromkeys(r.algorithm for r in rows), "osD^v*", strict=False))
    colours = dict(zip(dict.fromkeys(r.population for r in rows), COLOURS * 9, strict=False))
    for key in dict.fromkeys((r.algorithm, r.population) for r in rows):
        some = [r for r in rows if (r.algorithm, r.population) == key and r.share is not None]
        if some:
            style = markers.get(key[0], ".") + "-"
            label = f"{key[0]}, {key[1]} candidates"
            shares = [100 * r.share for r in some]
            axes.loglog([r.dims for r in some], shares, style, color=colours[key[1]], label=label)
    moved = [(r.dims, max(100 * s.moved_share for s in rows if s.dims == r.dims)) for r in rows]
    label = "bytes moved, at bandwidth (worst)"
    axes.loglog(*zip(*sorted(set(moved)), strict=True), "--", color="0.4", label=label)
    axes.axhline(2, color="black", linestyle=":", label="goal: 2 %")
    axes.set(xlabel="dimensions of the search vector", ylabel="% of a generation at 8B (assumed)")
    axes.set_title(f"asking and telling on {device_name()}", fontsize=10)
    axes.grid(color="0.9")
    axes.legend(fontsize=7, loc="upper left")
    figure.savefig(path, dpi=150, facecolor="white", format="png")


COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")  # Okabe and Ito's


if __name__ == "__main__":
    main(bench, Config)
