"""Attention over a long row of short examples, at the cost of short rows.

Examples in a row do not see each other, and each has at most `window` tokens. A block of
consecutive queries therefore sees nothing but its own block and the `window - 1` tokens before it:
attention over all of a row's keys would compute products that the mask throws away, with a row of
2,048 tokens about as many as everything else in a layer takes. Values and gradients are those of
attention over the whole row under `jaxalign.lm.transformer.causal_mask`. A kernel made for the
device may take its place (`jaxalign.training.fused`).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.lm.lanes import from_lanes, to_lanes, unit_lanes
from jaxalign.lm.transformer import Attend, exact_products, rounded
from jaxalign.runtime.platform import target_platform
from jaxalign.training.fused import Fused, cudnn_attention, splash_attention

Lanes = tuple[jax.Array, jax.Array]  # of `jaxalign.lm.lanes.unit_lanes`

# Float32 scores that are held at once; more are computed a few blocks at a time.
_SCORES = 2**26
_MASKED = -1e30  # finite, so that a query that sees nothing (padding) has a gradient


def query_block(window: int) -> int:
    """Return how many queries are computed together; rows that are multiples of it need no padding.

    Short blocks waste fewer keys, long ones are larger products.
    """
    if target_platform() == "cpu":
        # Of 32 to 128 queries and 132 tokens, a third of the window took the least time.
        return max(32, math.ceil(window / 48) * 16)
    return 64 if window <= 96 else 128 if window <= 1024 else 256


def block_length(row_length: int, window: int) -> int:
    """Return the length of a row's blocks: all of it if it is hardly longer than an example."""
    wanted = query_block(window)
    return row_length if row_length <= window + wanted else wanted


def scores_per_query(row_length: int, window: int, examples: int = 0) -> float:
    """Return how many keys are computed for each token of a row and head, unseen ones included.

    Args:
        row_length: Tokens of a row.
        window: Most tokens of an example.
        examples: Most examples of a row, to compute them one by one; 0 for blocks.
    """
    if examples:
        return examples * example_places(window) ** 2 / row_length
    block = block_length(row_length, window)
    return block if block == row_length else (_blocks_before(block, window) + 1) * block


def example_places(window: int) -> int:
    """Return the places of an example that is computed by itself."""
    return math.ceil(window / 8) * 8


def attend_within(
    segments_T: jax.Array, window: int, examples: int = 0, fused: Fused | None = None
) -> Attend:
    """Return causal attention within examples, for the layers of one row.

    Args:
        segments_T: int32, the example that each token belongs to, from 1 on in the order in which
            they stand; 0 is padding, at the end.
        window: Most tokens of an example. With longer ones the result would be wrong.
        examples: Most examples of a row, which are then computed one by one, each padded to the
            window: the fastest where their lengths hardly differ. With more the result would be
            wrong. 0 computes the row in blocks.
        fused: A kernel made for the device; None for XLA. cuDNN needs the number of examples.
    """
    if fused is not None and fused.kernel == "splash":
        attend = functools.partial(_attend_by_splash, fused, window)
        return jax.tree_util.Partial(attend, segments_T)
    if not examples:
        return jax.tree_util.Partial(functools.partial(_attend, window), segments_T)
    sizes_E = jnp.sum(segments_T[None] == jnp.arange(1, examples + 1)[:, None], axis=1)
    lanes = unit_lanes(sizes_E, example_places(window), len(segments_T))
    if fused is not None:
        return jax.tree_util.Partial(functools.partial(_attend_by_cudnn, fused), sizes_E, lanes)
    return jax.tree_util.Partial(_attend_one_by_one, lanes)


def attend_in_units(
    segments_T: jax.Array, lanes: Lanes, window: int, fused: Fused | None = None
) -> Attend:
    """Return the attention of `attend_within`, computed unit by unit.

    A unit's keys then stand in the same places wherever the unit is in its row: sums over keys have
    one order, and a unit's bits do not depend on what stands beside it.

    Args:
        segments_T: int32, the example that each token belongs to; 0 is padding.
        lanes: Where the units are (`jaxalign.lm.lanes.unit_lanes`).
        window: Most tokens of an example.
        fused: A kernel made for the device; only splash is used, since cuDNN knows no units.
    """
    if fused is not None and fused.kernel != "splash":
        fused = None
    attend = functools.partial(_attend_in_units, window, fused)
    return jax.tree_util.Partial(attend, segments_T, lanes)


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


def _attend_by_splash(
    fused: Fused,
    window: int,
    segments_T: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: None = None,
) -> jax.Array:
    """Attend in a row [1, T, ...], or in several [B, T, ...] with their own segments [B, T]."""
    attend = jax.vmap(lambda s, q, k, v: splash_attention(s, window, q, k, v, fused.interpret))
    return fused.on_each_device(attend, segments_T.reshape(q.shape[:2]), q, k, v)


def _attend_by_cudnn(
    fused: Fused,
    sizes_E: jax.Array,
    lanes: Lanes,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: None = None,
) -> jax.Array:
    """Attend with the queries of each example to its own keys."""

    def attend(sizes_E: jax.Array, lanes: Lanes, *qkv: jax.Array) -> jax.Array:
        q, k, v = (to_lanes(x[0], *lanes) for x in qkv)
        return from_lanes(cudnn_attention(sizes_E, q, k, v, fused.interpret), *lanes)[None]

    return fused.on_each_device(attend, sizes_E, lanes, q, k, v)


def _attend_in_units(
    window: int,
    fused: Fused | None,
    segments_T: jax.Array,
    lanes: Lanes,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: None = None,
) -> jax.Array:
    q, k, v = (to_lanes(x[0], *lanes) for x in (q, k, v))
    segments_UxM = to_lanes(segments_T, *lanes)
    if fused is not None:
        # Each unit as a row of its own, so that its tiles are the same wherever it stands.
        o = _attend_by_splash(fused, window, segments_UxM, q, k, v)
        return from_lanes(o, *lanes)[None]
    q, k, v = (x[:, None] for x in (q, k, v))
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


def _attend_one_by_one(
    lanes: Lanes, q: jax.Array, k: jax.Array, v: jax.Array, cache: None = None
) -> jax.Array:
    """Attend with the queries of each example to its own keys."""
    q, k, v = (to_lanes(x[0], *lanes) for x in (q, k, v))
    (E, M, N, H), K = q.shape, k.shape[2]
    # Places without a token come last, so no token sees one.
    seen = jnp.broadcast_to(jnp.tril(jnp.ones((M, M), bool)), (E, M, M))
    o = _attend_blocks(q.reshape(E, M, K, N // K, H), k, v, seen)
    return from_lanes(o.reshape(E, M, N, H), *lanes)[None]


def _attend(
    window: int, segments_T: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, cache: None = None
) -> jax.Array:
    """Attend in blocks of queries [nb, c] to the blocks before them and their own."""
    (_, T, N, H), K = q.shape, k.shape[2]
    c = block_length(T, window)
    back = _blocks_before(c, window) if c < T else 0
    q, k, v, segments_T = (_padded(x, -T % c) for x in (q[0], k[0], v[0], segments_T))
    # Blocks of queries with the heads that share keys together, and the keys that each block sees.
    q_blocks = q.reshape(-1, c, K, N // K, H)
    k_blocks, v_blocks = (_with_blocks_before(x, c, back) for x in (k, v))
    key_segments = _with_blocks_before(segments_T, c, back)
    # Whether a key stands up to its query, counted from the first key that the block sees.
    earlier = jnp.arange((back + 1) * c)[None] <= back * c + jnp.arange(c)[:, None]
    seen = (segments_T.reshape(-1, c)[:, :, None] == key_segments[:, None]) & earlier[None]
    seen &= (key_segments > 0)[:, None]
    o = _attend_blocks(q_blocks, k_blocks, v_blocks, seen)
    return o.reshape(1, -1, N, H)[:, :T]


def _attend_blocks(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array) -> jax.Array:
    """Attend as `_attend_block`, with some blocks at a time if there are many scores."""
    (nb, c, K, G, _), S = q.shape, k.shape[1]
    if nb * c * K * G * S <= _SCORES:
        return _attend_block(q, k, v, seen)
    at_once = max(1, _SCORES // (c * K * G * S))
    while nb % at_once:
        at_once -= 1
    parts = jax.tree.map(lambda x: x.reshape(-1, at_once, *x.shape[1:]), (q, k, v, seen))
    return jax.lax.map(lambda part: _attend_block(*part), parts).reshape(q.shape)


def _blocks_before(block: int, window: int) -> int:
    """Return how many blocks before its own a query sees."""
    return math.ceil((window - 1) / block)


def _padded(x: jax.Array, count: int) -> jax.Array:
    """Return x with `count` zeros behind it along the first axis."""
    return jnp.pad(x, [(0, count)] + [(0, 0)] * (x.ndim - 1)) if count else x


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
    # Key heads come first and a block's queries with their heads are one axis X = c * G: products
    # then read and write matrices that are contiguous in memory.
    nb, c, K, G, H = q.shape
    q_bkXh = q.transpose(0, 2, 1, 3, 4).reshape(nb, K, c * G, H)
    o_bkXh = _attend_heads(q_bkXh, k.swapaxes(1, 2), v.swapaxes(1, 2), seen)
    return o_bkXh.reshape(nb, K, c, G, H).transpose(0, 2, 1, 3, 4)


@jax.custom_vjp
def _attend_heads(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array) -> jax.Array:
    """Attend with q [nb, K, X, H], k and v [nb, K, S, H]; returns [nb, K, X, H].

    A backward pass keeps the logarithms of the softmax's denominators instead of its weights, and
    computes the scores again (Dao et al. 2022, FlashAttention, section 3.1).
    """
    return _attend_forward(q, k, v, seen)[0]


def _attend_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array
) -> tuple[jax.Array, Any]:
    with exact_products(q.dtype):
        scores = _scores(q, k, seen)
        highest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - highest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        # Outputs are divided instead of weights: there are fewer of them.
        o = _float32("bkxs,bksh->bkxh", rounded(weights, v.dtype), v) / total
    o = rounded(o, q.dtype)
    return o, (q, k, v, seen, o, highest + jnp.log(total))


def _attend_backward(kept: Any, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, seen, o, log_total = kept
    dtype, g = q.dtype, rounded(g, q.dtype)
    with exact_products(dtype):
        weights = jnp.exp(_scores(q, k, seen) - log_total)
        v_gradient = _float32("bkxs,bkxh->bksh", rounded(weights, dtype), g)
        # The softmax's gradient: weights * (g v - the weighted mean of g v), which is g o.
        mean = jnp.sum(g.astype(jnp.float32) * o.astype(jnp.float32), axis=-1, keepdims=True)
        scores_gradient = weights * (_float32("bkxh,bksh->bkxs", g, v) - mean)
        scores_gradient = rounded(scores_gradient * _scale(q), dtype)
        q_gradient = _float32("bkxs,bksh->bkxh", scores_gradient, k)
        k_gradient = _float32("bkxs,bkxh->bksh", scores_gradient, q)
    return rounded(q_gradient, dtype), rounded(k_gradient, dtype), rounded(v_gradient, dtype), None


_attend_heads.defvjp(_attend_forward, _attend_backward)


def _scores(q: jax.Array, k: jax.Array, seen: jax.Array) -> jax.Array:
    """Return the masked scores, float32 [nb, K, X, S]."""
    nb, K, X, S = (*q.shape[:3], k.shape[2])
    scores = _float32("bkxh,bksh->bkxs", q, k) * _scale(q)
    # X is queries times heads, and the mask is the same for all heads.
    scores = scores.reshape(nb, K, seen.shape[1], -1, S)
    return jnp.where(seen[:, None, :, None], scores, _MASKED).reshape(nb, K, X, S)


def _scale(q: jax.Array) -> float:
    return 1 / math.sqrt(q.shape[-1])


def _float32(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)
