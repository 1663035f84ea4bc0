"""Weights stored in 8 bits: half the memory of bfloat16, the arithmetic unchanged.

Each linear layer's kernel becomes int8 with one scale per output, absmax / 127, kept beside it
(`llama.model.project` multiplies the outputs by it). Embeddings, head and norms stay as they are.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.transformer import AXES
from jaxalign.lm.weights import Params, block_weights, input_dims


def quantize(config: LlamaConfig, params: Params) -> Params:
    """The parameters with int8 kernels. One kernel at a time, so that the peak stays low."""
    table, out = block_weights(config), dict(params)
    for part, leading in (("layers", 1), ("last", 0)):
        out[part] = dict(params[part])
        for name in AXES:
            dims = input_dims(table[name].shape, table[name].fan_in)
            inputs = tuple(range(leading, leading + dims))
            kernel, scale = _quantize(params[part][name], inputs)
            out[part] |= {name: kernel, f"{name}_scale": scale}
    return out


@functools.partial(jax.jit, static_argnums=1)
def _quantize(kernel: jax.Array, inputs: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """int8 of the kernel's shape, and float32 scales of its shape without the input axes."""
    kernel = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(kernel), axis=inputs, keepdims=True) / 127
    scale = jnp.where(scale > 0, scale, 1.0)
    rounded = jnp.clip(jnp.round(kernel / scale), -127, 127).astype(jnp.int8)
    return rounded, jnp.squeeze(scale, inputs)
