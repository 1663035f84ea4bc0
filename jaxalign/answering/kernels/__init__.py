"""Kernels that compute the attention of a prefix tree faster than plain XLA on some devices.

Each kernel is one file of this package that registers a class under the kernel's name:

    @KERNELS.register("mine")
    class MyKernel:
        platforms = ("gpu",)

To add a kernel, add such a file; `--attention` then offers it, and automatic choice measures it.
Files import what only their device needs (Pallas, splash) inside functions, so that looking at the
list costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import jax

from jaxalign.core.registry import Registry

if TYPE_CHECKING:
    from jaxalign.answering.kernels.spans import Spans


class AttentionKernel(Protocol):
    """Attention of fixed queries over fixed keys: a pytree that is called with arrays."""

    platforms: tuple[str, ...]
    """Names of JAX platforms on which the kernel can run."""

    @classmethod
    def make(cls, spans: Spans, heads: int, interpret: bool) -> AttentionKernel:
        """Return the kernel for these queries and keys.

        Args:
            spans: which query sees which keys.
            heads: query heads of the model.
            interpret: compute the same on any device, slowly; for tests.
        """

    @classmethod
    def at_run_time(cls, asks_T: jax.Array, until_S: jax.Array, interpret: bool) -> AttentionKernel:
        """Return the kernel for queries and keys that are known when the program runs.

        Args:
            asks_T: int32, the position of each query (see `jaxalign.answering.kernels.spans`).
            until_S: int32, the first position that no longer sees a key.
            interpret: compute the same on any device, slowly; for tests.
        """

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Return the attention's outputs [B, T, N, H], in q's dtype.

        Args:
            q: queries [B, T, N, H], not yet scaled.
            k: keys [B, S, K, H]; each is shared by N / K query heads.
            v: values [B, S, K, H].
        """


KERNELS: Registry[type[AttentionKernel]] = Registry("kernel", __name__, parameter="attention")
