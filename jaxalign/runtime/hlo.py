"""XLA's text of an optimised module as instructions, each with how often it is executed.

The grammar is that of HLO text (openxla.org/xla/operation_semantics): computations, whose
instructions call others as loops, branches, fusions and async pieces. A loop's trip count is what
XLA states, else what its counter and bound say where both are plain; it is never guessed.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_SHAPE = re.compile(r"\b(pred|token|opaque|bf16|[a-z]{1,2}\d+\w*)\[([\d,<=]*)\]")
_CALLED = re.compile(r"\b(body|calls|to_apply|called_computations)=\{?(%[\w.\-]+(?:, ?%[\w.\-]+)*)")
_BRANCHES = re.compile(
    r"\b(?:branch_computations|true_computation|false_computation)=\{?(%[\w.\-]+(?:, ?%[\w.\-]+)*)"
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: XLA's name of the dtype ("f32", "bf16"), and its dimensions."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def bytes(self) -> int:
        digits = re.match(r"[a-z]+(\d+)", self.dtype)
        bits = int(digits[1]) if digits else 8 * (self.dtype == "pred")
        return -(-math.prod(self.dims) * bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation. `times` is None inside a loop whose trip count is not known."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # of the result; several for a tuple
    operands: tuple[str, ...]
    attributes: str  # what the line says after its operands
    literal: str  # what stands between the parentheses: a constant's value, a parameter's number
    operand_shapes: tuple[Shape, ...] = ()
    times: int | None = 1
    fused: bool = False  # part of a fusion: writes no buffer of its own

    @property
    def op_name(self) -> str:
        """Where JAX made it, such as jit(f)/while/body/dot_general; "" where XLA does not say."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


class Module:
    """Computations by name, each a dict of its instructions by name.

    trips: of loops whose trip count the text does not tell, by instruction name or `op_name`;
    `unknown` gathers those that are missing there while `execute` runs. ValueError for other text.
    """

    def __init__(self, text: str, trips: Mapping[str, int]) -> None:
        self.trips, self.unknown = trips, []
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.roots: dict[str, str] = {}
        self.entry, current = "", ""
        sizes = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", text.split("\n", 1)[0])
        self.devices = math.prod(map(int, sizes))
        for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
            if header := re.match(r"(ENTRY )?(%[\w.\-]+) \(.*\) -> .*\{$", line):
                current = header[2]
                self.computations[current] = {}
                self.entry = current if header[1] else self.entry
            elif current and (instruction := _read_line(line)):
                self.computations[current][instruction.name] = instruction
                if line.lstrip().startswith("ROOT "):
                    self.roots[current] = instruction.name
        if not self.entry:
            raise ValueError("this is not the text of an HLO module: it has no ENTRY computation")

    def execute(self, cost: Callable[[tuple[Instruction, ...]], Any]) -> Iterator[Instruction]:
        """Every instruction executed, with how often; of a conditional the dearest branch."""
        return self._execute(self.entry, 1, False, cost)

    def _execute(
        self, name: str, times: int | None, fused: bool, cost: Callable
    ) -> Iterator[Instruction]:
        lines = self.computations[name]
        for i in lines.values():
            read = tuple(shape for o in i.operands if o in lines for shape in lines[o].shapes)
            yield dataclasses.replace(i, operand_shapes=read, times=times, fused=fused)
            inner = times
            if i.opcode == "while":
                trips = self._trip_count(name, i)
                inner = None if times is None or trips is None else times * trips
            in_fusion = fused or i.opcode == "fusion"
            for called in _CALLED.findall(i.attributes):
                for callee in called[1].replace(" ", "").split(","):
                    yield from self._execute(callee, inner, in_fusion, cost)
            branches = ",".join(_BRANCHES.findall(i.attributes)).replace(" ", "")
            if branches:
                options = [tuple(self._execute(b, times, fused, cost)) for b in branches.split(",")]
                yield from max(options, key=cost)

    def _trip_count(self, computation: str, loop: Instruction) -> int | None:
        """As XLA states it, of a counter that steps up to a constant, or as given; else None."""
        if stated := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(stated[1])
        # Counted before it is looked up: loops of known and of unknown length may share a name.
        trips = self._counted_trips(computation, loop)
        for name in (loop.name, loop.op_name):
            trips = self.trips.get(name) if trips is None else trips
        if trips is None:
            self.unknown.append(loop.op_name or loop.name)
        return trips

    def _counted_trips(self, computation: str, loop: Instruction) -> int | None:
        condition = re.search(r"\bcondition=(%[\w.\-]+)", loop.attributes)[1]
        body = re.search(r"\bbody=(%[\w.\-]+)", loop.attributes)[1]
        before = self.computations[computation].get(loop.operands[0])
        after = self.computations[body][self.roots[body]]
        if before is None or before.opcode != "tuple" or after.opcode != "tuple":
            return None

        def constant(value: Instruction | None) -> int | None:
            """Of a constant, or of one that the loop's tuple carries along unchanged."""
            index = _element(value)
            if index is None:
                return _constant(value)
            if _element(self._source(body, after.operands[index])) != index:
                return None
            return _constant(self._source(computation, before.operands[index]))

        test, (counter, bound) = self._root(condition)
        index, end = _element(counter), constant(bound)
        if test.opcode != "compare" or "direction=LT" not in test.attributes or index is None:
            return None
        start = _constant(self._source(computation, before.operands[index]))
        added, terms = self._resolve(body, after.operands[index])
        steps = [constant(t) for t in terms if _element(t) != index]
        if added.opcode != "add" or len(steps) != 1 or None in (start, end, *steps) or steps[0] < 1:
            return None
        return max(0, -(-(end - start) // steps[0]))

    def _root(self, computation: str) -> tuple[Instruction, list[Instruction | None]]:
        return self._resolve(computation, self.roots[computation])

    def _resolve(self, computation: str, name: str) -> tuple[Instruction, list[Instruction | None]]:
        """The instruction that makes a value and its operands, seen through copies and fusions."""
        made = self._source(computation, name)
        operands = [self._source(computation, o) for o in made.operands]
        if made.opcode != "fusion":
            return made, [*operands, None, None][: max(2, len(operands))]
        callee = _CALLED.search(made.attributes)[2]
        inner, terms = self._root(callee)
        outer = [
            operands[int(t.literal)] if t is not None and t.opcode == "parameter" else t
            for t in terms
        ]
        return inner, outer

    def _source(self, computation: str, name: str) -> Instruction:
        made = self.computations[computation][name]
        while made.opcode in ("copy", "bitcast", "convert"):
            made = self.computations[computation][made.operands[0]]
        return made


def _read_line(line: str) -> Instruction | None:
    """`%name = type opcode(operands), attributes`; None for any other line."""
    found = re.match(r"\s+(?:ROOT )?(%[\w.\-]+) = ", line)
    if not found:
        return None
    rest = line[found.end() :]
    cut = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    kind, call = rest[:cut], rest[cut:].lstrip()
    opcode, call = call.split("(", 1)
    end = _closing("(" + call) - 1
    inside, attributes = call[:end], call[end + 1 :]
    operands = tuple(re.findall(r"%[\w.\-]+", inside))
    return Instruction(found[1], opcode, _shapes(kind), operands, attributes, inside)


def _closing(text: str) -> int:
    """Index of the parenthesis that closes the one `text` starts with."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        Shape(dtype, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d))
        for dtype, dims in _SHAPE.findall(text)
    )


def _constant(made: Instruction | None) -> int | None:
    """The value of an integer constant."""
    is_number = made is not None and made.opcode == "constant"
    return int(made.literal) if is_number and re.fullmatch(r"-?\d+", made.literal) else None


def _element(made: Instruction | None) -> int | None:
    """Which element of the loop's tuple is read."""
    if made is None or made.opcode != "get-tuple-element":
        return None
    return int(re.search(r"\bindex=(\d+)", made.attributes)[1])
