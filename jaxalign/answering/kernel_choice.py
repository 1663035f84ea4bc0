"""Which attention kernel a device runs: the one that is fastest there, measured before the run.

Float32 is the exact mode and stays with plain XLA, as do CPUs, weights split over devices (XLA
cannot split a kernel for us) and prompts behind the question. Elsewhere every kernel that the
device has attends once as in the run; one that fails, or that disagrees with XLA, is left out and
said so, and the fastest of the rest is taken.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.answering.options import Kernel, attend, attention_tables
from jaxalign.answering.plan import Layout
from jaxalign.answering.plan_suffix import SuffixLayout
from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig
from jaxalign.runtime.hosts import agreed_choice

KernelOption = Literal["auto", "xla", "cudnn", "pallas", "splash"]
KERNEL_OPTIONS: tuple[KernelOption, ...] = get_args(KernelOption)

_ON = {"gpu": ("xla", "cudnn", "pallas"), "tpu": ("xla", "splash")}
_REPEATS = 5
# Outputs are means of values of unit variance; this many roundings of the largest may differ.
_ROUNDINGS = 4


@dataclasses.dataclass(frozen=True)
class KernelChoice:
    """A kernel and why it was taken."""

    kernel: Kernel
    reason: str

    def describe(self) -> str:
        """One line to print before a run."""
        return f"attention by {self.kernel}: {self.reason}"


def choose_kernel(
    config: LlamaConfig,
    layout: Layout | SuffixLayout,
    chunk: int,
    model_devices: int,
    asked: KernelOption = "auto",
) -> KernelChoice:
    """The kernel for a layout, `chunk` prompts at a time on the first device here.

    model_devices: how many share one copy of the weights. UserError where `asked` cannot be had.
    """
    platform = jax.local_devices()[0].platform
    there, why = available(config, layout, model_devices, platform, asked)
    if asked != "auto":
        return KernelChoice(asked, "as asked")
    if len(there) == 1:
        return KernelChoice(there[0], why)
    return fastest(config, layout, chunk, there)


def available(
    config: LlamaConfig,
    layout: Layout | SuffixLayout,
    model_devices: int,
    platform: str,
    asked: KernelOption = "auto",
) -> tuple[tuple[Kernel, ...], str]:
    """Kernels that may be asked for, and why these. UserError where `asked` is not among them."""
    kernels, reason = _available(config, layout, model_devices, platform)
    if asked not in ("auto", *kernels):
        raise UserError(f"--attention {asked}: {reason}")
    return kernels, reason


def _available(
    config: LlamaConfig, layout: Layout | SuffixLayout, model_devices: int, platform: str
) -> tuple[tuple[Kernel, ...], str]:
    for ruled_out, why in (
        (platform not in _ON, f"{platform} has xla alone"),
        (isinstance(layout, SuffixLayout), "prompts behind the question have xla alone"),
        (config.dtype != "bfloat16", "float32 is exact with xla alone"),
        (model_devices > 1, "weights split over devices leave xla alone"),
    ):
        if ruled_out:
            return ("xla",), why
    return _ON[platform], f"{platform} has {', '.join(_ON[platform])}"


def fastest(
    config: LlamaConfig, layout: Layout, chunk: int, kernels: Sequence[Kernel], **options: Any
) -> KernelChoice:
    """Try `kernels` on random numbers; process 0's choice holds for all processes.

    The first, XLA, is what the others are held against; where it fails, so does the run.
    """
    numbers = random_numbers(config, layout, chunk)
    expected, taken = _try(config, layout, kernels[0], numbers, **options)
    seconds, said = {kernels[0]: taken}, []
    for kernel in kernels[1:]:
        try:
            out, taken = _try(config, layout, kernel, numbers, **options)
        except Exception as error:  # whatever a compiler or driver may raise
            said.append(f"{kernel} fails ({' '.join(str(error).split())[:80]})")
            continue
        if not agree(out, expected):
            said.append(f"{kernel} disagrees with {kernels[0]}")
            continue
        seconds[kernel] = taken
    order = sorted(seconds, key=seconds.get)
    best = agreed_choice(kernels, order[0])
    times = (f"{kernel} {1e3 * seconds[kernel]:.3f}" for kernel in order)
    return KernelChoice(best, "; ".join([f"ms a layer: {', '.join(times)}", *said]))


def random_numbers(config: LlamaConfig, layout: Layout, chunk: int) -> tuple[jax.Array, ...]:
    """q [B, T, N, H], then k and v [B, T, K, H], then those before the prompt [S, K, H]."""
    N, K, H = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    own, before = (chunk, layout.tokens_computed), (len(layout.before),)
    shapes = (*own, N, H), *[(*own, K, H)] * 2, *[(*before, K, H)] * 2
    keys = jax.random.split(jax.random.key(0), len(shapes))
    dtype = jnp.dtype(config.dtype)
    return tuple(jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True))


def agree(found: np.ndarray, expected: np.ndarray) -> bool:
    """Equal to a few roundings of bfloat16, relative to the largest."""
    bound = _ROUNDINGS * float(jnp.finfo(jnp.bfloat16).eps) * np.abs(expected).max()
    return bool(np.isfinite(found).all() and np.abs(found - expected).max() <= bound)


def _try(
    config: LlamaConfig,
    layout: Layout,
    kernel: Kernel,
    numbers: tuple[jax.Array, ...],
    **options: Any,
) -> tuple[np.ndarray, float]:
    """What all tokens of a layer get, and the least seconds that it took."""
    tables, _ = attention_tables(config, layout, kernel, **options)
    run = jax.jit(lambda tables, q, k, v, *before: attend(tables, q, k, v, before))
    out, taken = jax.block_until_ready(run(tables, *numbers)), []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(run(tables, *numbers))
        taken.append(time.perf_counter() - began)
    return np.asarray(out, np.float32), min(taken)
