"""A search strategy by name and numbers: Differential Evolution, or any algorithm evosax has.

Differential Evolution is R. Storn and K. Price, "Differential Evolution - a simple and efficient
heuristic for global optimization over continuous spaces", J. Global Optimization 11 (1997). In the
notation of K. Price, R. Storn and J. Lampinen, "Differential Evolution: a practical approach to
global optimization" (2005), the default here is best/1/bin with the differential weight F dithered:
drawn afresh every generation from a range. (The source of F > 0.5 helping in thousands of
dimensions is our own measurement, not the book.)
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.core.errors import UserError

DIFFERENTIAL_EVOLUTION = "DifferentialEvolution"
DE_FIELDS = (
    "elitism",
    "differential_weight_min",
    "differential_weight_max",
    "crossover_rate",
    "num_diff",
)
SPREAD = "spread of the initial population"

# Those that compute with fitness values rather than compare them: one +inf makes their whole state
# NaN for good (seen by running all of evosax 0.3.2 on a function that fails on part of the space).
READ_MAGNITUDES = frozenset(
    ("ARS", "ASEBO", "EvoTF_ES", "GuidedES", "LES", "LGA", "NoiseReuseES", "PersistentES")
)


@dataclass(frozen=True)
class Strategy:
    """What searches, with every number that steers it. One is shared by all countries."""

    algorithm: str = DIFFERENTIAL_EVOLUTION
    """Any name in `evosax.algorithms.algorithms`. Those that search a distribution rather than
    members begin at the mean of the random first population, which is not quite the start."""
    population: int = 64
    """Members per country, E."""
    elitism: bool = True
    """DE: the base vector is the best member (best/1) rather than a random one (rand/1)."""
    differential_weight_min: float = 0.5
    """DE: lower bound of the dithered F; equal bounds switch the dither off."""
    differential_weight_max: float = 1.0
    """DE: upper bound of the dithered F."""
    crossover_rate: float = 0.9
    """DE: chance that a coordinate comes from the mutant."""
    num_diff: int = 1
    """DE: difference vectors added to the base vector."""
    options: tuple[tuple[str, float], ...] = ()
    """Settings of any other algorithm: its evosax parameters and its constructor's numbers, `std`
    (constant, where it takes a schedule) and `learning_rate` (Adam's, where it takes an
    optimizer). `std_init` left out means the spread of the initial population."""


@dataclass(frozen=True, eq=False)
class Search:
    """A strategy built for Z dimensions. Build it once: evosax compiles anew for each instance."""

    strategy: Strategy
    algorithm: Any
    params: Any
    constructor: dict[str, Any]
    spread_is_std: bool
    population_based: bool  # it keeps members and their fitness, rather than a distribution

    def params_for(self, spread: jax.Array) -> Any:
        """evosax's parameters for a country whose first members lie `spread` apart (float32)."""
        return self.params.replace(std_init=spread) if self.spread_is_std else self.params

    def readable(self, fitness_E: jax.Array) -> jax.Array:
        """+inf, except for READ_MAGNITUDES: these get the generation's worst finite fitness."""
        if self.strategy.algorithm not in READ_MAGNITUDES:
            return fitness_E
        finite_E = jnp.isfinite(fitness_E)
        worst = jnp.max(fitness_E, where=finite_E, initial=-jnp.inf)
        return jnp.where(finite_E, fitness_E, jnp.where(finite_E.any(), worst, 0.0))

    def start(self, key, initial_ExZ, fitness_E, spread) -> Any:
        """The algorithm's state from an evaluated generation 0, float32, bad fitness +inf."""
        params, fitness_E = self.params_for(spread), self.readable(fitness_E)
        with jax.numpy_rank_promotion("allow"):  # evosax broadcasts [Z] against [E, Z] throughout
            if self.population_based:
                return self.algorithm.init(key, initial_ExZ, fitness_E, params)
            groups = self.constructor.get("num_populations", 1)
            means_GxZ = initial_ExZ.reshape(groups, -1, initial_ExZ.shape[-1]).mean(1)
            many = "num_populations" in self.constructor
            return self.algorithm.init(key, means_GxZ if many else means_GxZ[0], params)

    def ask(self, key, state, spread) -> tuple[jax.Array, Any]:
        """Candidates [E, Z] and the state that `tell` takes."""
        with jax.numpy_rank_promotion("allow"):
            return self.algorithm.ask(key, state, self.params_for(spread))

    def tell(self, key, candidates_ExZ, fitness_E, state, spread) -> Any:
        """The state after selection. Fitness is minimised; bad fitness is +inf."""
        params, fitness_E = self.params_for(spread), self.readable(fitness_E)
        with jax.numpy_rank_promotion("allow"):
            return self.algorithm.tell(key, candidates_ExZ, fitness_E, state, params)[0]


def known_algorithms() -> dict[str, type]:
    """evosax's classes by name. Imported here and not above: importing evosax computes something,
    which starts JAX's backends, and `jax.distributed.initialize` must come before that."""
    from evosax.algorithms import algorithms

    return algorithms


def make_search(strategy: Strategy, num_dims: int) -> Search:
    """Build the named algorithm for `num_dims` dimensions; UserError for what it cannot take."""
    check_strategy(strategy)
    kind = known_algorithms()[strategy.algorithm]
    numbers, callables = _constructor_options(kind)
    given = _given_options(strategy)
    chosen = {k: type(numbers[k])(given.pop(k)) for k in list(given) if k in numbers}
    chosen = numbers | chosen
    extra = {k: CALLABLES[k](given.pop(k)) for k in list(given) if k in callables}
    algorithm = _construct(kind, strategy, num_dims, chosen, extra)
    params = algorithm.default_params
    scalars = {f.name for f in dataclasses.fields(params) if _is_scalar(getattr(params, f.name))}
    unknown = sorted(given.keys() - scalars)
    if unknown:
        known = ", ".join(sorted(scalars | numbers.keys() | callables)) or "none"
        raise UserError(
            f"{strategy.algorithm} has no option {', '.join(map(repr, unknown))}; it takes: {known}"
        )
    params = params.replace(**{k: _like(getattr(params, k), v) for k, v in given.items()})
    spread_is_std = "std_init" in scalars and "std_init" not in given
    population_based = isinstance(algorithm, _population_based())
    return Search(strategy, algorithm, params, chosen, spread_is_std, population_based)


def describe(search: Search) -> dict[str, Any]:
    """Every setting, evosax's defaults included, as plain printable values for the run's record."""
    settings = {"algorithm": search.strategy.algorithm, "population": search.strategy.population}
    settings |= search.constructor
    for name in CALLABLES:
        if name in _constructor_options(type(search.algorithm))[1]:
            settings[name] = dict(search.strategy.options).get(name, _default_of(search, name))
    for field in dataclasses.fields(search.params):
        settings[field.name] = _printable(getattr(search.params, field.name))
    if search.spread_is_std:
        settings["std_init"] = SPREAD
    return settings


# Constructor arguments that are functions in evosax and one number here, under our name for them.
CALLABLES = {"std": optax.constant_schedule, "learning_rate": optax.adam, "sample_std": float}
ARGUMENTS = {"std_schedule": "std", "optimizer": "learning_rate", "sampling_fn": "sample_std"}


def check_strategy(strategy: Strategy) -> None:
    """Raise UserError for settings that the algorithm cannot take, before anything is built."""
    algorithms = known_algorithms()
    if strategy.algorithm not in algorithms:
        raise UserError(
            f"unknown algorithm {strategy.algorithm!r}; choose one of: "
            + ", ".join(sorted(algorithms))
        )
    for name, value in strategy.options:
        if not math.isfinite(value):
            raise UserError(f"option {name} = {value} must be a finite number")
    if strategy.algorithm != DIFFERENTIAL_EVOLUTION:
        return _check_no_de_fields(strategy)
    if strategy.population < 4:
        raise UserError(
            f"population {strategy.population} is too small for {DIFFERENTIAL_EVOLUTION}, "
            "which needs a base, two others and the member itself; use 4 or more"
        )
    low, high = strategy.differential_weight_min, strategy.differential_weight_max
    if not 0 <= low <= high <= 2:
        raise UserError(
            f"differential weight range ({low}, {high}) must satisfy 0 <= min <= max <= 2"
        )
    if not 0 <= strategy.crossover_rate <= 1:
        raise UserError(f"crossover_rate {strategy.crossover_rate} must lie between 0 and 1")
    if strategy.num_diff < 1:
        raise UserError(f"num_diff {strategy.num_diff} must be 1 or more")


def _check_no_de_fields(strategy: Strategy) -> None:
    """A DE setting given to another algorithm would be ignored silently; refuse it instead."""
    changed = [f for f in DE_FIELDS if getattr(strategy, f) != getattr(Strategy, f)]
    if changed:
        raise UserError(
            f"{', '.join(changed)} belong to {DIFFERENTIAL_EVOLUTION}, not {strategy.algorithm}; "
            "give that algorithm's settings in options"
        )


def _given_options(strategy: Strategy) -> dict[str, float]:
    given = dict(strategy.options)
    if strategy.algorithm != DIFFERENTIAL_EVOLUTION:
        return given
    fields = {name: getattr(strategy, name) for name in DE_FIELDS}
    twice = sorted(given.keys() & (fields.keys() | {"differential_weight"}))
    if twice:
        raise UserError(f"{', '.join(twice)}: set by the strategy's own fields, not in options")
    # evosax reads the undithered weight only where min = max, so all three say the same there.
    return given | fields | {"differential_weight": strategy.differential_weight_max}


def _constructor_options(kind: type) -> tuple[dict[str, int | bool], set[str]]:
    """What evosax's constructor takes: plain numbers with their defaults, and our CALLABLES."""
    arguments = inspect.signature(kind.__init__).parameters
    numbers = {k: a.default for k, a in arguments.items() if isinstance(a.default, int)}
    if "num_populations" in arguments:
        numbers["num_populations"] = 1
    return numbers, {ours for theirs, ours in ARGUMENTS.items() if theirs in arguments}


def _construct(kind, strategy, num_dims, numbers, extra) -> Any:
    named = {theirs: extra[ours] for theirs, ours in ARGUMENTS.items() if ours in extra}
    if "sampling_fn" in inspect.signature(kind.__init__).parameters:
        std = named.get("sampling_fn", 1.0)
        named["sampling_fn"] = lambda key: std * jax.random.normal(key, (num_dims,))
    members, groups = strategy.population, numbers.get("num_populations", 1)
    if members < 2 or groups < 1 or members % groups:
        raise UserError(f"population {members} must be at least 2 and divide by {groups} groups")
    try:
        # evosax's own metrics would carry two genomes per generation out of the scan.
        return kind(
            population_size=members // groups,
            solution=jnp.zeros(num_dims, jnp.float32),
            metrics_fn=lambda *_: {},
            **numbers,
            **named,
        )
    except AssertionError as error:
        raise UserError(f"{strategy.algorithm} with population {members}: {error}") from None


def _default_of(search: Search, name: str) -> Any:
    schedule = getattr(search.algorithm, "std_schedule", None)
    if name == "std" and schedule is not None:
        return float(schedule(0))
    return 1.0 if name == "sample_std" else "evosax's default optimizer"


def _population_based() -> tuple[type, ...]:
    from evosax.algorithms import population_based_algorithms

    return tuple(population_based_algorithms.values())


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (bool, int, float, np.generic, np.ndarray, jax.Array)) and (
        np.ndim(value) == 0
    )


def _like(default: Any, value: float) -> Any:
    """`value` in the type of the default it replaces."""
    if isinstance(default, (bool, int, float)):
        return type(default)(value)
    return jnp.asarray(value, default.dtype)


def _printable(value: Any) -> Any:
    if _is_scalar(value):
        return np.asarray(value).item()
    return f"evosax's default, {sum(np.size(x) for x in jax.tree.leaves(value))} numbers"
