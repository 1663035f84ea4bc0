"""Bytes that a compiled program moves between a chip and its memory, estimated from its HLO text.

Every instruction outside a fusion reads its operands and writes its result each time it runs. An
instruction that slices, gathers or updates an array in place touches only a part of it, and arrays
that the compiler keeps on the chip (memory space 1 and above, such as a TPU's VMEM) are not moved
at all. Caches are not modelled.
"""

from __future__ import annotations

import re

from jaxalign.runtime.hlo import Instruction, Module, Shape
from jaxalign.runtime.program_facts import FREE, ProgramFacts

_SHAPE = re.compile(r"\b(\w+)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_LINE = re.compile(r"^\s+(?:ROOT )?(%[\w.\-]+) = (\(.*?\)|\S+) [\w\-]+\(", re.MULTILINE)
# Inside a fusion these read as much of their operand as is used of their result.
_ONE_TO_ONE = ("bitcast", "copy", "convert", "reshape", "transpose")
_SLICES = ("dynamic-slice", "slice", "gather")
# Calls that only name a buffer, or state a fact about one.
_NO_WORK = re.compile(r'custom_call_target="(AllocateBuffer|ConcatBitcast|Assume\w+|Sharding)"')


def memory_traffic_bytes(facts: ProgramFacts, text: str) -> int:
    """Return the bytes that one device reads and writes when the program runs once.

    Instructions in a loop of unknown length count once.

    Args:
        facts: Facts of the program (`program_facts.read_program`).
        text: HLO text of the same program.
    """
    traffic = _Traffic(text)
    return sum(
        traffic.touched(i) * (1 if i.times is None else i.times)
        for i in facts.instructions
        if not i.fused and i.opcode not in FREE
    )


class _Traffic:
    """The computations of a module, and the size of each result that lies in memory."""

    def __init__(self, text: str) -> None:
        module = Module(text, {})
        self.computations, self.roots = module.computations, module.roots
        self.moved = _bytes_in_memory(text)

    def touched(self, i: Instruction) -> int:
        """Return the bytes that one execution of an instruction reads and writes."""
        result = self.moved[i.name]
        moved = [self.moved[o] for o in i.operands if o in self.moved]
        if i.opcode.endswith(("-done", "-update")) or _NO_WORK.search(i.attributes):
            return 0
        if i.opcode.endswith("-start") and i.opcode != "all-reduce-start":
            # The result of an asynchronous start is a tuple: the operands, then what is fetched.
            fetched = i.shapes[min(len(moved), len(i.shapes) - 1)].bytes
            return fetched + max(0, result - sum(moved))
        if i.opcode in _SLICES:
            return 2 * result  # reads as much of its operand as it writes
        if i.opcode == "dynamic-update-slice":
            return 2 * moved[1]  # reads the update and writes it in place
        if i.opcode != "fusion":
            return sum(moved) + result
        # A fusion reads the parts of its operands that its instructions use.
        callee = _callee(i)
        read = sum(min(m, self._read(callee, n)) for n, m in enumerate(moved))
        return read + min(result, self._written(callee, self.roots[callee]))

    def _read(self, computation: str, number: int) -> int:
        """Return the bytes that a fused computation reads of parameter `number`."""
        for name, line in self.computations[computation].items():
            if line.opcode == "parameter" and line.literal == str(number):
                return min(_size(line), self._used(computation, name))
        return 0

    def _used(self, computation: str, name: str) -> int:
        """Return the bytes of the value `name` that the other instructions of a fusion use."""
        lines, total = self.computations[computation], 0
        for user, line in lines.items():
            for position in (p for p, operand in enumerate(line.operands) if operand == name):
                if line.opcode in _SLICES and position == 0:
                    total += _size(line)
                elif line.opcode == "dynamic-update-slice" and position == 0:
                    continue  # what is not overwritten stays in place
                elif line.opcode in _ONE_TO_ONE:
                    total += self._used(computation, user)
                elif line.opcode == "fusion":
                    total += self._read(_callee(line), position)
                else:
                    total += _size(lines[name])
        return total

    def _written(self, computation: str, name: str) -> int:
        """Return the bytes that a fused computation writes if `name` is its result."""
        lines = self.computations[computation]
        line = lines[name]
        if line.opcode == "tuple":
            return sum(self._written(computation, operand) for operand in line.operands)
        if line.opcode == "dynamic-update-slice":
            return _size(lines[line.operands[1]])
        if line.opcode == "bitcast":
            return self._written(computation, line.operands[0])
        if line.opcode == "fusion":
            callee = _callee(line)
            return min(_size(line), self._written(callee, self.roots[callee]))
        return _size(line)


def _size(line: Instruction) -> int:
    return sum(shape.bytes for shape in line.shapes)


def _callee(fusion: Instruction) -> str:
    return re.search(r"\bcalls=(%[\w.\-]+)", fusion.attributes)[1]


def _bytes_in_memory(text: str) -> dict[str, int]:
    """Return, for every instruction, how many bytes of its result lie in the chip's memory."""
    sizes = {}
    for name, kind in _LINE.findall(text):
        shapes = (
            Shape(dtype, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d))
            for dtype, dims, layout in _SHAPE.findall(kind)
            if not re.search(r"S\([1-9]\)", layout)  # memory space 1 and above is on the chip
        )
        sizes[name] = sum(shape.bytes for shape in shapes)
    return sizes
