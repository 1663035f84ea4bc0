"""Which attention kernel a run uses: the fastest one on this device, measured before the run.

Some cases leave no choice but plain XLA: float32, which is exact there; CPUs; weights split over
devices, for which XLA cannot split a kernel; and prompts behind the question. Otherwise every
kernel that is made for the device attends once as in the run. One that fails or disagrees with XLA
is left out, and the reason names it; the fastest of the others is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.answering.kernels import KERNELS
from jaxalign.answering.options import Kernel, attend, attention_tables
from jaxalign.answering.plan import Layout
from jaxalign.answering.plan_suffix import SuffixLayout
from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig
from jaxalign.runtime.kernel_timing import (
    KernelChoice,
    KernelTime,
    compare_kernels,
    fastest_kernel,
    timed,
)
from jaxalign.runtime.platform import target_platform

KERNEL_OPTIONS: tuple[str, ...] = ("auto", "xla", *KERNELS.names())
KernelOption = Literal[KERNEL_OPTIONS]  # read at run time by the command line


def choose_kernel(
    config: LlamaConfig,
    layout: Layout | SuffixLayout,
    chunk: int,
    model_devices: int,
    option: KernelOption = "auto",
) -> KernelChoice:
    """Choose the kernel for a layout on this process's first device.

    Args:
        config: the model's shapes and dtypes.
        layout: the plan of the items.
        chunk: prompts computed at a time.
        model_devices: number of devices that share one copy of the weights.
        option: a kernel by name, or "auto" to measure.

    Raises:
        UserError: if the kernel named in `option` cannot be used here.
    """
    kernels, reason = available(config, layout, model_devices, target_platform(), option)
    if option != "auto":
        return KernelChoice(option, "as asked")
    if len(kernels) == 1:
        return KernelChoice(kernels[0], reason)
    return fastest(config, layout, chunk, kernels)


def available(
    config: LlamaConfig,
    layout: Layout | SuffixLayout,
    model_devices: int,
    platform: str,
    option: KernelOption = "auto",
) -> tuple[tuple[Kernel, ...], str]:
    """Return the kernels that may be used, and the reason why it is these.

    Args:
        config: the model's shapes and dtypes.
        layout: the plan of the items.
        model_devices: number of devices that share one copy of the weights.
        platform: the platform's name in JAX: "cpu", "gpu" or "tpu".
        option: a kernel by name, or "auto".

    Raises:
        UserError: if the kernel named in `option` is not among them.
    """
    kernels, reason = _available(config, layout, model_devices, platform)
    if option not in ("auto", *kernels):
        raise UserError(f"`attention` {option}: {reason}")
    return kernels, reason


def _available(
    config: LlamaConfig, layout: Layout | SuffixLayout, model_devices: int, platform: str
) -> tuple[tuple[Kernel, ...], str]:
    fused = any(platform in KERNELS[name].platforms for name in KERNELS.names())
    if fused and isinstance(layout, SuffixLayout):
        return ("xla",), "prompts behind the question have xla alone"
    return kernels_of(config, model_devices, platform)


def kernels_of(
    config: LlamaConfig, model_devices: int, platform: str
) -> tuple[tuple[Kernel, ...], str]:
    """Return the kernels for a tree's attention, whatever the tree, and the reason."""
    fused = tuple(name for name in KERNELS.names() if platform in KERNELS[name].platforms)
    for ruled_out, reason in (
        (not fused, f"{platform} has xla alone"),
        (config.dtype != "bfloat16", "float32 is exact with xla alone"),
        (model_devices > 1, "weights split over devices leave xla alone"),
    ):
        if ruled_out:
            return ("xla",), reason
    kernels = ("xla", *fused)
    return kernels, f"{platform} has {', '.join(kernels)}"


def fastest(
    config: LlamaConfig, layout: Layout, chunk: int, kernels: Sequence[Kernel], **options: Any
) -> KernelChoice:
    """Time the kernels on random numbers and choose the fastest, the same on all processes.

    Args:
        config: the model's shapes and dtypes.
        layout: the plan of the items.
        chunk: prompts computed at a time.
        kernels: names of kernels. The others are held against the first, XLA; where that fails, so
            does the run.
        options: passed on to `attention_tables`.

    Returns:
        Process 0's choice, with the times of all kernels as the reason.
    """
    return fastest_kernel(kernels, time_kernels(config, layout, chunk, kernels, **options))


def time_kernels(
    config: LlamaConfig, layout: Layout, chunk: int, kernels: Sequence[Kernel], **options: Any
) -> list[KernelTime]:
    """Time the kernels of `fastest`, and compare each with the first; takes its arguments."""
    arrays = random_arrays(config, layout, chunk)

    def attempt(kernel: str) -> tuple[tuple[np.ndarray, ...], float]:
        out, seconds = _time(config, layout, kernel, arrays, **options)
        return (out,), seconds

    return compare_kernels(kernels, attempt)


def random_arrays(config: LlamaConfig, layout: Layout, chunk: int) -> tuple[jax.Array, ...]:
    """Return standard normal arrays of the shapes that a layer's attention gets in the run.

    Returns:
        q [B, T, N, H], then k and v [B, T, K, H], then those before the prompt [S, K, H].
    """
    N, K, H = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    own, before = (chunk, layout.tokens_computed), (len(layout.before),)
    shapes = (*own, N, H), *[(*own, K, H)] * 2, *[(*before, K, H)] * 2
    keys = jax.random.split(jax.random.key(0), len(shapes))
    dtype = jnp.dtype(config.dtype)
    return tuple(jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True))


def _time(
    config: LlamaConfig,
    layout: Layout,
    kernel: Kernel,
    arrays: tuple[jax.Array, ...],
    **options: Any,
) -> tuple[np.ndarray, float]:
    """Return what all tokens of a layer get, and the least seconds of several runs."""
    tables, _ = attention_tables(config, layout, kernel, **options)
    run = jax.jit(lambda tables, q, k, v, *before: attend(tables, q, k, v, before))
    (out,), seconds = timed(run, tables, *arrays)
    return out, seconds
