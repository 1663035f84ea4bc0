"""The interface between a search and the algorithm that proposes its candidates.

An optimizer has two halves. `Optimizer` is its settings: a frozen dataclass of numbers that a
command line, a sweep file and a run's record can write down. `Algorithm` is what `build` makes of
them for a search space of Z dimensions: pure functions of arrays that `jaxalign.optim.evolve`
compiles into one program, together with the fitness.

    start -> (ask -> evaluate -> tell) x generations

To add an optimizer, write one module in `jaxalign/optim/algorithms/` that registers a dataclass:

    @optimizers.register("RandomSearch")
    @dataclasses.dataclass(frozen=True)
    class RandomSearch(Algorithm):
        population: int = 16
        step: float = 1.0

        def build(self, num_dims):
            return self  # the settings are all the algorithm needs

        ...  # start, ask, tell

It can then be used as `RandomSearch(population=8)` in Python and as
`--algorithm RandomSearch --population 8 --options step 0.5` on the command line. Every algorithm of
evosax is available without a module of its own (`jaxalign.optim.algorithms.evosax_algorithms`).

Letters: E evolved member, Z search dimension.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax

from jaxalign.core.registry import Registry

optimizers: Registry[type[Optimizer]] = Registry(
    "optimizer", "jaxalign.optim.algorithms", parameter="algorithm"
)
"""Settings classes by name; the name is what `--algorithm` takes."""


class Algorithm(Protocol):
    """An optimizer built for a search space: what runs inside the compiled generation.

    Fitness is minimised. A candidate that could not be evaluated has fitness +inf; NaN and -inf
    never reach an algorithm. `spread` is a float32 scalar: the standard deviation of the initial
    population, a natural first step size.
    """

    def start(
        self, key: jax.Array, initial_ExZ: jax.Array, fitness_E: jax.Array, spread: jax.Array
    ) -> Any:
        """Return the state after generation 0, a pytree of arrays, from evaluated members."""
        ...

    def ask(self, key: jax.Array, state: Any, spread: jax.Array) -> tuple[jax.Array, Any]:
        """Return the next candidates, float32 [E, Z], and the state that `tell` takes."""
        ...

    def tell(
        self,
        key: jax.Array,
        candidates_ExZ: jax.Array,
        fitness_E: jax.Array,
        state: Any,
        spread: jax.Array,
    ) -> Any:
        """Return the state after the candidates of `ask` have been evaluated."""
        ...

    def member_fitness(self, state: Any, fitness_E: jax.Array) -> jax.Array:
        """Return the fitness that the generation's metrics are taken of, float32 [E].

        An algorithm that keeps members over generations returns theirs from the state after `tell`.
        The default is `fitness_E`, the fitness of the generation's candidates.
        """
        return fitness_E

    def describe(self) -> dict[str, Any]:
        """Return every setting by name as a plain value, for the run's record.

        The default lists the fields of a dataclass, without the population size.
        """
        return {name: v for name, v in vars_of(self).items() if name != "population"}


class Optimizer(Protocol):
    """An optimizer's settings: a frozen dataclass whose fields are numbers.

    Its constructor raises `UserError` for settings that no search can use.
    """

    @property
    def population(self) -> int:
        """Return E, the number of candidates evaluated per generation and entry."""
        ...

    def build(self, num_dims: int) -> Algorithm:
        """Build the algorithm for vectors of `num_dims` numbers.

        Build it once per search: evosax compiles anew for each instance.

        Raises:
            UserError: for settings that do not fit the search space.
        """
        ...


def vars_of(settings: Any) -> dict[str, Any]:
    """Return a dataclass's fields by name, without descending into them."""
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
