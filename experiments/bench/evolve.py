"""Times asking and telling alone: the search's own share of a generation.

    python -m experiments.bench.evolve
    python -m experiments.bench.evolve --populations 64 256 --dims 4096 --algorithms SNES

The fitness is one coordinate of the candidate, so that a generation is nothing but the algorithm.
It is put against a generation of Llama-3-8B on the 24 items on the same device: the model's part is
its work over 70 % of the fastest bfloat16 matrix product measured here. The goal is a share of at
most 2 percent.

For an accelerator that is not at hand stand the bytes that the compiled program reads and writes a
generation, over --accelerator-bandwidth, against a generation at --accelerator-flops-per-second:
arithmetic on a data sheet, not a measurement. The program is this machine's: on a CPU the random
numbers' rounds go through memory, which a GPU or TPU fuses, so the estimate is high; arithmetic is
left out. At least, every member would be read and written once, every candidate written once and
read once.

On two cores (AMD EPYC) nearly all of the time is threefry's random bits, one for each coordinate:
0.25 s for 1,024 candidates of 8,192 dimensions, where copying them takes 0.03 s.
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

from experiments.bench.scaling import values_layout
from jaxalign.answering.cost import candidate_flops, device_name, matmul_peak
from jaxalign.core.errors import UserError
from jaxalign.core.files import check_new_file
from jaxalign.lm.config import PRESETS
from jaxalign.optim.evolve import Evolution, make_evolution
from jaxalign.optim.strategy import DIFFERENTIAL_EVOLUTION, Strategy
from jaxalign.runs import write_json
from jaxalign.runs.console import main, print_table
from jaxalign.runtime.memory import available_bytes, needed_bytes
from jaxalign.runtime.program_facts import read_hlo
from jaxalign.runtime.sharding import make_mesh
from jaxalign.runtime.traffic import memory_traffic_bytes


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
    accelerator_flops_per_second: float = 0.7 * 790e12
    """Assumed rate of the model's part: 70 % of what an H200 is expected to reach in bfloat16."""
    accelerator_bandwidth: float = 4.8e12
    """Bytes a second of that device's memory; an H200's by its data sheet."""
    plot: Path | None = Path("bench_evolve.png")
    """Picture of the table."""
    json: Path | None = None
    """File for the table's numbers."""

    def __post_init__(self) -> None:
        check_new_file(self.json, "--json")
        check_new_file(self.plot, "--plot")


@dataclasses.dataclass(frozen=True)
class Row:
    """One algorithm, population and dimension; shares are of a generation at 8B: measured, on this
    device, and by the bytes moved, on the accelerator."""

    algorithm: str
    population: int
    dims: int
    seconds: float | None  # of one generation's asking and telling here; None: left out
    least_bytes: int
    moved_bytes: int  # that the program compiled here reads and writes
    moved_seconds: float  # moved_bytes over the accelerator's bandwidth
    generation_seconds: float  # of the model's part at 8B on this device
    accelerator_seconds: float  # of the model's part at 8B on the accelerator
    left_out: str | None = None

    @property
    def share(self) -> float | None:
        return None if self.seconds is None else self.seconds / self.generation_seconds

    @property
    def moved_share(self) -> float:
        return self.moved_seconds / self.accelerator_seconds


def bench(config: Config) -> None:
    """The whole benchmark; see the module's docstring."""
    check_config(config)
    work = candidate_flops(PRESETS["llama3-8b"], values_layout()).total
    here, there = 0.7 * matmul_peak("bfloat16"), config.accelerator_flops_per_second
    print(
        f"a candidate at 8B, {work / 1e12:.2f} TFLOP: {work / here:.3g} s here, at 70 % of the "
        f"matrix products measured; {1e3 * work / there:.1f} ms on the accelerator (assumed)"
    )
    candidate_seconds = work / here, work / there
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
    if min(config.accelerator_flops_per_second, config.accelerator_bandwidth) <= 0:
        raise UserError("--accelerator-flops-per-second and -bandwidth must be above 0")
    for algorithm in config.algorithms:
        for population in config.populations:
            Strategy(algorithm=algorithm, population=population).optimizer()


def measure(
    config: Config,
    algorithm: str,
    population: int,
    dims: int,
    candidate_seconds: tuple[float, float],
) -> Row:
    """Compile, ask whether it fits, time. `candidate_seconds` at 8B: here, on the accelerator."""
    strategy = Strategy(algorithm=algorithm, population=population)
    mesh = make_mesh(jax.devices()[:1])
    evolution = make_evolution(strategy, dims, first_coordinate, mesh, [("USA", 0)])
    compiled = evolution.lower(1).compile()
    needed = needed_bytes(compiled) + 4 * population * dims
    free = available_bytes(jax.devices()[0])
    moved_bytes = program_bytes(compiled)
    row = Row(
        algorithm, population, dims, None, 4 * (4 * population * dims), moved_bytes,
        moved_bytes / config.accelerator_bandwidth,
        *(population * seconds for seconds in candidate_seconds),
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
    shape = (1, evolution.population, evolution.num_dims)
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
            ("candidates", "dimensions", "ms here", "s at 8B here", "% here", "MB moved",
             "times the least", "% of accelerator"),
            [_cells(r) for r in rows if r.algorithm == algorithm],
        )  # fmt: skip
    for what, share in (("here", Row.share.fget), ("of accelerator", Row.moved_share.fget)):
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
        round(row.generation_seconds, 1),
        "–" if row.share is None else f"{100 * row.share:.4f}",
        round(row.moved_bytes / 1e6, 1),
        round(row.moved_bytes / row.least_bytes, 1),
        f"{100 * row.moved_share:.4f}",
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
    label = "bytes moved, of the accelerator's (worst)"
    axes.loglog(*zip(*sorted(set(moved)), strict=True), "--", color="0.4", label=label)
    axes.axhline(2, color="black", linestyle=":", label="goal: 2 %")
    axes.set(xlabel="dimensions of the search vector", ylabel="% of a generation at 8B")
    axes.set_title(f"asking and telling on {device_name()}", fontsize=10)
    axes.grid(color="0.9")
    axes.legend(fontsize=7, loc="upper left")
    figure.savefig(path, dpi=150, facecolor="white", format="png")


COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")  # Okabe and Ito's


if __name__ == "__main__":
    main(bench, Config)
