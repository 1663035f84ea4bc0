"""The memory that compiled programs need, that devices have, and that this process has taken."""

from __future__ import annotations

import dataclasses
import logging
import math
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxalign.core.errors import UserError
from jaxalign.runtime.hosts import agreed

_log = logging.getLogger("jaxalign")

# What Python, JAX and its compilers hold in a process that has loaded nothing yet: 0.35 GiB after
# the first compilation of a small program, more while a large one is compiled.
PROCESS_BASE_BYTES = 2**29
# Products on a CPU copy parts of their operands into memory that the compiler does not count: up to
# a third of the temporaries of the programs that `tests.support.program_memory` measures.
_CPU_SCRATCH = 0.25
_NO_LIMIT = 2**60  # control groups of version 1 write a number of this size where there is none


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device, as the compiler reports them."""

    arguments: int
    outputs: int
    aliased: int  # of outputs that take over the buffer of an argument
    temporaries: int

    @classmethod
    def of(cls, compiled: Any) -> Memory | None:
        """Return what a `jax.stages.Compiled` reports; None if its platform reports nothing."""
        report = compiled.memory_analysis()
        if report is None:
            return None
        return cls(
            arguments=int(report.argument_size_in_bytes),
            outputs=int(report.output_size_in_bytes),
            aliased=int(report.alias_size_in_bytes),
            temporaries=int(report.temp_size_in_bytes),
        )

    @property
    def total(self) -> int:
        """Bytes held at once: outputs that take over the buffer of an argument count once."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


def needed_bytes(compiled: Any) -> int:
    """Return the bytes per device that a compiled program holds at once, as the compiler reports.

    Outputs that take over the buffer of an argument ("aliased") count once.
    """
    return Memory.of(compiled).total


def scratch_bytes(memory: Memory, platform: str) -> int:
    """Return what a program is expected to take on a device besides what the compiler reports.

    Args:
        memory: What the compiler reports.
        platform: JAX's name of the platform: "cpu", "gpu" or "tpu".
    """
    return int(_CPU_SCRATCH * memory.temporaries) if platform == "cpu" else 0


def announced_bytes(compiled: Any, device: jax.Device) -> int:
    """Return the bytes that a compiled program is expected to take on a device."""
    memory = Memory.of(compiled)
    return memory.total + scratch_bytes(memory, device.platform)


def available_bytes(device: jax.Device) -> int | None:
    """Return the memory that programs may use on a device; None if the platform does not say.

    It includes what this process holds already, because the arguments of the programs that it
    checks may be among that. The devices of a CPU share the host's memory in equal parts. Limits of
    a container and of `ulimit` count.
    """
    # GPUs and TPUs report what their allocator may use, in all.
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    if device.platform != "cpu":
        return None
    if (free := free_host_bytes()) is None:
        return None
    held = max(0, _resident_bytes(Path("/proc/self/statm")) - PROCESS_BASE_BYTES)
    return (free + held) // jax.local_device_count()


def free_host_bytes(root: Path = Path("/")) -> int | None:
    """Return what this process may still take of the host's memory; None where nothing says.

    The least of what Linux can give without swapping, what the control groups of the process
    (those of a container, of a scheduler's job) leave, and what its own limits (`ulimit`) leave.

    Args:
        root: Where the file systems /proc and /sys are.
    """
    found = [*_free_in_system(root), *_free_in_groups(root), *_free_in_limits(root)]
    return max(0, min(found)) if found else None


def _free_in_system(root: Path) -> Iterator[int]:
    fields = _fields(root / "proc/meminfo", ":")
    if "MemAvailable" in fields:  # in kB
        yield fields["MemAvailable"] * 1024


def _free_in_groups(root: Path) -> Iterator[int]:
    """Yield what each control group with a limit leaves: the process's own, and those above it."""
    membership = root / "proc/self/cgroup"
    if not membership.exists():
        return
    mount = root / "sys/fs/cgroup"
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        # Version 2 has one hierarchy, version 1 one for memory; their files have other names.
        top = mount if not controllers else mount / "memory"
        names = ("memory.max", "memory.current", "inactive_file")
        if controllers:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        # Inside a container the path may be that of the host, where there is nothing to be seen.
        group = top / path.strip("/")
        while True:
            limit, used = _number(group / names[0]), _number(group / names[1])
            if limit is not None and used is not None and limit < _NO_LIMIT:
                # What is kept of files is given back where memory is short.
                yield limit - used + _fields(group / "memory.stat").get(names[2], 0)
            if group == top:
                break
            group = group.parent


def _free_in_limits(root: Path) -> Iterator[int]:
    statm = root / "proc/self/statm"
    if not statm.exists():
        return
    # Pages: in all, resident, shared, of code, of nothing, and of data with the stack.
    pages = [int(field) * resource.getpagesize() for field in statm.read_text().split()]
    for limit, taken in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
        allowed, _ = resource.getrlimit(limit)
        if allowed != resource.RLIM_INFINITY:
            yield allowed - taken


def _fields(path: Path, end: str = "") -> dict[str, int]:
    """Return the numbers of a file of lines with a name and a number; none without the file."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0].removesuffix(end): int(line[1]) for line in lines if len(line) > 1}


def _number(path: Path) -> int | None:
    """Return the number in a file; None where there is none, as for "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _resident_bytes(statm: Path) -> int:
    """Return the memory that this process holds now, without what it shares with files."""
    if not statm.exists():
        return 0
    # Pages: in all, resident, and of these those that are backed by files.
    _, resident, shared = map(int, statm.read_text().split()[:3])
    return (resident - shared) * resource.getpagesize()


def peak_host_bytes() -> int:
    """Return the most memory that this process has held so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in kB


def log_peak(stage: str) -> None:
    """Log the most memory that this process has held so far, after a stage of a run."""
    _log.debug(f"{stage}: peak memory so far {peak_host_bytes() / 2**30:.1f} GiB")


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
        needed = announced_bytes(build(chunk), device)
        if needed <= available:
            return chunk, needed
        chunk //= 2  # activations, most of what a program needs, shrink with the chunk
    return chunk, check_fits(build(chunk), device, remedy)


def check_fits(compiled: Any, device: jax.Device, remedy: str, beside_bytes: int = 0) -> int:
    """Return the bytes per device that a compiled program needs.

    Args:
        compiled: The program.
        device: Where it will run.
        remedy: What the user can do if it does not fit, for the message.
        beside_bytes: Bytes of what else lives on the device then, which count as needed.

    Raises:
        UserError: The device has fewer; the message ends with `remedy`.
    """
    needed = announced_bytes(compiled, device) + beside_bytes
    available = available_bytes(device)
    if available is not None and needed > available:
        raise UserError(
            f"out of memory foreseen: the compiled program needs {needed / 2**30:.2f} GiB on "
            f"{device.device_kind}, which has {available / 2**30:.2f} GiB; {remedy}"
        )
    return needed
