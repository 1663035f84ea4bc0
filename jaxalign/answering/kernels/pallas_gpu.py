"""Tree attention for GPUs in Pallas: an online softmax over the blocks of keys that are seen.

One program per block of queries, candidate and head. It goes through the key blocks that its table
names, so a tree costs what it shows and not the square of its length; scores never leave the chip.
Online softmax: Milakov and Gimelshein 2018; tiling: FlashAttention-2 (Dao 2023).
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxalign.answering.kernels import KERNELS
from jaxalign.answering.kernels.spans import Spans, sees

BLOCK = 64  # queries and keys of a tile; not tuned, since this has not run on a GPU yet
_UNSEEN = float(np.finfo(np.float32).min)


@KERNELS.register("pallas")
@struct.dataclass
class PallasKernel:
    """Attention under fixed spans: (q [B, T, N, H], k [B, S, K, H], v alike) -> [B, T, N, H]."""

    platforms: ClassVar[tuple[str, ...]] = ("gpu",)

    asks_T: jax.Array  # int32, padded to whole blocks
    until_S: jax.Array
    blocks_IxJ: jax.Array  # `Spans.blocks`
    interpret: bool = struct.field(pytree_node=False)  # run as plain XLA, for tests

    @classmethod
    def make(cls, spans: Spans, heads: int, interpret: bool = False) -> PallasKernel:
        """Return the kernel for these queries and keys; the number of heads does not matter."""
        padded = spans.padded(BLOCK, BLOCK)
        blocks_IxJ = jnp.asarray(padded.blocks(BLOCK, BLOCK))
        return cls(jnp.asarray(padded.asks_T), jnp.asarray(padded.until_S), blocks_IxJ, interpret)

    @classmethod
    def at_run_time(cls, asks_T: jax.Array, until_S: jax.Array, interpret: bool) -> PallasKernel:
        """Return the kernel for queries and keys that are known when the program runs."""
        # A padding query asks what the last one asks, and no query sees a padding key.
        asks_T = jnp.pad(asks_T, (0, -len(asks_T) % BLOCK), mode="edge")
        until_S = jnp.pad(until_S, (0, -len(until_S) % BLOCK))
        return cls(asks_T, until_S, visible_blocks(asks_T, until_S), interpret)

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        from jax.experimental import pallas as pl
        from jax.experimental.pallas import triton

        T, H = q.shape[1], q.shape[3]
        width = max(16, pl.next_power_of_2(H))  # of the least tile that tensor cores take
        q = _pad(q, len(self.asks_T), width)
        k, v = (_pad(x, len(self.until_S), width) for x in (k, v))
        B, padded, N, _ = q.shape
        G = N // k.shape[2]
        # A program reads its block of queries, and all keys and values of its key-value head.
        whole = pl.BlockSpec((None, k.shape[1], None, width), lambda i, b, n: (b, 0, n // G, 0))
        tile = pl.BlockSpec((None, BLOCK, None, width), lambda i, b, n: (b, i, n, 0))
        out = pl.pallas_call(
            functools.partial(_tile, scale=H**-0.5),
            grid=(padded // BLOCK, B, N),
            in_specs=[
                pl.BlockSpec((BLOCK,), lambda i, b, n: (i,)),
                pl.BlockSpec(self.until_S.shape, lambda i, b, n: (0,)),
                pl.BlockSpec((None, self.blocks_IxJ.shape[1]), lambda i, b, n: (i, 0)),
                tile,
                whole,
                whole,
            ],
            out_specs=tile,
            out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
            compiler_params=triton.CompilerParams(num_warps=4 if width <= 64 else 8, num_stages=2),
            interpret=self.interpret,
            name="tree_attention",
        )(self.asks_T, self.until_S, self.blocks_IxJ, q, k, v)
        return out[:, :T, :, :H]


def visible_blocks(asks_T: jax.Array, until_S: jax.Array) -> jax.Array:
    """Return `Spans.blocks` as far as the first and last position of a block of queries tell.

    Where these are consecutive, that is exact; otherwise blocks may be among them that nobody sees,
    which the mask takes care of.

    Args:
        asks_T: int32, positions of queries, whole blocks of them.
        until_S: int32, the first positions that no longer see the keys, whole blocks of them.

    Returns:
        int32 [T / BLOCK, 1 + S / BLOCK]: how many blocks of keys, then which.
    """
    asks_IxL = asks_T.reshape(-1, BLOCK)
    first_Ix1, last_Ix1 = (f(asks_IxL, axis=1, keepdims=True) for f in (jnp.min, jnp.max))
    seen_IxS = (jnp.arange(len(until_S))[None] <= last_Ix1) & (until_S[None] > first_Ix1)
    seen_IxJ = seen_IxS.reshape(len(asks_IxL), -1, BLOCK).any(axis=2)
    count_Ix1 = seen_IxJ.sum(axis=1, keepdims=True)
    which_IxJ = jnp.argsort(~seen_IxJ, axis=1, stable=True)
    return jnp.concatenate([count_Ix1, which_IxJ], axis=1).astype(jnp.int32)


def _pad(x: jax.Array, length: int, width: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, width - x.shape[3])))


def _tile(
    asks_ref: Any,
    until_ref: Any,
    blocks_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    o_ref: Any,
    *,
    scale: float,
) -> None:
    """Compute one block of queries of one head.

    A query that has seen no key yet gives each key a weight of one; the first key that it does see
    wipes these out, since their maximum was the lowest number there is.
    """
    from jax.experimental import pallas as pl

    q, asks = q_ref[...], asks_ref[...]

    def body(j: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        out, largest, total = carry
        # The j-th block of keys that this block of queries sees.
        start = blocks_ref[j + 1] * BLOCK
        keys = pl.ds(start, BLOCK)
        at = start + jnp.arange(BLOCK)
        seen = sees(asks[:, None], at[None], until_ref[keys][None])
        scores = jnp.where(seen, scale * _dot(q, k_ref[keys, :], 1), _UNSEEN)
        # Rescale what has been added up so far to the new maximum, then add this block.
        higher = jnp.maximum(largest, scores.max(axis=1))
        kept, weights = jnp.exp(largest - higher), jnp.exp(scores - higher[:, None])
        out = kept[:, None] * out + _dot(weights.astype(q.dtype), v_ref[keys, :], 0)
        return out, higher, kept * total + weights.sum(axis=1)

    zeros = jnp.zeros(BLOCK, jnp.float32)
    nothing = jnp.zeros(q.shape, jnp.float32), zeros + _UNSEEN, zeros
    out, _, total = jax.lax.fori_loop(0, blocks_ref[0], body, nothing)
    o_ref[...] = (out / total[:, None]).astype(o_ref.dtype)


def _dot(a: jax.Array, b: jax.Array, over: int) -> jax.Array:
    """Return a times b over axis `over` of b, with float32 sums; float32 is exact."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a, b, (((1,), (over,)), ((), ())), precision, preferred_element_type=jnp.float32
    )
