"""Which of several kernels to use: the fastest one here that agrees with plain XLA.

Kernels are tried once, on the arrays of a run, before it begins. One that fails or disagrees with
the first, XLA, is left out, and the reason names it. There is no table of devices that we have
never seen.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.runtime.hosts import agreed_choice

_REPEATS = 5
# This many roundings of the largest value may differ.
_ROUNDINGS = 4

Outputs = tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class KernelChoice:
    """A kernel and why it was taken."""

    kernel: str
    reason: str

    def describe(self) -> str:
        """Return one line to show before a run.

        >>> KernelChoice("xla", "cpu has xla alone").describe()
        'attention by xla: cpu has xla alone'
        """
        return f"attention by {self.kernel}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class KernelTime:
    """One layer's attention by one kernel.

    Attributes:
        kernel: its name.
        seconds: the least of several runs; infinite if it fails.
        difference: the largest difference from the first kernel's outputs.
        failure: why it cannot be used: it fails, or its outputs are not the first kernel's.
    """

    kernel: str
    seconds: float
    difference: float = 0.0
    failure: str = ""


def compare_kernels(
    kernels: Sequence[str], attempt: Callable[[str], tuple[Outputs, float]]
) -> list[KernelTime]:
    """Try each kernel and compare it with the first.

    Args:
        kernels: names of kernels. Where the first fails, so does this function.
        attempt: returns a kernel's outputs, float32, and its seconds.
    """
    expected, seconds = attempt(kernels[0])
    times = [KernelTime(kernels[0], seconds)]
    for kernel in kernels[1:]:
        try:
            found, seconds = attempt(kernel)
        except Exception as error:  # whatever a compiler or driver may raise
            failure = f"fails ({' '.join(str(error).split())[:80]})"
            times.append(KernelTime(kernel, float("inf"), float("nan"), failure))
            continue
        pairs = list(zip(found, expected, strict=True))
        difference = max(float(np.abs(x - y).max()) for x, y in pairs)
        agrees = all(agree(x, y) for x, y in pairs)
        failure = "" if agrees else f"disagrees with {kernels[0]}"
        times.append(KernelTime(kernel, seconds, difference, failure))
    return times


def fastest_kernel(kernels: Sequence[str], found: Sequence[KernelTime]) -> KernelChoice:
    """Return process 0's fastest kernel that agrees, with the times of all as the reason."""
    times = sorted((t for t in found if not t.failure), key=lambda t: t.seconds)
    best = agreed_choice(kernels, times[0].kernel)
    text = ", ".join(f"{t.kernel} {1e3 * t.seconds:.3f}" for t in times)
    left_out = [f"{t.kernel} {t.failure}" for t in found if t.failure]
    return KernelChoice(best, "; ".join([f"ms a layer: {text}", *left_out]))


def agree(found: np.ndarray, expected: np.ndarray) -> bool:
    """Return whether two outputs are equal to a few roundings of bfloat16 of the largest value."""
    bound = _ROUNDINGS * float(jnp.finfo(jnp.bfloat16).eps) * np.abs(expected).max()
    return bool(np.isfinite(found).all() and np.abs(found - expected).max() <= bound)


def timed(run: Callable[..., Any], *arguments: Any) -> tuple[Outputs, float]:
    """Return what a jitted function gives, as float32, and the least seconds of several runs."""
    out, seconds = jax.block_until_ready(run(*arguments)), []  # the first run compiles
    for _ in range(_REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        seconds.append(time.perf_counter() - start)
    return tuple(np.asarray(x, np.float32) for x in jax.tree.leaves(out)), min(seconds)
