"""Attention over rows of examples by kernels made for a device, forward and backward.

On TPUs JAX's splash attention, which goes through the blocks of keys that causality and the longest
example leave, and keeps the examples of a row apart by their numbers. On GPUs cuDNN, which knows no
rows of several examples: they are laid one by one. In both, heads that share keys read one copy,
scores never leave the chip, and the backward pass is the kernel's own. Neither has run on such a
device: they are interpreted in tests, and splash is compiled ahead of time for a v5e.

Letters: T token of a row, E example, M place of an example, N query head, K key-value head, H head
width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

# Kernels by the platform that they are made for.
FUSED_KERNELS = {"gpu": ("cudnn",), "tpu": ("splash",)}


@dataclasses.dataclass(frozen=True)
class Fused:
    """A kernel, and where the rows lie that it attends in.

    Attributes:
        kernel: "cudnn" or "splash".
        mesh: The devices that rows are spread over, between which XLA cannot split a kernel by
            itself; None for one device.
        rows: The mesh axis, or axes, that `vmap` spreads rows over.
        interpret: Whether to compute the same on any device, slowly; for tests.
    """

    kernel: str
    mesh: Mesh | None = None
    rows: str | tuple[str, ...] | None = None
    interpret: bool = False

    @classmethod
    def of(cls, kernel: str, mesh: Mesh, rows: str | tuple[str, ...]) -> Fused | None:
        """Return the kernel for rows on a mesh; None for plain XLA."""
        if kernel == "xla":
            return None
        return cls(kernel) if mesh.size == 1 else cls(kernel, mesh, rows)

    def on_each_device(self, attend: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
        """Return `attend(*arrays)` of one row, computed by the device that holds the row.

        Rows are a `vmap` with `spmd_axis_name=self.rows`.
        """
        if self.mesh is None:
            return attend(*arrays)
        # Seen from one row nothing is split; `vmap` adds the axis of rows to these specifications.
        whole = PartitionSpec()
        return jax.shard_map(
            attend, mesh=self.mesh, in_specs=whole, out_specs=whole, check_vma=False
        )(*arrays)


def splash_block(row_length: int, window: int) -> int:
    """Return the queries and keys of a tile; not tuned, since this has not run on a TPU yet.

    Short tiles waste fewer keys, long ones are larger products; 128 is the least there is.
    """
    wanted = 128 if window <= 256 else 256 if window <= 1024 else 512
    return min(wanted, -(-row_length // 128) * 128)


def splash_attention(
    segments_T: jax.Array,
    window: int,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    interpret: bool = False,
) -> jax.Array:
    """Return causal attention within the examples of a row, [T, N, H].

    Args:
        segments_T: int32, the example that each token belongs to. Padding, with 0, attends to
            padding.
        window: Most tokens of an example.
        q: [T, N, H], not yet scaled.
        k: [T, K, H].
        v: [T, K, H].
        interpret: Whether to run it on any device, slowly.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    T, N, H = q.shape
    block = splash_block(T, window)
    length = -(-T // block) * block
    # Computed in the kernel from positions: no mask of all queries and keys exists.
    within = splash_attention_mask.LocalMask((length, length), (window - 1, 0), offset=0)
    # Tiles of the forward pass, of the gradients of keys and values, and of those of queries.
    tiles: dict[str, Any] = dict.fromkeys(
        ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"), block
    )
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([within] * N),
        block_sizes=splash_attention_kernel.BlockSizes(**tiles),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    # Splash does not scale the queries itself.
    q = (q.astype(jnp.float32) * H**-0.5).astype(q.dtype)
    heads_first = (
        jnp.swapaxes(jnp.pad(x, ((0, length - T), (0, 0), (0, 0))), 0, 1) for x in (q, k, v)
    )
    # What fills the last tile belongs to the padding, which no example sees.
    segments = jnp.pad(segments_T, (0, length - T))
    out = kernel(*heads_first, splash_attention_kernel.SegmentIds(segments, segments))
    return jnp.swapaxes(out, 0, 1)[:T]


def cudnn_attention(
    sizes_E: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, interpret: bool = False
) -> jax.Array:
    """Return causal attention within examples that are laid one by one, [E, M, N, H].

    Args:
        sizes_E: int, the tokens of each example; what stands in places beyond them is not defined.
        q: [E, M, N, H], not yet scaled.
        k: [E, M, K, H].
        v: [E, M, K, H].
        interpret: Whether XLA computes it, for tests.
    """
    # An example of no tokens, of which rows have some, counts as one of zeros.
    sizes_E = jnp.maximum(sizes_E, 1).astype(jnp.int32)
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=True,
        query_seq_lengths=sizes_E,
        key_value_seq_lengths=sizes_E,
        implementation="xla" if interpret else "cudnn",
    )
