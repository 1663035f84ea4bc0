"""Whether a compiled program will fit into memory, checked before anything long starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxalign.core.errors import UserError
from jaxalign.runtime.hosts import agreed


def needed_bytes(compiled: Any) -> int:
    """Return the bytes per device that a compiled program holds at once, as the compiler reports.

    Outputs that take over the buffer of an argument ("aliased") count once.
    """
    report = compiled.memory_analysis()
    return int(
        report.argument_size_in_bytes
        + report.output_size_in_bytes
        - report.alias_size_in_bytes
        + report.temp_size_in_bytes
    )


def available_bytes(device: jax.Device) -> int | None:
    """Return the memory that programs may use on a device; None if the platform does not say.

    The devices of a CPU share what the host has free, in equal parts.
    """
    # GPUs and TPUs report what their allocator may use.
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    if device.platform != "cpu":
        return None
    return _free_host_bytes(Path("/proc/meminfo"), jax.local_device_count())


def _free_host_bytes(meminfo: Path, devices: int) -> int | None:
    if not meminfo.exists():
        return None
    for line in meminfo.read_text().splitlines():
        # What Linux can give without swapping, in kB.
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024 // devices
    return None


def busy_chunk(tokens_per_row: int, platform: str) -> int:
    """Return how many rows to compute at a time so that a device is busy.

    On CPU about 2,000 tokens a pass were fastest (0.9M parameters; 15 % slower at twice as many,
    where activations leave the caches). Elsewhere this is not measured: the number is set well
    above the few hundred tokens at which bfloat16 products become bound by arithmetic. A GPU gets
    more, because each pass copies a layer's weights out of their stack: in bytes, 4 % of an H200's
    time at 8,192 tokens.

    Args:
        tokens_per_row: Tokens of one row.
        platform: JAX's name of the platform: "cpu", "gpu" or "tpu".

    Returns:
        A power of two.
    """
    tokens_per_pass = {"cpu": 2048, "gpu": 16384}.get(platform, 8192)
    # Rounded up: rather a few tokens too many than half a pass.
    return 1 << max(0, math.ceil(math.log2(tokens_per_pass / tokens_per_row)))


def fitting_chunk(
    build: Callable[[int], Any], chunk: int, device: jax.Device, remedy: str, fixed: bool = False
) -> tuple[int, int]:
    """Return the largest chunk whose compiled program fits, and the bytes the program needs.

    Args:
        build: Compiles the program for a chunk.
        chunk: The chunk to try first; then its half, its quarter and so on.
        device: Where the program will run.
        remedy: What the user can do if even one row does not fit, for the message.
        fixed: Whether no other chunk than `chunk` will do.

    Raises:
        UserError: No chunk fits.
    """
    # Process 0's memory counts for all: processes with different chunks would wait for each other.
    available = agreed(available_bytes(device) or 0)
    while chunk > 1 and available and not fixed:
        needed = needed_bytes(build(chunk))
        if needed <= available:
            return chunk, needed
        chunk //= 2  # activations, most of what a program needs, shrink with the chunk
    return chunk, check_fits(build(chunk), device, remedy)


def check_fits(compiled: Any, device: jax.Device, remedy: str) -> int:
    """Return the bytes per device that a compiled program needs.

    Raises:
        UserError: The device has fewer; the message ends with `remedy`.
    """
    needed, available = needed_bytes(compiled), available_bytes(device)
    if available is not None and needed > available:
        raise UserError(
            f"out of memory foreseen: the compiled program needs {needed / 2**30:.2f} GiB on "
            f"{device.device_kind}, which has {available / 2**30:.2f} GiB; {remedy}"
        )
    return needed
