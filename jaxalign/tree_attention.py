"""Attention over a prefix tree: what every token sees, and its own ancestors by a static table.

Source of the pattern: `jaxalign.layout`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxalign.layout import Rows
from jaxalign.llama.model import KeyValue, masked_attention

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
    common, tree = (k[:, :W], v[:, :W]), (k[:, W:], v[:, W:])
    if rows.only_tree:
        return _tree_queries(rows, q, common, tree, before)
    out = _tree_queries(rows, q[:, W:], common, tree, before)
    if W == 0:
        return out
    return jnp.concatenate([_common_queries(q[:, :W], common, before), out], axis=1)


def _common_queries(q_BxWxNxH: jax.Array, common: KeyValue, before: KeyValue) -> jax.Array:
    """Prompt and trunk: causal among themselves, after `before`."""
    B, W = q_BxWxNxH.shape[:2]
    keys, values = (
        jnp.concatenate([jnp.broadcast_to(b[None], (B, *b.shape)), c], axis=1)
        for b, c in zip(before, common, strict=True)
    )
    S = before[0].shape[0]
    mask = np.tril(np.ones((W, S + W), bool), k=S)[None, None]
    return masked_attention(mask, q_BxWxNxH, keys, values)


def _tree_queries(
    rows: RowTables, q: jax.Array, common: KeyValue, tree: KeyValue, before: KeyValue
) -> jax.Array:
    """Tree tokens: everything common, and their own ancestors by the row's key table."""
    B, _, N, H = q.shape
    R, L, _ = rows.mask_RxLxS.shape
    K = tree[0].shape[2]
    q = jnp.pad(q, ((0, 0), (0, R * L - rows.queries), (0, 0), (0, 0)))
    q = q.reshape(B, R, L, K, N // K, H)
    k, v = (t[:, rows.keys_RxS] for t in tree)  # [B, R, S, K, H]
    own = scaled_scores("brlkgh,brskh->bkgrls", q, k)
    own = jnp.where(rows.mask_RxLxS[None, None, None], own, UNSEEN)
    scores = [
        scaled_scores("brlkgh,skh->bkgrls", q, before[0]),
        scaled_scores("brlkgh,bskh->bkgrls", q, common[0]),
        own,
    ]
    sizes = np.cumsum([s.shape[-1] for s in scores])[:-1].tolist()
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(q.dtype)
    to_before, to_common, to_own = jnp.split(weights, sizes, axis=-1)
    out = mix("bkgrls,skh->brlkgh", to_before, before[1])
    out += mix("bkgrls,bskh->brlkgh", to_common, common[1])
    out += mix("bkgrls,brskh->brlkgh", to_own, v)
    return out.reshape(B, R * L, N, H)[:, : rows.queries].astype(q.dtype)


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
