"""One generation of every country's search: what `evolve` compiles. Pure functions of arrays.

Letters: C entry (a country under a seed), E member, Z search dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.optim.strategy import Search

Evaluate = Callable[[jax.Array, Any], jax.Array]  # (candidates_CxExZ, context) -> fitness_CxE


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """All that a run must remember; a pytree of arrays, the same on any number of devices."""

    search: Any  # evosax's own state, every leaf with a leading country axis
    best_CxZ: jax.Array  # float32, the best candidate ever evaluated
    best_fitness_C: jax.Array  # float32, +inf while every evaluation failed
    spread_C: jax.Array  # float32, standard deviation of the initial population
    generation: jax.Array  # int32, generations told so far


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Draws:
    """What every random draw depends on besides the generation; arguments, never constants."""

    seed_C: jax.Array  # uint32
    id_C: jax.Array  # uint32, `country_id` of each
    count: jax.Array  # int32, C as a value the compiler cannot see

    def keys_C(self, generation: jax.Array) -> jax.Array:
        """One key per entry: fold_in(fold_in(key(seed), country), generation)."""

        def fold(seed, country):
            return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), country), generation)

        return jax.vmap(fold)(self.seed_C, self.id_C)


def first_state(search: Search, draws: Draws, initial_CxExZ, fitness_CxE) -> State:
    """Generation 0 from float32 members already evaluated; bad fitness is +inf."""

    def start(key, initial_ExZ, fitness_E):
        spread = jnp.std(initial_ExZ - initial_ExZ.mean(0, keepdims=True))
        state = search.start(key, initial_ExZ, fitness_E, spread)
        return state, *_best(initial_ExZ, fitness_E), spread

    arrays = (draws.keys_C(jnp.int32(0)), initial_CxExZ, fitness_CxE)
    return State(*_per_country(start, draws.count, arrays), generation=jnp.int32(0))


def next_state(
    search: Search, draws: Draws, evaluate: Evaluate, state: State, context: Any
) -> tuple[State, dict[str, jax.Array]]:
    """ask -> evaluate -> tell, and the generation's metrics."""
    keys_C = draws.keys_C(state.generation + 1)
    ask_C, tell_C = jax.vmap(lambda key: tuple(jax.random.split(key)))(keys_C)
    candidates_CxExZ, asked = _per_country(
        search.ask, draws.count, (ask_C, state.search, state.spread_C)
    )
    fitness_CxE = evaluate(candidates_CxExZ, context)

    def tell(key, candidates_ExZ, fitness_E, state, spread):
        told = search.tell(key, candidates_ExZ, fitness_E, state, spread)
        return told, *_best(candidates_ExZ, fitness_E)

    arrays = (tell_C, candidates_CxExZ, fitness_CxE, asked, state.spread_C)
    told, new_CxZ, new_fitness_C = _per_country(tell, draws.count, arrays)
    better_C = new_fitness_C < state.best_fitness_C
    best_CxZ = jnp.where(better_C[:, None], new_CxZ, state.best_CxZ)
    best_fitness_C = jnp.where(better_C, new_fitness_C, state.best_fitness_C)
    standing_CxE = told.fitness if search.population_based else fitness_CxE
    metrics = _metrics(standing_CxE, fitness_CxE, best_fitness_C)
    return State(told, best_CxZ, best_fitness_C, state.spread_C, state.generation + 1), metrics


def finite_or_inf(fitness: jax.Array) -> jax.Array:
    """A NaN or -inf would never be replaced and stay the base vector for ever."""
    return jnp.where(jnp.isfinite(fitness), fitness, jnp.inf)


def _per_country(function: Callable, count: jax.Array, trees: tuple) -> Any:
    """`jax.lax.map` over the leading axis, compiled alike for one country and for many.

    A loop rather than a vmap, and one whose length the compiler cannot see (it would dissolve a
    loop of one round and fuse across it): every country runs the same instructions whoever runs
    beside it, so that solo and joint runs are bit-identical for any algorithm.
    """

    def rows(i):
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), trees)

    def body(i, filled):
        new = function(*rows(i))
        put = lambda a, x: jax.lax.dynamic_update_index_in_dim(a, x.astype(a.dtype), i, 0)  # noqa: E731
        return jax.tree.map(put, filled, jax.tree.map(jnp.asarray, new))

    size = jax.tree.leaves(trees)[0].shape[0]
    shapes = jax.eval_shape(lambda: function(*rows(0)))
    # Strongly typed even where evosax starts from Python numbers: no retrace after restoring.
    empty = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), shapes)
    return jax.lax.fori_loop(0, count, body, empty)


def _best(candidates_ExZ, fitness_E) -> tuple[jax.Array, jax.Array]:
    index = jnp.argmin(fitness_E)
    return candidates_ExZ[index], fitness_E[index]


def _metrics(standing_CxE, fitness_CxE, best_fitness_C) -> dict[str, jax.Array]:
    """Scalars per country, float32 [C] (`failed`: int32)."""
    E = standing_CxE.shape[1]
    finite_CxE = jnp.isfinite(standing_CxE)
    return {
        "best": standing_CxE.min(1),
        # Of the sorted values, not jnp.median: that one turns +inf into NaN.
        "median": jnp.sort(standing_CxE, axis=1)[:, (E - 1) // 2],
        "mean": jnp.where(finite_CxE, standing_CxE, 0).sum(1) / finite_CxE.sum(1),
        "failed": (~jnp.isfinite(fitness_CxE)).sum(1, dtype=jnp.int32),
        "best_so_far": best_fitness_C,
    }
