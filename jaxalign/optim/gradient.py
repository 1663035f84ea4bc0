"""The control for a black-box search: the same prompts, the same fitness, tuned by gradients.

With exact option probabilities the expected reading is smooth in the prompt, so Adam (Kingma and
Ba 2015) can do what Differential Evolution does without derivatives. Whoever claims that evolution
is needed owes this comparison.
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
    """Where C descents stand, one per country, all in one program."""

    z_CxZ: jax.Array
    optimizer: optax.OptState
    best_CxZ: jax.Array
    best_fitness_C: jax.Array


def make_descent(
    fitness: Fitness, steps: int, learning_rate: float
) -> tuple[Callable, Callable, Callable]:
    """`start(countries, dims)`, the jitted `advance(descent, context, count)`, and the jitted
    `finish(descent, context)`, which evaluates where the last step has led.

    `learning_rate` is Adam's at the first of `steps` steps, in units of the search vector; it
    falls to zero by a cosine. A step whose gradient is not finite moves nothing.
    """
    adam = optax.apply_if_finite(
        optax.adam(optax.cosine_decay_schedule(learning_rate, steps)), max_consecutive_errors=steps
    )

    def start(countries: int, dims: int) -> Descent:
        z = jnp.zeros((countries, dims), jnp.float32)
        return Descent(z, adam.init(z), z, jnp.full(countries, jnp.inf, jnp.float32))

    def seen(descent: Descent, fitness_C: jax.Array) -> Descent:
        better_C = fitness_C < descent.best_fitness_C
        return dataclasses.replace(
            descent,
            best_CxZ=jnp.where(better_C[:, None], descent.z_CxZ, descent.best_CxZ),
            best_fitness_C=jnp.where(better_C, fitness_C, descent.best_fitness_C),
        )

    def step(descent: Descent, context: Any) -> Descent:
        fitness_C, slope_CxZ = _slopes(fitness, descent.z_CxZ, context)
        change_CxZ, optimizer = adam.update(slope_CxZ, descent.optimizer)
        z_CxZ = descent.z_CxZ + change_CxZ
        return dataclasses.replace(seen(descent, fitness_C), z_CxZ=z_CxZ, optimizer=optimizer)

    def advance(descent: Descent, context: Any, count: int) -> Descent:
        return jax.lax.fori_loop(0, count, lambda _, d: step(d, context), descent)

    def finish(descent: Descent, context: Any) -> Descent:
        return seen(descent, fitness(descent.z_CxZ, jnp.arange(len(descent.z_CxZ)), context))

    return start, jax.jit(advance, static_argnums=2), jax.jit(finish)


def _slopes(fitness: Fitness, z_CxZ: jax.Array, context: Any) -> tuple[jax.Array, jax.Array]:
    """Fitness and its gradient, one country after the other: the gradient of their sum would keep
    what the forward pass of every country leaves."""

    def one(of_country: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        z_Z, country = of_country
        return jax.value_and_grad(lambda z_Z: fitness(z_Z[None], country[None], context)[0])(z_Z)

    return jax.lax.map(one, (z_CxZ, jnp.arange(len(z_CxZ))))
