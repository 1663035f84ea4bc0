"""Time the question bootstrap: 18 countries × 259 items × 8 metrics, 100,000 resamples.

    python -m experiments.bench.bootstrap

The bootstrap is one jit-compiled program. It is timed first with one set of answers per country,
then with two sets and the paired differences between them. The goal is 10 s on two CPU cores;
expect 1 to 3 s, plus about the same again to compile. The answers are random: only the array sizes
matter for the time.
"""

from __future__ import annotations

import dataclasses
import time

import jax
import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.runs.console import main, print_table
from jaxalign.stats.comparison import ItemStats, compare, item_stats
from jaxalign.stats.metrics import DEFAULT_METRICS
from jaxalign.surveys.tables import Tables


@dataclasses.dataclass(frozen=True)
class Config:
    """Time the question bootstrap."""

    countries: int = 18
    """Number of countries."""
    items: int = 259
    """Number of survey items."""
    resamples: int = 100_000
    """Number of bootstrap resamples."""
    sets: tuple[int, ...] = (1, 2)
    """Numbers of answer sets per country; each is timed separately, with paired differences between
    the sets."""
    seed: int = 0
    """Seed of the random answers and of the resampling."""


def bench(config: Config) -> None:
    """Time the bootstrap for each number of answer sets and print one table.

    Raises:
        UserError: If a size is below 1.
    """
    if min(config.countries, config.items, config.resamples, *config.sets) < 1:
        raise UserError("--countries, --items, --resamples and --sets must be at least 1")
    rows = [_row(config, systems) for systems in config.sets]
    print_table(
        f"Question bootstrap: {config.countries} countries × {config.items} items × "
        f"{len(DEFAULT_METRICS)} metrics, {config.resamples:,} resamples, "
        f"{jax.devices()[0].device_kind}",
        ("sets of answers", "seconds", "processor seconds", "seconds to compile"),
        rows,
    )


def _row(config: Config, systems: int) -> list[object]:
    """Compile and run the bootstrap once; return the cells of one table row."""
    # Outside the timed part: the statistics are computed once per survey.
    stats = synthetic_stats(config, systems)
    key = jax.random.key(config.seed)
    # Compile ahead of time, so that compilation and the run are timed separately.
    started = time.perf_counter()
    compiled = compare.lower(stats, key, resamples=config.resamples).compile()
    compile_seconds = time.perf_counter() - started
    started, cpu_started = time.perf_counter(), time.process_time()
    jax.block_until_ready(compiled(stats, key))
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return [systems, round(seconds, 2), round(cpu_seconds, 2), round(compile_seconds, 2)]


def synthetic_stats(config: Config, systems: int) -> ItemStats:
    """Return the statistics of random answers on random scales of 2 to 11 options.

    Args:
        config: Numbers of countries and items, and the seed.
        systems: Number of answer sets per country.
    """
    random = np.random.default_rng(config.seed)
    # Padding: an item has between 2 and 11 options, and shares past them are zero.
    options_Q = random.integers(2, 12, config.items)
    valid_QxO = np.arange(options_Q.max()) < options_Q[:, None]
    shape = (config.countries, *valid_QxO.shape)
    truth = np.where(valid_QxO, random.uniform(0.01, 1, shape), 0).astype(np.float32)
    truth /= truth.sum(-1, keepdims=True)
    tables = Tables(
        countries=tuple(f"country {c}" for c in range(config.countries)),
        truth_CxQxO=truth,
        gold_CxQ=truth.argmax(-1).astype(np.float32),
        range_Q=(options_Q - 1).astype(np.float32),
        valid_QxO=valid_QxO,
        ordinal_Q=np.arange(config.items) % 20 != 0,
    )
    # A uniform draw in [0, 1) times the number of options is a uniform answer of each item.
    uniform = random.random((systems, 1, config.countries, config.items))
    return item_stats(tables, np.floor(uniform * options_Q).astype(np.float32))


if __name__ == "__main__":
    main(bench, Config)
