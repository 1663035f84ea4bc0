"""Will a compiled program fit? Asked before anything long starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from jaxalign.errors import UserError


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


def refuse_what_does_not_fit(compiled: Any, device: jax.Device, remedy: str) -> int:
    """The program's bytes per device. UserError, with `remedy`, when the device has fewer."""
    needed, available = needed_bytes(compiled), available_bytes(device)
    if available is not None and needed > available:
        raise UserError(
            f"out of memory foreseen: the compiled program needs {needed / 2**30:.2f} GiB on "
            f"{device.device_kind}, which has {available / 2**30:.2f} GiB; {remedy}"
        )
    return needed
