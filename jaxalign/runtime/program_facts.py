"""What a compiled program does, read from its optimised HLO text: products, exchanges, copies.

XLA's own `cost_analysis()` counts the body of a loop once, however often it runs. Here every
instruction carries how often it runs: the product of the trip counts of the loops around it. The
text may be what XLA writes for CPU (dots inside fusions), GPU (cuBLAS and Triton calls) or TPU
(convolutions, in which batch dimensions are written as dilated windows, so that only the taps that
meet an element are counted).
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
from jaxalign.runtime.memory import Memory

# Opcodes that name or regroup buffers without writing one.
FREE = frozenset(
    (
        "add-dependency",
        "after-all",
        "bitcast",
        "call",
        "conditional",
        "constant",
        "get-tuple-element",
        "opt-barrier",
        "parameter",
        "partition-id",
        "replica-id",
        "tuple",
        "while",
    )
)
_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)


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
class ProgramFacts:
    """What one device executes.

    Attributes:
        instructions: All instructions, those inside loops and fusions included.
        dots: The matrix products among them.
        collectives: The exchanges between devices among them.
        unknown_loops: Loops whose trip count is neither known nor given.
        other_calls: Library calls that are not counted among `dots`.
        memory: What the compiler reports; None for facts that are read from text alone.
    """

    instructions: tuple[Instruction, ...]
    dots: tuple[Dot, ...]
    collectives: tuple[Collective, ...]
    unknown_loops: tuple[str, ...]
    other_calls: tuple[str, ...]
    memory: Memory | None

    @property
    def dot_flops(self) -> int:
        """FLOPs of all matrix products; ValueError if one is in a loop of unknown length."""
        return sum(dot.flops * self._times(dot) for dot in self.dots)

    @property
    def collective_bytes(self) -> int:
        """Bytes of all exchanges; ValueError if one is in a loop of unknown length."""
        return sum(c.bytes * self._times(c) for c in self.collectives)

    def instructions_shaped(
        self, dims: tuple[int, ...], opcodes: frozenset[str] | None = None
    ) -> tuple[Instruction, ...]:
        """Return the instructions outside fusions with a result of exactly these dimensions.

        Args:
            dims: The dimensions, in order.
            opcodes: Which opcodes to return; default: all.
        """
        return tuple(
            i
            for i in self.instructions
            if not i.fused
            and (opcodes is None or i.opcode in opcodes)
            and any(s.dims == dims for s in i.shapes)
        )

    def copies_of_shape(self, dims: tuple[int, ...]) -> tuple[Instruction, ...]:
        """Return the instructions that write a buffer of as many elements as `dims` has."""
        size = math.prod(dims)
        return tuple(
            i
            for i in self.instructions
            if not i.fused
            and i.opcode not in FREE
            and any(math.prod(s.dims) == size for s in i.shapes)
        )

    def _times(self, part: Dot | Collective) -> int:
        if part.times is None:
            raise ValueError(
                f"{part.op_name or part} runs in a loop of unknown length; "
                f"give `trips` for one of {', '.join(self.unknown_loops)}"
            )
        return part.times


def read_program(compiled: Any, trips: Mapping[str, int] = MappingProxyType({})) -> ProgramFacts:
    """Return the facts of a compiled program.

    Args:
        compiled: A `jax.stages.Compiled`.
        trips: How often loops of unknown length run, by the name or the `op_name` of the while
            instruction.
    """
    facts = read_hlo(compiled.as_text(), trips)
    return dataclasses.replace(facts, memory=Memory.of(compiled))


def read_hlo(text: str, trips: Mapping[str, int] = MappingProxyType({})) -> ProgramFacts:
    """Return the facts of an optimised module from its text alone; `memory` is None."""
    module = Module(text, trips)
    executed = tuple(module.execute(_cost))
    dots, collectives, other = [], [], []
    for i in executed:
        # An asynchronous exchange is a pair of instructions: count its start, not its end.
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
    """Return the library function that a custom call calls."""
    match = re.search(r'custom_call_target="([^"]*)"', i.attributes)
    return match[1] if match else i.name


def _cost(branch: tuple[Instruction, ...]) -> tuple[int, int]:
    """Return what the branches of a conditional are compared by: FLOPs, then instructions."""
    return sum((_flops(i) or 0) * (i.times or 1) for i in branch), len(branch)


def _flops(i: Instruction) -> int | None:
    """Return the FLOPs of one execution; None if the instruction is no matrix product."""
    operands = [shape.dims for shape in i.operand_shapes]
    if i.opcode in ("dot", "scaled-dot"):
        contracted = _numbers(r"lhs_contracting_dims=\{([\d,]*)\}", i.attributes)
    elif i.opcode == "convolution":
        return _convolution_flops(i.attributes, operands[0], operands[1], i.shapes[0].dims)
    elif i.opcode == "custom-call" and _target(i).startswith("__cublas$"):
        contracted = _numbers(r'"lhs_contracting_dimensions":\[([\d,"]*)\]', i.attributes)
    elif i.opcode == "custom-call" and _target(i).startswith("__onednn$matmul"):
        # oneDNN multiplies over the last dimension, or over the one before it if transposed.
        last = 2 if re.search(r'"transpose_a":true', i.attributes) else 1
        contracted = [len(operands[0]) - last]
    else:
        return None
    # Each element of the result sums `inner` products: one multiply and one add each.
    inner = math.prod(operands[0][d] for d in contracted)
    return 2 * math.prod(i.shapes[0].dims) * inner


def _numbers(pattern: str, text: str) -> list[int]:
    """Return the integers in the first group of a pattern."""
    match = re.search(pattern, text)
    if not match:
        raise ValueError(f"no {pattern!r} in {text[:200]!r}")
    return [int(n) for n in re.findall(r"\d+", match[1])]


def _convolution_flops(
    attributes: str, lhs: tuple[int, ...], kernel: tuple[int, ...], out: tuple[int, ...]
) -> int:
    """Return the FLOPs of a convolution from its attributes and the dimensions of its arrays."""
    # Labels such as bf_io->bf: b batch, f feature, i and o features of the kernel, digits space.
    lhs_labels, kernel_labels, out_labels = re.split(
        r"_|->", re.search(r"dim_labels=([\w?]+->\w+)", attributes)[1]
    )
    groups = re.search(r"batch_group_count=(\d+)", attributes)
    products = lhs[lhs_labels.index("b")] // (int(groups[1]) if groups else 1)
    products *= kernel[kernel_labels.index("i")] * kernel[kernel_labels.index("o")]
    window = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in window[1].split()) if window else {}
    for axis in (c for c in kernel_labels if c.isdigit()):
        sizes = (
            dims[labels.index(axis)]
            for dims, labels in ((lhs, lhs_labels), (kernel, kernel_labels), (out, out_labels))
        )
        products *= _taps(*sizes, {k: v.split("x")[int(axis)] for k, v in fields.items()})
    return 2 * products


def _taps(lhs: int, kernel: int, out: int, window: dict[str, str]) -> int:
    """Count the pairs of output position and kernel tap that meet an element, along one axis."""
    stride, before = int(window.get("stride", 1)), int(window.get("pad", "0_0").split("_")[0])
    holes, spread = int(window.get("lhs_dilate", 1)), int(window.get("rhs_dilate", 1))
    # Where each tap of each position falls in the input, whose elements lie `holes` apart.
    at = np.arange(out)[:, None] * stride - before + np.arange(kernel)[None] * spread
    return int(((at >= 0) & (at <= (lhs - 1) * holes) & (at % holes == 0)).sum())


def _exchanged_bytes(i: Instruction) -> int:
    """Return the larger of what goes into an exchange and what comes out of it."""
    into = sum(s.bytes for s in i.operand_shapes)
    out = sum(s.bytes for s in i.shapes if s.dims)
    if i.opcode.endswith("-start") and i.opcode != "all-reduce-start":
        out -= into  # its result holds the operands beside the results
    return max(into, out)


def _group_size(attributes: str, devices: int) -> int:
    """Return how many devices exchange with one another; for a permutation the number of pairs."""
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes):
        return pairs[1].count("{")
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return listed[1].count(",") + 1
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])  # a whole axis, or a part of it
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if counted := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(counted[2])
    return devices
