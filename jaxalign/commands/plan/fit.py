"""The largest population, or the smallest slice, whose program compiles and fits."""

from __future__ import annotations

import logging
from collections.abc import Callable

from jaxalign.commands.plan.estimate import DoesNotFitError, Estimate
from jaxalign.core.errors import UserError
from jaxalign.runtime.topology import Topology

log = logging.getLogger(__name__)
_STEP = 64  # candidates: every population tried is a multiple of it
_MOST = 2**20
_ATTEMPTS = 10
_TOLERANCE = 0.05  # how near to a population that does not fit the answer must be


def largest_population(start: int, attempt: Callable[[int], Estimate]) -> Estimate:
    """Return the plan of the largest population that was found to fit.

    It is within 5 % of one that does not fit. Memory grows as a straight line with the population,
    so two plans that fit predict the limit; where the compiler packs tighter than that, bisection
    finds it.

    Args:
        start: The population to try first.
        attempt: Plans a population; raises DoesNotFitError.

    Raises:
        UserError: No population fits.
    """
    fitting: dict[int, Estimate] = {}
    too_many = _MOST + _STEP
    population = _round(start)
    for _ in range(_ATTEMPTS):
        try:
            fitting[population] = attempt(population)
            log.info("%s candidates fit", f"{population:,}")
        except DoesNotFitError as error:
            too_many = population
            log.info("%s candidates do not fit: %s", f"{population:,}", error)
        largest = max(fitting, default=0)
        if too_many - largest <= max(_STEP, _TOLERANCE * largest) or largest == _MOST:
            break
        population = _next(fitting, largest, too_many)
    if not fitting:
        raise UserError(
            f"not even {too_many} candidates fit; give more chips, chips with more memory, or a "
            "larger `model_parallel`"
        )
    if too_many > _MOST:
        log.info("memory hardly depends on the population: %s were tried, no more", f"{largest:,}")
    return fitting[largest]


def _next(fitting: dict[int, Estimate], largest: int, too_many: int) -> int:
    """Return the next population to try, between the largest that fits and one that does not."""
    # Half-way, or twice as many as long as everything has fitted.
    guess = (largest + too_many) // 2 if too_many <= _MOST else 2 * largest
    if len(fitting) > 1:
        # Where the line through the two largest plans meets the memory of the chip.
        second = sorted(fitting)[-2]
        slope = (fitting[largest].needed_bytes - fitting[second].needed_bytes) / (largest - second)
        free = fitting[largest].topology.chip.memory_bytes - fitting[largest].needed_bytes
        limit = largest + free / slope if slope > 0 else _MOST
        if largest + _STEP <= limit < too_many:
            guess = int(limit)
    return min(max(_round(guess), largest + _STEP), too_many - _STEP, _MOST)


def _round(population: float) -> int:
    return max(_STEP, int(population) // _STEP * _STEP)


def smallest_slice(topology: Topology, attempt: Callable[[Topology], Estimate]) -> Estimate:
    """Return the plan of the smallest slice that fits.

    Args:
        topology: Names the kind of chip; its shape does not matter.
        attempt: Plans a slice; raises UserError.

    Raises:
        UserError: No slice of the chip fits.
    """
    reason = ""
    for candidate in topology.chip.topologies():
        try:
            return attempt(candidate)
        except UserError as error:
            reason = str(error)
            log.info("%s is not enough: %s", candidate.name, error)
    raise UserError(f"no slice of {topology.chip.name} fits; the largest: {reason}")
