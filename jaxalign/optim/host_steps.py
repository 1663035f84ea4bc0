"""Ask and tell from the host, for a fitness that no compiled program can compute.

Where candidates are evaluated by something that the host has to steer, such as replies that are
decoded, a generation is three steps instead of one program:

    first(members, fitness) -> state
    ask(state) -> candidates            the host evaluates them
    tell(candidates, fitness) -> state, metrics

The steps compile the same functions as `Evolution.run` does (`jaxalign.optim.generation`), and draw
from the same keys: with Differential Evolution equal fitness gives equal states, bit for bit, and a
state may pass from one to the other. (With CMA-ES the last bits of the covariance differ, because
asking and telling are then compiled apart.) Entries lie on the devices as they do there.

Letters: C entry, E member, Z search dimension; N device along the population axis, K entry that a
device holds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.optim.evolve import Evolution
from jaxalign.optim.generation import (
    RandomSource,
    State,
    ask_entries,
    finite_or_inf,
    first_state,
    tell_entries,
)
from jaxalign.optim.shares import alike_on_other_axes, manual_axes
from jaxalign.runtime.sharding import partition_spec, place, place_whole, replicated


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Asked:
    """The candidates of a generation that are to be evaluated.

    Attributes:
        candidates_CxExZ: float32, one row per entry, whole on every device.
        held_NKxExZ: The same candidates, as the devices hold them.
        state: The state that awaits their fitness.
    """

    candidates_CxExZ: jax.Array
    held_NKxExZ: jax.Array
    state: State


@dataclasses.dataclass(frozen=True, eq=False)
class HostSteps:
    """The steps of one search, compiled once. Made by `make_host_steps`."""

    evolution: Evolution
    programs: tuple[Callable, Callable, Callable]  # first, ask and tell, jitted

    def for_evolution(self, evolution: Evolution) -> HostSteps:
        """Return the same compiled steps for other entries (`Evolution.for_entries`)."""
        return dataclasses.replace(self, evolution=evolution)

    def first(self, initial: Callable[[int], jax.Array], fitness_CxE: np.ndarray) -> State:
        """Return the state after generation 0.

        Args:
            initial: A function from an entry's index to its initial population, [E, Z].
            fitness_CxE: float32, what the populations were found to be.

        Raises:
            UserError: for a fitness of another shape.
        """
        members = self.evolution.members(lambda c: np.asarray(initial(c)))
        return self.programs[0](members, self._fitness(fitness_CxE), self._source)

    def ask(self, state: State) -> Asked:
        """Return the candidates of the next generation. The state is consumed."""
        return self.programs[1](state, self._source)

    def tell(self, asked: Asked, fitness_CxE: np.ndarray) -> tuple[State, dict]:
        """Return the state after a generation, and its metrics by name, each [C].

        Args:
            asked: The candidates. Their state is consumed.
            fitness_CxE: float32, their fitness. What is not finite counts as failed.

        Raises:
            UserError: for a fitness of another shape.
        """
        fitness = self._fitness(fitness_CxE)
        return self.programs[2](asked.state, asked.held_NKxExZ, fitness, self._source)

    @property
    def _source(self) -> RandomSource:
        return place(self.evolution.source, self.evolution.split)

    def _fitness(self, fitness_CxE: np.ndarray) -> jax.Array:
        shape = len(self.evolution.entries), self.evolution.population
        if np.shape(fitness_CxE) != shape:
            raise UserError(
                f"fitness has shape {np.shape(fitness_CxE)}, expected {shape}: (entries, members)"
            )
        return place_whole(np.asarray(fitness_CxE, np.float32), self.evolution.sharding)


def make_host_steps(evolution: Evolution) -> HostSteps:
    """Build the three steps of a search that the host drives.

    Args:
        evolution: The search. Its own programs, which evaluate a fitness, need not be compiled.
    """
    algorithm, mesh, shares = evolution.algorithm, evolution.mesh, evolution.shares
    axes = manual_axes(mesh)
    held, whole = partition_spec(("members",)), partition_spec(())
    split, everywhere = evolution.split, replicated(mesh)
    state_spec = State(held, held, held, held, generation=whole)
    state_shardings = State(split, split, split, split, generation=everywhere)
    spread = functools.partial(jax.shard_map, mesh=mesh, axis_names=axes, check_vma=False)
    alike = alike_on_other_axes(mesh, axes)

    # These run on each device, on the entries that it holds.
    def own_fitness(fitness_CxE, source):
        return finite_or_inf(fitness_CxE[source.entry_C])

    def first_held(initial_KxExZ, fitness_CxE, source):
        fitness_KxE = own_fitness(fitness_CxE, source)
        return first_state(algorithm, source, alike(initial_KxExZ), fitness_KxE)

    def ask_held(state, source):
        return alike(ask_entries(algorithm, source, alike(state)))

    def tell_held(state, candidates_KxExZ, fitness_CxE, source):
        state, candidates_KxExZ = alike((state, candidates_KxExZ))
        fitness_KxE = own_fitness(fitness_CxE, source)
        return tell_entries(algorithm, source, state, candidates_KxExZ, fitness_KxE)

    def by_entry(tree):
        """Return arrays of the devices' entries as one row per entry, whole everywhere."""
        tree = jax.lax.with_sharding_constraint(tree, everywhere)
        return tree if shares.in_order else jax.tree.map(lambda x: x[shares.place_C], tree)

    def first(initial_NKxExZ, fitness_CxE, source):
        program = spread(first_held, in_specs=(held, whole, held), out_specs=state_spec)
        return program(initial_NKxExZ, fitness_CxE, source)

    def ask(state, source):
        program = spread(ask_held, in_specs=(state_spec, held), out_specs=(held, state_spec))
        candidates_NKxExZ, state = program(state, source)
        return Asked(by_entry(candidates_NKxExZ), candidates_NKxExZ, state)

    def tell(state, candidates_NKxExZ, fitness_CxE, source):
        program = spread(
            tell_held, in_specs=(state_spec, held, whole, held), out_specs=(state_spec, held)
        )
        state, metrics = program(state, candidates_NKxExZ, fitness_CxE, source)
        return state, by_entry(metrics)

    asked_shardings = Asked(everywhere, split, state_shardings)
    return HostSteps(
        evolution,
        (
            jax.jit(first, out_shardings=state_shardings),
            jax.jit(ask, donate_argnums=0, out_shardings=asked_shardings),
            jax.jit(tell, donate_argnums=0, out_shardings=(state_shardings, everywhere)),
        ),
    )
