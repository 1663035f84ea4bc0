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
from jaxalign.stats.objectives import Objective, ObjectiveInputs, objectives
from jaxalign.stats.vsm import Reading, Scorer, loss, make_scorer, trivial_lines
from jaxalign.surveys.hofstede import DIMENSIONS, targets


@objectives.register("vsm")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VsmObjective(Objective):
    """Sum over the dimensions used of |score - target|, in points of score."""

    scorer: Scorer
    target_Cx6: jax.Array  # float32, in points; NaN where a dimension is not used
    used_6: jax.Array  # bool, the dimensions that count
    reading: Reading = dataclasses.field(metadata={"static": True})

    @classmethod
    def build(cls, inputs: ObjectiveInputs) -> VsmObjective:
        """Build the objective from the published scores of the groups.

        Raises:
            UserError: for a survey without the 24 values items, and for a group without a
                published score in one of the dimensions.
        """
        target_Cx6, used_6 = targets(inputs.groups, inputs.edition, inputs.dimensions)
        scorer = make_scorer(inputs.survey, inputs.constants_6)
        return cls(scorer, jnp.asarray(target_Cx6), jnp.asarray(used_6), inputs.reading)

    def loss(self, log_probs_BxQxO: jax.Array, group_B: jax.Array) -> jax.Array:
        """Return the loss of each candidate, float32 [B], in points."""
        scores_Bx6 = self.scorer.scores(log_probs_BxQxO, self.reading)
        return loss(scores_Bx6, self.target_Cx6[group_B], self.used_6)

    def for_groups(self, rows: Sequence[int]) -> VsmObjective:
        """Return the objective of some of the groups."""
        rows_C = np.asarray(rows, np.int32)
        return dataclasses.replace(self, target_Cx6=self.target_Cx6[rows_C])

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
        lines = trivial_lines(target_6, used_6, constants_6)
        return {"target": finite_or_none(target_6), "trivial": lines}

    def record(self) -> dict[str, Any]:
        """Return C by dimension (None where it is not used), and the dimensions' names."""
        used_6 = np.asarray(self.used_6)
        constants_6 = np.where(used_6, np.asarray(self.scorer.constants), np.nan)
        return {"constants": finite_or_none(constants_6), "dimensions": list(DIMENSIONS)}
