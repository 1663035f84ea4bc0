"""An optimizer as the command line, a sweep file and a run's record name it.

`Strategy` is flat: the name of an algorithm, the population, the settings of Differential Evolution
as fields of their own, and `options` for the settings of any other algorithm. `Strategy.optimizer`
turns it into the optimizer's own settings, and `Strategy.of` is the way back.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jaxalign.core.errors import UserError
from jaxalign.optim.algorithms.differential_evolution import NAME as DIFFERENTIAL_EVOLUTION
from jaxalign.optim.algorithms.differential_evolution import DifferentialEvolution
from jaxalign.optim.algorithms.evosax_algorithms import Evosax, known_algorithms
from jaxalign.optim.api import Algorithm, Optimizer, optimizers, vars_of

DE_FIELDS = (
    "elitism",
    "differential_weight_min",
    "differential_weight_max",
    "crossover_rate",
    "num_diff",
)


@dataclasses.dataclass(frozen=True)
class Strategy:
    """The optimizer and every number that steers it, shared by all entries; an `Optimizer`."""

    algorithm: str = DIFFERENTIAL_EVOLUTION
    """Name of the optimizer: DifferentialEvolution, or any algorithm of evosax. Those that search a
    distribution rather than members begin at the mean of the random initial population, which is
    not quite the start."""
    population: int = 64
    """Number of members per country, E."""
    elitism: bool = True
    """DE: whether the base vector is the best member (best/1) rather than a random one (rand/1)."""
    differential_weight_min: float = 0.5
    """DE: lower bound of the dithered differential weight F; equal bounds switch the dither off."""
    differential_weight_max: float = 1.0
    """DE: upper bound of the dithered differential weight F."""
    crossover_rate: float = 0.9
    """DE: probability that a coordinate comes from the mutant."""
    num_diff: int = 1
    """DE: number of difference vectors added to the base vector."""
    options: tuple[tuple[str, float], ...] = ()
    """Settings of any other algorithm, as pairs of name and number: its evosax parameters, its
    constructor's numbers, `std` (a constant, where evosax takes a schedule) and `learning_rate`
    (Adam's, where evosax takes an optimizer). Without `std_init`, the spread of the initial
    population is the first standard deviation."""

    @classmethod
    def of(cls, optimizer: Optimizer) -> Strategy:
        """Return the strategy that names `optimizer`, so that a run can record it.

        Raises:
            UserError: for a class that is not registered, and for a setting that is not a number.

        >>> Strategy.of(Evosax("SNES", population=8, options={"std_init": 0.5})).options
        (('std_init', 0.5),)
        """
        if isinstance(optimizer, Strategy):
            return optimizer
        if isinstance(optimizer, DifferentialEvolution):
            return cls(DIFFERENTIAL_EVOLUTION, **vars_of(optimizer))
        if isinstance(optimizer, Evosax):
            return cls(optimizer.algorithm, optimizer.population, options=_pairs(optimizer.options))
        names = [name for name in optimizers.names() if optimizers[name] is type(optimizer)]
        if not names:
            raise UserError(
                f"`optimizer` {type(optimizer).__name__} is not registered; decorate the class "
                "with @optimizers.register(NAME), from jaxalign.optim.api"
            )
        settings = vars_of(optimizer)
        population = settings.pop("population")
        return cls(names[0], population, options=_pairs(settings))

    def optimizer(self) -> Optimizer:
        """Return the optimizer's own settings.

        Raises:
            UserError: for an unknown algorithm, and for settings that it cannot take.
        """
        for name, value in self.options:
            if not math.isfinite(value):
                raise UserError(f"`options`: {name} = {value} must be a finite number")
        options = dict(self.options)
        if self.algorithm == DIFFERENTIAL_EVOLUTION:
            if twice := sorted(options.keys() & {*DE_FIELDS, "differential_weight"}):
                raise UserError(
                    f"`options`: {', '.join(twice)} are fields of their own, not options"
                )
            _refuse_unknown(self.algorithm, options, ())
            fields = {name: getattr(self, name) for name in DE_FIELDS}
            return DifferentialEvolution(self.population, **fields)
        self._refuse_de_fields()
        if self.algorithm not in optimizers:
            known = known_algorithms()
            if self.algorithm in known:
                return Evosax(self.algorithm, self.population, options)
            names = ", ".join(sorted({*optimizers.names(), *known}))
            raise UserError(f"`algorithm` {self.algorithm!r} is unknown; choose one of: {names}")
        kind = optimizers[self.algorithm]
        fields = {f.name: f for f in dataclasses.fields(kind) if f.name != "population"}
        _refuse_unknown(self.algorithm, options, tuple(fields))
        # Numbers arrive as floats; a field keeps the type of its default.
        typed = {name: type(fields[name].default)(value) for name, value in options.items()}
        return kind(population=self.population, **typed)

    def build(self, num_dims: int) -> Algorithm:
        """Build the optimizer for `num_dims` dimensions; UserError for what it cannot take."""
        return self.optimizer().build(num_dims)

    def _refuse_de_fields(self) -> None:
        """Raise UserError for a DE setting given to another algorithm, which would ignore it."""
        changed = [f for f in DE_FIELDS if getattr(self, f) != getattr(Strategy, f)]
        if changed:
            names = ", ".join(f"`{name}`" for name in changed)
            raise UserError(
                f"{names}: settings of {DIFFERENTIAL_EVOLUTION}, not of {self.algorithm}, whose "
                "settings are given in `options`"
            )


def _refuse_unknown(algorithm: str, options: dict[str, float], known: tuple[str, ...]) -> None:
    if unknown := sorted(options.keys() - set(known)):
        raise UserError(
            f"`options`: {algorithm} has no option {', '.join(map(repr, unknown))}; it takes: "
            + (", ".join(sorted(known)) or "none")
        )


def _pairs(options: Any) -> tuple[tuple[str, float], ...]:
    """Return options as pairs of name and number, the form that a command line reads."""
    for name, value in options.items():
        if not isinstance(value, int | float):
            raise UserError(f"`{name}` {value!r}: an optimizer's settings must be numbers")
    return tuple((name, float(value)) for name, value in options.items())
