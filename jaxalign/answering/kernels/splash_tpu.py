"""Tree attention for TPUs by JAX's own block-sparse kernel, splash attention."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from jaxalign.answering.kernels import KERNELS
from jaxalign.answering.kernels.spans import Spans

BLOCK = 128  # queries and keys of a tile, the least that the kernel takes; not tuned


@KERNELS.register("splash")
@struct.dataclass
class SplashKernel:
    """Attention under fixed spans: (q [B, T, N, H], k [B, S, K, H], v alike) -> [B, T, N, H]."""

    platforms: ClassVar[tuple[str, ...]] = ("tpu",)

    kernel: Any  # splash's own: a pytree of block tables
    queries: int = struct.field(pytree_node=False)  # padded to whole blocks
    keys: int = struct.field(pytree_node=False)

    @classmethod
    def make(cls, spans: Spans, heads: int, interpret: bool = False) -> SplashKernel:
        """Return the kernel for these queries and keys, which are the same for all heads."""
        from jax.experimental.pallas.ops.tpu.splash_attention import (
            splash_attention_kernel,
            splash_attention_mask,
        )

        mask = spans.padded(BLOCK, BLOCK).mask()
        kernel = splash_attention_kernel.make_splash_mha(
            splash_attention_mask.MultiHeadMask([splash_attention_mask.NumpyMask(mask)] * heads),
            block_sizes=splash_attention_kernel.BlockSizes(block_q=BLOCK, block_kv=BLOCK),
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        return cls(kernel, *mask.shape)

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        T = q.shape[1]
        # Splash does not scale the queries itself.
        scaled = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
        heads_first = (
            _heads_first(scaled, self.queries),
            *(_heads_first(x, self.keys) for x in (k, v)),
        )
        # The kernel knows no batch; `vmap` gives it one.
        return jnp.swapaxes(jax.vmap(self.kernel)(*heads_first), 1, 2)[:, :T]


def _heads_first(x: jax.Array, length: int) -> jax.Array:
    """Return [B, T, N, H] as [B, N, length, H], padded with zeros."""
    return jnp.swapaxes(jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0))), 1, 2)
