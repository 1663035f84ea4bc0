"""ask -> evaluate -> tell for C entries at once, many generations in one compiled program.

An entry is a group (a country, say) under a seed. This module knows no model: the fitness is any
traceable function. The whole program runs under `jax.shard_map` over the mesh's population axis (a
plain `jit` would run all candidates on every device). Each device evaluates one stretch of the
candidates, holds the searches that its stretch touches and no others, and asks and tells those
itself (`jaxalign.optim.shares`): all that devices exchange is the fitness. Random bits depend on
the entry's seed, its group's name and the generation only, so an entry that is tuned alone, on any
number of devices, or resumed half-way gets the bits that it gets among others in one go.

Letters: C entry, E member, P = C x E candidates in a row, Z search dimension, T generations; N
device along the population axis, K entry that a device holds, S candidate of a device's stretch.
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
from jaxalign.optim.shares import (
    Shares,
    abstract,
    alike_on_other_axes,
    entry_sharding,
    manual_axes,
    rows_of,
)
from jaxalign.runtime.sharding import POPULATION, partition_spec, place, place_whole, replicated

Entry = tuple[str, int]  # a group's name, and the seed of its random draws
FitnessFn = Callable[[jax.Array, jax.Array, Any], jax.Array]


@dataclass(frozen=True, eq=False)
class Evolution:
    """What `make_evolution` builds: compiled once, then run any number of times.

    The `State` that `init` and `run` return lies as the devices hold it: N x K entries, those of
    device 0 first, split over the population axis. `to_entries` turns it into one row per entry, C
    in all, which fits any number of devices; `to_devices` is the way back.
    """

    entries: tuple[Entry, ...]
    num_dims: int
    population: int  # E, members per entry
    algorithm: Algorithm
    settings: dict[str, Any]  # every setting, printable
    mesh: Mesh
    sharding: NamedSharding  # of a context: whole on every device
    source: RandomSource  # on the host: the mesh's devices may exist in description only
    start: Callable  # the two jitted programs; `advance._cache_size()` counts its compilations
    advance: Callable

    def init(self, initial: jax.Array | Callable[[int], jax.Array], context: Any = None) -> State:
        """Evaluate generation 0 and return the first state.

        Args:
            initial: The initial populations, float32 [C, E, Z] in the order of `entries`, or a
                function from an entry's index to its population [E, Z], called for the entries
                that this process's devices hold.
            context: Arrays for the fitness function, already on the mesh or small.

        Raises:
            UserError: for a population of another shape.
        """
        if not callable(initial):
            if np.shape(initial) != self._shape:
                raise UserError(
                    f"initial population has shape {np.shape(initial)}, expected {self._shape}: "
                    "(entries, population, dimensions)"
                )
            initial = np.asarray(initial).__getitem__
        members = self.members(initial)
        source = place(self.source, self.split)
        return self.start(members, place_whole(context, self.sharding), source)

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
        source = place(self.source, self.split)
        return self.advance(state, place_whole(context, self.sharding), source, generations)

    def lower(self, generations: int, context: Any = None) -> jax.stages.Lowered:
        """Lower `run` from shapes alone: `.compile()` reports memory and work before starting.

        Nothing is put on a device, so the mesh may be of a described topology
        (`jax.experimental.topologies`); `context` then holds `jax.ShapeDtypeStruct`s.
        """
        source = abstract(self.source, lambda _: self.split)
        return self.advance.lower(self._device_shapes(), context, source, generations)

    def lower_first(self, context: Any = None) -> jax.stages.Lowered:
        """Lower the evaluation of generation 0 from shapes alone, as `lower` does `run`."""
        shape = (self.shares.entry_NxK.size, *self._shape[1:])
        members = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=self.split)
        source = abstract(self.source, lambda _: self.split)
        return self.start.lower(members, context, source)

    def for_entries(self, entries: Sequence[Entry]) -> Evolution:
        """Return the same compiled programs for other entries; UserError for another number."""
        entries = _checked(entries)
        if len(entries) != len(self.entries):
            raise UserError(f"{len(entries)} entries for programs made for {len(self.entries)}")
        settings = self.settings | _entry_settings(entries)
        source = _random_source(entries, self.shares)
        return dataclasses.replace(self, entries=entries, source=source, settings=settings)

    def abstract_state(self) -> State:
        """Return shapes, dtypes and shardings of a state with one row per entry.

        It is what `Checkpoints.restore` needs; `to_devices` then takes the restored state.
        """
        shapes = jax.tree.map(lambda x: self._per_entry_shape(x), self._device_shapes())
        return abstract(shapes, self._entry_sharding)

    def to_entries(self, state: State) -> State:
        """Return a state with one row per entry, C in all, whatever the number of devices."""
        if self.shares.in_order:
            return state
        shardings = jax.tree.map(self._entry_sharding, self.abstract_state())
        return rows_of(state, self.shares.place_C, shardings, shardings)

    def to_devices(self, state: State) -> State:
        """Return a state of one row per entry as the devices hold it."""
        if self.shares.in_order:
            return state
        shardings = jax.tree.map(lambda x: x.sharding, self._device_shapes())
        between = jax.tree.map(self._entry_sharding, self.abstract_state())
        return rows_of(state, self.shares.entry_NxK.reshape(-1), between, shardings)

    def best(self, state: State) -> list[tuple[np.ndarray, float]]:
        """Return each entry's best candidate so far (float32 [Z]) and its fitness."""
        found = state.best_CxZ, state.best_fitness_C
        whole = (self.sharding, self.sharding)
        found = rows_of(found, self.shares.place_C, whole, whole)
        best_CxZ, fitness_C = jax.device_get(found)
        return list(zip(best_CxZ, fitness_C.tolist(), strict=True))

    @property
    def shares(self) -> Shares:
        """Which entries each device holds."""
        return Shares(len(self.entries), self.population, self.mesh.shape[POPULATION])

    @property
    def _shape(self) -> tuple[int, int, int]:
        return len(self.entries), self.population, self.num_dims

    @property
    def split(self) -> NamedSharding:
        """The sharding of arrays whose rows are the entries that devices hold, or their counts."""
        return NamedSharding(self.mesh, partition_spec(("members",)))

    def members(self, population_of: Callable[[int], Any]) -> jax.Array:
        """Put the initial populations where they are held: float32 [N x K, E, Z]."""
        entry_NK = self.shares.entry_NxK.reshape(-1)

        def part(index: tuple[slice, ...]) -> np.ndarray:
            members = [np.asarray(population_of(int(c)), np.float32) for c in entry_NK[index[0]]]
            return np.stack(members)

        shape = (entry_NK.size, *self._shape[1:])
        return jax.make_array_from_callback(shape, self.split, part)

    def _device_shapes(self) -> State:
        """Return the state as the devices hold it, in shapes."""
        NK = self.shares.entry_NxK.size
        initial = jax.ShapeDtypeStruct((NK, *self._shape[1:]), jnp.float32)
        fitness = jax.ShapeDtypeStruct((NK, self.population), jnp.float32)
        first = functools.partial(first_state, self.algorithm)
        shapes = jax.eval_shape(first, self.source, initial, fitness)
        return abstract(shapes, lambda x: self.split if x.ndim else self.sharding)

    def _per_entry_shape(self, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((len(self.entries), *x.shape[1:]) if x.ndim else (), x.dtype)

    def _entry_sharding(self, x: jax.ShapeDtypeStruct) -> NamedSharding:
        """Return how an array with one row per entry is spread: evenly, where that is possible."""
        return entry_sharding(self.mesh, self.shares, x)


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
    shares = Shares(len(entries), optimizer.population, mesh.shape[POPULATION])
    evaluate = _make_evaluate(fitness_fn, mesh, shares)
    axes = manual_axes(mesh)
    held, whole = partition_spec(("members",)), partition_spec(())
    split, everywhere = NamedSharding(mesh, held), replicated(mesh)
    state_spec = State(held, held, held, held, generation=whole)
    spread = functools.partial(
        jax.shard_map,
        mesh=mesh,
        axis_names=axes,
        check_vma=False,  # it would refuse a fitness_fn whose scan starts from constants
    )
    alike = alike_on_other_axes(mesh, axes)

    # These run on each device, on the entries that it holds.
    def start_held(initial_KxExZ, context, source):
        initial_KxExZ = alike(initial_KxExZ)
        fitness_KxE = evaluate(initial_KxExZ, context, source)
        return first_state(algorithm, source, initial_KxExZ, fitness_KxE)

    def advance_held(generations, state, context, source):
        def step(state, _):
            evaluate_held = lambda x, context: evaluate(alike(x), context, source)  # noqa: E731
            return next_state(algorithm, source, evaluate_held, alike(state), context)

        return jax.lax.scan(step, state, None, length=generations)

    def start(initial_NKxExZ, context, source):
        program = spread(start_held, in_specs=(held, whole, held), out_specs=state_spec)
        return program(initial_NKxExZ, context, source)

    def advance(state, context, source, generations):
        program = spread(
            functools.partial(advance_held, generations),
            in_specs=(state_spec, whole, held),
            out_specs=(state_spec, partition_spec((None, "members"))),
        )
        state, metrics = program(state, context, source)
        # Metrics are asked for entry by entry, once per dispatch.
        metrics = jax.lax.with_sharding_constraint(metrics, everywhere)
        if not shares.in_order:
            metrics = jax.tree.map(lambda x_TxNK: x_TxNK[:, shares.place_C], metrics)
        return state, metrics

    state_shardings = State(split, split, split, split, generation=everywhere)
    name = getattr(optimizer, "algorithm", type(optimizer).__name__)
    settings = {"algorithm": name, "population": optimizer.population} | algorithm.describe()
    return Evolution(
        entries=entries,
        num_dims=num_dims,
        population=optimizer.population,
        algorithm=algorithm,
        settings=settings | _entry_settings(entries),
        mesh=mesh,
        sharding=everywhere,
        source=_random_source(entries, shares),
        start=jax.jit(start, out_shardings=state_shardings),
        advance=jax.jit(
            advance,
            static_argnums=3,
            donate_argnums=0,
            out_shardings=(state_shardings, everywhere),
        ),
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


def _random_source(entries: Sequence[Entry], shares: Shares) -> RandomSource:
    """Return the seeds and ids of the entries that devices hold as arguments of the programs.

    Arguments rather than constants, so that other entries use the same programs. They are a few
    bytes, put on the devices anew with every dispatch.
    """
    entry_NK = shares.entry_NxK.reshape(-1)
    seed_C = np.array([seed for _, seed in entries], np.uint32)
    id_C = np.array([group_id(group) for group, _ in entries], np.uint32)
    return RandomSource(seed_C[entry_NK], id_C[entry_NK], entry_NK, shares.count_N)


def _make_evaluate(fitness_fn: FitnessFn, mesh: Mesh, shares: Shares) -> Callable:
    """Return (candidates_KxExZ, context, source) -> fitness_KxE float32, run on each device.

    A device evaluates its stretch of the row of all candidates, and gets the fitness of all.
    """
    C, E, S = shares.entries, shares.population, shares.rows

    def evaluate(candidates_KxExZ, context, source):
        K, _, Z = candidates_KxExZ.shape
        row_S = jax.lax.axis_index(POPULATION) * S + jnp.arange(S)
        entry_S = jnp.minimum(row_S // E, C - 1).astype(jnp.int32)
        candidates_SxZ = candidates_KxExZ.reshape(K * E, Z)
        if S != K * E:
            # Rounded up to a whole share by repeating the last candidate.
            own_S = jnp.minimum(row_S, C * E - 1) - source.entry_C[0] * E
            candidates_SxZ = candidates_SxZ[jnp.clip(own_S, 0, K * E - 1)]
        fitness_S = fitness_fn(candidates_SxZ, entry_S, context)
        if fitness_S.shape != entry_S.shape:
            raise ValueError(f"fitness_fn gave {fitness_S.shape} for {entry_S.shape} candidates")
        # The only exchange between devices: four bytes a candidate.
        fitness_P = jax.lax.all_gather(fitness_S.astype(jnp.float32), POPULATION, tiled=True)
        fitness_CxE = fitness_P[: C * E].reshape(C, E)
        return finite_or_inf(fitness_CxE[source.entry_C])

    return evaluate
