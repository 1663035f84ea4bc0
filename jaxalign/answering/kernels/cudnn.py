"""Tree attention by NVIDIA's cuDNN, under a mask of all queries and keys."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from jaxalign.answering.kernels import KERNELS
from jaxalign.answering.kernels.spans import Spans, sees


@KERNELS.register("cudnn")
@struct.dataclass
class CudnnKernel:
    """Attention under a mask: (q [B, T, N, H], k [B, S, K, H], v alike) -> [B, T, N, H]."""

    platforms: ClassVar[tuple[str, ...]] = ("gpu",)

    mask_1x1xTxS: jax.Array
    interpret: bool = struct.field(pytree_node=False)  # computed by XLA, for tests

    @classmethod
    def make(cls, spans: Spans, heads: int, interpret: bool = False) -> CudnnKernel:
        """Return the kernel for these queries and keys; the number of heads does not matter."""
        return cls(jnp.asarray(spans.mask())[None, None], interpret)

    @classmethod
    def at_run_time(cls, asks_T: jax.Array, until_S: jax.Array, interpret: bool) -> CudnnKernel:
        """Return the kernel for queries and keys that are known when the program runs."""
        until_1xS = until_S[None]
        mask_TxS = sees(asks_T[:, None], jnp.arange(until_1xS.size)[None], until_1xS)
        return cls(mask_TxS[None, None], interpret)

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        implementation = "xla" if self.interpret else "cudnn"
        return jax.nn.dot_product_attention(
            q, k, v, mask=self.mask_1x1xTxS, implementation=implementation
        )
