"""Attention over a prefix tree: each token sees the shared text, and its ancestors by a table.

`jaxalign.answering.plan` says which token sees which. Letters: B batch, W common token (prompt and
trunk), T tree token, A answer node, R row, L query of a row, Q = G x L queries of a row with their
heads, S key, K key-value head, G query heads per key-value head, N = K x G query heads, H head
width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxalign.answering.key_order import (
    OrderedKeys,
    attend_in_order,
    attend_to_text,
    ordered_keys,
)
from jaxalign.answering.plan import Rows
from jaxalign.lm.transformer import KeyValue, masked_attention, rounded
from jaxalign.runtime.platform import target_platform

# A score of keys that are not seen. It is finite, so that the gradient of a padding query, which
# may see no key at all, is not NaN.
UNSEEN = float(np.finfo(np.float32).min)


@struct.dataclass
class RowTables:
    """The attention of a layout's rows, `plan.Rows`, as arrays on the device."""

    keys_RxS: jax.Array
    mask_RxLxS: jax.Array
    common: int = struct.field(pytree_node=False)  # W: tokens before the tree
    queries: int = struct.field(pytree_node=False)  # number of real tree queries
    only_tree: bool = struct.field(pytree_node=False)  # whether only tree tokens ask
    ordered: OrderedKeys | None = None  # all keys by position, where sums depend on their order
    # Whether a gradient computes layers again. XLA then turns a softmax's division into a product
    # with the reciprocal in a program for one device, but not in one for several, which have other
    # last bits; so the reciprocal is written out. Elsewhere XLA finds it in both.
    recomputed: bool = struct.field(pytree_node=False, default=False)

    def in_order(self, positions_S: jax.Array, before: int, longest: int) -> RowTables:
        """Return these tables for attention that sums over keys in the order of positions.

        Args:
            positions_S: positions of all keys: [before | common | tree].
            before: how many of them come before the prompt.
            longest: positions of the longest text, at least.
        """
        keys = ordered_keys(
            self.keys_RxS,
            self.mask_RxLxS,
            positions_S,
            shared=before + self.common,
            longest=longest,
            consecutive=not self.only_tree,
        )
        return self.replace(ordered=keys)


def row_tables(rows: Rows, common: int, only_tree: bool) -> RowTables:
    """Put a layout's rows on the device; `common` tokens come before the tree."""
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
    """Return attention over [before | common | ancestors in the tree]; softmax in float32.

    In bfloat16 on a CPU, no bit depends on how the keys are cut into these three.

    Args:
        rows: which tree token sees which.
        q: queries [B, W + T, N, H], or [B, A, N, H] where only tree tokens ask.
        k: keys [B, W + T, K, H] of the common tokens and the tree.
        v: values alike.
        before: keys and values [S, K, H] of the text before the prompt, the same for the batch.

    Returns:
        Outputs in the shape and dtype of q.
    """
    # Split keys and values into what all tree tokens see, and the tree's own.
    W = rows.common
    shared, tree = [], []
    for own, past in ((k, before[0]), (v, before[1])):
        past = jnp.broadcast_to(past[None], (own.shape[0], *past.shape))
        shared.append(jnp.concatenate([past, own[:, :W]], axis=1))
        tree.append(own[:, W:])
    tree_queries = _tree_queries
    if rows.ordered is not None:
        tree_queries = _with_plain_gradient(_ordered_tree_queries, _tree_queries)
    if rows.only_tree:
        return tree_queries(rows, q, shared, tree)
    out = tree_queries(rows, q[:, W:], shared, tree)
    if W == 0:
        return out
    common = _common_queries(q[:, :W], shared, rows.recomputed)
    return jnp.concatenate([common, out], axis=1)


def _common_queries(
    q_BxWxNxH: jax.Array, shared: Sequence[jax.Array], recomputed: bool
) -> jax.Array:
    """Attend as prompt and trunk: to all text before them, and causally among themselves."""
    W, S = q_BxWxNxH.shape[1], shared[0].shape[1]
    mask = np.tril(np.ones((W, S), bool), k=S - W)[None, None]
    if recomputed and not sums_in_order(q_BxWxNxH.dtype):
        return _attention_by_reciprocals(mask, q_BxWxNxH, *shared)
    return plain_attention(mask, q_BxWxNxH, *shared)


def _attention_by_reciprocals(
    mask_BxTxS: np.ndarray, q: jax.Array, k: jax.Array, v: jax.Array
) -> jax.Array:
    """Attend as `masked_attention` does, without a division that XLA may rewrite."""
    B, T, N, H = q.shape
    q = q.reshape(B, T, k.shape[2], -1, H)
    scores = scaled_scores("btkgh,bskh->bkgts", q, k)
    weights = softmax_by_reciprocals(jnp.where(mask_BxTxS[:, :, None], scores, UNSEEN))
    out = mix("bkgts,bskh->btkgh", rounded(weights, q.dtype), v)
    return rounded(out.reshape(B, T, N, H), q.dtype)


def softmax_by_reciprocals(scores: jax.Array) -> jax.Array:
    """Return the softmax over the last axis, its sums inverted before they are multiplied with."""
    largest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    return weights * (1.0 / weights.sum(axis=-1, keepdims=True))


def plain_attention(
    mask_BxTxS: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, cache: None = None
) -> jax.Array:
    """Attend under a boolean mask [B or 1, 1, T, S], with the bits that a tree's tokens would get.

    For text that a tree's tokens see and that is computed apart from them; key s is at position s.
    """
    if not sums_in_order(q.dtype):
        return masked_attention(mask_BxTxS, q, k, v)
    return _with_plain_gradient(attend_to_text, masked_attention)(mask_BxTxS, q, k, v)


def sums_in_order(dtype: Any) -> bool:
    """Return whether attention of this dtype sums over keys in the order of their positions."""
    return dtype == jnp.bfloat16 and target_platform() == "cpu"


def _with_plain_gradient(function: Callable, plain: Callable) -> Callable:
    """Return a function of (tables, *arrays) with the gradient of another that computes the same.

    Weights that are integers have none.
    """

    @jax.custom_vjp
    def both(tables: Any, *arrays: Any) -> jax.Array:
        return function(tables, *arrays)

    def forward(tables: Any, *arrays: Any) -> tuple[jax.Array, Any]:
        return function(tables, *arrays), (tables, arrays)

    def backward(kept: Any, g: jax.Array) -> tuple[Any, ...]:
        tables, arrays = kept
        _, pull = jax.vjp(functools.partial(plain, tables), *arrays)
        return None, *pull(g)

    both.defvjp(forward, backward)
    return both


def _tree_queries(
    rows: RowTables, q: jax.Array, shared: Sequence[jax.Array], tree: Sequence[jax.Array]
) -> jax.Array:
    """Attend as tree tokens: to everything shared, and to ancestors by the row's table of keys.

    Heads come first, so that every product is of matrices that lie in one piece.
    """
    R, L, _ = rows.mask_RxLxS.shape
    B, _, N, H = q.shape
    K = tree[0].shape[2]
    # Cut the queries into rows; the G heads that share keys stand beside each other in a row.
    q = jnp.pad(q, ((0, 0), (0, R * L - rows.queries), (0, 0), (0, 0)))
    q = q.reshape(B, R, L, K, N // K, H).transpose(0, 3, 1, 4, 2, 5).reshape(B, K, R, -1, H)
    shared, tree = ([jnp.swapaxes(x, 1, 2) for x in both] for both in (shared, tree))
    out = _row_queries(rows, q, shared, tree)
    out = out.reshape(B, K, R, -1, L, H).transpose(0, 2, 4, 1, 3, 5)
    return out.reshape(B, R * L, N, H)[:, : rows.queries]


def _row_queries(
    rows: RowTables, q: jax.Array, shared: Sequence[jax.Array], tree: Sequence[jax.Array]
) -> jax.Array:
    """Attend as rows of queries [B, K, R, Q, H], to shared [B, K, W, H] and tree [B, K, T, H] keys.

    The softmax runs over both kinds of keys without putting them together, and divides its outputs,
    not its weights.
    """
    B, K, R, Q, H = q.shape
    k, v = (x[:, :, rows.keys_RxS] for x in tree)  # [B, K, R, S, H]
    own = _unless_unseen(rows, scaled_scores("bkrqh,bkrsh->bkrqs", q, k))
    # One maximum over both kinds of keys keeps the exponentials in range.
    largest = own.max(axis=-1, keepdims=True)
    if shared[0].shape[2]:
        to_shared = scaled_scores("bkqh,bkwh->bkqw", q.reshape(B, K, R * Q, H), shared[0])
        to_shared = to_shared.reshape(B, K, R, Q, -1)
        largest = jnp.maximum(largest, to_shared.max(axis=-1, keepdims=True))
    largest = jax.lax.stop_gradient(largest)
    # Numerator and denominator of the softmax, of the tree's keys first, then of the shared ones.
    weights = jnp.exp(own - largest)
    total = weights.sum(axis=-1, keepdims=True)
    out = mix("bkrqs,bkrsh->bkrqh", rounded(weights, q.dtype), v)
    if shared[0].shape[2]:
        weights = jnp.exp(to_shared - largest)
        total += weights.sum(axis=-1, keepdims=True)
        weights = rounded(weights, q.dtype).reshape(B, K, R * Q, -1)
        out += mix("bkqw,bkwh->bkqh", weights, shared[1]).reshape(out.shape)
    return rounded(out * (1.0 / total) if rows.recomputed else out / total, q.dtype)


def _ordered_tree_queries(
    rows: RowTables, q: jax.Array, shared: Sequence[jax.Array], tree: Sequence[jax.Array]
) -> jax.Array:
    """Attend as `_tree_queries` does; no bit depends on how the keys are laid out."""
    k, v = (jnp.concatenate(both, axis=1) for both in zip(shared, tree, strict=True))
    return attend_in_order(rows.ordered, q, k, v)


def _unless_unseen(rows: RowTables, scores_BxKxRxQxS: jax.Array) -> jax.Array:
    """Return scores of rows' own keys; what a query does not see gets the lowest score."""
    R, L, S = rows.mask_RxLxS.shape
    G = scores_BxKxRxQxS.shape[3] // L
    mask_RxQxS = jnp.broadcast_to(rows.mask_RxLxS[:, None], (R, G, L, S)).reshape(R, G * L, S)
    return jnp.where(mask_RxQxS[None, None], scores_BxKxRxQxS, UNSEEN)


def scaled_scores(equation: str, q: jax.Array, k: jax.Array) -> jax.Array:
    """Return products of queries and keys divided by sqrt(H), accumulated in float32."""
    precision = "highest" if q.dtype == jnp.float32 else "default"
    scale = q.shape[-1] ** -0.5
    return scale * jnp.einsum(
        equation, q, k, precision=precision, preferred_element_type=jnp.float32
    )


def mix(equation: str, weights: jax.Array, v: jax.Array) -> jax.Array:
    """Return weighted sums of values, accumulated in float32."""
    precision = "highest" if v.dtype == jnp.float32 else "default"
    return jnp.einsum(equation, weights, v, precision=precision, preferred_element_type=jnp.float32)
