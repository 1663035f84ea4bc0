"""Store weights in 8 bits: half the memory of bfloat16, with unchanged arithmetic.

The kernel of each linear layer becomes int8 with one scale per output, absmax / 127, kept beside it
(`jaxalign.lm.transformer.project` multiplies the outputs by it). Embeddings, head and norms stay as
they are.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.transformer import AXES
from jaxalign.lm.weights import Params, block_weights, input_dims


def quantize(config: LlamaConfig, params: Params) -> Params:
    """Return the parameters with int8 kernels, converted one at a time to keep peak memory low."""
    table, out = block_weights(config), dict(params)
    for group, leading in (("layers", 1), ("last", 0)):
        out[group] = dict(params[group])
        for name in AXES:
            dims = input_dims(table[name].shape, table[name].fan_in)
            # Input axes come first, after the axis of stacked layers.
            inputs = tuple(range(leading, leading + dims))
            kernel, scale = _quantize(params[group][name], inputs)
            out[group] |= {name: kernel, f"{name}_scale": scale}
    return out


@functools.partial(jax.jit, static_argnums=1)
def _quantize(kernel: jax.Array, inputs: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Return the int8 kernel, and float32 scales of its shape without the input axes."""
    kernel = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(kernel), axis=inputs, keepdims=True) / 127
    scale = jnp.where(scale > 0, scale, 1.0)  # an output whose weights are all zero
    rounded = jnp.clip(jnp.round(kernel / scale), -127, 127).astype(jnp.int8)
    return rounded, jnp.squeeze(scale, inputs)
