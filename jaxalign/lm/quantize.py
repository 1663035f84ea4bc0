"""Store weights in 8 bits: half the memory of bfloat16, with unchanged arithmetic.

The kernel of each linear layer becomes int8 with one scale per output, absmax / 127, kept beside it
(`jaxalign.lm.transformer.project` multiplies the outputs by it). Embeddings, head and norms stay as
they are. `quantize` converts a model that is loaded; `load_checkpoint(..., weights="int8")` gives
the same bits without ever holding it.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.weights import Params, block_weights, input_dims

# As a factor: compilers turn a division by 127 into it, with other last bits than the division.
_STEP = np.float32(1 / 127)


def quantize(config: LlamaConfig, params: Params) -> Params:
    """Return the parameters with int8 kernels, converted one at a time to keep peak memory low."""
    out = dict(params)
    kernels = {name: w for name, w in block_weights(config).items() if w.fan_in is not None}
    for group, leading in (("layers", 1), ("last", 0)):
        out[group] = dict(params[group])
        for name, weight in kernels.items():
            dims = input_dims(weight.shape, weight.fan_in)
            # Input axes come first, after the axis of stacked layers.
            inputs = tuple(range(leading, leading + dims))
            kernel, scale = _quantize(params[group][name], inputs)
            out[group] |= {name: kernel, f"{name}_scale": scale}
    return out


def int8_scale(largest: Any, xp: Any = np) -> Any:
    """Return what one step of an int8 kernel stands for, float32.

    Args:
        largest: Largest absolute value of each output's weights, float32.
        xp: `numpy` or `jax.numpy`.
    """
    scale = largest * _STEP
    return xp.where(scale > 0, scale, xp.float32(1))  # 1: an output whose weights are all zero


@functools.partial(jax.jit, static_argnums=1)
def _quantize(kernel: jax.Array, inputs: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Return the int8 kernel, and float32 scales of its shape without the input axes."""
    kernel = kernel.astype(jnp.float32)
    scale = int8_scale(jnp.max(jnp.abs(kernel), axis=inputs, keepdims=True), jnp)
    # Times the reciprocal, which is what a compiler may make of a division.
    rounded = jnp.clip(jnp.round(kernel * (1 / scale)), -127, 127).astype(jnp.int8)
    return rounded, jnp.squeeze(scale, inputs)
