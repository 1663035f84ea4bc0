"""What a compiled program does, read from its optimised HLO text: products, exchanges, copies.

XLA's own `cost_analysis()` counts a loop's body once, however often it runs. Here every instruction
carries how often it is executed: the product of the trip counts of the loops around it. Reads what
XLA writes for CPU (dots inside fusions), GPU (cuBLAS and Triton calls) and TPU (convolutions,
of which only taps that meet an element count: batch dimensions are written as dilated windows).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxalign.runtime.hlo import Instruction, Module, Shape

# Opcodes that name or regroup buffers without writing one.
FREE = frozenset(
    ("parameter", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional",
     "constant", "opt-barrier", "add-dependency", "after-all", "partition-id", "replica-id")
)  # fmt: skip
_COLLECTIVES = (
    "all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute",
    "ragged-all-to-all", "reduce-scatter",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Dot:
    """One matrix product (dot, convolution or library call), on one device."""

    shape: Shape
    flops: int  # of one execution: two for each multiply and add
    times: int | None
    op_name: str


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices."""

    kind: str  # "all-gather", "all-reduce", ...
    bytes: int  # of one execution on one device: the larger of what goes in and what comes out
    times: int | None
    group_size: int
    op_name: str


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device, by the compiler's report."""

    arguments: int
    outputs: int
    aliased: int  # outputs that take over an argument's buffer
    temporaries: int


@dataclasses.dataclass(frozen=True)
class ProgramFacts:
    """What one device executes."""

    instructions: tuple[Instruction, ...]
    dots: tuple[Dot, ...]
    collectives: tuple[Collective, ...]
    unknown_loops: tuple[str, ...]  # loops whose trip count is neither known nor given
    other_calls: tuple[str, ...]  # library calls that are not counted among `dots`
    memory: Memory | None

    @property
    def dot_flops(self) -> int:
        """FLOPs of all matrix products. ValueError if one is in a loop of unknown length."""
        return sum(dot.flops * self._times(dot) for dot in self.dots)

    @property
    def collective_bytes(self) -> int:
        """Bytes of all exchanges. ValueError if one is in a loop of unknown length."""
        return sum(c.bytes * self._times(c) for c in self.collectives)

    def instructions_shaped(
        self, dims: tuple[int, ...], opcodes: frozenset[str] | None = None
    ) -> tuple[Instruction, ...]:
        """Instructions outside fusions with a result of exactly these dimensions."""
        return tuple(
            i
            for i in self.instructions
            if not i.fused and (opcodes is None or i.opcode in opcodes)
            and any(s.dims == dims for s in i.shapes)
        )  # fmt: skip

    def copies_of_shape(self, dims: tuple[int, ...]) -> tuple[Instruction, ...]:
        """Instructions that write a buffer with as many elements as `dims`, in whatever order."""
        size = math.prod(dims)
        return tuple(
            i
            for i in self.instructions
            if not i.fused and i.opcode not in FREE
            and any(math.prod(s.dims) == size for s in i.shapes)
        )  # fmt: skip

    def _times(self, part: Dot | Collective) -> int:
        if part.times is None:
            raise ValueError(
                f"{part.op_name or part} runs in a loop of unknown length; "
                f"give `trips` for one of {', '.join(self.unknown_loops)}"
            )
        return part.times


def read_program(compiled: Any, trips: Mapping[str, int] = MappingProxyType({})) -> ProgramFacts:
    """The facts of a `jax.stages.Compiled`.

    trips: how often loops of unknown length run, by the while instruction's name or `op_name`.
    """
    report = compiled.memory_analysis()
    memory = None if report is None else Memory(
        report.argument_size_in_bytes, report.output_size_in_bytes,
        report.alias_size_in_bytes, report.temp_size_in_bytes,
    )  # fmt: skip
    return dataclasses.replace(read_hlo(compiled.as_text(), trips), memory=memory)


def read_hlo(text: str, trips: Mapping[str, int] = MappingProxyType({})) -> ProgramFacts:
    """The same from the text of an optimised module; `memory` is None."""
    module = Module(text, trips)
    executed = tuple(module.execute(_cost))
    dots, collectives, other = [], [], []
    for i in executed:
        flops = _flops(i)
        kind = i.opcode.removesuffix("-start")
        if flops is not None:
            dots.append(Dot(i.shapes[0], flops, i.times, i.op_name))
        elif kind in _COLLECTIVES:
            size = _exchanged_bytes(i)
            group = _group_size(i.attributes, module.devices)
            collectives.append(Collective(kind, size, i.times, group, i.op_name))
        elif i.opcode == "custom-call":
            other.append(_target(i))
    unknown = tuple(dict.fromkeys(module.unknown))
    return ProgramFacts(executed, tuple(dots), tuple(collectives), unknown, tuple(other), None)


def _target(i: Instruction) -> str:
    found = re.search(r'custom_call_target="([^"]*)"', i.attributes)
    return found[1] if found else i.name


def _cost(branch: tuple[Instruction, ...]) -> tuple[int, int]:
    """For choosing among branches: FLOPs, then instructions."""
    return sum((_flops(i) or 0) * (i.times or 1) for i in branch), len(branch)


def _flops(i: Instruction) -> int | None:
    """Of one execution; None for what is no matrix product."""
    operands = [shape.dims for shape in i.operand_shapes]
    if i.opcode in ("dot", "scaled-dot"):
        contracted = _numbers(r"lhs_contracting_dims=\{([\d,]*)\}", i.attributes)
    elif i.opcode == "convolution":
        return _convolution_flops(i.attributes, operands[0], operands[1], i.shapes[0].dims)
    elif i.opcode == "custom-call" and _target(i).startswith("__cublas$"):
        contracted = _numbers(r'"lhs_contracting_dimensions":\[([\d,"]*)\]', i.attributes)
    elif i.opcode == "custom-call" and _target(i).startswith("__onednn$matmul"):
        last = 2 if re.search(r'"transpose_a":true', i.attributes) else 1
        contracted = [len(operands[0]) - last]
    else:
        return None
    inner = math.prod(operands[0][d] for d in contracted)
    return 2 * math.prod(i.shapes[0].dims) * inner


def _numbers(pattern: str, text: str) -> list[int]:
    found = re.search(pattern, text)
    if not found:
        raise ValueError(f"no {pattern!r} in {text[:200]!r}")
    return [int(n) for n in re.findall(r"\d+", found[1])]


def _convolution_flops(
    attributes: str, lhs: tuple[int, ...], kernel: tuple[int, ...], out: tuple[int, ...]
) -> int:
    lhs_labels, kernel_labels, out_labels = re.split(
        r"_|->", re.search(r"dim_labels=([\w?]+->\w+)", attributes)[1]
    )
    groups = re.search(r"batch_group_count=(\d+)", attributes)
    products = lhs[lhs_labels.index("b")] // (int(groups[1]) if groups else 1)
    products *= kernel[kernel_labels.index("i")] * kernel[kernel_labels.index("o")]
    window = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in window[1].split()) if window else {}
    for axis in (c for c in kernel_labels if c.isdigit()):
        sizes = (s[labels.index(axis)] for s, labels in (
            (lhs, lhs_labels), (kernel, kernel_labels), (out, out_labels)))  # fmt: skip
        products *= _taps(*sizes, {k: v.split("x")[int(axis)] for k, v in fields.items()})
    return 2 * products


def _taps(lhs: int, kernel: int, out: int, window: dict[str, str]) -> int:
    """Pairs of output position and kernel tap that meet an element, along one axis."""
    stride, before = int(window.get("stride", 1)), int(window.get("pad", "0_0").split("_")[0])
    holes, spread = int(window.get("lhs_dilate", 1)), int(window.get("rhs_dilate", 1))
    at = np.arange(out)[:, None] * stride - before + np.arange(kernel)[None] * spread
    return int(((at >= 0) & (at <= (lhs - 1) * holes) & (at % holes == 0)).sum())


def _exchanged_bytes(i: Instruction) -> int:
    into = sum(s.bytes for s in i.operand_shapes)
    out = sum(s.bytes for s in i.shapes if s.dims)
    if i.opcode.endswith("-start") and i.opcode != "all-reduce-start":
        out -= into  # its result holds the operands beside the results
    return max(into, out)


def _group_size(attributes: str, devices: int) -> int:
    """Devices that exchange with one another; for a permutation the pairs."""
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes):
        return pairs[1].count("{")
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return listed[1].count(",") + 1
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])  # whole, or a part of so many
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if counted := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(counted[2])
    return devices
