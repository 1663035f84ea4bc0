"""What a compiled program will need: memory, FLOPs, exchanges, and a roofline time.

A roofline (Williams, Waterman and Patterson 2009) is a lower bound of the time: matrix products,
memory traffic and exchanges each at the peak rate of the chip. The three may overlap, so at peak
rates the time lies between the longest of them and their sum. No program reaches peak rates.
"""

from __future__ import annotations

import dataclasses

from jaxalign.core.errors import UserError
from jaxalign.lm.mesh import MeshChoice
from jaxalign.runtime.memory import Memory
from jaxalign.runtime.program_facts import Collective, ProgramFacts
from jaxalign.runtime.programs import first_line, stated_memory
from jaxalign.runtime.topology import Topology


class DoesNotFitError(UserError):
    """A program that needs more memory than a chip has."""


@dataclasses.dataclass(frozen=True)
class Exchange:
    """All collectives of one kind, in groups of one size, per chip and unit of work."""

    kind: str
    group_size: int
    bytes: float  # the larger of what goes in and what comes out
    sent_bytes: float  # what leaves each chip if the group forms a ring


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What one chip needs for one unit of work.

    Attributes:
        topology: The chips.
        program: "population", "decode" or "train".
        unit: Unit of work: "generation", "batch" or "step".
        mesh: How the chips are arranged.
        memory: What the compiler reports.
        flops: FLOPs of matrix products in the compiled program.
        formula_flops: The same by formula.
        traffic_bytes: Bytes moved between the chip and its memory.
        exchanges: Exchanges with other chips.
        compile_seconds: Time it took to compile.
    """

    topology: Topology
    program: str
    unit: str
    mesh: MeshChoice
    memory: Memory
    flops: float
    formula_flops: float
    traffic_bytes: float
    exchanges: tuple[Exchange, ...]
    compile_seconds: float

    @property
    def needed_bytes(self) -> int:
        """Memory that the program holds at once."""
        return self.memory.total

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds at the chip's peak rates, by what they are spent on."""
        # Exchanges are counted along one link in one direction, the slowest case.
        chip, sent = self.topology.chip, sum(e.sent_bytes for e in self.exchanges)
        return {
            "matrix products": self.flops / chip.flops_per_second,
            "memory traffic": self.traffic_bytes / chip.memory_bytes_per_second,
            "exchanges": sent / chip.link_bytes_per_second,
        }

    @property
    def bound_by(self) -> str:
        """What takes the most time."""
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def least_seconds(self) -> float:
        """Seconds if everything overlaps."""
        return max(self.seconds.values())

    @property
    def most_seconds(self) -> float:
        """Seconds if nothing overlaps, still at peak rates."""
        return sum(self.seconds.values())

    def chip_hours(self, units: int, efficiency: float) -> float:
        """Return chips times hours for `units` of work.

        Args:
            units: Number of generations, batches or steps.
            efficiency: Fraction of the roofline that is reached.
        """
        return self.topology.num_chips * units * self.least_seconds / efficiency / 3600


def make_estimate(
    topology: Topology,
    program: str,
    unit: str,
    units: int,
    mesh: MeshChoice,
    facts: ProgramFacts,
    traffic_bytes: int,
    formula_flops: float,
    compile_seconds: float,
) -> Estimate:
    """Return the estimate for one unit of work, from a program that does `units` of them.

    Args:
        topology: The chips.
        program: Name of the program.
        unit: Unit of work.
        units: Number of units that the program does.
        mesh: How the chips are arranged.
        facts: What the compiled program does.
        traffic_bytes: Bytes that the program moves between a chip and its memory.
        formula_flops: FLOPs of one unit by formula.
        compile_seconds: Time it took to compile.

    Raises:
        DoesNotFitError: The program needs more memory than a chip has.
    """
    # The compiled program does several units in a loop: divide its work, but not its memory.
    estimate = Estimate(
        topology=topology,
        program=program,
        unit=unit,
        mesh=mesh,
        memory=facts.memory,
        flops=facts.dot_flops / units,
        formula_flops=formula_flops,
        traffic_bytes=traffic_bytes / units,
        exchanges=_exchanges(facts.collectives, units),
        compile_seconds=compile_seconds,
    )
    available = topology.chip.memory_bytes
    if estimate.needed_bytes > available:
        raise DoesNotFitError(_too_much(topology, program, estimate.needed_bytes, available))
    return estimate


def read_refusal(topology: Topology, program: str, message: str) -> UserError:
    """Return the compiler's message as an error of one line: DoesNotFitError if it is on memory."""
    if stated := stated_memory(message):
        return DoesNotFitError(_too_much(topology, program, *stated))
    return UserError(f"{topology.name}, {program}: the compiler refuses it: {first_line(message)}")


def _too_much(
    topology: Topology, program: str, needed: int, available: int, what: str = "the program"
) -> str:
    return (
        f"{topology.name}, {program}: out of memory: {what} needs {needed / 2**30:.2f} GiB on each "
        f"chip, which has {available / 2**30:.2f} GiB for programs; give a larger "
        "`model_parallel`, a smaller `chunk` or `population`, a `prompt.projection`, or chips with "
        "more memory"
    )


def _exchanges(collectives: tuple[Collective, ...], units: int) -> tuple[Exchange, ...]:
    """Add up the exchanges of one kind and group size, per unit of work."""
    exchanged: dict[tuple[str, int], float] = {}
    for c in collectives:
        key = (c.kind, c.group_size)
        times = 1 if c.times is None else c.times
        exchanged[key] = exchanged.get(key, 0) + c.bytes * times / units
    return tuple(
        Exchange(kind, group, size, size * _ring(kind, group))
        for (kind, group), size in sorted(exchanged.items())
    )


def _ring(kind: str, group_size: int) -> float:
    """Return the bytes that leave each chip per byte exchanged, if the group forms a ring.

    Each chip of N sends (N - 1) / N of the data once around; an all-reduce goes round twice, to add
    up and to hand out the sums.
    """
    if kind == "collective-permute":
        return 1.0
    around = (group_size - 1) / group_size
    return 2 * around if kind == "all-reduce" else around


def report_rows(estimate: Estimate, units: int, efficiency: float) -> list[tuple[str, str]]:
    """Return what the command prints, as pairs of a name and a value.

    Args:
        estimate: The plan.
        units: Number of units of work to give chip-hours for.
        efficiency: Fraction of the roofline that a run is expected to reach.
    """
    # How far the compiled program is from the formula; 1 if nothing is computed twice.
    m, seconds = estimate.memory, estimate.seconds
    ratio = estimate.flops / estimate.formula_flops
    hours, unit = estimate.chip_hours(units, 1.0), estimate.unit
    return [
        ("arguments", _gib(m.arguments)),
        ("temporaries", _gib(m.temporaries)),
        ("output", f"{_gib(m.outputs)}, of which in place {_gib(m.aliased)}"),
        (
            "together",
            f"{_gib(estimate.needed_bytes)} of {_gib(estimate.topology.chip.memory_bytes)}",
        ),
        (
            f"FLOPs a {unit}",
            f"{estimate.flops / 1e12:,.2f} T compiled, {estimate.formula_flops / 1e12:,.2f} T by "
            f"the formula ({ratio:.3f})",
        ),
        (f"memory traffic a {unit}", _amount(estimate.traffic_bytes)),
        *(
            (f"{e.kind} among {e.group_size}", f"{_amount(e.bytes)} a {unit}")
            for e in estimate.exchanges
        ),
        *((f"seconds of {name}", f"{value:.4g}") for name, value in seconds.items()),
        (
            f"roofline, a {unit}",
            f"{estimate.least_seconds:.4g} s, bound by {estimate.bound_by}; "
            f"{estimate.most_seconds:.4g} s where nothing overlaps",
        ),
        (
            f"{units:,} {unit}{'es' if unit == 'batch' else 's'}",
            f"{hours / estimate.topology.num_chips:.3g} h x {estimate.topology.num_chips} chips = "
            f"{hours:,.1f} chip-hours at the roofline; "
            f"{estimate.chip_hours(units, efficiency):,.1f} at {efficiency:.0%} of it",
        ),
        ("compiled in", f"{estimate.compile_seconds:.0f} s"),
    ]


TABLE_COLUMNS = (
    "model",
    "topology",
    "population × data × model",
    "arguments",
    "temporaries",
    "of memory",
    "TFLOP",
    "by the formula",
    "exchanged",
    "roofline",
    "bound by",
)


def table_row(model: str, estimate: Estimate) -> str:
    """Return one row of the table in tpu/README.md.

    It holds no clock readings, so that the same row can be made again.
    """
    e, mesh = estimate, estimate.mesh
    share = e.needed_bytes / e.topology.chip.memory_bytes
    cells = (
        model,
        e.topology.name,
        f"{mesh.population} × {mesh.data} × {mesh.model}",
        _gib(e.memory.arguments),
        _gib(e.memory.temporaries),
        f"{share:.0%}",
        f"{e.flops / 1e12:.1f}",
        f"{e.formula_flops / 1e12:.1f}",
        _amount(sum(x.bytes for x in e.exchanges)),
        f"{e.least_seconds:.3f} s",
        e.bound_by,
    )
    return f"| {' | '.join(cells)} |"


def _amount(count: float) -> str:
    """Return a number of bytes in the largest unit of which there is at least one."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count:,.0f} B"


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"
