"""The largest population, or the smallest slice, whose program compiles and fits."""

from __future__ import annotations

from collections.abc import Callable

from jaxalign.commands.plan.report import DoesNotFitError, Estimate
from jaxalign.core.errors import UserError
from jaxalign.runtime.topology import Topology

_STEP = 64  # candidates: answers are multiples of it
_MOST = 2**20
_ATTEMPTS = 10


def largest_population(
    start: int, attempt: Callable[[int], Estimate], close: float = 0.05
) -> Estimate:
    """The plan of the largest population found to fit, to within `close` of one that does not.

    Memory grows as a straight line with the population, so two plans that fit foretell the edge;
    where the compiler packs tighter than that, halving finds it. UserError where none fits.
    """
    fitting: dict[int, Estimate] = {}
    too_many = _MOST + _STEP
    population = _round(start)
    for _ in range(_ATTEMPTS):
        try:
            fitting[population] = attempt(population)
            print(f"{population:,} candidates fit", flush=True)
        except DoesNotFitError as error:
            too_many = population
            print(f"{population:,} candidates do not fit: {error}", flush=True)
        largest = max(fitting, default=0)
        if too_many - largest <= max(_STEP, close * largest) or largest == _MOST:
            break
        population = _next(fitting, largest, too_many)
    if not fitting:
        raise UserError(f"not even {too_many} candidates fit; {_REMEDY}")
    if too_many > _MOST:
        print(f"memory hardly depends on the population: {largest:,} were tried, no more")
    return fitting[largest]


_REMEDY = "give more chips, chips with more memory, or a longer --mesh-model"


def _next(fitting: dict[int, Estimate], largest: int, too_many: int) -> int:
    """Where the line through two plans meets the memory, if that is between; else half-way."""
    middle = (largest + too_many) // 2 if too_many <= _MOST else 2 * largest
    if len(fitting) > 1:
        second = sorted(fitting)[-2]
        slope = (fitting[largest].needed_bytes - fitting[second].needed_bytes) / (largest - second)
        room = fitting[largest].topology.chip.memory_bytes - fitting[largest].needed_bytes
        edge = largest + room / slope if slope > 0 else _MOST
        if largest + _STEP <= edge < too_many:
            middle = int(edge)
    return min(max(_round(middle), largest + _STEP), too_many - _STEP, _MOST)


def _round(population: float) -> int:
    return max(_STEP, int(population) // _STEP * _STEP)


def smallest_slice(topology: Topology, attempt: Callable[[Topology], Estimate]) -> Estimate:
    """The plan of the smallest slice of the chip that fits. UserError where none does."""
    reason = ""
    for candidate in topology.chip.topologies():
        try:
            return attempt(candidate)
        except UserError as error:
            reason = str(error)
            print(f"{candidate.name} does not do: {error}", flush=True)
    raise UserError(f"no slice of {topology.chip.name} fits; the largest: {reason}")
