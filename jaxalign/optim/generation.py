"""One generation of the entries that a device holds: what `evolve` compiles. Pure functions.

Entries are asked and told one after the other, in place, so that the draws of a generation take
memory for one entry at a time, and the searches themselves are there once: the members, and the
candidates.

Letters: C entry (a group under a seed), E member, Z search dimension.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.optim.api import Algorithm

Evaluate = Callable[[jax.Array, Any], jax.Array]  # (candidates_CxExZ, context) -> fitness_CxE


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """All that a run must remember, a pytree of arrays: of all entries, or of those held here."""

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
    entry_C: jax.Array  # int32, the entry's index among all of the run
    count_1: jax.Array  # int32 [1], how many of these are in use, which the compiler cannot see

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
        # A barrier, because the compiler would fuse the cut of one entry of many into the sums, and
        # leave it out where there is one entry alone: they would be added up in another order.
        initial_ExZ = jax.lax.optimization_barrier(initial_ExZ)
        # The standard deviation around the mean member, over all coordinates at once.
        spread = jnp.std(initial_ExZ - initial_ExZ.mean(0, keepdims=True))
        state = algorithm.start(key, initial_ExZ, fitness_E, spread)
        return state, *_best(initial_ExZ, fitness_E), spread

    arrays = (source.keys_C(jnp.int32(0)), initial_CxExZ, fitness_CxE)
    return State(*_per_entry(start, source.count_1[0], arrays), generation=jnp.int32(0))


def next_state(
    algorithm: Algorithm, source: RandomSource, evaluate: Evaluate, state: State, context: Any
) -> tuple[State, dict[str, jax.Array]]:
    """Run one generation: ask -> evaluate -> tell. Return the new state and its metrics."""
    candidates_CxExZ, asked = ask_entries(algorithm, source, state)
    # All entries' candidates are evaluated together, spread over the devices.
    fitness_CxE = evaluate(candidates_CxExZ, context)
    return tell_entries(algorithm, source, asked, candidates_CxExZ, fitness_CxE)


def ask_entries(
    algorithm: Algorithm, source: RandomSource, state: State
) -> tuple[jax.Array, State]:
    """Return the next candidates, float32 [C, E, Z], and the state that `tell_entries` takes."""
    ask_C, _ = _keys(source, state)
    arrays = (ask_C, state.optimizer, state.spread_C)
    candidates_CxExZ, asked = _per_entry(algorithm.ask, source.count_1[0], arrays)
    return candidates_CxExZ, dataclasses.replace(state, optimizer=asked)


def tell_entries(
    algorithm: Algorithm,
    source: RandomSource,
    state: State,
    candidates_CxExZ: jax.Array,
    fitness_CxE: jax.Array,
) -> tuple[State, dict[str, jax.Array]]:
    """Return the state after a generation's candidates have been evaluated, and its metrics.

    Args:
        algorithm: The optimizer, built for Z dimensions.
        source: Seeds and ids of the entries.
        state: What `ask_entries` returned with the candidates.
        candidates_CxExZ: float32, the candidates.
        fitness_CxE: float32, their fitness; +inf where the evaluation failed.
    """
    _, tell_C = _keys(source, state)

    def tell(asked, key, candidates_ExZ, fitness_E, spread):
        after = algorithm.tell(key, candidates_ExZ, fitness_E, asked, spread)
        return after, _best(candidates_ExZ, fitness_E)

    arrays = (tell_C, candidates_CxExZ, fitness_CxE, state.spread_C)
    after, (new_CxZ, new_fitness_C) = update_entries(
        tell, source.count_1[0], state.optimizer, arrays
    )
    # The best candidate is kept whatever the algorithm does with it.
    better_C = new_fitness_C < state.best_fitness_C
    best_CxZ = jnp.where(better_C[:, None], new_CxZ, state.best_CxZ)
    best_fitness_C = jnp.where(better_C, new_fitness_C, state.best_fitness_C)
    member_fitness_CxE = jax.vmap(algorithm.member_fitness)(after, fitness_CxE)
    metrics = _metrics(member_fitness_CxE, fitness_CxE, best_fitness_C)
    return State(after, best_CxZ, best_fitness_C, state.spread_C, state.generation + 1), metrics


def _keys(source: RandomSource, state: State) -> tuple[jax.Array, jax.Array]:
    """Return the keys of the next generation, one per entry: for asking, and for telling."""
    keys_C = source.keys_C(state.generation + 1)
    return jax.vmap(lambda key: tuple(jax.random.split(key)))(keys_C)


def finite_or_inf(fitness: jax.Array) -> jax.Array:
    """Replace what is not finite by +inf.

    A NaN or -inf would never be replaced and stay the base vector for ever.
    """
    return jnp.where(jnp.isfinite(fitness), fitness, jnp.inf)


def update_entries(
    function: Callable, count: jax.Array, state: Any, arrays: tuple
) -> tuple[Any, Any]:
    """Map `function` over the leading axis as `_per_entry` does, replacing each entry's state.

    Args:
        function: (state, *arrays) of one entry -> (new state, anything else).
        count: Number of entries that are computed.
        state: A tree of arrays with a leading entry axis, overwritten entry by entry.
        arrays: More of the kind, which are read only.

    Returns:
        The new state, and the rest of what `function` returns.
    """
    shapes = jax.eval_shape(lambda: function(_rows(state, 0), *_rows(arrays, 0)))
    size = jax.tree.leaves(arrays)[0].shape[0]
    zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), tree)  # noqa: E731
    same = jax.tree.map(lambda x: (x.shape, jnp.dtype(x.dtype)), _rows(state, 0))
    in_place = same == jax.tree.map(lambda x: (x.shape, jnp.dtype(x.dtype)), shapes[0])

    def body(i, filled):
        new = function(_rows(filled[0] if in_place else state, i), *_rows(arrays, i))
        return jax.tree.map(lambda a, x: _put(a, x, i), filled, new)

    first = (state if in_place else zeros(shapes[0]), zeros(shapes[1]))
    return jax.lax.fori_loop(0, count, body, first)


def _per_entry(function: Callable, count: jax.Array, arrays: tuple) -> Any:
    """Map `function` over the leading axis, compiled alike for one entry and for many.

    A loop rather than a vmap, and one whose length the compiler cannot see (it would dissolve a
    loop of one round and fuse across it): every entry runs the same instructions whichever entries
    run beside it, so that solo and joint runs are bit-identical for any algorithm.

    Args:
        function: Takes one entry's part of `arrays`.
        count: Number of entries that are computed; results of the others are zeros, or what
            `function` leaves unchanged.
        arrays: Trees of arrays with a leading entry axis.
    """
    row = lambda i: _rows(arrays, i)  # noqa: E731
    shapes = jax.eval_shape(lambda: function(*row(0)))
    kept = _unchanged(function, jax.eval_shape(row, 0))
    given, leaves = jax.tree.leaves(arrays), jax.tree.leaves(shapes)
    size = given[0].shape[0]

    def body(i, filled):
        new = jax.tree.leaves(function(*row(i)))
        changed = [x for x, source in zip(new, kept, strict=True) if source is None]
        return [_put(a, x, i) for a, x in zip(filled, changed, strict=True)]

    # Strongly typed even where an algorithm starts from Python numbers: no retrace after restoring.
    changed = [x for x, source in zip(leaves, kept, strict=True) if source is None]
    empty = [jnp.zeros((size, *x.shape), x.dtype) for x in changed]
    filled = iter(jax.lax.fori_loop(0, count, body, empty))
    # What the function hands on as it is need not be copied entry by entry.
    out = [next(filled) if source is None else given[source] for source in kept]
    return jax.tree.structure(shapes).unflatten(out)


def _rows(tree: Any, i: int | jax.Array) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), tree)


def _put(array: jax.Array, x: Any, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(array, jnp.asarray(x, array.dtype), i, 0)


def _unchanged(function: Callable, arguments: tuple) -> list[int | None]:
    """Return, for each leaf of the result, the leaf of the arguments that it is; else None."""
    closed = jax.make_jaxpr(function)(*arguments)

    def follow(jaxpr: Any, variables: Sequence[Any]) -> list[int | None]:
        position = {id(variable): i for i, variable in enumerate(jaxpr.invars)}
        made = {id(out): (eqn, j) for eqn in jaxpr.eqns for j, out in enumerate(eqn.outvars)}
        found: list[int | None] = []
        for variable in variables:
            # A jitted function inside hides what it hands on; look into it.
            while id(variable) in made:
                eqn, j = made[id(variable)]
                inner = eqn.params.get("jaxpr") if eqn.primitive.name in ("jit", "pjit") else None
                argument = None if inner is None else follow(inner.jaxpr, inner.jaxpr.outvars)[j]
                variable = None if argument is None else eqn.invars[argument]
            found.append(position.get(id(variable)))
        return found

    return follow(closed.jaxpr, closed.jaxpr.outvars)


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
