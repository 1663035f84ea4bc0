"""Bytes that a compiled program moves between a chip and its memory, read from its HLO text.

Every instruction outside fusions reads its operands and writes its result, as often as it runs.
Of what it slices, gathers or updates in place it touches a part, and what the compiler keeps on the
chip (memory space 1 and above: a TPU's VMEM) is not moved at all. An estimate: caches are left out.
"""

from __future__ import annotations

import re

from jaxalign.runtime.hlo import Instruction, Module, Shape
from jaxalign.runtime.program_facts import FREE, ProgramFacts

_SHAPE = re.compile(r"\b(\w+)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_LINE = re.compile(r"^\s+(?:ROOT )?(%[\w.\-]+) = (\(.*?\)|\S+) [\w\-]+\(", re.MULTILINE)
_SAME = ("bitcast", "copy", "convert", "reshape", "transpose")  # inside a fusion: one for one
_SLICES = ("dynamic-slice", "slice", "gather")
# Calls that name a buffer or state a fact about one.
_NO_WORK = re.compile(r'custom_call_target="(AllocateBuffer|ConcatBitcast|Assume\w+|Sharding)"')


def memory_traffic_bytes(facts: ProgramFacts, text: str) -> int:
    """Bytes read and written by one device; `facts` and `text` are of the same program.

    What runs in a loop of unknown length counts once.
    """
    traffic = _Traffic(text)
    return sum(
        traffic.touched(i) * (1 if i.times is None else i.times)
        for i in facts.instructions
        if not i.fused and i.opcode not in FREE
    )


class _Traffic:
    def __init__(self, text: str) -> None:
        module = Module(text, {})
        self.computations, self.roots = module.computations, module.roots
        self.moved = _in_memory(text)

    def touched(self, i: Instruction) -> int:
        """Bytes of one execution."""
        result = self.moved[i.name]
        moved = [self.moved[o] for o in i.operands if o in self.moved]
        if i.opcode.endswith(("-done", "-update")) or _NO_WORK.search(i.attributes):
            return 0
        if i.opcode.endswith("-start") and i.opcode != "all-reduce-start":
            # Its result holds the operands beside what is fetched.
            fetched = i.shapes[min(len(moved), len(i.shapes) - 1)].bytes
            return fetched + max(0, result - sum(moved))
        if i.opcode in _SLICES:
            return 2 * result
        if i.opcode == "dynamic-update-slice":
            return 2 * moved[1]
        if i.opcode != "fusion":
            return sum(moved) + result
        callee = _callee(i)
        read = sum(min(m, self._read(callee, n)) for n, m in enumerate(moved))
        return read + min(result, self._written(callee, self.roots[callee]))

    def _read(self, computation: str, number: int) -> int:
        """Bytes that a fused computation reads of a parameter."""
        for name, line in self.computations[computation].items():
            if line.opcode == "parameter" and line.literal == str(number):
                return min(_size(line), self._used(computation, name))
        return 0

    def _used(self, computation: str, name: str) -> int:
        lines, total = self.computations[computation], 0
        for user, line in lines.items():
            for position in (p for p, operand in enumerate(line.operands) if operand == name):
                if line.opcode in _SLICES and position == 0:
                    total += _size(line)
                elif line.opcode == "dynamic-update-slice" and position == 0:
                    continue  # what is not overwritten stays where it is
                elif line.opcode in _SAME:
                    total += self._used(computation, user)
                elif line.opcode == "fusion":
                    total += self._read(_callee(line), position)
                else:
                    total += _size(lines[name])
        return total

    def _written(self, computation: str, name: str) -> int:
        """Bytes that a fused computation writes where `name` is its result."""
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


def _in_memory(text: str) -> dict[str, int]:
    """Of every instruction's result the bytes that lie in the chip's memory."""
    found = {}
    for name, kind in _LINE.findall(text):
        shapes = (
            Shape(dtype, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d))
            for dtype, dims, layout in _SHAPE.findall(kind)
            if not re.search(r"S\([1-9]\)", layout)
        )
        found[name] = sum(shape.bytes for shape in shapes)
    return found
