"""The control for a black-box search: the same prompts, the same fitness, tuned by gradients.

With exact option probabilities the expected reading is smooth in the prompt, so Adam (Kingma and
Ba 2015) can do what Differential Evolution does without derivatives. Whoever claims that evolution
is needed owes this comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

Fitness = Callable[[jax.Array, jax.Array, Any], jax.Array]


@struct.dataclass
class Descent:
    """Where C descents stand, one per country, all in one program."""

    z_CxZ: jax.Array
    optimizer: optax.OptState
    best_CxZ: jax.Array
    best_fitness_C: jax.Array


def make_descent(fitness: Fitness, steps: int, learning_rate: float) -> tuple[Callable, Callable]:
    """`start(countries, dims)` and the jitted `advance(descent, context, count)`.

    `learning_rate` is Adam's at the first of `steps` steps, in units of the search vector; it
    falls to zero by a cosine. A step whose gradient is not finite moves nothing.
    """
    adam = optax.apply_if_finite(
        optax.adam(optax.cosine_decay_schedule(learning_rate, steps)), max_consecutive_errors=steps
    )

    def start(countries: int, dims: int) -> Descent:
        z = jnp.zeros((countries, dims), jnp.float32)
        return Descent(z, adam.init(z), z, jnp.full(countries, jnp.inf, jnp.float32))

    def step(descent: Descent, context: Any) -> Descent:
        country_C = jnp.arange(descent.z_CxZ.shape[0])

        def total(z_CxZ: jax.Array) -> tuple[jax.Array, jax.Array]:
            fitness_C = fitness(z_CxZ, country_C, context)
            return jnp.sum(fitness_C), fitness_C

        (_, fitness_C), slope = jax.value_and_grad(total, has_aux=True)(descent.z_CxZ)
        better_C = fitness_C < descent.best_fitness_C
        change, optimizer = adam.update(slope, descent.optimizer)
        return Descent(
            z_CxZ=descent.z_CxZ + change,
            optimizer=optimizer,
            best_CxZ=jnp.where(better_C[:, None], descent.z_CxZ, descent.best_CxZ),
            best_fitness_C=jnp.where(better_C, fitness_C, descent.best_fitness_C),
        )

    def advance(descent: Descent, context: Any, count: int) -> Descent:
        return jax.lax.fori_loop(0, count, lambda _, d: step(d, context), descent)

    return start, jax.jit(advance, static_argnums=2)
