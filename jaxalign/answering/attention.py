"""Attention over a prefix tree: what every token sees, and its own ancestors by a static table.

Source of the pattern: `jaxalign.answering.plan`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxalign.answering.plan import Rows
from jaxalign.lm.transformer import KeyValue, masked_attention

# Finite, so that a padding query, which may see no key at all, has no NaN in its gradient.
UNSEEN = float(np.finfo(np.float32).min)


@struct.dataclass
class RowTables:
    """`layout.Rows` as arrays for the device."""

    keys_RxS: jax.Array
    mask_RxLxS: jax.Array
    common: int = struct.field(pytree_node=False)  # W: tokens before the tree in the block
    queries: int = struct.field(pytree_node=False)  # real tree queries
    only_tree: bool = struct.field(pytree_node=False)  # queries are tree tokens alone


def row_tables(rows: Rows, common: int, only_tree: bool) -> RowTables:
    """A layout's rows on the device; `common` tokens come before the tree."""
    return RowTables(
        keys_RxS=jnp.asarray(rows.keys_RxS),
        mask_RxLxS=jnp.asarray(rows.mask_RxLxS),
        common=common,
        queries=rows.queries,
        only_tree=only_tree,
    )


def tree_attention(
    rows: RowTables, q: jax.Array, k: jax.Array, v: jax.Array, before: KeyValue
) -> jax.Array:
    """Attention over [before | common | ancestors in the tree]; softmax in float32.

    q [B, W + T, N, H] (or [B, A, N, H] where only tree tokens ask); k, v [B, W + T, K, H];
    before: keys and values [S, K, H].
    """
    W = rows.common
    shared, tree = [], []
    for own, past in ((k, before[0]), (v, before[1])):
        past = jnp.broadcast_to(past[None], (own.shape[0], *past.shape))
        shared.append(jnp.concatenate([past, own[:, :W]], axis=1))
        tree.append(own[:, W:])
    if rows.only_tree:
        return _tree_queries(rows, q, shared, tree)
    out = _tree_queries(rows, q[:, W:], shared, tree)
    if W == 0:
        return out
    return jnp.concatenate([_common_queries(q[:, :W], shared), out], axis=1)


def _common_queries(q_BxWxNxH: jax.Array, shared: Sequence[jax.Array]) -> jax.Array:
    """Prompt and trunk: causal among themselves, after the text before them."""
    W, S = q_BxWxNxH.shape[1], shared[0].shape[1]
    mask = np.tril(np.ones((W, S), bool), k=S - W)[None, None]
    return masked_attention(mask, q_BxWxNxH, *shared)


def _tree_queries(
    rows: RowTables, q: jax.Array, shared: Sequence[jax.Array], tree: Sequence[jax.Array]
) -> jax.Array:
    """Tree tokens: everything shared, and their own ancestors by the row's key table.

    Heads come first, so that every product is of matrices that lie in one piece. The softmax runs
    over both kinds of keys without putting them together, and divides its outputs, not its weights.
    """
    B, _, N, H = q.shape
    R, L, S = rows.mask_RxLxS.shape
    K = tree[0].shape[2]
    G = N // K
    q = jnp.pad(q, ((0, 0), (0, R * L - rows.queries), (0, 0), (0, 0)))
    q = q.reshape(B, R, L, K, G, H).transpose(0, 3, 1, 4, 2, 5).reshape(B, K, R, G * L, H)
    k, v = (jnp.swapaxes(x, 1, 2)[:, :, rows.keys_RxS] for x in tree)  # [B, K, R, S, H]
    own = scaled_scores("bkrqh,bkrsh->bkrqs", q, k)
    mask_RxQxS = jnp.broadcast_to(rows.mask_RxLxS[:, None], (R, G, L, S)).reshape(R, G * L, S)
    own = jnp.where(mask_RxQxS[None, None], own, UNSEEN)
    largest = own.max(axis=-1, keepdims=True)
    if shared[0].shape[1]:
        shared_k, shared_v = (jnp.swapaxes(x, 1, 2) for x in shared)
        every_q = q.reshape(B, K, R * G * L, H)
        to_shared = scaled_scores("bkqh,bkwh->bkqw", every_q, shared_k)
        to_shared = to_shared.reshape(B, K, R, G * L, -1)
        largest = jnp.maximum(largest, to_shared.max(axis=-1, keepdims=True))
    largest = jax.lax.stop_gradient(largest)
    weights = jnp.exp(own - largest)
    total = weights.sum(axis=-1, keepdims=True)
    out = mix("bkrqs,bkrsh->bkrqh", weights.astype(q.dtype), v)
    if shared[0].shape[1]:
        weights = jnp.exp(to_shared - largest)
        total += weights.sum(axis=-1, keepdims=True)
        weights = weights.astype(q.dtype).reshape(B, K, R * G * L, -1)
        out += mix("bkqw,bkwh->bkqh", weights, shared_v).reshape(out.shape)
    out = (out / total).astype(q.dtype).reshape(B, K, R, G, L, H).transpose(0, 2, 4, 1, 3, 5)
    return out.reshape(B, R * L, N, H)[:, : rows.queries]


def scaled_scores(equation: str, q: jax.Array, k: jax.Array) -> jax.Array:
    """Products of queries and keys over sqrt(H), accumulated and returned in float32."""
    precision = "highest" if q.dtype == jnp.float32 else "default"
    scale = q.shape[-1] ** -0.5
    return scale * jnp.einsum(
        equation, q, k, precision=precision, preferred_element_type=jnp.float32
    )


def mix(equation: str, weights: jax.Array, v: jax.Array) -> jax.Array:
    """Weighted sums of values, accumulated and returned in float32."""
    precision = "highest" if v.dtype == jnp.float32 else "default"
    return jnp.einsum(equation, weights, v, precision=precision, preferred_element_type=jnp.float32)
