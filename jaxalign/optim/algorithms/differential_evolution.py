"""Differential Evolution, the optimizer that the package uses unless told otherwise.

Source: R. Storn and K. Price, "Differential Evolution - a simple and efficient heuristic for global
optimization over continuous spaces", J. Global Optimization 11 (1997). In the notation of K. Price,
R. Storn and J. Lampinen, "Differential Evolution: a practical approach to global optimization"
(2005), the default here is best/1/bin with the differential weight F dithered: drawn afresh every
generation from a range. (That F > 0.5 helps in thousands of dimensions is our own measurement, not
the book's.)
"""

from __future__ import annotations

import dataclasses

from jaxalign.core.errors import UserError
from jaxalign.optim.algorithms.evosax_algorithms import EvosaxAlgorithm, build_evosax
from jaxalign.optim.api import optimizers, vars_of

NAME = "DifferentialEvolution"


@optimizers.register(NAME)
@dataclasses.dataclass(frozen=True)
class DifferentialEvolution:
    """Settings of Differential Evolution.

    >>> DifferentialEvolution(population=16, crossover_rate=0.7).population
    16
    """

    population: int = 64
    """Members per entry, E; at least 4."""
    elitism: bool = True
    """Whether the base vector is the best member (best/1) rather than a random one (rand/1)."""
    differential_weight_min: float = 0.5
    """Lower bound of the dithered differential weight F."""
    differential_weight_max: float = 1.0
    """Upper bound of F; equal bounds switch the dither off."""
    crossover_rate: float = 0.9
    """Probability that a coordinate comes from the mutant."""
    num_diff: int = 1
    """Number of difference vectors added to the base vector."""

    def __post_init__(self) -> None:
        if self.population < 4:
            raise UserError(
                f"`population` {self.population} is too small for {NAME}, which needs a base, two "
                "other members and the member itself; use 4 or more"
            )
        low, high = self.differential_weight_min, self.differential_weight_max
        if not 0 <= low <= high <= 2:
            raise UserError(
                f"`differential_weight_min` {low} and `differential_weight_max` {high}: need "
                "0 <= min <= max <= 2"
            )
        if not 0 <= self.crossover_rate <= 1:
            raise UserError(f"`crossover_rate` {self.crossover_rate} must lie between 0 and 1")
        if self.num_diff < 1:
            raise UserError(f"`num_diff` {self.num_diff} must be 1 or more")

    def build(self, num_dims: int) -> EvosaxAlgorithm:
        """Build evosax's implementation of these settings for `num_dims` dimensions."""
        options = vars_of(self)
        population = options.pop("population")
        # evosax reads the undithered weight only where min = max, so all three agree there.
        options["differential_weight"] = self.differential_weight_max
        return build_evosax(NAME, population, options, num_dims)
