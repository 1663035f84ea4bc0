"""ask -> evaluate -> tell for C entries at once, many generations in one compiled program.

An entry is a group (a country, say) under a seed. This module knows no model: the fitness is any
traceable function. The entries' populations are laid end to end and spread over the mesh's
population axis with `jax.shard_map` (a plain `jit` would run all of them on every device); asking
and telling are small, so every device does them for all entries. Random bits depend on the entry's
seed, its group's name and the generation only, so an entry that is tuned alone, on any number of
devices, or resumed half-way gets the bits that it gets among others in one go.

Letters: C entry, E member, P = C x E candidates in a row, Z search dimension, T generations.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxalign.core.errors import UserError
from jaxalign.optim.api import Algorithm, Optimizer
from jaxalign.optim.generation import RandomSource, State, finite_or_inf, first_state, next_state
from jaxalign.runtime.sharding import POPULATION, partition_spec, place_whole, replicated

Entry = tuple[str, int]  # a group's name, and the seed of its random draws
FitnessFn = Callable[[jax.Array, jax.Array, Any], jax.Array]


@dataclass(frozen=True, eq=False)
class Evolution:
    """What `make_evolution` builds: compiled once, then run any number of times."""

    entries: tuple[Entry, ...]
    num_dims: int
    population: int  # E, members per entry
    algorithm: Algorithm
    settings: dict[str, Any]  # every setting, printable
    sharding: NamedSharding  # of the state: whole on every device
    source: RandomSource  # on the host: the mesh's devices may exist in description only
    start: Callable  # the two jitted programs; `advance._cache_size()` counts its compilations
    advance: Callable

    def init(self, initial_CxExZ: jax.Array, context: Any = None) -> State:
        """Evaluate generation 0 and return the first state.

        Args:
            initial_CxExZ: float32, one population per entry, in the order of `entries`.
            context: Arrays for the fitness function, already on the mesh or small.

        Raises:
            UserError: for a population of another shape.
        """
        if np.shape(initial_CxExZ) != self._shape:
            raise UserError(
                f"initial population has shape {np.shape(initial_CxExZ)}, expected {self._shape}: "
                "(entries, population, dimensions)"
            )
        return self.start(*place_whole((initial_CxExZ, context, self.source), self.sharding))

    def run(self, state: State, generations: int, context: Any = None) -> tuple[State, dict]:
        """Run `generations` in one dispatch.

        Args:
            state: The state to go on from. It is consumed: its buffers are donated.
            generations: Number of generations, T, at least 1.
            context: Arrays for the fitness function.

        Returns:
            The new state, and metrics by name, each [T, C]. `best`, `median` (the lower one) and
            `mean` are of the members after selection, the mean over those with a finite fitness;
            `failed` counts the generation's candidates without a finite fitness; `best_so_far` is
            the lowest fitness of any generation.
        """
        if generations < 1:
            raise UserError(f"`generations` {generations} must be 1 or more")
        return self.advance(state, *place_whole((context, self.source), self.sharding), generations)

    def lower(self, generations: int, context: Any = None) -> jax.stages.Lowered:
        """Lower `run` from shapes alone: `.compile()` reports memory and work before starting.

        Nothing is put on a device, so the mesh may be of a described topology
        (`jax.experimental.topologies`); `context` then holds `jax.ShapeDtypeStruct`s.
        """
        source = self._abstract(self.source)
        return self.advance.lower(self.abstract_state(), context, source, generations)

    def for_entries(self, entries: Sequence[Entry]) -> Evolution:
        """Return the same compiled programs for other entries; UserError for another number."""
        entries = _checked(entries)
        if len(entries) != len(self.entries):
            raise UserError(f"{len(entries)} entries for programs made for {len(self.entries)}")
        settings = self.settings | _entry_settings(entries)
        return dataclasses.replace(
            self, entries=entries, source=_random_source(entries), settings=settings
        )

    def abstract_state(self) -> State:
        """Return the state's shapes, dtypes and shardings, to restore one without evaluating."""
        initial = jax.ShapeDtypeStruct(self._shape, jnp.float32)
        fitness = jax.ShapeDtypeStruct(self._shape[:2], jnp.float32)
        first = functools.partial(first_state, self.algorithm)
        return self._abstract(jax.eval_shape(first, self.source, initial, fitness))

    def best(self, state: State) -> list[tuple[np.ndarray, float]]:
        """Return each entry's best candidate so far (float32 [Z]) and its fitness."""
        best_CxZ, fitness_C = jax.device_get((state.best_CxZ, state.best_fitness_C))
        return list(zip(best_CxZ, fitness_C.tolist(), strict=True))

    @property
    def _shape(self) -> tuple[int, int, int]:
        return len(self.entries), self.population, self.num_dims

    def _abstract(self, tree: Any) -> Any:
        def describe(x):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.sharding)

        return jax.tree.map(describe, tree)


def group_id(group: str) -> int:
    """Return a number for a group that depends on its name alone, below 2**32.

    Three capital letters (an ISO 3166 alpha-3 country code) are read in base 26 with A = 0. Any
    other name is hashed (CRC-32) into the numbers above those, where two names of a run collide
    with a probability of 2e-10; they would then draw the same random numbers.
    """
    if not group:
        raise UserError("a group has an empty name; give each group a name")
    codes = 26**3
    if len(group) == 3 and all("A" <= letter <= "Z" for letter in group):
        a, b, c = (ord(letter) - ord("A") for letter in group)
        return (a * 26 + b) * 26 + c
    return codes + zlib.crc32(group.encode()) % (2**32 - codes)


def make_evolution(
    optimizer: Optimizer,
    num_dims: int,
    fitness_fn: FitnessFn,
    mesh: Mesh,
    entries: Sequence[Entry],
) -> Evolution:
    """Build the two compiled programs, `init` and `run`.

    Args:
        optimizer: Settings of the algorithm, the same for every entry.
        num_dims: Z.
        fitness_fn: (candidates_PxZ float32, entry_P int32, context) -> fitness_P, minimised.
            Called on each device's share; `entry_P` indexes the entries. It must treat a candidate
            alike whatever the share's size (chunk inside, say with `jax.lax.map`), otherwise
            results depend on the number of devices.
        mesh: Has a population axis; other axes are left to the compiler (context may use them).
        entries: (group, seed) pairs, each at most once, 0 <= seed < 2**32.

    Raises:
        UserError: for entries that cannot run side by side and for settings that do not fit.
    """
    entries = _checked(entries)
    algorithm = optimizer.build(num_dims)
    sharding = replicated(mesh)
    evaluate = _make_evaluate(fitness_fn, mesh)

    def start(initial_CxExZ, context, source):
        initial_CxExZ = initial_CxExZ.astype(jnp.float32)
        return first_state(algorithm, source, initial_CxExZ, evaluate(initial_CxExZ, context))

    def advance(state, context, source, generations):
        def step(state, _):
            return next_state(algorithm, source, evaluate, state, context)

        return jax.lax.scan(step, state, None, length=generations)

    name = getattr(optimizer, "algorithm", type(optimizer).__name__)
    settings = {"algorithm": name, "population": optimizer.population} | algorithm.describe()
    return Evolution(
        entries=entries,
        num_dims=num_dims,
        population=optimizer.population,
        algorithm=algorithm,
        settings=settings | _entry_settings(entries),
        sharding=sharding,
        source=_random_source(entries),
        start=jax.jit(start, out_shardings=sharding),
        advance=jax.jit(advance, static_argnums=3, donate_argnums=0, out_shardings=sharding),
    )


def entries_of(groups: Sequence[str], seed: int) -> tuple[Entry, ...]:
    """Return one entry per group, all under one seed."""
    return tuple((group, seed) for group in groups)


def _checked(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Return the entries; UserError where they cannot run side by side."""
    entries = tuple(entries)
    for _, seed in entries:
        if not 0 <= seed < 2**32:
            raise UserError(f"`seed` {seed} must lie between 0 and 2**32 - 1")
    if len(set(entries)) != len(entries) or not entries:
        names = [group for group, _ in entries]
        raise UserError(f"groups {names} must be one or more, each once per seed")
    return entries


def _entry_settings(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return the entries as two settings; seeds that all agree are one number."""
    groups, seeds = zip(*entries, strict=True)
    return {"seed": seeds[0] if len(set(seeds)) == 1 else list(seeds), "groups": list(groups)}


def _random_source(entries: Sequence[Entry]) -> RandomSource:
    """Return the entries' seeds and ids as arguments of the programs.

    Arguments rather than constants, so that other entries use the same programs. They are a few
    bytes, put on the devices anew with every dispatch.
    """
    return RandomSource(
        seed_C=np.array([seed for _, seed in entries], np.uint32),
        id_C=np.array([group_id(group) for group, _ in entries], np.uint32),
        count=np.int32(len(entries)),
    )


def _manual_axes(mesh: Mesh) -> frozenset[str]:
    """Return the mesh axes that `shard_map` splits by hand: the population axis.

    All axes where no other splits anything, because a kernel written for the device is refused as
    long as the compiler may still split its program.
    """
    alone = mesh.shape[POPULATION] == mesh.size
    return frozenset(mesh.axis_names if alone else (POPULATION,))


def _make_evaluate(fitness_fn: FitnessFn, mesh: Mesh) -> Callable:
    """Return (candidates_CxExZ, context) -> fitness_CxE float32, each device doing its share."""
    members = partition_spec(("members",))
    shards = mesh.shape[POPULATION]
    # Candidates and fitness are whole on every device; left free, the compiler might also split
    # asking and telling, at the cost of more exchanges and of bits that depend on the split.
    whole = functools.partial(jax.lax.with_sharding_constraint, shardings=replicated(mesh))

    def share(candidates_PxZ, entry_P, context):
        fitness_P = fitness_fn(candidates_PxZ, entry_P, context)
        if fitness_P.shape != entry_P.shape:
            raise ValueError(f"fitness_fn gave {fitness_P.shape} for {entry_P.shape} candidates")
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
