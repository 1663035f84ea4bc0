"""The control for a black-box search: the same prompts and the same fitness, tuned by gradients.

With exact option probabilities the expected reading is smooth in the prompt, so Adam (Kingma and
Ba 2015) can do what Differential Evolution does without derivatives. Whoever claims that evolution
is needed owes this comparison.

Each device descends for its own entries, one after the other, so that what the backward pass keeps
is there for one entry at a time.

Letters: C entry, Z search dimension; N device along the population axis, K entry on a device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding

from jaxalign.optim.generation import update_entries
from jaxalign.optim.shares import (
    Shares,
    abstract,
    alike_on_other_axes,
    entry_sharding,
    manual_axes,
    rows_of,
)
from jaxalign.runtime.sharding import POPULATION, partition_spec, place, place_whole, replicated

Fitness = Callable[[jax.Array, jax.Array, Any], jax.Array]


@struct.dataclass
class Descent:
    """Where descents stand: a row per entry in every array."""

    z_CxZ: jax.Array  # float32, where each descent is now
    optimizer: optax.OptState  # Adam's, of each entry by itself
    best_CxZ: jax.Array  # float32, the best point that it has been at
    best_fitness_C: jax.Array  # float32, the fitness there; +inf before the first step


@dataclasses.dataclass(frozen=True, eq=False)
class GradientDescent:
    """What `make_descent` builds: compiled once, then run any number of times.

    As with `Evolution`, states lie as the devices hold them; `to_entries` turns one into a row per
    entry, which fits any number of devices, and `to_devices` is the way back.
    """

    entries: int
    num_dims: int
    mesh: Mesh
    adam: optax.GradientTransformation
    advance: Callable  # jitted: (descent, context, places, steps) -> descent
    finish: Callable  # jitted: (descent, context, places) -> descent

    def start(self) -> Descent:
        """Return the first state: every descent begins at zero, the start of the search."""
        shapes = self._device_shapes()
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        fitness = np.full(shapes.best_fitness_C.shape, np.inf, np.float32)
        # Adam's own first state; it holds numbers that are not zero.
        adam = self.adam.init(jnp.zeros(self.num_dims, jnp.float32))
        optimizer = jax.tree.map(
            lambda zero, x: np.broadcast_to(np.asarray(x, zero.dtype), zero.shape),
            zeros.optimizer,
            adam,
        )
        return place(zeros.replace(optimizer=optimizer, best_fitness_C=fitness), self._split)

    def run(self, descent: Descent, steps: int, context: Any) -> Descent:
        """Take `steps` steps in one dispatch. The state is consumed: its buffers are donated."""
        places = place(self._places, self._split)
        return self.advance(descent, place_whole(context, replicated(self.mesh)), places, steps)

    def last(self, descent: Descent, context: Any) -> Descent:
        """Return the state in which the point that the last step has led to counts as well."""
        places = place(self._places, self._split)
        return self.finish(descent, place_whole(context, replicated(self.mesh)), places)

    def best(self, descent: Descent) -> tuple[np.ndarray, np.ndarray]:
        """Return each entry's best point, float32 [C, Z], and the fitness there, float32 [C]."""
        whole = (replicated(self.mesh),) * 2
        found = descent.best_CxZ, descent.best_fitness_C
        return jax.device_get(rows_of(found, self.shares.place_C, whole, whole))

    def lower(self, steps: int, context: Any) -> jax.stages.Lowered:
        """Lower `run` from shapes alone; the mesh may be of devices that are only described."""
        places = abstract(self._places, lambda _: self._split)
        return self.advance.lower(self._device_shapes(), context, places, steps)

    def abstract_state(self) -> Descent:
        """Return shapes and shardings of a state with one row per entry, to restore one."""
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((self.entries, *x.shape[1:]), x.dtype),
            self._device_shapes(),
        )
        return abstract(shapes, lambda x: entry_sharding(self.mesh, self.shares, x))

    def to_entries(self, descent: Descent) -> Descent:
        """Return a state with one row per entry, C in all, whatever the number of devices."""
        if self.shares.in_order:
            return descent
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state())
        return rows_of(descent, self.shares.place_C, shardings, shardings)

    def to_devices(self, descent: Descent) -> Descent:
        """Return a state of one row per entry as the devices hold it."""
        if self.shares.in_order:
            return descent
        between = jax.tree.map(lambda x: x.sharding, self.abstract_state())
        held = jax.tree.map(lambda x: x.sharding, self._device_shapes())
        return rows_of(descent, self.shares.entry_NxK.reshape(-1), between, held)

    @property
    def shares(self) -> Shares:
        """Which entries each device holds: an even share of them, none of them twice."""
        return Shares(self.entries, 1, self.mesh.shape[POPULATION])

    @property
    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """The entry in each place of each device, and how many of its places each one uses."""
        return self.shares.entry_NxK.reshape(-1), self.shares.count_N

    @property
    def _split(self) -> NamedSharding:
        return NamedSharding(self.mesh, partition_spec(("members",)))

    def _device_shapes(self) -> Descent:
        NK, Z = self.shares.entry_NxK.size, self.num_dims

        def first() -> Descent:
            z_Z, inf = jnp.zeros(Z, jnp.float32), jnp.float32(jnp.inf)
            row = Descent(z_Z, self.adam.init(z_Z), z_Z, inf)
            return jax.tree.map(lambda x: jnp.broadcast_to(x[None], (NK, *jnp.shape(x))), row)

        return abstract(jax.eval_shape(first), lambda _: self._split)


def make_descent(
    fitness: Fitness, steps: int, learning_rate: float, num_dims: int, mesh: Mesh, entries: int
) -> GradientDescent:
    """Build the control's programs. A step whose gradient is not finite moves nothing.

    Args:
        fitness: (z_PxZ, entry_P, context) -> fitness_P, differentiable, minimised.
        steps: Number of steps, over which the learning rate falls to zero by a cosine.
        learning_rate: Adam's learning rate at the first step, in units of the search vector.
        num_dims: Z.
        mesh: Has a population axis, along which the entries are shared out.
        entries: C, the number of descents.
    """
    adam = optax.apply_if_finite(
        optax.adam(optax.cosine_decay_schedule(learning_rate, steps)), max_consecutive_errors=steps
    )
    axes = manual_axes(mesh)
    alike = alike_on_other_axes(mesh, axes)
    held, whole = partition_spec(("members",)), partition_spec(())

    def with_best(descent: Descent, fitness: jax.Array) -> Descent:
        """Remember an entry's current point where it is the best so far."""
        # What is not finite loses; -inf would otherwise be the best for ever.
        better = jnp.isfinite(fitness) & (fitness < descent.best_fitness_C)
        return descent.replace(
            best_CxZ=jnp.where(better, descent.z_CxZ, descent.best_CxZ),
            best_fitness_C=jnp.where(better, fitness, descent.best_fitness_C),
        )

    def value(z_Z: jax.Array, entry: jax.Array, context: Any) -> jax.Array:
        return fitness(z_Z[None], entry[None], context)[0]

    # Both take one entry's row of a `Descent`.
    def step(descent: Descent, entry: jax.Array, context: Any) -> Descent:
        # The gradient's pass evaluates the current point as well, so it costs nothing to compare.
        fitness, gradient_Z = jax.value_and_grad(value)(descent.z_CxZ, entry, context)
        change_Z, optimizer = adam.update(gradient_Z, descent.optimizer)
        z_Z = descent.z_CxZ + change_Z
        return with_best(descent, fitness).replace(z_CxZ=z_Z, optimizer=optimizer)

    def last(descent: Descent, entry: jax.Array, context: Any) -> Descent:
        return with_best(descent, value(descent.z_CxZ, entry, context))

    def for_held(one: Callable, steps: int, descent: Descent, context: Any, places: Any) -> Descent:
        """Apply `one` to the entries of this device, `steps` times."""
        entry_K, count_1 = places

        def row(descent, entry):
            # The barrier keeps an entry's sums the same whether it is one of many here or alone.
            descent = jax.lax.optimization_barrier(descent)
            return one(descent, entry, context), ()

        def all_rows(_, descent):
            return update_entries(row, count_1[0], alike(descent), (entry_K,))[0]

        return jax.lax.fori_loop(0, steps, all_rows, descent)

    def spread(one: Callable, steps: int) -> Callable:
        return jax.shard_map(
            lambda *arguments: for_held(one, steps, *arguments),
            mesh=mesh,
            in_specs=(held, whole, (held, held)),
            out_specs=held,
            axis_names=axes,
            check_vma=False,
        )

    def advance(descent: Descent, context: Any, places: Any, steps: int) -> Descent:
        return spread(step, steps)(descent, context, places)

    def finish(descent: Descent, context: Any, places: Any) -> Descent:
        return spread(last, 1)(descent, context, places)

    return GradientDescent(
        entries=entries,
        num_dims=num_dims,
        mesh=mesh,
        adam=adam,
        advance=jax.jit(advance, static_argnums=3, donate_argnums=0),
        finish=jax.jit(finish),
    )
