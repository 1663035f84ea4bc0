"""Tree attention for TPUs by JAX's own block-sparse kernel, splash attention."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from jaxalign.answering.kernels import KERNELS
from jaxalign.answering.kernels.spans import Spans, sees

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
        from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask

        mask = spans.padded(BLOCK, BLOCK).mask()
        of_heads = [splash_attention_mask.NumpyMask(mask)] * heads
        kernel = _splash(splash_attention_mask.MultiHeadMask(of_heads), interpret)
        return cls(kernel, *mask.shape)

    @classmethod
    def at_run_time(cls, asks_T: jax.Array, until_S: jax.Array, interpret: bool) -> SplashKernel:
        """Return the kernel for queries and keys that are known when the program runs.

        Splash then reads a mask of all of them, a byte for each pair, one for all heads.
        """
        # A padding query asks what the last one asks, and no query sees a padding key.
        asks_Tx1 = jnp.pad(asks_T, (0, -len(asks_T) % BLOCK), mode="edge")[:, None]
        until_1xS = jnp.pad(until_S, (0, -len(until_S) % BLOCK))[None]
        mask_TxS = sees(asks_Tx1, jnp.arange(until_1xS.size)[None], until_1xS)
        kernel = _splash(mask_TxS[None], interpret)
        # Names a scope in profiles, and is a flag that tracing would turn into an array.
        kernel.fwd_mask_info = kernel.fwd_mask_info._replace(is_dynamic_mask=None)
        return cls(kernel, *mask_TxS.shape)

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


def _splash(mask: Any, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    return splash_attention_kernel.make_splash_mha(
        mask,
        block_sizes=splash_attention_kernel.BlockSizes(block_q=BLOCK, block_kv=BLOCK),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )


def _heads_first(x: jax.Array, length: int) -> jax.Array:
    """Return [B, T, N, H] as [B, N, length, H], padded with zeros."""
    return jnp.swapaxes(jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0))), 1, 2)
