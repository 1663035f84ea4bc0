"""Attention over a long row of short examples, at the cost of short rows.

Examples in a row do not see each other, and each has at most `window` tokens. A block of
consecutive queries therefore sees nothing but its own block and the `window - 1` tokens before it:
attention over all of a row's keys would compute products that the mask throws away, with a row of
2,048 tokens about as many as everything else in a layer takes. Values and gradients are those of
attention over the whole row under `jaxalign.lm.transformer.causal_mask`.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from jaxalign.lm.lanes import from_lanes, to_lanes
from jaxalign.lm.transformer import Attend, exact_products, rounded

Lanes = tuple[jax.Array, jax.Array]  # of `jaxalign.lm.lanes.unit_lanes`

# Float32 scores that are held at once; more are computed a few blocks at a time, and again in the
# backward pass.
_SCORES = 2**26
_MASKED = -1e30  # finite, so that a query that sees nothing (padding) has a gradient


def query_block(window: int) -> int:
    """Return how many queries are computed together; long rows should be multiples of it.

    Short blocks waste fewer keys, long ones are larger products.
    """
    return 64 if window <= 96 else 128 if window <= 1024 else 256


def block_length(row_length: int, window: int) -> int:
    """Return the length of a row's blocks: all of it if it is hardly longer than an example."""
    wanted = query_block(window)
    if row_length <= window + wanted or row_length % wanted:
        return row_length
    return wanted


def attend_within(segments_T: jax.Array, window: int) -> Attend:
    """Return causal attention within examples, for the layers of one row.

    Args:
        segments_T: int32, the example that each token belongs to; 0 is padding.
        window: Most tokens of an example. With longer ones the result would be wrong.
    """
    return jax.tree_util.Partial(functools.partial(_attend, window), segments_T)


def attend_in_units(segments_T: jax.Array, lanes: Lanes, window: int) -> Attend:
    """Return the attention of `attend_within`, computed unit by unit.

    A unit's keys then stand in the same places wherever the unit is in its row: sums over keys have
    one order, and a unit's bits do not depend on what stands beside it.

    Args:
        segments_T: int32, the example that each token belongs to; 0 is padding.
        lanes: Where the units are (`jaxalign.lm.lanes.unit_lanes`).
        window: Most tokens of an example.
    """
    return jax.tree_util.Partial(functools.partial(_attend_in_units, window), segments_T, lanes)


def attend_kept_in_units(
    segments_T: jax.Array, at_A: jax.Array, lanes: Lanes, kept: Lanes
) -> Attend:
    """Return the attention of the queries at some positions, computed unit by unit.

    Args:
        segments_T: int32, the example that each token belongs to; 0 is padding.
        at_A: int32, the positions of the queries.
        lanes: Where the units are.
        kept: Where the units' queries are among these.
    """
    return jax.tree_util.Partial(_attend_kept_in_units, segments_T, at_A, lanes, kept)


def _attend_in_units(
    window: int,
    segments_T: jax.Array,
    lanes: Lanes,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: None = None,
) -> jax.Array:
    q, k, v = (to_lanes(x[0], *lanes)[:, None] for x in (q, k, v))
    segments_UxM = to_lanes(segments_T, *lanes)
    o = jax.vmap(functools.partial(_attend, window))(segments_UxM, q, k, v)
    return from_lanes(o[:, 0], *lanes)[None]


def _attend_kept_in_units(
    segments_T: jax.Array,
    at_A: jax.Array,
    lanes: Lanes,
    kept: Lanes,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: None = None,
) -> jax.Array:
    k, v = (to_lanes(x[0], *lanes) for x in (k, v))
    # Keys of the query's own example up to the query. Places without a token have segment 0.
    key_segments, query_segments = to_lanes(segments_T, *lanes), to_lanes(segments_T[at_A], *kept)
    key_at, query_at = to_lanes(jnp.arange(len(segments_T)), *lanes), to_lanes(at_A, *kept)
    seen = (query_segments[:, :, None] == key_segments[:, None]) & (key_segments > 0)[:, None]
    seen &= key_at[:, None] <= query_at[:, :, None]
    q = to_lanes(q[0], *kept)
    U, A, N, H = q.shape
    K = k.shape[2]
    o = _attend_block(q.reshape(U, A, K, N // K, H), k, v, seen)
    return from_lanes(o.reshape(U, A, N, H), *kept)[None]


def _attend(
    window: int, segments_T: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, cache: None = None
) -> jax.Array:
    """Attend in blocks of queries [nb, c] to the blocks before them and their own."""
    (_, T, N, H), K = q.shape, k.shape[2]
    c = block_length(T, window)
    back = math.ceil((window - 1) / c) if c < T else 0  # blocks before a query's own that it sees
    # Blocks of queries with the heads that share keys together, and the keys that each block sees.
    q_blocks = q.reshape(T // c, c, K, N // K, H)
    k_blocks, v_blocks = (_with_blocks_before(x[0], c, back) for x in (k, v))
    key_segments = _with_blocks_before(segments_T, c, back)
    # Whether a key stands up to its query, counted from the first key that the block sees.
    earlier = jnp.arange((back + 1) * c)[None] <= back * c + jnp.arange(c)[:, None]
    seen = (segments_T.reshape(-1, c)[:, :, None] == key_segments[:, None]) & earlier[None]
    seen &= (key_segments > 0)[:, None]
    blocks = (q_blocks, k_blocks, v_blocks, seen)
    if T * N * (back + 1) * c <= _SCORES:
        o = _attend_block(*blocks)
    else:
        at_once = max(1, _SCORES // (c * N * (back + 1) * c))
        while (T // c) % at_once:
            at_once -= 1
        parts = jax.tree.map(lambda x: x.reshape(-1, at_once, *x.shape[1:]), blocks)
        o = jax.lax.map(lambda part: jax.checkpoint(_attend_block)(*part), parts)
    return o.reshape(1, T, N, H)


def _with_blocks_before(x: jax.Array, c: int, back: int) -> jax.Array:
    """Return each block of c after the `back` blocks before it, [nb, (back + 1) * c, ...].

    Made of slices of the whole, whose gradient is a sum of slices: no scattered addition, whose
    order a GPU does not fix.
    """
    padded = jnp.pad(x, [(back * c, 0)] + [(0, 0)] * (x.ndim - 1))
    slices = [padded[j * c : j * c + len(x)].reshape(-1, c, *x.shape[1:]) for j in range(back + 1)]
    return jnp.concatenate(slices, axis=1)


def _attend_block(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array) -> jax.Array:
    """Attend; softmax in float32.

    Args:
        q: [nb, c, K, G, H].
        k: [nb, S, K, H].
        v: [nb, S, K, H].
        seen: bool [nb, c, S].

    Returns:
        [nb, c, K, G, H].
    """
    with exact_products(q.dtype):
        scores = jnp.einsum("bckgh,bskh->bkgcs", q, k, preferred_element_type=jnp.float32)
        scores = scores * (1 / math.sqrt(q.shape[-1]))
        weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, _MASKED), axis=-1)
        weights = rounded(weights, v.dtype)
        o = jnp.einsum("bkgcs,bskh->bckgh", weights, v, preferred_element_type=jnp.float32)
    return rounded(o, q.dtype)
