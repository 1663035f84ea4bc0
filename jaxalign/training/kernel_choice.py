"""Which attention training uses: the fastest one on this device, measured before a run.

As in the search (`jaxalign.answering.kernel_choice`): every kernel of the device attends once in a
row of random numbers, forward and backward, and what fails or disagrees with XLA is left out.
Float32, which is exact with XLA, CPUs, and weights split over devices leave XLA alone.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig
from jaxalign.runtime.kernel_timing import (
    KernelChoice,
    Outputs,
    compare_kernels,
    fastest_kernel,
    timed,
)
from jaxalign.runtime.platform import target_platform
from jaxalign.runtime.sharding import MODEL
from jaxalign.training.attention import attend_within
from jaxalign.training.fused import FUSED_KERNELS, Fused

AttentionOption = Literal["auto", "xla", "cudnn", "splash"]


def available_kernels(
    config: LlamaConfig, model_devices: int, examples: int, platform: str
) -> tuple[tuple[str, ...], str]:
    """Return the kernels that rows may be attended in with, and the reason why it is these.

    Args:
        config: The model's shapes and dtypes.
        model_devices: Devices that share one copy of the weights.
        examples: Most examples of a row, if they may be computed one by one; 0 if not.
        platform: "cpu", "gpu" or "tpu".
    """
    fused = FUSED_KERNELS.get(platform, ())
    for ruled_out, reason in (
        (not fused, f"{platform} has xla alone"),
        (config.dtype != "bfloat16", "float32 is exact with xla alone"),
        (model_devices > 1, "weights split over devices leave xla alone"),
        (platform == "gpu" and not examples, "rows of several adapters have xla alone on a gpu"),
    ):
        if ruled_out:
            return ("xla",), reason
    return ("xla", *fused), f"{platform} has {', '.join(('xla', *fused))}"


@functools.lru_cache(maxsize=16)
def choose_kernel(
    config: LlamaConfig,
    mesh: Mesh,
    row_length: int,
    window: int,
    examples: int = 0,
    option: AttentionOption = "auto",
) -> KernelChoice:
    """Choose the attention of rows on this process's first device.

    The same arguments give the same choice: it is measured once in a process.

    Args:
        config: The model's shapes and dtypes.
        mesh: The devices. For described ones, which cannot measure, auto is XLA.
        row_length: Tokens of a row.
        window: Most tokens of an example.
        examples: Most examples of a row, if they may be computed one by one; 0 if not.
        option: A kernel by name, or auto.

    Raises:
        UserError: If the kernel named cannot be used on these devices.
    """
    kernels, reason = available_kernels(config, mesh.shape[MODEL], examples, target_platform())
    # A plan for chips that this machine lacks has devices of its own.
    here = mesh.devices.flat[0] in jax.devices()
    if option != "auto":
        if option not in kernels:
            raise UserError(f"`train.attention` {option}: {reason}")
        if option == "cudnn" and not here:
            raise UserError(
                f"`train.attention` {option}: cannot be compiled without a GPU; give xla"
            )
        return KernelChoice(option, "as asked")
    if len(kernels) == 1:
        return KernelChoice(kernels[0], reason)
    if not here:
        return KernelChoice("xla", "no such device is here to measure others on")
    return measured_choice(config, row_length, window, examples, kernels)


def measured_choice(
    config: LlamaConfig,
    row_length: int,
    window: int,
    examples: int,
    kernels: tuple[str, ...],
    interpret: bool = False,
) -> KernelChoice:
    """Time the kernels on a row of random numbers and choose the fastest that agrees with XLA.

    Args:
        config: The model's shapes and dtypes.
        row_length: Tokens of the row.
        window: Most tokens of an example.
        examples: Most examples of the row; 0 for any number.
        kernels: Names of kernels, XLA's first.
        interpret: Whether to run them on any device, slowly.
    """
    segments_T = _segments(row_length, window, examples)
    N, K, H = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, g = (
        jax.random.normal(key, (1, row_length, heads, H), jnp.dtype(config.dtype))
        for key, heads in zip(keys, (N, K, K, N), strict=True)
    )
    # What padding attends to is not used.
    used = (segments_T > 0)[None, :, None, None]
    g = g * used

    def attempt(kernel: str) -> tuple[Outputs, float]:
        fused = None if kernel == "xla" else Fused(kernel, interpret=interpret)

        def run(segments_T: jax.Array, *qkv: jax.Array) -> tuple[jax.Array, ...]:
            attend = attend_within(segments_T, window, examples, fused)
            # Both passes count: a kernel that is fast forward alone does not help training.
            out, backward = jax.vjp(lambda *qkv: attend(*qkv, None) * used, *qkv)
            return out, *backward(g)

        return timed(jax.jit(run), segments_T, q, k, v)

    return fastest_kernel(kernels, compare_kernels(kernels, attempt))


def _segments(row_length: int, window: int, examples: int) -> jax.Array:
    """Return a row of examples of one length: the longest, or as many as a row may have."""
    each = min(window, row_length // examples) if examples else window
    number = np.arange(row_length) // max(1, each) + 1
    return jnp.asarray(np.where(number <= (examples or row_length), number, 0), jnp.int32)
