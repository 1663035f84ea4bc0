"""Tree attention by a fused kernel, in the place of `jaxalign.answering.attention`.

Every kernel computes what `tree_attention` computes, up to rounding. Gradients are those of plain
attention. Letters: B batch, W common token, T query, S key, N query head, K key-value head, H head
width.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxalign.answering.kernels import KERNELS
from jaxalign.answering.kernels.spans import Spans, sees
from jaxalign.lm.transformer import KeyValue, masked_attention


@struct.dataclass
class FusedTables:
    """A layout's attention by one kernel; takes the place of `attention.RowTables`."""

    kernel: Any
    asks_T: jax.Array
    until_S: jax.Array
    common: int = struct.field(pytree_node=False)  # W: tokens before the tree in the block


def fused_tables(
    spans: Spans, common: int, kernel: str, heads: int, interpret: bool = False
) -> FusedTables:
    """Return what a kernel needs for these queries and keys.

    Args:
        spans: which query sees which keys.
        common: W, tokens before the tree.
        kernel: name of the kernel, registered in `jaxalign.answering.kernels.KERNELS`.
        heads: query heads of the model.
        interpret: compute the same on any device, slowly; for tests.
    """
    made = KERNELS[kernel].make(spans, heads, interpret)
    return FusedTables(made, jnp.asarray(spans.asks_T), jnp.asarray(spans.until_S), common)


def run_time_tables(
    asks_T: jax.Array, until_S: jax.Array, kernel: str, interpret: bool = False
) -> FusedTables:
    """Return what a kernel needs for queries and keys that are known when the program runs.

    Args:
        asks_T: int32, the position of each query.
        until_S: int32, the first position that no longer sees a key.
        kernel: name of the kernel.
        interpret: compute the same on any device, slowly; for tests.
    """
    made = KERNELS[kernel].at_run_time(asks_T, until_S, interpret)
    return FusedTables(made, asks_T, until_S, common=0)


def fused_attention(
    tables: FusedTables, q: jax.Array, k: jax.Array, v: jax.Array, before: KeyValue
) -> jax.Array:
    """Return attention over [before | common | ancestors in the tree]; softmax in float32.

    Args:
        tables: the kernel and what it needs.
        q: queries [B, T, N, H], one for every query of the spans.
        k: keys [B, W + T, K, H] of the common tokens and the tree.
        v: values alike.
        before: keys and values [S, K, H] of the text before the prompt, the same for the batch.
    """
    k, v = (
        jnp.concatenate([jnp.broadcast_to(past[None], (own.shape[0], *past.shape)), own], axis=1)
        for own, past in ((k, before[0]), (v, before[1]))
    )
    return _attend(tables, q, k, v)


# The kernels have no gradients of their own, or none for a tree's mask. The backward pass is that
# of plain attention under the same mask, which recomputes the weights.
@jax.custom_vjp
def _attend(tables: FusedTables, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return tables.kernel(q, k, v)


def _forward(tables: FusedTables, *qkv: jax.Array) -> tuple[jax.Array, Any]:
    return _attend(tables, *qkv), (tables, qkv)


def _backward(kept: Any, g: jax.Array) -> tuple[jax.Array | None, ...]:
    tables, qkv = kept
    until_1xS = tables.until_S[None]
    mask_TxS = sees(tables.asks_T[:, None], jnp.arange(until_1xS.size)[None], until_1xS)
    _, pull = jax.vjp(lambda *qkv: masked_attention(mask_TxS[None, None], *qkv), *qkv)
    return None, *pull(g)


_attend.defvjp(_forward, _backward)
