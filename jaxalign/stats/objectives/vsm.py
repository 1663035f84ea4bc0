"""The published objective: how far a model's six survey scores are from a group's.

Source: Masoud et al. 2025 (arXiv 2503.16094): the L1 distance between the model's six VSM 2013
scores and the published ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.core.files import finite_or_none
from jaxalign.stats.lines import loss_lines
from jaxalign.stats.objectives import Objective, ObjectiveInputs, objectives
from jaxalign.stats.vsm import (
    Reading,
    Scorer,
    loss,
    make_scorer,
    other_groups_lines,
    trivial_lines,
)
from jaxalign.surveys.hofstede import DIMENSIONS, edition_scores, targets
from jaxalign.surveys.tables import make_tables


@objectives.register("vsm")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VsmObjective(Objective):
    """Sum over the dimensions used of |score - target|, in points of score."""

    scorer: Scorer
    target_Cx6: jax.Array  # float32, in points; NaN where a dimension is not used
    used_6: jax.Array  # bool, the dimensions that count
    reading: Reading = dataclasses.field(metadata={"static": True})
    # Losses of other groups' scores and of people's answers, by name of the line: float32 [C] each.
    lines: dict[str, jax.Array] = dataclasses.field(default_factory=dict)

    @classmethod
    def build(cls, inputs: ObjectiveInputs) -> VsmObjective:
        """Build the objective from the published scores of the groups.

        Raises:
            UserError: for a survey without the 24 values items, and for a group without a
                published score in one of the dimensions.
        """
        target_Cx6, used_6 = targets(inputs.groups, inputs.edition, inputs.dimensions)
        scorer = make_scorer(inputs.survey, inputs.constants_6, inputs.mas_weight)
        lines = _lines_of_others(inputs, target_Cx6, used_6)
        built = cls(scorer, jnp.asarray(target_Cx6), jnp.asarray(used_6), inputs.reading, lines)
        if not set(inputs.groups) <= inputs.survey.distributions.keys():
            return built
        # Where it is known how people answered these items, so are the scores of their answers.
        people = loss_lines(
            built.with_reading("expected").loss, make_tables(inputs.survey), inputs.groups
        )
        known = ("own_mean", "random_respondent")
        lines |= {name: jnp.asarray(people[name], jnp.float32) for name in known}
        return dataclasses.replace(built, lines=lines)

    def loss(self, log_probs_BxQxO: jax.Array, group_B: jax.Array) -> jax.Array:
        """Return the loss of each candidate, float32 [B], in points."""
        scores_Bx6 = self.scorer.scores(log_probs_BxQxO, self.reading)
        return loss(scores_Bx6, self.target_Cx6[group_B], self.used_6)

    def for_groups(self, rows: Sequence[int]) -> VsmObjective:
        """Return the objective of some of the groups."""
        rows_C = np.asarray(rows, np.int32)
        lines = {name: loss_C[rows_C] for name, loss_C in self.lines.items()}
        return dataclasses.replace(self, target_Cx6=self.target_Cx6[rows_C], lines=lines)

    def with_reading(self, reading: Reading) -> VsmObjective:
        """Return the objective under another reading of answers."""
        return dataclasses.replace(self, reading=reading)

    def differentiable(self) -> VsmObjective:
        """Return the objective in the expected reading.

        Most likely answers move in steps, so their gradient is zero everywhere.
        """
        return self.with_reading("expected")

    def measure(self, log_probs_QxO: jax.Array, group: int | jax.Array) -> dict[str, jax.Array]:
        """Return one group's six scores, float32 [6] in points, and their loss."""
        scores_6 = self.scorer.scores(log_probs_QxO, self.reading)
        return {"scores": scores_6, "loss": loss(scores_6, self.target_Cx6[group], self.used_6)}

    def group_record(self, group: int) -> dict[str, Any]:
        """Return a group's published scores and the losses of answers that need no model."""
        used_6, constants_6 = np.asarray(self.used_6), np.asarray(self.scorer.constants)
        target_6 = np.where(used_6, np.asarray(self.target_Cx6)[group], np.nan)
        lines = trivial_lines(target_6, used_6, constants_6, self.scorer.mas_weight)
        lines |= {name: float(loss_C[group]) for name, loss_C in self.lines.items()}
        return {"target": finite_or_none(target_6), "trivial": finite_or_none(lines)}

    def record(self) -> dict[str, Any]:
        """Return C by dimension (None where it is not used), the dimensions' names, and the weight
        of the second difference of MAS."""
        used_6 = np.asarray(self.used_6)
        constants_6 = np.where(used_6, np.asarray(self.scorer.constants), np.nan)
        return {
            "constants": finite_or_none(constants_6),
            "dimensions": list(DIMENSIONS),
            "mas_weight": self.scorer.mas_weight,
        }


def _lines_of_others(
    inputs: ObjectiveInputs, target_Cx6: np.ndarray, used_6: np.ndarray
) -> dict[str, jax.Array]:
    """Return what the other groups of the edition would lose, by line; NaN without others."""
    scores = edition_scores(inputs.edition)
    lines_C = []
    for group, target_6 in zip(inputs.groups, target_Cx6, strict=True):
        others = [
            [found.get(dimension, np.nan) for dimension in DIMENSIONS]
            for name, found in scores.items()
            if name != group
        ]
        lines_C.append(other_groups_lines(target_6, np.array(others), used_6))
    return {
        name: jnp.asarray([lines.get(name, np.nan) for lines in lines_C], jnp.float32)
        for name in ("mean_of_others", "another_country")
    }
