"""Will a compiled program fit? Asked before anything long starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxalign.core.errors import UserError
from jaxalign.runtime.hosts import agreed


def needed_bytes(compiled: Any) -> int:
    """Bytes per device that a compiled program holds at once, by the compiler's own report."""
    report = compiled.memory_analysis()
    return int(
        report.argument_size_in_bytes
        + report.output_size_in_bytes
        - report.alias_size_in_bytes
        + report.temp_size_in_bytes
    )


def available_bytes(device: jax.Device) -> int | None:
    """Memory that programs on this device may use; of a CPU device its share of what is free.

    None where the platform does not say.
    """
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
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024 // devices
    return None


def busy_chunk(tokens_per_row: int, platform: str) -> int:
    """Rows to compute at a time so that a device is busy: a power of two, by tokens a pass.

    On CPU about 2,000 tokens were fastest (0.9M parameters; 15 % slower at twice as many, where
    activations leave the caches). Elsewhere not measured: set well above the few hundred tokens at
    which bfloat16 products become bound by arithmetic. On a GPU more, because each pass copies a
    layer's weights out of their stack: by bytes 4 % of an H200's time at 8,192 tokens.
    """
    wanted = {"cpu": 2048, "gpu": 16384}.get(platform, 8192)
    return 1 << max(0, math.ceil(math.log2(wanted / tokens_per_row)))


def fitting_chunk(
    build: Callable[[int], Any], chunk: int, device: jax.Device, remedy: str, fixed: bool = False
) -> tuple[int, int]:
    """`chunk`, or the largest half, quarter ... of it whose compiled program fits, and its bytes.

    `build` compiles for a chunk; `fixed`: no other than `chunk` will do. UserError, with `remedy`,
    where none fits.
    """
    # Process 0's memory counts for all: processes of other chunks would wait for each other.
    available = agreed(available_bytes(device) or 0)
    while chunk > 1 and available and not fixed:
        needed = needed_bytes(build(chunk))
        if needed <= available:
            return chunk, needed
        chunk //= 2
    return chunk, check_fits(build(chunk), device, remedy)


def check_fits(compiled: Any, device: jax.Device, remedy: str) -> int:
    """The program's bytes per device. UserError, with `remedy`, when the device has fewer."""
    needed, available = needed_bytes(compiled), available_bytes(device)
    if available is not None and needed > available:
        raise UserError(
            f"out of memory foreseen: the compiled program needs {needed / 2**30:.2f} GiB on "
            f"{device.device_kind}, which has {available / 2**30:.2f} GiB; {remedy}"
        )
    return needed
