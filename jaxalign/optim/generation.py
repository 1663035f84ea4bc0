"""One generation of every entry's search: what `evolve` compiles. Pure functions of arrays.

Letters: C entry (a group under a seed), E member, Z search dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.optim.api import Algorithm

Evaluate = Callable[[jax.Array, Any], jax.Array]  # (candidates_CxExZ, context) -> fitness_CxE


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """All that a run must remember; a pytree of arrays, the same on any number of devices."""

    optimizer: Any  # the algorithm's own state, every leaf with a leading entry axis
    best_CxZ: jax.Array  # float32, the best candidate ever evaluated
    best_fitness_C: jax.Array  # float32, +inf while every evaluation failed
    spread_C: jax.Array  # float32, standard deviation of the initial population
    generation: jax.Array  # int32, number of generations told so far


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RandomSource:
    """What every random draw depends on besides the generation; arguments, never constants."""

    seed_C: jax.Array  # uint32
    id_C: jax.Array  # uint32, `group_id` of each
    count: jax.Array  # int32, C as a value the compiler cannot see

    def keys_C(self, generation: jax.Array) -> jax.Array:
        """Return one key per entry: fold_in(fold_in(key(seed), group), generation)."""

        def fold(seed, group):
            return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), group), generation)

        return jax.vmap(fold)(self.seed_C, self.id_C)


def first_state(
    algorithm: Algorithm, source: RandomSource, initial_CxExZ: jax.Array, fitness_CxE: jax.Array
) -> State:
    """Return the state after generation 0.

    Args:
        algorithm: The optimizer, built for Z dimensions.
        source: Seeds and ids of the entries.
        initial_CxExZ: float32, the initial members.
        fitness_CxE: float32, their fitness; +inf where the evaluation failed.
    """

    def start(key, initial_ExZ, fitness_E):
        # The standard deviation around the mean member, over all coordinates at once.
        spread = jnp.std(initial_ExZ - initial_ExZ.mean(0, keepdims=True))
        state = algorithm.start(key, initial_ExZ, fitness_E, spread)
        return state, *_best(initial_ExZ, fitness_E), spread

    arrays = (source.keys_C(jnp.int32(0)), initial_CxExZ, fitness_CxE)
    return State(*_per_entry(start, source.count, arrays), generation=jnp.int32(0))


def next_state(
    algorithm: Algorithm, source: RandomSource, evaluate: Evaluate, state: State, context: Any
) -> tuple[State, dict[str, jax.Array]]:
    """Run one generation: ask -> evaluate -> tell. Return the new state and its metrics."""
    # Asking and telling draw from keys of their own.
    keys_C = source.keys_C(state.generation + 1)
    ask_C, tell_C = jax.vmap(lambda key: tuple(jax.random.split(key)))(keys_C)
    candidates_CxExZ, asked = _per_entry(
        algorithm.ask, source.count, (ask_C, state.optimizer, state.spread_C)
    )
    # All entries' candidates are evaluated together, spread over the devices.
    fitness_CxE = evaluate(candidates_CxExZ, context)

    def tell(key, candidates_ExZ, fitness_E, state, spread):
        after = algorithm.tell(key, candidates_ExZ, fitness_E, state, spread)
        return after, *_best(candidates_ExZ, fitness_E)

    arrays = (tell_C, candidates_CxExZ, fitness_CxE, asked, state.spread_C)
    after, new_CxZ, new_fitness_C = _per_entry(tell, source.count, arrays)
    # The best candidate is kept whatever the algorithm does with it.
    better_C = new_fitness_C < state.best_fitness_C
    best_CxZ = jnp.where(better_C[:, None], new_CxZ, state.best_CxZ)
    best_fitness_C = jnp.where(better_C, new_fitness_C, state.best_fitness_C)
    member_fitness_CxE = jax.vmap(algorithm.member_fitness)(after, fitness_CxE)
    metrics = _metrics(member_fitness_CxE, fitness_CxE, best_fitness_C)
    return State(after, best_CxZ, best_fitness_C, state.spread_C, state.generation + 1), metrics


def finite_or_inf(fitness: jax.Array) -> jax.Array:
    """Replace what is not finite by +inf.

    A NaN or -inf would never be replaced and stay the base vector for ever.
    """
    return jnp.where(jnp.isfinite(fitness), fitness, jnp.inf)


def _per_entry(function: Callable, count: jax.Array, trees: tuple) -> Any:
    """Map `function` over the leading axis, compiled alike for one entry and for many.

    A loop rather than a vmap, and one whose length the compiler cannot see (it would dissolve a
    loop of one round and fuse across it): every entry runs the same instructions whichever entries
    run beside it, so that solo and joint runs are bit-identical for any algorithm.
    """

    def rows(i):
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), trees)

    def body(i, filled):
        new = function(*rows(i))
        put = lambda a, x: jax.lax.dynamic_update_index_in_dim(a, x.astype(a.dtype), i, 0)  # noqa: E731
        return jax.tree.map(put, filled, jax.tree.map(jnp.asarray, new))

    size = jax.tree.leaves(trees)[0].shape[0]
    shapes = jax.eval_shape(lambda: function(*rows(0)))
    # Strongly typed even where an algorithm starts from Python numbers: no retrace after restoring.
    empty = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), shapes)
    return jax.lax.fori_loop(0, count, body, empty)


def _best(candidates_ExZ, fitness_E) -> tuple[jax.Array, jax.Array]:
    """Return the candidate with the lowest fitness, and that fitness."""
    index = jnp.argmin(fitness_E)
    return candidates_ExZ[index], fitness_E[index]


def _metrics(member_fitness_CxE, fitness_CxE, best_fitness_C) -> dict[str, jax.Array]:
    """Return the generation's metrics, one value per entry: float32 [C] (`failed`: int32)."""
    E = member_fitness_CxE.shape[1]
    finite_CxE = jnp.isfinite(member_fitness_CxE)
    return {
        "best": member_fitness_CxE.min(1),
        # Of the sorted values, not jnp.median: that one turns +inf into NaN.
        "median": jnp.sort(member_fitness_CxE, axis=1)[:, (E - 1) // 2],
        "mean": jnp.where(finite_CxE, member_fitness_CxE, 0).sum(1) / finite_CxE.sum(1),
        "failed": (~jnp.isfinite(fitness_CxE)).sum(1, dtype=jnp.int32),
        "best_so_far": best_fitness_C,
    }
