"""Times the question bootstrap: 18 countries × 259 items × 8 metrics, 100,000 resamples.

    python -m experiments.bench.bootstrap

One jit-compiled program, first with one set of answers per country, then with two and the paired
differences between them. On two cores the goal is 10 s; expect 1 to 3 s, and as much again to
compile. The answers are made up: only sizes matter.
"""

from __future__ import annotations

import dataclasses
import time

import jax
import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.runs.console import main, print_table
from jaxalign.stats.comparison import METRICS, ItemStats, compare, item_stats
from jaxalign.surveys.tables import Tables


@dataclasses.dataclass(frozen=True)
class Config:
    """Time the question bootstrap."""

    countries: int = 18
    items: int = 259
    resamples: int = 100_000
    sets: tuple[int, ...] = (1, 2)
    """Of answers per country, each timed apart; differences are between sets."""
    seed: int = 0


def bench(config: Config) -> None:
    """The whole benchmark; see the module's docstring."""
    if min(config.countries, config.items, config.resamples, *config.sets) < 1:
        raise UserError("--countries, --items, --resamples and --sets must be at least 1")
    rows = [_row(config, systems) for systems in config.sets]
    print_table(
        f"Question bootstrap: {config.countries} countries × {config.items} items × "
        f"{len(METRICS)} metrics, {config.resamples:,} resamples, {jax.devices()[0].device_kind}",
        ("sets of answers", "seconds", "processor seconds", "seconds to compile"),
        rows,
    )


def _row(config: Config, systems: int) -> list[object]:
    stats = synthetic_stats(config, systems)
    key = jax.random.key(config.seed)
    started = time.perf_counter()
    compiled = compare.lower(stats, key, resamples=config.resamples).compile()
    ready, worked = time.perf_counter(), time.process_time()
    jax.block_until_ready(compiled(stats, key))
    taken, work = time.perf_counter() - ready, time.process_time() - worked
    return [systems, round(taken, 2), round(work, 2), round(ready - started, 2)]


def synthetic_stats(config: Config, systems: int) -> ItemStats:
    """Random answers to random scales of 2 to 11 options."""
    random = np.random.default_rng(config.seed)
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
    luck = random.random((systems, 1, config.countries, config.items))
    return item_stats(tables, np.floor(luck * options_Q).astype(np.float32))


if __name__ == "__main__":
    main(bench, Config)
