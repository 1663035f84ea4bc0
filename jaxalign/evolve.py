"""ask -> evaluate -> tell for C countries at once, many generations in one compiled program.

Knows no model: the fitness is any traceable function. The countries' populations are laid end to
end and spread over the mesh's population axis with `jax.shard_map` (a plain `jit` would run all of
them on every device); asking and telling are small and every device does them whole. Random bits
depend on the seed, the country's own letters and the generation only, so a country tuned alone, on
any number of devices, or resumed half-way, gets the bits it gets among others in one go.

Letters: C country, E member, P = C x E candidates in a row, Z search dimension, T generations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxalign.errors import UserError
from jaxalign.generation import Draws, State, finite_or_inf, first_state, next_state
from jaxalign.sharding import POPULATION, partition_spec, replicated
from jaxalign.strategy import Search, Strategy, describe, make_search

FitnessFn = Callable[[jax.Array, jax.Array, Any], jax.Array]


@dataclass(frozen=True, eq=False)
class Evolution:
    """What `make_evolution` builds: compiled once, then run any number of times."""

    countries: tuple[str, ...]
    num_dims: int
    search: Search
    settings: dict[str, Any]  # every setting, printable
    sharding: NamedSharding  # of the state: whole on every device
    draws: Draws
    start: Callable  # the two jitted programs; `advance._cache_size()` counts its compilations
    advance: Callable

    def init(self, initial_CxExZ: jax.Array, context: Any = None) -> State:
        """Evaluate generation 0 and return the first state.

        Args:
          initial_CxExZ: float32, one population per country in the order of `countries`.
          context: arrays for the fitness function, already on the mesh or small.
        """
        shape = (len(self.countries), self.search.strategy.population, self.num_dims)
        if np.shape(initial_CxExZ) != shape:
            raise UserError(
                f"initial population has shape {np.shape(initial_CxExZ)}, expected {shape}: "
                "(countries, population, dimensions)"
            )
        return self.start(self._place(initial_CxExZ), self._place(context), self.draws)

    def run(self, state: State, generations: int, context: Any = None) -> tuple[State, dict]:
        """Run `generations` in one dispatch; the state given is consumed (its buffers donated).

        Returns the new state and metrics, each [T, C]: `best`, `median` (the lower one) and `mean`
        fitness of the members that stand after selection, the mean over those with a finite
        fitness; `failed`, how many candidates of the generation had none; `best_so_far`.
        """
        if generations < 1:
            raise UserError(f"generations {generations} must be 1 or more")
        return self.advance(state, self._place(context), self.draws, generations)

    def lower(self, generations: int, context: Any = None):
        """`run` lowered for shapes alone: `.compile()` reports memory and work before starting."""
        return self.advance.lower(self.abstract_state(), context, self.draws, generations)

    def abstract_state(self) -> State:
        """Shapes, dtypes and shardings of the state, for restoring one without evaluating."""
        shape = (len(self.countries), self.search.strategy.population, self.num_dims)
        initial = jax.ShapeDtypeStruct(shape, jnp.float32)
        fitness = jax.ShapeDtypeStruct(shape[:2], jnp.float32)
        first = functools.partial(first_state, self.search)
        state = jax.eval_shape(first, self.draws, initial, fitness)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.sharding), state
        )

    def best(self, state: State) -> dict[str, tuple[np.ndarray, float]]:
        """For each country its best candidate so far (float32 [Z]) and that one's fitness."""
        best_CxZ, fitness_C = jax.device_get((state.best_CxZ, state.best_fitness_C))
        rows = zip(self.countries, best_CxZ, fitness_C, strict=True)
        return {country: (row, float(fitness)) for country, row, fitness in rows}

    def _place(self, tree: Any) -> Any:
        """Put leaves that are not yet on the mesh's devices on all of them, whole."""
        devices = self.sharding.device_set

        def place(x):
            on_mesh = isinstance(x, jax.Array) and x.sharding.device_set == devices
            return x if on_mesh else jax.device_put(x, self.sharding)

        return jax.tree.map(place, tree)


def country_id(iso3: str) -> int:
    """A number for a country that depends on its ISO 3166 alpha-3 letters alone: base 26, A = 0."""
    if len(iso3) != 3 or not all("A" <= letter <= "Z" for letter in iso3):
        raise UserError(f"country {iso3!r} is not three capital letters; write it like USA")
    a, b, c = (ord(letter) - ord("A") for letter in iso3)
    return (a * 26 + b) * 26 + c


def make_evolution(
    strategy: Strategy,
    num_dims: int,
    fitness_fn: FitnessFn,
    mesh: Mesh,
    seed: int,
    countries: Sequence[str],
) -> Evolution:
    """Build the two compiled programs, `init` and `run`.

    Args:
      strategy: the algorithm and its settings, the same for every country.
      num_dims: Z.
      fitness_fn: (candidates_PxZ float32, country_P int32, context) -> fitness_P, minimised.
        Called on each device's share; `country_P` indexes `countries`. It must treat a candidate
        alike whatever the share's size (chunk inside, say with `jax.lax.map`), else results
        depend on the number of devices.
      mesh: has a population axis; other axes are left to the compiler (context may use them).
      seed: of every random draw, 0 <= seed < 2**32.
      countries: ISO 3166 alpha-3 codes, all different.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed} must lie between 0 and 2**32 - 1")
    if len(set(countries)) != len(countries) or not countries:
        raise UserError(f"countries {list(countries)} must be one or more, each only once")
    search = make_search(strategy, num_dims)
    sharding = replicated(mesh)
    evaluate = _make_evaluate(fitness_fn, mesh)
    # Arguments rather than constants, so that other seeds and countries find the same program in
    # the compilation cache; on the devices once, so that a run transfers nothing.
    ids = np.array([country_id(c) for c in countries], np.uint32)
    draws = jax.device_put(Draws(np.uint32(seed), ids, np.int32(len(ids))), sharding)

    def start(initial_CxExZ, context, draws):
        initial_CxExZ = initial_CxExZ.astype(jnp.float32)
        return first_state(search, draws, initial_CxExZ, evaluate(initial_CxExZ, context))

    def advance(state, context, draws, generations):
        def step(state, _):
            return next_state(search, draws, evaluate, state, context)

        return jax.lax.scan(step, state, None, length=generations)

    settings = describe(search) | {"seed": seed, "countries": list(countries)}
    return Evolution(
        countries=tuple(countries),
        num_dims=num_dims,
        search=search,
        settings=settings,
        sharding=sharding,
        draws=draws,
        start=jax.jit(start, out_shardings=sharding),
        advance=jax.jit(advance, static_argnums=3, donate_argnums=0, out_shardings=sharding),
    )


def _make_evaluate(fitness_fn: FitnessFn, mesh: Mesh) -> Callable:
    """(candidates_CxExZ, context) -> fitness_CxE float32, each device scoring its own share."""
    members = partition_spec(("members",))
    shards = mesh.shape[POPULATION]
    # Candidates and fitness are whole on every device; left free, the compiler might also split
    # asking and telling, at the cost of more exchanges and of bits that depend on the split.
    whole = functools.partial(jax.lax.with_sharding_constraint, shardings=replicated(mesh))

    def share(candidates_PxZ, country_P, context):
        fitness_P = fitness_fn(candidates_PxZ, country_P, context)
        if fitness_P.shape != country_P.shape:
            raise ValueError(f"fitness_fn gave {fitness_P.shape} for {country_P.shape} candidates")
        return fitness_P.astype(jnp.float32)

    spread = jax.shard_map(
        share,
        mesh=mesh,
        in_specs=(members, members, partition_spec(())),
        out_specs=members,
        axis_names={POPULATION},
        check_vma=False,  # it would refuse a fitness_fn whose scan starts from constants
    )

    def evaluate(candidates_CxExZ, context):
        C, E, Z = candidates_CxExZ.shape
        # Rounded up to a whole share per device by repeating the last candidate.
        row_P = jnp.minimum(jnp.arange(-(-C * E // shards) * shards), C * E - 1)
        candidates_PxZ = whole(candidates_CxExZ).reshape(C * E, Z)[row_P]
        fitness_P = spread(candidates_PxZ, (row_P // E).astype(jnp.int32), context)
        return finite_or_inf(whole(fitness_P)[: C * E].reshape(C, E))

    return evaluate
