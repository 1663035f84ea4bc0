"""Attention that sums over keys in the order of their positions, for bfloat16 on a CPU.

A model in bfloat16 rounds in every layer, and a difference in the last digit of a float32 sum
decides some of these roundings otherwise. Each of those is a difference of a bfloat16 digit, and
after a few layers two programs that sum the same keys in another order are as far apart as two
roundings of the model: SmolLM2's losses differed by 2 points, although both programs rounded at the
same places. Products with weights do not bring such differences, because on CPU a row's bits depend
neither on the other rows nor on their number. Sums over keys would: a search keeps the text that
all questions share apart, and a block of conversations cuts its tree into other rows.

A token sees one key at each position before it, and keys that it does not see have a weight of
exactly zero, which changes no sum. In float32 and for certain shapes (`_product`), XLA adds up to
512 terms of a product one after another on a CPU. So whatever else stands in a row, its sums have
the same bits if its keys are sorted by position, and if longer texts are summed in blocks of the
same positions, of which none holds more than 512 keys. The weights are integers, computed as such,
because the last digit of XLA's own exponential depends on what it is compiled with; so the
denominator is exact.

Letters: B batch, R row, L query of a row, Q = L x G queries of a row with the G heads that share a
key head, S key, K key-value head, H head width.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import struct

from jaxalign.lm.transformer import rounded

TERMS_IN_ORDER = 512  # of a float32 product on a CPU, and at most so many numbers of y: see below
_COLUMNS = 64  # of a product: the number must be a multiple
_NUMBERS_IN_ORDER = TERMS_IN_ORDER * _COLUMNS
BLOCK = 384  # positions that are summed together; leaves room for the longest rows of queries
# A score of keys that are not seen; finite, so that a query that sees no key gives no NaN.
_UNSEEN = float(jnp.finfo(jnp.float32).min)
_FRACTION = 2**14  # steps of an exponent of two
_WEIGHT_BITS = 15  # of the largest weight: the weights of a block add up to less than 2^24
# 2^x of a fraction x, highest power first, in units of 2^-16; fitted to a relative error of 3e-5.
_POWER_OF_TWO = (892, 3389, 15842, 45411, 65536)


@struct.dataclass
class OrderedKeys:
    """Keys of rows of queries, counted over [before | common | tree], in blocks of positions."""

    keys_RxS: jax.Array  # int32; padding repeats key 0
    mask_RxLxS: jax.Array  # bool: query l of row r sees key s
    widths: tuple[int, ...] = struct.field(pytree_node=False)  # columns of each block


def ordered_keys(
    keys_RxS: jax.Array,
    mask_RxLxS: jax.Array,
    positions_S: jax.Array,
    shared: int,
    longest: int,
    consecutive: bool,
) -> OrderedKeys:
    """Arrange the keys of rows by blocks of positions.

    Args:
        keys_RxS: tree keys of each row, in depth-first order.
        mask_RxLxS: which query sees which of them; padding is seen by none.
        positions_S: positions of all keys, those of the tree behind the shared ones.
        shared: number of keys before the tree, which every query sees.
        longest: positions of the longest text, at least.
        consecutive: whether a row's queries follow each other in the tree, so that a row sees at
            most L keys besides one at each position.

    Returns:
        The keys of the same rows; of a row for each query, where rows could not be kept.
    """
    R, L, _ = mask_RxLxS.shape
    seen_by_all = jnp.broadcast_to(jnp.arange(shared, dtype=jnp.int32), (R, shared))
    keys = jnp.concatenate([seen_by_all, keys_RxS + shared], axis=1)
    mask = jnp.concatenate([jnp.ones((R, L, shared), bool), mask_RxLxS], axis=2)
    if longest <= BLOCK and keys.shape[1] <= TERMS_IN_ORDER:
        keys, mask = _whole_columns(keys, -1), _whole_columns(mask, -1)
        return OrderedKeys(keys, mask, (keys.shape[1],))
    if not consecutive:
        keys, mask = jnp.repeat(keys, L, axis=0), mask.reshape(R * L, 1, -1)
    return _in_blocks(keys, mask, positions_S, longest, more=L if consecutive else 0)


def _in_blocks(
    keys_RxS: jax.Array, mask_RxLxS: jax.Array, positions: jax.Array, longest: int, more: int
) -> OrderedKeys:
    """Move keys to the columns of their block of positions, `more` besides one a position."""
    R, L, S = mask_RxLxS.shape
    starts = range(0, longest, BLOCK)
    widths = tuple(_round_up(min(BLOCK, longest - start) + more) for start in starts)
    block_RxS, seen_RxS = positions[keys_RxS] // BLOCK, mask_RxLxS.any(axis=1)
    column_RxS = jnp.full((R, S), sum(widths))  # beyond the last column: dropped
    for b, width in enumerate(widths):
        here = seen_RxS & (block_RxS == b)
        column = sum(widths[:b]) + jnp.cumsum(here, axis=1) - 1
        column_RxS = jnp.where(here & (column < sum(widths[:b]) + width), column, column_RxS)
    row, query = jnp.arange(R)[:, None], jnp.arange(L)[None, :, None]
    keys = jnp.zeros((R, sum(widths)), jnp.int32).at[row, column_RxS].set(keys_RxS, mode="drop")
    mask = jnp.zeros((R, L, sum(widths)), bool)
    mask = mask.at[row[:, None], query, column_RxS[:, None]].set(mask_RxLxS, mode="drop")
    return OrderedKeys(keys, mask, widths)


def attend_in_order(
    table: OrderedKeys, q_BxTxNxH: jax.Array, k_BxSxKxH: jax.Array, v_BxSxKxH: jax.Array
) -> jax.Array:
    """Return the attention of T queries, of which the last row may have fewer than L.

    Args:
        table: the keys of each row.
        q_BxTxNxH: the queries.
        k_BxSxKxH: all keys that the table counts.
        v_BxSxKxH: their values.

    Returns:
        Outputs in the shape and dtype of the queries.
    """
    R, L, S = table.mask_RxLxS.shape
    (B, T, N, H), K = q_BxTxNxH.shape, k_BxSxKxH.shape[2]
    # Cut the queries into rows; the G heads that share keys stand beside each other in a row.
    q = jnp.pad(q_BxTxNxH, ((0, 0), (0, R * L - T), (0, 0), (0, 0)))
    q = q.reshape(B, R, L, K, N // K, H).transpose(0, 3, 1, 4, 2, 5).reshape(B, K, R, -1, H)
    k, v = (jnp.swapaxes(x, 1, 2)[:, :, table.keys_RxS] for x in (k_BxSxKxH, v_BxSxKxH))
    mask = jnp.broadcast_to(table.mask_RxLxS[:, None], (R, N // K, L, S)).reshape(R, -1, S)
    out = _softmax_sum(mask[None, None], q, k, v, table.widths)
    out = out.reshape(B, K, R, -1, L, H).transpose(0, 2, 4, 1, 3, 5)
    return rounded(out.reshape(B, R * L, N, H)[:, :T], q_BxTxNxH.dtype)


def attend_to_text(
    mask_Bx1xTxS: jax.Array, q_BxTxNxH: jax.Array, k_BxSxKxH: jax.Array, v_BxSxKxH: jax.Array
) -> jax.Array:
    """Return attention under a mask [B or 1, 1, T, S], where key s stands at position s."""
    (B, T, N, H), (S, K) = q_BxTxNxH.shape, k_BxSxKxH.shape[1:3]
    q = q_BxTxNxH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)
    k, v = (jnp.swapaxes(x, 1, 2) for x in (k_BxSxKxH, v_BxSxKxH))
    mask = jnp.broadcast_to(mask_Bx1xTxS, (mask_Bx1xTxS.shape[0], N // K, T, S))
    mask = _whole_columns(mask.reshape(mask.shape[0], 1, -1, S), -1)
    k, v = (_whole_columns(x, -2) for x in (k, v))
    S = k.shape[2]
    widths = [min(BLOCK, S - start) for start in range(0, S, BLOCK)]
    out = _softmax_sum(mask, q, k, v, widths)
    out = out.reshape(B, K, N // K, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
    return rounded(out, q_BxTxNxH.dtype)


def _softmax_sum(
    mask: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, widths: tuple[int, ...] | list[int]
) -> jax.Array:
    """Return softmax(q k / sqrt(H)) v, float32 [..., Q, H], summed block by block of keys."""
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    # The factor goes to the queries, since a compiler might contract it with what follows.
    scores = _product(q * q.shape[-1] ** -0.5, jnp.swapaxes(k, -1, -2))
    scores = jnp.where(mask, scores, _UNSEEN)
    weights = _weights(scores - scores.max(axis=-1, keepdims=True))
    H, v = v.shape[-1], _whole_columns(v, -1)
    out, total, start = 0.0, 0.0, 0
    for width in widths:
        block = slice(start, start + width)
        out += _product(weights[..., block], v[..., block, :])
        total += weights[..., block].sum(axis=-1, keepdims=True)
        start += width
    return out[..., :H] / total


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    """Multiply float32 matrices [..., M, K] and [..., K, N] so that each sum runs in order.

    It does with XLA's products on a CPU where N is a multiple of 64 and M is not 1, as long as K is
    at most 512 and y has at most 512 x 64 numbers. With another N the terms are shared out to
    several sums.
    """
    M, K = x.shape[-2:]
    if M == 1:
        x = jnp.concatenate([x, x], axis=-2)
    columns = max(_COLUMNS, _NUMBERS_IN_ORDER // K // _COLUMNS * _COLUMNS)
    parts = [
        jnp.matmul(x, y[..., start : start + columns], precision="highest")
        for start in range(0, y.shape[-1], columns)
    ]
    return jnp.concatenate(parts, axis=-1)[..., :M, :]


def _whole_columns(x: jax.Array, axis: int) -> jax.Array:
    """Fill an axis up with zeros to a whole number of columns."""
    more = [(0, 0)] * x.ndim
    more[axis] = (0, _round_up(x.shape[axis]) - x.shape[axis])
    return jnp.pad(x, more)


def _round_up(n: int) -> int:
    return -(-n // _COLUMNS) * _COLUMNS


def _weights(x: jax.Array) -> jax.Array:
    """Return exp(x) of x <= 0 in units of 2^-15, as whole numbers in float32."""
    steps = jnp.round(jnp.maximum(x, -45.0) * (_FRACTION / math.log(2))).astype(jnp.int32)
    fraction = steps & (_FRACTION - 1)
    power = jnp.int32(_POWER_OF_TWO[0])
    for coefficient in _POWER_OF_TWO[1:]:
        power = (power * fraction >> 14) + coefficient
    return (power >> jnp.minimum(16 - _WEIGHT_BITS - (steps >> 14), 31)).astype(jnp.float32)
