"""Objectives: from the distributions over an item's options to one loss per candidate.

An objective knows neither model nor prompt. It is given the log-probabilities that candidates give
to the options of a survey's items, and says how far each candidate is from its group. The published
one, the distance of six VSM scores from a country's (Masoud et al. 2025), is
`jaxalign.stats.objectives.vsm`. `linear` takes any linear factor scores from a file of the user's,
and `distributions` holds the distances to how a group answered the survey itself.

To add an objective, write one module in this folder that registers a class:

    @objectives.register("total-variation")
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class TotalVariation(Objective):
        truth_CxQxO: jax.Array

        @classmethod
        def build(cls, inputs): ...
        def loss(self, log_probs_BxQxO, group_B): ...
        def for_groups(self, rows): ...

`tune_soft_prompt(..., objective="total-variation")` and `--objective total-variation` then tune on
it.

Letters: B candidate, Q item, O option, C group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from jaxalign.core.registry import Registry
from jaxalign.stats.vsm import Reading
from jaxalign.surveys.survey import Survey

objectives: Registry[type[Objective]] = Registry("objective", "jaxalign.stats.objectives")
"""Classes by name; the name is what `--objective` takes."""


@dataclasses.dataclass(frozen=True)
class ObjectiveInputs:
    """Everything an objective may be built from.

    Attributes:
        survey: The survey whose answers are tuned: Q items, and in `survey.distributions` how
            groups answered it, where that is known.
        groups: C groups, in the order in which `group_B` counts them.
        edition: Edition of the published scores.
        dimensions: The score dimensions that count.
        constants_6: C, the free constant of each score dimension, in points; float32 [6].
        reading: How answers are read, "expected" or "most_likely".
        mas_weight: Weight of the second difference of MAS: 35 as the manual has it, or the 25 that
            some papers print.
        scores: For "linear", the file of factor scores; see `jaxalign.surveys.factor_scores`.
    """

    survey: Survey
    groups: tuple[str, ...]
    edition: str
    dimensions: tuple[str, ...]
    constants_6: np.ndarray
    reading: Reading
    mas_weight: int = 35
    scores: Path | None = None


class Objective(Protocol):
    """The loss of answers for each of C groups.

    A pytree of arrays: it is an argument of the compiled search, never a constant in it.
    """

    @classmethod
    def build(cls, inputs: ObjectiveInputs) -> Objective:
        """Build the objective for the groups of `inputs`.

        Raises:
            UserError: where the survey or the groups do not have what the objective needs.
        """
        ...

    def loss(self, log_probs_BxQxO: jax.Array, group_B: jax.Array) -> jax.Array:
        """Return the loss of each candidate, float32 [B], 0 at best.

        Args:
            log_probs_BxQxO: float32, log-probabilities normalised over each item's options; -inf
                for options that an item does not have.
            group_B: int32, which of the C groups each candidate is tuned for.
        """
        ...

    def for_groups(self, rows: Sequence[int]) -> Objective:
        """Return the objective of some of the groups, in the order of `rows`."""
        ...

    def with_reading(self, reading: Reading) -> Objective:
        """Return the objective under another reading of answers.

        The default is the objective itself: it reads distributions in one way only.
        """
        return self

    def differentiable(self) -> Objective:
        """Return the nearest objective that has a gradient, for the gradient control."""
        return self

    def measure(self, log_probs_QxO: jax.Array, group: int | jax.Array) -> dict[str, jax.Array]:
        """Return what results report of one group's answers: `loss` at least. Traceable."""
        group_B = jax.numpy.asarray(group)[None]
        return {"loss": self.loss(jax.numpy.asarray(log_probs_QxO)[None], group_B)[0]}

    def group_record(self, group: int) -> dict[str, Any]:
        """Return what `result.json` says of a group besides the methods' answers.

        `target` is the published or observed target where it is a list of numbers; `trivial` holds
        losses by name of answers that need no model.
        """
        return {"target": None, "trivial": {}}

    def record(self) -> dict[str, Any]:
        """Return what `result.json` says of the objective itself."""
        return {}
