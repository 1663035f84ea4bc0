"""Every algorithm of evosax by name, with each of its settings explicit.

evosax gives its algorithms parameters (a dataclass of numbers), constructor arguments (numbers too)
and functions (a schedule of the standard deviation, an optimizer, a sampler). `options` sets all
three by name; the functions are reduced to the one number that matters (`FUNCTION_OPTIONS`).
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.core.errors import UserError

INITIAL_SPREAD = "spread of the initial population"

# Algorithms that compute with fitness values rather than compare them: one +inf makes their whole
# state NaN for good (seen by running all of evosax 0.3.2 on a function that fails on part of the
# space).
READ_MAGNITUDES = frozenset(
    ("ARS", "ASEBO", "EvoTF_ES", "GuidedES", "LES", "LGA", "NoiseReuseES", "PersistentES")
)

# Constructor arguments that are functions in evosax and one number here, under our name for them.
FUNCTION_OPTIONS = {
    "std": optax.constant_schedule,
    "learning_rate": optax.adam,
    "sample_std": float,
}
_EVOSAX_ARGUMENTS = {
    "std_schedule": "std",
    "optimizer": "learning_rate",
    "sampling_fn": "sample_std",
}


@dataclass(frozen=True)
class Evosax:
    """Settings of any evosax algorithm.

    >>> Evosax("CMA_ES", population=16, options={"std_init": 0.5}).algorithm
    'CMA_ES'
    """

    algorithm: str
    """A name in `evosax.algorithms.algorithms`."""
    population: int = 64
    """Candidates per generation and entry, E."""
    options: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Settings of the algorithm by name: its evosax parameters, its constructor's numbers, `std`
    (a constant, where evosax takes a schedule), `learning_rate` (Adam's, where evosax takes an
    optimizer) and `sample_std`. Without `std_init`, the spread of the initial population is the
    first standard deviation."""

    def __post_init__(self) -> None:
        algorithms = known_algorithms()
        if self.algorithm not in algorithms:
            raise UserError(
                f"`algorithm` {self.algorithm!r} is unknown; choose one of: "
                + ", ".join(sorted(algorithms))
            )
        for name, value in self.options.items():
            if not math.isfinite(value):
                raise UserError(f"`options`: {name} = {value} must be a finite number")
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    def build(self, num_dims: int) -> EvosaxAlgorithm:
        """Build the algorithm for `num_dims` dimensions; UserError for options it does not have."""
        return build_evosax(self.algorithm, self.population, self.options, num_dims)


def known_algorithms() -> dict[str, type]:
    """Return evosax's classes by name.

    evosax is imported here and not above: importing it computes something, which starts JAX's
    backends, and `jax.distributed.initialize` must come before that.
    """
    from evosax.algorithms import algorithms

    return algorithms


@dataclass(frozen=True, eq=False)
class EvosaxAlgorithm:
    """An evosax algorithm built for Z dimensions; an `optim.api.Algorithm`."""

    name: str
    algorithm: Any  # evosax's object
    params: Any  # evosax's dataclass of parameters
    constructor: dict[str, int | bool]  # numbers that its constructor was given
    functions: dict[str, Any]  # FUNCTION_OPTIONS it has, by our name, each as a printable value
    spread_is_std: bool  # the initial population's spread is its first standard deviation
    keeps_members: bool  # its state holds members with their fitness, rather than a distribution

    def start(self, key, initial_ExZ, fitness_E, spread) -> Any:
        """Return evosax's state from generation 0.

        Algorithms that search a distribution rather than members begin at the mean of the initial
        population, which is not quite the start.
        """
        params, fitness_E = self._params_for(spread), self.finite_where_read(fitness_E)
        with jax.numpy_rank_promotion("allow"):  # evosax broadcasts [Z] against [E, Z] throughout
            if self.keeps_members:
                return self.algorithm.init(key, initial_ExZ, fitness_E, params)
            groups = self.constructor.get("num_populations", 1)
            means_GxZ = initial_ExZ.reshape(groups, -1, initial_ExZ.shape[-1]).mean(1)
            many = "num_populations" in self.constructor
            return self.algorithm.init(key, means_GxZ if many else means_GxZ[0], params)

    def ask(self, key, state, spread) -> tuple[jax.Array, Any]:
        """Return candidates [E, Z] and the state that `tell` takes."""
        with jax.numpy_rank_promotion("allow"):
            return self.algorithm.ask(key, state, self._params_for(spread))

    def tell(self, key, candidates_ExZ, fitness_E, state, spread) -> Any:
        """Return the state after selection."""
        params, fitness_E = self._params_for(spread), self.finite_where_read(fitness_E)
        with jax.numpy_rank_promotion("allow"):
            return self.algorithm.tell(key, candidates_ExZ, fitness_E, state, params)[0]

    def member_fitness(self, state, fitness_E) -> jax.Array:
        """Return the members' fitness after selection, where the algorithm keeps members."""
        return state.fitness if self.keeps_members else fitness_E

    def describe(self) -> dict[str, Any]:
        """Return every setting, evosax's defaults included, as plain printable values."""
        settings = self.constructor | self.functions
        for field in dataclasses.fields(self.params):
            settings[field.name] = _printable(getattr(self.params, field.name))
        if self.spread_is_std:
            settings["std_init"] = INITIAL_SPREAD
        return settings

    def finite_where_read(self, fitness_E: jax.Array) -> jax.Array:
        """Return the fitness as the algorithm may see it.

        Algorithms in READ_MAGNITUDES get the generation's worst finite fitness in place of +inf;
        others only compare, and keep +inf.
        """
        if self.name not in READ_MAGNITUDES:
            return fitness_E
        finite_E = jnp.isfinite(fitness_E)
        worst = jnp.max(fitness_E, where=finite_E, initial=-jnp.inf)
        return jnp.where(finite_E, fitness_E, jnp.where(finite_E.any(), worst, 0.0))

    def _params_for(self, spread: jax.Array) -> Any:
        """Return evosax's parameters for an entry whose initial members lie `spread` apart."""
        return self.params.replace(std_init=spread) if self.spread_is_std else self.params


def build_evosax(
    name: str, population: int, options: Mapping[str, float], num_dims: int
) -> EvosaxAlgorithm:
    """Build the algorithm `name` for `num_dims` dimensions.

    Raises:
        UserError: for an option that the algorithm does not have, and for a population it cannot
            be built with.
    """
    kind = known_algorithms()[name]
    defaults, function_names = _constructor_options(kind)
    given = dict(options)
    # An option goes to the constructor, to one of its functions, or to the parameters.
    numbers = defaults | {k: type(defaults[k])(given.pop(k)) for k in list(given) if k in defaults}
    chosen = {k: given.pop(k) for k in list(given) if k in function_names}
    functions = {k: FUNCTION_OPTIONS[k](value) for k, value in chosen.items()}
    algorithm = _construct(kind, name, population, num_dims, numbers, functions)
    params = algorithm.default_params
    scalars = {f.name for f in dataclasses.fields(params) if _is_scalar(getattr(params, f.name))}
    if unknown := sorted(given.keys() - scalars):
        known = ", ".join(sorted(scalars | numbers.keys() | function_names)) or "none"
        raise UserError(
            f"`options`: {name} has no option {', '.join(map(repr, unknown))}; it takes: {known}"
        )
    return EvosaxAlgorithm(
        name=name,
        algorithm=algorithm,
        params=params.replace(**{k: _like(getattr(params, k), v) for k, v in given.items()}),
        constructor=numbers,
        functions={
            k: chosen.get(k, _function_default(algorithm, k))
            for k in FUNCTION_OPTIONS
            if k in function_names
        },
        spread_is_std="std_init" in scalars and "std_init" not in given,
        keeps_members=isinstance(algorithm, _population_based()),
    )


def _constructor_options(kind: type) -> tuple[dict[str, int | bool], set[str]]:
    """Return the numbers that evosax's constructor takes, by default value, and its functions."""
    arguments = inspect.signature(kind.__init__).parameters
    numbers = {k: a.default for k, a in arguments.items() if isinstance(a.default, int)}
    if "num_populations" in arguments:
        numbers["num_populations"] = 1
    return numbers, {ours for theirs, ours in _EVOSAX_ARGUMENTS.items() if theirs in arguments}


def _construct(
    kind: type,
    name: str,
    population: int,
    num_dims: int,
    numbers: Mapping[str, int | bool],
    functions: Mapping[str, Any],
) -> Any:
    """Call evosax's constructor; UserError for a population that the algorithm refuses."""
    named = {
        theirs: functions[ours] for theirs, ours in _EVOSAX_ARGUMENTS.items() if ours in functions
    }
    if "sampling_fn" in inspect.signature(kind.__init__).parameters:
        std = named.get("sampling_fn", 1.0)
        named["sampling_fn"] = lambda key: std * jax.random.normal(key, (num_dims,))
    groups = numbers.get("num_populations", 1)
    if population < 2 or groups < 1 or population % groups:
        raise UserError(
            f"`population` {population} must be at least 2 and divisible by {groups} groups"
        )
    try:
        # evosax's own metrics would carry two candidates per generation out of the scan.
        return kind(
            population_size=population // groups,
            solution=jnp.zeros(num_dims, jnp.float32),
            metrics_fn=lambda *_: {},
            **numbers,
            **named,
        )
    except AssertionError as error:
        raise UserError(f"`population` {population} does not fit {name}: {error}") from None


def _function_default(algorithm: Any, name: str) -> Any:
    """Return what a function option is when it is not given, as a printable value."""
    schedule = getattr(algorithm, "std_schedule", None)
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
    """Return `value` in the type of the default it replaces."""
    if isinstance(default, (bool, int, float)):
        return type(default)(value)
    return jnp.asarray(value, default.dtype)


def _printable(value: Any) -> Any:
    if _is_scalar(value):
        return np.asarray(value).item()
    return f"evosax's default, {sum(np.size(x) for x in jax.tree.leaves(value))} numbers"
