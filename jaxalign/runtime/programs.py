"""The compiled programs of a run: listed, compiled and checked before anything long starts.

A run lists its programs as `Program`s, built from shapes alone. `check_programs` compiles each,
adds what else lives on the device while it runs, and refuses the run if one does not fit. The same
list is what `jaxalign plan --experiment` prints for chips that this machine does not have.

JAX compiles a jitted function once in a process for the same shapes and shardings, whether it is
compiled ahead of time, as here, or called. So a program that was checked is not compiled again
where a run calls the same function with what was listed; where sizes differ in the end, and in the
next process, JAX's persistent compilation cache, which every command turns on, helps.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxalign.core.errors import UserError
from jaxalign.core.progress import OnProgress, Progress, ignore
from jaxalign.runtime.hosts import agreed
from jaxalign.runtime.mappings import forget_programs_near_limit
from jaxalign.runtime.memory import Memory, available_bytes, scratch_bytes
from jaxalign.runtime.platform import target_platform

_log = logging.getLogger("jaxalign")
CHECKING = "check memory: program"  # the task of progress events
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Program:
    """A program that a run will execute.

    Attributes:
        name: What it computes, such as "generations of the search".
        stage: The stage of the run in which it is executed, such as "search".
        lower: Lowers it from abstract shapes; allocates nothing on any device.
        beside_bytes: Bytes per device of what else lives there at that time and is not one of its
            arguments, such as weights that another program needs again.
        remedy: What the user can do if it does not fit, for the message.
        unit: Unit of work: "generation", "block", "batch" or "step".
        units: Number of units that one execution does.
        loop_trips: Trip count of loops whose length is only known when they run.
        formula_flops: FLOPs of matrix products by formula, per chip and unit; None if not counted.
    """

    name: str
    stage: str
    lower: Callable[[], jax.stages.Lowered] = dataclasses.field(repr=False)
    beside_bytes: int = 0
    remedy: str = ""
    unit: str = "execution"
    units: int = 1
    loop_trips: int = 1
    formula_flops: float | None = None

    @functools.cached_property
    def compiled(self) -> jax.stages.Compiled:
        """The compiled program; it is compiled once, at the first use."""
        return self.lower().compile()

    @classmethod
    def of(cls, name: str, stage: str, jitted: Any, arguments: Sequence, **rest: Any) -> Program:
        """Return the program of a jitted function and its abstract arguments."""
        return cls(name, stage, lambda: jitted.lower(*arguments), **rest)


@dataclasses.dataclass(frozen=True)
class Need:
    """The memory that a program needs on each device.

    Attributes:
        program: The program.
        memory: What the compiler reports; None if the compiler refused the program.
        compile_seconds: Time it took to lower and compile.
        refusal: Why the compiler refused it, in one line; empty if it did not.
        refused_bytes: What it said that the program needs, if it was refused for its memory.
        scratch: Bytes that it takes besides, which the compiler does not report.
    """

    program: Program
    memory: Memory | None
    compile_seconds: float
    refusal: str = ""
    refused_bytes: int | None = None
    scratch: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by what they are for."""
        if self.memory is None:
            return {"what the compiler asks for": self.refused_bytes or 0}
        m = self.memory
        return {
            "arguments": m.arguments,
            "temporaries": m.temporaries + self.scratch,
            # Outputs that take over the buffer of an argument need no memory of their own.
            "outputs": m.outputs - m.aliased,
            "what else lives there": self.program.beside_bytes,
        }

    @property
    def bytes(self) -> int:
        """Bytes held at once, what else lives on the device included."""
        return sum(self.parts.values())

    @property
    def largest_part(self) -> tuple[str, int]:
        """Name and bytes of the largest of `parts`."""
        return max(self.parts.items(), key=lambda part: part[1])

    def fits(self, available: int) -> bool:
        """Return whether the program was compiled and needs no more than `available` bytes."""
        return self.memory is not None and self.bytes <= available


def measure_program(program: Program) -> Need:
    """Compile a program and return the memory it needs, or why the compiler refused it."""
    began = time.monotonic()
    try:
        memory = Memory.of(program.compiled)
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        stated = stated_memory(message)
        seconds = time.monotonic() - began
        return Need(program, None, seconds, first_line(message), stated and stated[0])
    scratch = scratch_bytes(memory, target_platform()) if memory is not None else 0
    return Need(program, memory, time.monotonic() - began, scratch=scratch)


def check_programs(
    programs: Sequence[Program], device: jax.Device, on_progress: OnProgress = ignore
) -> tuple[Need, ...]:
    """Compile the programs of a run, and refuse the run if one of them does not fit into memory.

    Every process of a run must call this with the same programs: process 0's memory counts for all.

    Args:
        programs: The programs, in the order in which the run executes them.
        device: One of the devices that they run on.
        on_progress: Called before the first program and after each.

    Returns:
        What each program needs, in the same order.

    Raises:
        UserError: A program needs more than the device has, or the compiler refuses it.
    """
    forget_programs_near_limit()
    available = agreed(available_bytes(device) or 0)
    needs: list[Need] = []
    for program in programs:
        on_progress(_progress(len(needs), len(programs), program.name))
        need = measure_program(program)
        if need.memory is None or (available and not need.fits(available)):
            raise UserError(refusal_text(need, device.device_kind, available))
        needs.append(need)
    on_progress(_progress(len(programs), len(programs), ""))
    if needs:
        _log.debug(summary_text(needs, available))
    return tuple(needs)


def refusal_text(need: Need, device_kind: str, available: int) -> str:
    """Return why a program cannot run on a device, in one line."""
    program = need.program
    remedy = f"; {program.remedy}" if program.remedy else ""
    where = f"{program.name} (stage {program.stage!r})"
    if need.memory is None and need.refused_bytes is None:
        return f"{where}: the compiler refuses it: {need.refusal}{remedy}"
    part, size = need.largest_part
    has = f", which has {available / 2**30:.2f} GiB" if available else ""
    return (
        f"out of memory foreseen: {where} needs {need.bytes / 2**30:.2f} GiB on "
        f"{device_kind}{has}; most of it, {size / 2**30:.2f} GiB, is {part}{remedy}"
    )


def summary_text(needs: Sequence[Need], available: int) -> str:
    """Return how many programs there are, and which one needs the most memory, in one line."""
    largest = max(needs, key=lambda need: need.bytes)
    of = f" of {available / 2**30:.2f}" if available else ""
    return (
        f"{len(needs)} programs compiled, all fit; the largest is {largest.program.name} (stage "
        f"{largest.program.stage!r}): {largest.bytes / 2**30:.2f}{of} GiB per device"
    )


def stated_memory(message: str) -> tuple[int, int, str] | None:
    """Return the bytes needed and available that a compiler's message states, and what for.

    None if the message is not about memory.
    """
    amount = r"([\d.]+)([KMGT]?)"
    # The two forms in which the TPU's compiler states that memory is short.
    for pattern in (
        rf"total memory required for (?P<what>[\w ]+?) \({amount}\) exceeds available "
        rf"\w+ \({amount}\)",
        rf"Used {amount} of {amount} \w+",
    ):
        if match := re.search(pattern, message):
            needed, unit, available, available_unit = match.groups()[-4:]
            what = match.groupdict().get("what") or "the program"
            return (
                int(float(needed) * _UNITS[unit]),
                int(float(available) * _UNITS[available_unit]),
                what,
            )
    return None


def first_line(message: str) -> str:
    """Return the first line of a compiler's message."""
    return message.strip().splitlines()[0] if message.strip() else "no message"


def _progress(done: int, total: int, name: str) -> Progress:
    fields = {"compiling": name} if name else {}
    return Progress(CHECKING, done, total, "programs", fields=fields)
