"""The control for a black-box search: the same prompts and the same fitness, tuned by gradients.

With exact option probabilities the expected reading is smooth in the prompt, so Adam (Kingma and
Ba 2015) can do what Differential Evolution does without derivatives. Whoever claims that evolution
is needed owes this comparison.

Letters: C entry, Z search dimension.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

Fitness = Callable[[jax.Array, jax.Array, Any], jax.Array]


@struct.dataclass
class Descent:
    """Where C descents stand, one per entry, all in one program."""

    z_CxZ: jax.Array  # float32, where each descent is now
    optimizer: optax.OptState
    best_CxZ: jax.Array  # float32, the best point that it has been at
    best_fitness_C: jax.Array  # float32, the fitness there; +inf before the first step


def make_descent(
    fitness: Fitness, steps: int, learning_rate: float
) -> tuple[Callable, Callable, Callable]:
    """Build the control's programs. A step whose gradient is not finite moves nothing.

    Args:
        fitness: (z_PxZ, entry_P, context) -> fitness_P, differentiable, minimised.
        steps: Number of steps, over which the learning rate falls to zero by a cosine.
        learning_rate: Adam's learning rate at the first step, in units of the search vector.

    Returns:
        `start(entries, dims)`, which gives the first `Descent`; the jitted
        `advance(descent, context, count)`; and the jitted `finish(descent, context)`, which
        evaluates the point that the last step has led to.
    """
    adam = optax.apply_if_finite(
        optax.adam(optax.cosine_decay_schedule(learning_rate, steps)), max_consecutive_errors=steps
    )

    def start(entries: int, dims: int) -> Descent:
        z = jnp.zeros((entries, dims), jnp.float32)
        return Descent(z, adam.init(z), z, jnp.full(entries, jnp.inf, jnp.float32))

    def with_best(descent: Descent, fitness_C: jax.Array) -> Descent:
        """Remember the current points where they are the best so far."""
        better_C = fitness_C < descent.best_fitness_C
        return dataclasses.replace(
            descent,
            best_CxZ=jnp.where(better_C[:, None], descent.z_CxZ, descent.best_CxZ),
            best_fitness_C=jnp.where(better_C, fitness_C, descent.best_fitness_C),
        )

    def step(descent: Descent, context: Any) -> Descent:
        # The gradient's pass evaluates the current point as well, so it costs nothing to compare.
        fitness_C, gradient_CxZ = _values_and_gradients(fitness, descent.z_CxZ, context)
        change_CxZ, optimizer = adam.update(gradient_CxZ, descent.optimizer)
        z_CxZ = descent.z_CxZ + change_CxZ
        return dataclasses.replace(with_best(descent, fitness_C), z_CxZ=z_CxZ, optimizer=optimizer)

    def advance(descent: Descent, context: Any, count: int) -> Descent:
        return jax.lax.fori_loop(0, count, lambda _, d: step(d, context), descent)

    def finish(descent: Descent, context: Any) -> Descent:
        fitness_C = fitness(descent.z_CxZ, jnp.arange(len(descent.z_CxZ)), context)
        return with_best(descent, fitness_C)

    return start, jax.jit(advance, static_argnums=2), jax.jit(finish)


def _values_and_gradients(
    fitness: Fitness, z_CxZ: jax.Array, context: Any
) -> tuple[jax.Array, jax.Array]:
    """Return the fitness [C] and its gradient [C, Z], computed one entry after the other.

    The gradient of the entries' sum would keep what the forward pass of every entry leaves.
    """

    def one(point: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        z_Z, entry = point
        return jax.value_and_grad(lambda z_Z: fitness(z_Z[None], entry[None], context)[0])(z_Z)

    return jax.lax.map(one, (z_CxZ, jnp.arange(len(z_CxZ))))
