"""Linear factor scores from the user's file: how far a model's scores are from a group's.

The file says which items enter which factor with which weight, and what groups score
(`jaxalign.surveys.factor_scores`). Values of Schwartz and the axes of Inglehart and Welzel are such
scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.core.files import finite_or_none
from jaxalign.stats.lines import loss_lines, uninformed_lines
from jaxalign.stats.objectives import Objective, ObjectiveInputs, objectives
from jaxalign.stats.vsm import Reading, answer_distributions
from jaxalign.surveys.factor_scores import read_factor_scores
from jaxalign.surveys.tables import make_tables, option_table


@objectives.register("linear")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearObjective(Objective):
    """Sum over factors of |score - target|, in the unit of the scores."""

    weights_KxQxO: jax.Array  # float32, score per share of an option
    constants_K: jax.Array  # float32
    target_CxK: jax.Array  # float32
    valid_QxO: jax.Array  # bool, false past an item's options
    reading: Reading = dataclasses.field(metadata={"static": True})
    factors: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    name: str = dataclasses.field(metadata={"static": True})
    # Losses of answers that need no model, by name: float32 [C] each, NaN where unknown.
    lines: dict[str, jax.Array] = dataclasses.field(default_factory=dict)

    @classmethod
    def build(cls, inputs: ObjectiveInputs) -> LinearObjective:
        """Build the objective from the file of scores.

        Raises:
            UserError: without a file, or where it does not fit the survey and the groups.
        """
        if inputs.scores is None:
            raise UserError("`objective` linear: give the file of weights and targets as `scores`")
        scores, survey = read_factor_scores(inputs.scores), inputs.survey
        weights_KxQxO, constants_K = scores.option_weights(survey)
        built = cls(
            jnp.asarray(weights_KxQxO, jnp.float32),
            jnp.asarray(constants_K, jnp.float32),
            jnp.asarray(scores.group_targets(inputs.groups, survey), jnp.float32),
            jnp.asarray(option_table(survey)[0]),
            inputs.reading,
            tuple(factor.name for factor in scores.factors),
            scores.name,
        )
        # Lines are distributions, so they are scored in the expected reading whatever is tuned.
        read_as_shares = built.with_reading("expected").loss
        known = set(inputs.groups) <= survey.distributions.keys()
        if known:
            lines = loss_lines(read_as_shares, make_tables(survey), inputs.groups)
        else:
            lines = uninformed_lines(read_as_shares, survey, len(inputs.groups))
        return dataclasses.replace(
            built, lines={name: jnp.asarray(x, jnp.float32) for name, x in lines.items()}
        )

    def scores(self, log_probs_BxQxO: jax.Array) -> jax.Array:
        """Return the scores, float32 [..., K]."""
        shares = answer_distributions(log_probs_BxQxO, self.valid_QxO)
        if self.reading == "most_likely":
            # All weight on the most probable option; a row with NaN stays NaN.
            best = jnp.argmax(shares, axis=-1)
            one_hot = jax.nn.one_hot(best, shares.shape[-1], dtype=shares.dtype)
            shares = jnp.where(jnp.isnan(shares).any(-1, keepdims=True), jnp.nan, one_hot)
        # An item that enters no factor may be without an answer.
        enters_Qx1 = jnp.any(self.weights_KxQxO != 0, axis=(0, 2))[:, None]
        shares = jnp.where(jnp.broadcast_to(enters_Qx1, shares.shape), shares, 0.0)
        raw = jnp.einsum("...qo,kqo->...k", shares, self.weights_KxQxO, precision="highest")
        return raw + jnp.broadcast_to(self.constants_K, raw.shape)

    def loss(self, log_probs_BxQxO: jax.Array, group_B: jax.Array) -> jax.Array:
        """Return the loss of each candidate, float32 [B], in the unit of the scores."""
        # Each candidate is compared with the target of its own group.
        gap_BxK = self.scores(log_probs_BxQxO) - self.target_CxK[group_B]
        return jnp.sum(jnp.abs(gap_BxK), axis=-1)

    def for_groups(self, rows: Sequence[int]) -> LinearObjective:
        """Return the objective of some of the groups."""
        rows_C = np.asarray(rows, np.int32)
        lines = {name: loss_C[rows_C] for name, loss_C in self.lines.items()}
        return dataclasses.replace(self, target_CxK=self.target_CxK[rows_C], lines=lines)

    def with_reading(self, reading: Reading) -> LinearObjective:
        """Return the objective under another reading of answers."""
        return dataclasses.replace(self, reading=reading)

    def differentiable(self) -> LinearObjective:
        """Return the objective in the expected reading; most likely answers move in steps."""
        return self.with_reading("expected")

    def measure(self, log_probs_QxO: jax.Array, group: int | jax.Array) -> dict[str, jax.Array]:
        """Return one group's scores, float32 [K], and their loss."""
        scores_K = self.scores(log_probs_QxO)
        loss = jnp.sum(jnp.abs(scores_K - self.target_CxK[group]))
        return {"scores": scores_K, "loss": loss}

    def group_record(self, group: int) -> dict[str, Any]:
        """Return a group's target scores and the losses of answers that need no model."""
        lines = {name: float(loss_C[group]) for name, loss_C in self.lines.items()}
        target_K = np.asarray(self.target_CxK)[group]
        return {"target": target_K.tolist(), "trivial": finite_or_none(lines)}

    def record(self) -> dict[str, Any]:
        """Return the name of the scores and the factors, in the order of `scores`."""
        return {"factor_scores": self.name, "factors": list(self.factors)}
