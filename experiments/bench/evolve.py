"""Measure how much of a generation the search algorithm itself takes (ask and tell).

    python -m experiments.bench.evolve
    python -m experiments.bench.evolve --populations 64 256 --dims 4096 --algorithms SNES

The fitness is one coordinate of the candidate, so a generation consists of the algorithm alone. Its
time is compared with a generation of Llama-3-8B on the 24 items on the same device, whose time is
estimated as the model's FLOPs divided by 70 % of the fastest bfloat16 matrix product measured here.
The goal is a share of at most 2 percent.

For an accelerator we do not have, the time of the algorithm is estimated as the bytes that the
compiled program reads and writes in a generation divided by `--accelerator-bandwidth`, and the time
of the model as its FLOPs divided by `--accelerator-flops-per-second`. This is arithmetic on a data
sheet, not a measurement. It uses the program compiled for this machine: on a CPU the rounds of the
random number generator go through memory, while a GPU or TPU fuses them, so the estimate of the
bytes is high; arithmetic is ignored. The least possible traffic is to read and write every member
once and to write and read every candidate once.

On two cores (AMD EPYC) nearly all of the time goes into threefry's random bits, one for each
coordinate: 0.25 s for 1,024 candidates of 8,192 dimensions, where copying them takes 0.03 s. All
sizes together take three minutes and 10 GB.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.scaling import values_layout
from jaxalign.answering.cost import candidate_flops, device_name, matmul_peak
from jaxalign.core.errors import UserError
from jaxalign.core.files import check_new_file
from jaxalign.lm.config import PRESETS
from jaxalign.optim.evolve import Evolution, make_evolution
from jaxalign.optim.strategy import DIFFERENTIAL_EVOLUTION, Strategy
from jaxalign.report.drawing import new_figure, save_figure
from jaxalign.report.palette import BLUE, GREEN, ORANGE, PURPLE, SKY
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
    """evosax algorithms to time. Those with a full covariance matrix only suit few dimensions."""
    populations: tuple[int, ...] = (64, 256, 1024, 4096)
    """Population sizes."""
    dims: tuple[int, ...] = (512, 8192, 65_536, 81_920)
    """Dimensions of the search vector; 65,536 is a prompt of 16 tokens for an 8B model, with every
    number free."""
    repeats: int = 3
    """Number of timed generations after one warm-up; the median is reported. 0 only compiles and
    reads the program."""
    accelerator_flops_per_second: float = 0.7 * 790e12
    """Assumed speed of the model on the accelerator, in FLOP/s; the default is 70 % of what an H200
    is expected to reach in bfloat16."""
    accelerator_bandwidth: float = 4.8e12
    """Memory bandwidth of the accelerator in bytes per second; the default is the data sheet's
    figure for an H200."""
    plot: Path | None = Path("bench_evolve.png")
    """File for the plot (PNG)."""
    json: Path | None = None
    """File for the figures (JSON)."""

    def __post_init__(self) -> None:
        check_new_file(self.json, "json")
        check_new_file(self.plot, "plot")


@dataclasses.dataclass(frozen=True)
class Row:
    """The figures of one algorithm, population and number of dimensions.

    Attributes:
        seconds: Measured time of ask and tell in one generation on this device; None if not run.
        least_bytes: Least memory traffic of ask and tell.
        moved_bytes: Memory traffic of the program compiled here.
        moved_seconds: `moved_bytes` divided by the accelerator's bandwidth.
        generation_seconds: Estimated time of the model's part at 8B on this device.
        accelerator_seconds: Estimated time of the model's part at 8B on the accelerator.
        left_out: Why it was not run.
    """

    algorithm: str
    population: int
    dims: int
    seconds: float | None
    least_bytes: int
    moved_bytes: int
    moved_seconds: float
    generation_seconds: float
    accelerator_seconds: float
    left_out: str | None = None

    @property
    def share(self) -> float | None:
        """Measured share of a generation at 8B on this device."""
        return None if self.seconds is None else self.seconds / self.generation_seconds

    @property
    def moved_share(self) -> float:
        """Estimated share of a generation at 8B on the accelerator."""
        return self.moved_seconds / self.accelerator_seconds


def bench(config: Config) -> None:
    """Time every combination, print the tables, and write the figures and the plot.

    Raises:
        UserError: If a setting is out of range or an algorithm refuses a population size.
    """
    check_config(config)
    work = candidate_flops(PRESETS["llama3-8b"], values_layout()).total
    flops_here, flops_there = 0.7 * matmul_peak("bfloat16"), config.accelerator_flops_per_second
    print(
        f"One candidate at 8B takes {work / 1e12:.2f} TFLOP: {work / flops_here:.3g} s on this "
        "device at 70 % of the measured matrix product rate, "
        f"{1e3 * work / flops_there:.1f} ms on the assumed accelerator."
    )
    # The model's part of a generation is this time for each candidate of the population.
    candidate_seconds = work / flops_here, work / flops_there
    rows = []
    for algorithm in config.algorithms:
        for dims in config.dims:
            for population in config.populations:
                row = measure(config, algorithm, population, dims, candidate_seconds)
                rows.append(row)
                if row.left_out:
                    print(f"Not timed: {algorithm}, {population} × {dims:,}: {row.left_out}")
    show(rows)
    if config.json:
        shares = [{"share": r.share, "moved_share": r.moved_share} for r in rows]
        numbers = [dataclasses.asdict(r) | s for r, s in zip(rows, shares, strict=True)]
        write_json(config.json, {"device": device_name(), "config": config, "rows": numbers})
    if config.plot:
        plot(config.plot, rows)
        print(f"Wrote {config.plot}")


def check_config(config: Config) -> None:
    """Raise UserError if a setting is out of range, before anything long starts."""
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
    """Compile one search, check that it fits into memory, and time it.

    Args:
        config: Settings of the benchmark.
        algorithm: Name of the search algorithm.
        population: Number of candidates.
        dims: Dimensions of the search vector.
        candidate_seconds: Estimated seconds of evaluating one candidate at 8B, on this device and
            on the accelerator.
    """
    strategy = Strategy(algorithm=algorithm, population=population)
    mesh = make_mesh(jax.devices()[:1])
    # One device: each asks and tells for the entries that it holds, this one alone.
    evolution = make_evolution(strategy, dims, first_coordinate, mesh, [("USA", 0)])
    compiled = evolution.lower(1).compile()
    # The program's own report, plus the initial population that is passed in.
    needed = needed_bytes(compiled) + 4 * population * dims
    free = available_bytes(jax.devices()[0])
    moved_bytes = program_bytes(compiled)
    here, on_accelerator = candidate_seconds
    row = Row(
        algorithm=algorithm,
        population=population,
        dims=dims,
        seconds=None,
        # Members read and written, candidates written and read: four passes over float32 numbers.
        least_bytes=4 * (4 * population * dims),
        moved_bytes=moved_bytes,
        moved_seconds=moved_bytes / config.accelerator_bandwidth,
        generation_seconds=population * here,
        accelerator_seconds=population * on_accelerator,
    )
    # A fifth of the free memory is kept as a reserve.
    if free is not None and needed > 0.8 * free:
        reason = f"needs {needed / 2**30:.1f} GiB of memory, but only {free / 2**30:.1f} are free"
        return dataclasses.replace(row, left_out=reason)
    if config.repeats == 0:
        return dataclasses.replace(row, left_out="--repeats is 0")
    return dataclasses.replace(row, seconds=generation_seconds(evolution, config.repeats))


def program_bytes(compiled: jax.stages.Compiled) -> int:
    """Return the bytes that one generation for one country reads and writes."""
    text = compiled.as_text()
    # The loop over countries has no trip count in the program's text; here it runs once.
    one_country = dict.fromkeys(read_hlo(text).unknown_loops, 1)
    return memory_traffic_bytes(read_hlo(text, one_country), text)


def first_coordinate(candidates_PxZ: jax.Array, country_P: jax.Array, context: None) -> jax.Array:
    """Return one coordinate of each candidate: a fitness that costs nothing."""
    return candidates_PxZ[:, 0]


def generation_seconds(evolution: Evolution, repeats: int) -> float:
    """Return the median seconds of one generation, after one warm-up that is not counted."""
    shape = (1, evolution.population, evolution.num_dims)
    state = evolution.init(jax.random.normal(jax.random.key(0), shape, jnp.float32))
    # `run` consumes its state, so every call goes on from the one before.
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        state, _ = evolution.run(state, 1)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[1:]))


def show(rows: list[Row]) -> None:
    """Print one table per algorithm, and the largest shares against the goal of 2 %."""
    for algorithm in dict.fromkeys(r.algorithm for r in rows):
        print_table(
            f"{algorithm}: ask and tell in one generation, on {device_name()}",
            _COLUMNS,
            [_cells(r) for r in rows if r.algorithm == algorithm],
        )
    shares = {
        "of a generation on this device": Row.share.fget,
        "of a generation on the accelerator (estimated)": Row.moved_share.fget,
    }
    for what, share in shares.items():
        # Rows that were not timed have no measured share.
        worst = max((r for r in rows if share(r) is not None), key=share, default=None)
        if worst is not None:
            verdict = "within" if share(worst) <= 0.02 else "above"
            print(
                f"Largest share {what}: {100 * share(worst):.3f} % ({worst.algorithm}, "
                f"{worst.population} × {worst.dims:,}), {verdict} the goal of 2 %"
            )


_COLUMNS = (
    "candidates",
    "dimensions",
    "ask and tell, ms",
    "model at 8B, s (estimated)",
    "share, %",
    "MB moved",
    "times the least",
    "share on accelerator, % (estimated)",
)


def _cells(row: Row) -> list[object]:
    """Return the cells of one table row, in the order of `_COLUMNS`."""
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
    """Save a PNG: the share of a generation over dimensions, measured and estimated."""
    figure = new_figure((6.4, 4.2))
    axes = figure.subplots()
    markers = dict(zip(dict.fromkeys(r.algorithm for r in rows), "osD^v*", strict=False))
    colours = dict(zip(dict.fromkeys(r.population for r in rows), COLOURS * 9, strict=False))
    # One line per algorithm (marker) and population (colour).
    for key in dict.fromkeys((r.algorithm, r.population) for r in rows):
        timed = [r for r in rows if (r.algorithm, r.population) == key and r.share is not None]
        if timed:
            style = markers.get(key[0], ".") + "-"
            label = f"{key[0]}, {key[1]} candidates"
            shares = [100 * r.share for r in timed]
            axes.loglog([r.dims for r in timed], shares, style, color=colours[key[1]], label=label)
    # For each number of dimensions, the population with the largest estimated share.
    moved = [(r.dims, max(100 * s.moved_share for s in rows if s.dims == r.dims)) for r in rows]
    label = "accelerator, estimated from bytes moved (largest)"
    axes.loglog(*zip(*sorted(set(moved)), strict=True), "--", color="0.4", label=label)
    axes.axhline(2, color="black", linestyle=":", label="goal: 2 %")
    axes.set(xlabel="dimensions of the search vector", ylabel="% of a generation at 8B")
    axes.set_title(f"ask and tell on {device_name()}", fontsize=10)
    axes.grid(color="0.9")
    axes.legend(fontsize=7, loc="upper left")
    save_figure(path, figure)


COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY)


if __name__ == "__main__":
    main(bench, Config)
