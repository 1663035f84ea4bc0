"""Tree attention by a fused kernel, in the place of `jaxalign.answering.attention`.

    cudnn    NVIDIA's own, under a mask of all queries and keys; GPU, bfloat16
    pallas   ours, which skips what nobody sees; GPU
    splash   JAX's block-sparse kernel; TPU

All compute what `tree_attention` computes, to rounding. Gradients are those of plain attention.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxalign.answering.kernels import pallas_gpu, splash_tpu
from jaxalign.answering.kernels.spans import Spans, sees
from jaxalign.lm.transformer import KeyValue, masked_attention

FusedKernel = Literal["cudnn", "pallas", "splash"]


@struct.dataclass
class CudnnKernel:
    """Attention under a mask: (q [B, T, N, H], k [B, S, K, H], v alike) -> [B, T, N, H]."""

    mask_1x1xTxS: jax.Array
    interpret: bool = struct.field(pytree_node=False)  # by XLA, for tests

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(
            q, k, v, mask=self.mask_1x1xTxS, implementation="xla" if self.interpret else "cudnn"
        )


@struct.dataclass
class FusedTables:
    """A layout's attention by one kernel; takes the place of `tree_attention.RowTables`."""

    kernel: Any
    asks_T: jax.Array
    until_S: jax.Array
    common: int = struct.field(pytree_node=False)  # W: tokens before the tree in the block


def fused_tables(
    spans: Spans, common: int, kernel: FusedKernel, heads: int, interpret: bool = False
) -> FusedTables:
    """What a kernel needs for these queries and keys. `interpret` (tests): on any device."""
    if kernel == "cudnn":
        made = CudnnKernel(jnp.asarray(spans.mask())[None, None], interpret)
    elif kernel == "pallas":
        made = pallas_gpu.make_kernel(spans, interpret)
    else:
        made = splash_tpu.make_kernel(spans, heads, interpret)
    return FusedTables(made, jnp.asarray(spans.asks_T), jnp.asarray(spans.until_S), common)


def fused_attention(
    tables: FusedTables, q: jax.Array, k: jax.Array, v: jax.Array, before: KeyValue
) -> jax.Array:
    """Attention over [before | common | ancestors in the tree]; softmax in float32.

    q [B, T, N, H], for every query of the spans; k, v [B, W + T, K, H]; before [S, K, H] each.
    """
    k, v = (
        jnp.concatenate([jnp.broadcast_to(past[None], (own.shape[0], *past.shape)), own], axis=1)
        for own, past in ((k, before[0]), (v, before[1]))
    )
    return _attend(tables, q, k, v)


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
