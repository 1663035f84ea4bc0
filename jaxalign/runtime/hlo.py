"""XLA's text of an optimised module, parsed into instructions that carry how often each runs.

The grammar is that of HLO text (openxla.org/xla/operation_semantics). A module consists of
computations, whose instructions call other computations as loops, branches, fusions and
asynchronous pieces. The trip count of a loop is the one XLA states, or else follows from its
counter and its bound where both are constants; it is never guessed.
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
    """Dtype, by XLA's name ("f32", "bf16"), and dimensions of one array."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def bytes(self) -> int:
        # The digits of "f32" or "bf16" are bits; "pred" is a byte, a token or opaque value nothing.
        digits = re.match(r"[a-z]+(\d+)", self.dtype)
        bits = int(digits[1]) if digits else 8 * (self.dtype == "pred")
        return -(-math.prod(self.dims) * bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: Its name, with the leading %.
        opcode: What it does, such as "dot".
        shapes: Shape of the result; several if it is a tuple.
        operands: Names of the operands.
        attributes: The rest of the line after the operands.
        literal: The text between the parentheses: a constant's value, a parameter's number.
        operand_shapes: Shapes of the operands, known once the module is executed.
        times: How often it runs; None inside a loop whose trip count is not known.
        fused: Whether it is part of a fusion and writes no buffer itself.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    literal: str
    operand_shapes: tuple[Shape, ...] = ()
    times: int | None = 1
    fused: bool = False

    @property
    def op_name(self) -> str:
        """Where JAX made it, such as jit(f)/while/body/dot_general; "" where XLA does not say."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""


class Module:
    """A parsed module.

    Attributes:
        computations: Instructions by name, by computation.
        roots: Name of the instruction that is a computation's result, by computation.
        entry: The computation that the program starts with.
        devices: Number of devices that the program runs on.
        unknown: Loops without a known trip count that `execute` has met.
    """

    def __init__(self, text: str, trips: Mapping[str, int]) -> None:
        """Parse a module.

        Args:
            text: HLO text.
            trips: Trip counts of loops for which the text states none, by the name or the `op_name`
                of the while instruction.

        Raises:
            ValueError: The text is not that of a module.
        """
        self.trips, self.unknown = trips, []
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.roots: dict[str, str] = {}
        self.entry, current = "", ""
        # The first line states how many partitions and replicas the program was compiled for.
        sizes = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", text.split("\n", 1)[0])
        self.devices = math.prod(map(int, sizes))
        for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
            # A computation begins with its signature and ends with a brace.
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
        """Yield every instruction that runs, with how often.

        Args:
            cost: Compares the branches of a conditional; only the most expensive one is yielded.
        """
        return self._execute(self.entry, 1, False, cost)

    def _execute(
        self, name: str, times: int | None, fused: bool, cost: Callable
    ) -> Iterator[Instruction]:
        lines = self.computations[name]
        for i in lines.values():
            # Operands are instructions of the same computation, which come earlier in the text.
            read = tuple(shape for o in i.operands if o in lines for shape in lines[o].shapes)
            yield dataclasses.replace(i, operand_shapes=read, times=times, fused=fused)
            inner = times  # how often the computations that this instruction calls run
            if i.opcode == "while":
                trips = self._trip_count(name, i)
                inner = None if times is None or trips is None else times * trips
            # A fusion, a reduction or an asynchronous call runs what it calls once per execution.
            in_fusion = fused or i.opcode == "fusion"
            for called in _CALLED.findall(i.attributes):
                for callee in called[1].replace(" ", "").split(","):
                    yield from self._execute(callee, inner, in_fusion, cost)
            branches = ",".join(_BRANCHES.findall(i.attributes)).replace(" ", "")
            if branches:
                options = [tuple(self._execute(b, times, fused, cost)) for b in branches.split(",")]
                yield from max(options, key=cost)

    def _trip_count(self, computation: str, loop: Instruction) -> int | None:
        """Return a loop's trip count: stated by XLA, counted, or given by the caller; else None."""
        if stated := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(stated[1])
        # Count before looking it up: loops of known and of unknown length may share an `op_name`.
        trips = self._counted_trips(computation, loop)
        for name in (loop.name, loop.op_name):
            trips = self.trips.get(name) if trips is None else trips
        if trips is None:
            self.unknown.append(loop.op_name or loop.name)
        return trips

    def _counted_trips(self, computation: str, loop: Instruction) -> int | None:
        """Return the trip count of a loop whose counter steps from one constant up to another.

        The loop carries a tuple. One element of it is the counter: the condition compares it with
        the bound, and the body adds a constant to it.
        """
        condition = re.search(r"\bcondition=(%[\w.\-]+)", loop.attributes)[1]
        body = re.search(r"\bbody=(%[\w.\-]+)", loop.attributes)[1]
        before = self.computations[computation].get(loop.operands[0])
        after = self.computations[body][self.roots[body]]
        if before is None or before.opcode != "tuple" or after.opcode != "tuple":
            return None

        def constant(value: Instruction | None) -> int | None:
            """Return the value of a constant, which the loop may carry along unchanged."""
            index = _element(value)
            if index is None:
                return _constant(value)
            if _element(self._source(body, after.operands[index])) != index:
                return None
            return _constant(self._source(computation, before.operands[index]))

        # The condition must be `counter < bound`, with constants for the start and the bound.
        test, (counter, bound) = self._root(condition)
        index, end = _element(counter), constant(bound)
        if test.opcode != "compare" or "direction=LT" not in test.attributes or index is None:
            return None
        start = _constant(self._source(computation, before.operands[index]))
        # The body must hand on `counter + step` as the same element of the tuple.
        added, terms = self._resolve(body, after.operands[index])
        steps = [constant(t) for t in terms if _element(t) != index]
        if added.opcode != "add" or len(steps) != 1 or None in (start, end, *steps) or steps[0] < 1:
            return None
        return max(0, -(-(end - start) // steps[0]))

    def _root(self, computation: str) -> tuple[Instruction, list[Instruction | None]]:
        return self._resolve(computation, self.roots[computation])

    def _resolve(self, computation: str, name: str) -> tuple[Instruction, list[Instruction | None]]:
        """Return the instruction that makes a value, and its operands.

        Looks through copies and into fusions, whose parameters are replaced by what is passed.
        """
        made = self._source(computation, name)
        operands = [self._source(computation, o) for o in made.operands]
        # Callers unpack two operands; None stands for one that is missing.
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
        """Return the instruction that a value is copied, cast or converted from."""
        made = self.computations[computation][name]
        while made.opcode in ("copy", "bitcast", "convert"):
            made = self.computations[computation][made.operands[0]]
        return made


def _read_line(line: str) -> Instruction | None:
    """Parse `%name = type opcode(operands), attributes`; return None for any other line."""
    match = re.match(r"\s+(?:ROOT )?(%[\w.\-]+) = ", line)
    if not match:
        return None
    rest = line[match.end() :]
    # A tuple's type stands in parentheses and may hold blanks; any other type ends at a blank.
    cut = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    kind, call = rest[:cut], rest[cut:].lstrip()
    opcode, call = call.split("(", 1)
    end = _closing("(" + call) - 1
    inside, attributes = call[:end], call[end + 1 :]
    operands = tuple(re.findall(r"%[\w.\-]+", inside))
    return Instruction(match[1], opcode, _shapes(kind), operands, attributes, inside)


def _closing(text: str) -> int:
    """Return the index of the parenthesis that closes the one `text` starts with."""
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
    """Return the value of an integer constant; None for any other instruction."""
    is_number = made is not None and made.opcode == "constant"
    return int(made.literal) if is_number and re.fullmatch(r"-?\d+", made.literal) else None


def _element(made: Instruction | None) -> int | None:
    """Return which element of a tuple an instruction reads; None if it reads none."""
    if made is None or made.opcode != "get-tuple-element":
        return None
    return int(re.search(r"\bindex=(\d+)", made.attributes)[1])
