"""ask -> evaluate -> tell for C entries at once, many generations in one compiled program.

An entry is a country under a seed. Knows no model: the fitness is any traceable function. The
entries' populations are laid end to end and spread over the mesh's population axis with
`jax.shard_map` (a plain `jit` would run all of them on every device); asking and telling are small
and every device does them whole. Random bits depend on the entry's seed, its country's letters and
the generation only, so an entry tuned alone, on any number of devices, or resumed half-way, gets
the bits it gets among others in one go.

Letters: C entry, E member, P = C x E candidates in a row, Z search dimension, T generations.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxalign.core.errors import UserError
from jaxalign.optim.generation import Draws, State, finite_or_inf, first_state, next_state
from jaxalign.optim.strategy import Search, Strategy, describe, make_search
from jaxalign.runtime.sharding import POPULATION, partition_spec, place_whole, replicated

FitnessFn = Callable[[jax.Array, jax.Array, Any], jax.Array]


@dataclass(frozen=True, eq=False)
class Evolution:
    """What `make_evolution` builds: compiled once, then run any number of times."""

    entries: tuple[tuple[str, int], ...]  # (country, seed)
    num_dims: int
    search: Search
    settings: dict[str, Any]  # every setting, printable
    sharding: NamedSharding  # of the state: whole on every device
    draws: Draws  # on the host: a mesh may be of devices that are only described
    start: Callable  # the two jitted programs; `advance._cache_size()` counts its compilations
    advance: Callable

    def init(self, initial_CxExZ: jax.Array, context: Any = None) -> State:
        """Evaluate generation 0 and return the first state.

        Args:
          initial_CxExZ: float32, one population per entry in the order of `entries`.
          context: arrays for the fitness function, already on the mesh or small.
        """
        shape = self._shape()
        if np.shape(initial_CxExZ) != shape:
            raise UserError(
                f"initial population has shape {np.shape(initial_CxExZ)}, expected {shape}: "
                "(countries, population, dimensions)"
            )
        return self.start(*place_whole((initial_CxExZ, context, self.draws), self.sharding))

    def run(self, state: State, generations: int, context: Any = None) -> tuple[State, dict]:
        """Run `generations` in one dispatch; the state given is consumed (its buffers donated).

        Returns the new state and metrics, each [T, C]: `best`, `median` (the lower one) and `mean`
        fitness of the members that stand after selection, the mean over those with a finite
        fitness; `failed`, how many candidates of the generation had none; `best_so_far`.
        """
        if generations < 1:
            raise UserError(f"generations {generations} must be 1 or more")
        return self.advance(state, *place_whole((context, self.draws), self.sharding), generations)

    def lower(self, generations: int, context: Any = None):
        """`run` lowered for shapes alone: `.compile()` reports memory and work before starting.

        Nothing is put on a device, so the mesh's may be those of a described topology
        (`jax.experimental.topologies`); `context` then holds `jax.ShapeDtypeStruct`s.
        """
        draws = self._abstract(self.draws)
        return self.advance.lower(self.abstract_state(), context, draws, generations)

    def for_entries(self, seed: int | Sequence[int], countries: Sequence[str]) -> Evolution:
        """The same compiled programs for other entries, as many as these; UserError otherwise."""
        entries = _entries(seed, countries)
        if len(entries) != len(self.entries):
            raise UserError(f"{len(entries)} entries for programs made for {len(self.entries)}")
        settings = self.settings | {"seed": seed, "countries": list(countries)}
        return dataclasses.replace(self, entries=entries, draws=_draws(entries), settings=settings)

    def abstract_state(self) -> State:
        """Shapes, dtypes and shardings of the state, for restoring one without evaluating."""
        shape = self._shape()
        initial = jax.ShapeDtypeStruct(shape, jnp.float32)
        fitness = jax.ShapeDtypeStruct(shape[:2], jnp.float32)
        first = functools.partial(first_state, self.search)
        return self._abstract(jax.eval_shape(first, self.draws, initial, fitness))

    def best(self, state: State) -> list[tuple[np.ndarray, float]]:
        """Of each entry the best candidate so far (float32 [Z]) and that one's fitness."""
        best_CxZ, fitness_C = jax.device_get((state.best_CxZ, state.best_fitness_C))
        return list(zip(best_CxZ, fitness_C.tolist(), strict=True))

    def _shape(self) -> tuple[int, int, int]:
        return len(self.entries), self.search.strategy.population, self.num_dims

    def _abstract(self, tree: Any) -> Any:
        def describe(x):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.sharding)

        return jax.tree.map(describe, tree)


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
    seed: int | Sequence[int],
    countries: Sequence[str],
) -> Evolution:
    """Build the two compiled programs, `init` and `run`.

    Args:
      strategy: the algorithm and its settings, the same for every entry.
      num_dims: Z.
      fitness_fn: (candidates_PxZ float32, country_P int32, context) -> fitness_P, minimised.
        Called on each device's share; `country_P` indexes the entries. It must treat a candidate
        alike whatever the share's size (chunk inside, say with `jax.lax.map`), else results
        depend on the number of devices.
      mesh: has a population axis; other axes are left to the compiler (context may use them).
      seed: of every random draw, 0 <= seed < 2**32: one for all, or one per entry.
      countries: the entries' ISO 3166 alpha-3 codes; all different, or under different seeds.
    """
    entries = _entries(seed, countries)
    search = make_search(strategy, num_dims)
    sharding = replicated(mesh)
    evaluate = _make_evaluate(fitness_fn, mesh)

    def start(initial_CxExZ, context, draws):
        initial_CxExZ = initial_CxExZ.astype(jnp.float32)
        return first_state(search, draws, initial_CxExZ, evaluate(initial_CxExZ, context))

    def advance(state, context, draws, generations):
        def step(state, _):
            return next_state(search, draws, evaluate, state, context)

        return jax.lax.scan(step, state, None, length=generations)

    return Evolution(
        entries=entries,
        num_dims=num_dims,
        search=search,
        settings=describe(search) | {"seed": seed, "countries": list(countries)},
        sharding=sharding,
        draws=_draws(entries),
        start=jax.jit(start, out_shardings=sharding),
        advance=jax.jit(advance, static_argnums=3, donate_argnums=0, out_shardings=sharding),
    )


def _entries(seed: int | Sequence[int], countries: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """(country, seed) of each; UserError where they cannot run side by side."""
    seeds = (seed,) * len(countries) if isinstance(seed, int) else tuple(seed)
    if len(seeds) != len(countries):
        raise UserError(f"{len(seeds)} seeds for {len(countries)} countries: give one for each")
    for one in seeds:
        if not 0 <= one < 2**32:
            raise UserError(f"seed {one} must lie between 0 and 2**32 - 1")
    entries = tuple(zip(countries, seeds, strict=True))
    if len(set(entries)) != len(entries) or not entries:
        raise UserError(f"countries {list(countries)} must be one or more, each once per seed")
    return entries


def _draws(entries: Sequence[tuple[str, int]]) -> Draws:
    """Arguments of the programs rather than constants, so that other seeds and countries use the
    same ones; a few bytes, put on the devices anew with every dispatch."""
    return Draws(
        seed_C=np.array([seed for _, seed in entries], np.uint32),
        id_C=np.array([country_id(country) for country, _ in entries], np.uint32),
        count=np.int32(len(entries)),
    )


def _manual_axes(mesh: Mesh) -> frozenset[str]:
    """The population axis; all axes where no other splits anything, because a kernel written for
    the device is refused as long as the compiler may still split its program."""
    alone = mesh.shape[POPULATION] == mesh.size
    return frozenset(mesh.axis_names if alone else (POPULATION,))


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
        axis_names=_manual_axes(mesh),
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
