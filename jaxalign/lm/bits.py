"""Bfloat16 weights as bits, for programs that a CPU runs.

XLA computes bfloat16 on a CPU by converting it to float32 and back, and whatever bfloat16 array
enters a loop is converted *whole, before the loop*: a stack of layers, a head inside a map over
chunks, the cache of a decoding loop. That takes twice the weights again in temporaries, and reading
the wider copy is slower. An array of uint16 enters a loop as it is. So on CPU, programs are given
their bfloat16 weights as uint16 (`as_bits`, which does not copy), and the model reads the bits of a
matrix as bfloat16 (`from_bits`) where it is multiplied, so that one matrix at a time is converted.

Float32 weights, 8-bit weights, adapters in float32 and all accelerators are left alone. What is
passed as bits has no gradient: it must be frozen.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.runtime.platform import target_platform


def as_bits(tree: Any) -> Any:
    """Return a tree with its bfloat16 arrays as uint16, if programs are made for a CPU.

    Call it on a model's weights before they are passed to a compiled program, so that they are bits
    in every loop of it. Bits stay as they are. Nothing is copied, except inside a traced function,
    where XLA writes the bits once.

    Args:
        tree: arrays or `jax.ShapeDtypeStruct`s. Other leaves are returned unchanged.

    Returns:
        The same tree for a GPU or TPU.
    """
    if target_platform() != "cpu":
        return tree
    return jax.tree.map(_as_bits, tree)


def from_bits(tree: Any) -> Any:
    """Return a tree with its uint16 arrays read as bfloat16; inside a compiled function."""

    def read(x: Any) -> Any:
        is_bits = getattr(x, "dtype", None) == jnp.uint16
        return jax.lax.bitcast_convert_type(x, jnp.bfloat16) if is_bits else x

    return jax.tree.map(read, tree)


def _as_bits(x: Any) -> Any:
    if getattr(x, "dtype", None) != jnp.bfloat16:
        return x
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, jnp.uint16, sharding=x.sharding)
    if isinstance(x, jax.core.Tracer) or not isinstance(x, jax.Array):
        return jax.lax.bitcast_convert_type(x, jnp.uint16)
    # The bits of each shard, in the memory that holds it. The view keeps the array alive.
    shards = [
        jax.device_put(np.asarray(shard.data).view(np.uint16), shard.device, may_alias=True)
        for shard in x.addressable_shards
    ]
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, shards)
