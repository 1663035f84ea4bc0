"""From a compiled program to what it will need: memory, FLOPs, exchanges, a roofline time.

A roofline (Williams, Waterman and Patterson 2009) says what cannot be undercut: each of products,
memory traffic and exchanges at the chip's peak. They may overlap, so the time lies between the
longest of the three and their sum, at peak rates that nothing reaches.
"""

from __future__ import annotations

import dataclasses
import re

from jaxalign.core.errors import UserError
from jaxalign.lm.mesh import MeshChoice
from jaxalign.runtime.program_facts import Collective, Memory, ProgramFacts
from jaxalign.runtime.topology import Topology

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class DoesNotFitError(UserError):
    """A program that needs more memory than a chip has."""


@dataclasses.dataclass(frozen=True)
class Exchange:
    """All collectives of one kind among groups of one size, per chip and unit of work."""

    kind: str
    group_size: int
    bytes: float  # what is exchanged
    sent_bytes: float  # what a ring sends out of each chip for it


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What one chip needs for one unit of work (a generation, a batch, a step)."""

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
        m = self.memory
        return m.arguments + m.outputs - m.aliased + m.temporaries

    @property
    def seconds(self) -> dict[str, float]:
        """At the chip's peak rates, by what takes the time."""
        chip, sent = self.topology.chip, sum(e.sent_bytes for e in self.exchanges)
        return {
            "matrix products": self.flops / chip.flops_per_second,
            "memory traffic": self.traffic_bytes / chip.memory_bytes_per_second,
            "exchanges": sent / chip.link_bytes_per_second,
        }

    @property
    def bound_by(self) -> str:
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def least_seconds(self) -> float:
        """Everything overlaps."""
        return max(self.seconds.values())

    @property
    def most_seconds(self) -> float:
        """Nothing overlaps, still at peak rates."""
        return sum(self.seconds.values())

    def chip_hours(self, units: int, efficiency: float) -> float:
        """Chips x hours for `units` of work at a share of the roofline."""
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
    """Of one unit where the program does `units`. DoesNotFitError where memory is short."""
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
    """The compiler's message as one readable line; DoesNotFitError where it is about memory."""
    amount = r"([\d.]+)([KMGT]?)"
    for pattern in (
        rf"total memory required for (?P<what>[\w ]+?) \({amount}\) exceeds available "
        rf"\w+ \({amount}\)",
        rf"Used {amount} of {amount} \w+",
    ):
        if found := re.search(pattern, message):
            needed, unit, available, available_unit = found.groups()[-4:]
            what = found.groupdict().get("what") or "the program"
            return DoesNotFitError(
                _too_much(
                    topology, program, int(float(needed) * _UNITS[unit]),
                    int(float(available) * _UNITS[available_unit]), what,
                )
            )  # fmt: skip
    first = message.strip().splitlines()[0] if message.strip() else "no message"
    return UserError(f"{topology.name}, {program}: the compiler refuses it: {first}")


def _too_much(
    topology: Topology, program: str, needed: int, available: int, what: str = "the program"
) -> str:
    return (
        f"{topology.name}, {program}: out of memory: {what} needs {needed / 2**30:.2f} GiB on each "
        f"chip, which has {available / 2**30:.2f} GiB for programs; a longer --mesh-model, a "
        "smaller --chunk or --population, a --prompt.projection, or more memory a chip"
    )


def _exchanges(collectives: tuple[Collective, ...], units: int) -> tuple[Exchange, ...]:
    found: dict[tuple[str, int], float] = {}
    for c in collectives:
        key = (c.kind, c.group_size)
        found[key] = found.get(key, 0) + c.bytes * (1 if c.times is None else c.times) / units
    return tuple(
        Exchange(kind, group, size, size * _ring(kind, group))
        for (kind, group), size in sorted(found.items())
    )


def _ring(kind: str, group_size: int) -> float:
    """Bytes that leave each chip per byte exchanged, around a ring."""
    if kind == "collective-permute":
        return 1.0
    around = (group_size - 1) / group_size
    return 2 * around if kind == "all-reduce" else around


def report_rows(estimate: Estimate, units: int, efficiency: float) -> list[tuple[str, str]]:
    """What the command prints, as (what, value)."""
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
    "model", "topology", "population × data × model", "arguments", "temporaries", "of memory",
    "TFLOP", "by the formula", "exchanged", "roofline", "bound by",
)  # fmt: skip


def table_row(model: str, estimate: Estimate) -> str:
    """One line of the table in tpu/README.md: no clock readings, so that it can be made again."""
    e, mesh = estimate, estimate.mesh
    share = e.needed_bytes / e.topology.chip.memory_bytes
    cells = (
        model, e.topology.name, f"{mesh.population} × {mesh.data} × {mesh.model}",
        _gib(e.memory.arguments), _gib(e.memory.temporaries), f"{share:.0%}",
        f"{e.flops / 1e12:.1f}", f"{e.formula_flops / 1e12:.1f}",
        _amount(sum(x.bytes for x in e.exchanges)), f"{e.least_seconds:.3f} s", e.bound_by,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _amount(count: float) -> str:
    """Bytes in the largest unit of which there is at least one."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count:,.0f} B"


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"
