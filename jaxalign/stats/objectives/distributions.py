"""Distance to how groups of people answered the survey that is tuned.

    jensen-shannon   100 × the mean over items of the Jensen-Shannon divergence, in hundredths of a
                     bit (base 2, so that the most is 100)
    earth-mover      100 × the mean over items of the earth mover's distance on the order of the
                     options, as a share of the scale's length; total variation for items whose
                     options have no order. It is 100 × (1 - similarity), where similarity is the
                     held-out score

Both read distributions, whatever the reading. An item that a group was not asked is left out.
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
from jaxalign.stats.distances import jensen_shannon_divergence, survey_similarity
from jaxalign.stats.lines import loss_lines
from jaxalign.stats.objectives import Objective, ObjectiveInputs, objectives
from jaxalign.stats.vsm import answer_distributions
from jaxalign.surveys.tables import make_tables

# With this share of every option a gradient stays finite where an option has no probability; the
# divergence changes by less than float32 shows.
_SMALLEST = 1e-12


@dataclasses.dataclass(frozen=True)
class DistributionObjective(Objective):
    """Mean distance to a group's distributions, from 0 to 100."""

    truth_CxQxO: jax.Array  # float32, NaN where a group was not asked
    valid_QxO: jax.Array  # bool, false past an item's options
    ordinal_Q: jax.Array  # bool
    # Losses of answers that need no model, by name: float32 [C] each.
    lines: dict[str, jax.Array] = dataclasses.field(default_factory=dict)

    @classmethod
    def build(cls, inputs: ObjectiveInputs) -> DistributionObjective:
        """Build the objective from how the groups answered the survey.

        Raises:
            UserError: the survey does not say how one of the groups answered.
        """
        survey = inputs.survey
        if refused := [group for group in inputs.groups if group in survey.refused]:
            raise UserError(f"survey {survey.name!r}: {survey.why_absent(refused[0])}")
        if lacking := [group for group in inputs.groups if not survey.distributions.get(group)]:
            raise UserError(
                f"`countries` {lacking[0]}: survey {survey.name!r} does not say how it answered; "
                "tune on a survey that does (`instrument`), or choose another `objective`"
            )
        # All groups of the survey, since those that are not tuned for are others as well.
        everyone = make_tables(survey)
        rows_C = np.array([everyone.row(group) for group in inputs.groups])
        built = cls(
            jnp.asarray(everyone.truth_CxQxO[rows_C]),
            jnp.asarray(everyone.valid_QxO),
            jnp.asarray(everyone.ordinal_Q),
        )
        lines = loss_lines(built.loss, everyone, inputs.groups)
        return dataclasses.replace(
            built, lines={name: jnp.asarray(x, jnp.float32) for name, x in lines.items()}
        )

    def for_groups(self, rows: Sequence[int]) -> DistributionObjective:
        """Return the objective of some of the groups."""
        rows_C = np.asarray(rows, np.int32)
        lines = {name: loss_C[rows_C] for name, loss_C in self.lines.items()}
        return dataclasses.replace(self, truth_CxQxO=self.truth_CxQxO[rows_C], lines=lines)

    def group_record(self, group: int) -> dict[str, Any]:
        """Return the losses of answers that need no model."""
        lines = {name: float(loss_C[group]) for name, loss_C in self.lines.items()}
        return {"target": None, "trivial": finite_or_none(lines)}


@objectives.register("jensen-shannon")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class JensenShannon(DistributionObjective):
    """Mean Jensen-Shannon divergence to a group's distributions, in hundredths of a bit."""

    def loss(self, log_probs_BxQxO: jax.Array, group_B: jax.Array) -> jax.Array:
        """Return the loss of each candidate, float32 [B], from 0 to 100."""
        shares = answer_distributions(log_probs_BxQxO, self.valid_QxO)
        truth = self.truth_CxQxO[group_B]
        asked_BxQ = ~jnp.isnan(truth).any(axis=-1)
        # Replaced before the logarithm: a NaN would reach the gradient.
        truth = jnp.where(jnp.isnan(truth), 0.0, truth)
        # Options past an item's own stay at 0 on both sides and add nothing.
        valid = jnp.broadcast_to(self.valid_QxO, shares.shape)
        shares = jnp.where(valid, jnp.maximum(shares, _SMALLEST), 0.0)
        divergence_BxQ = jensen_shannon_divergence(shares, truth)
        return 100 * jnp.mean(divergence_BxQ, axis=-1, where=asked_BxQ)


@objectives.register("earth-mover")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EarthMover(DistributionObjective):
    """Mean earth mover's distance to a group's distributions, in percent of the scale."""

    def loss(self, log_probs_BxQxO: jax.Array, group_B: jax.Array) -> jax.Array:
        """Return the loss of each candidate, float32 [B], from 0 to 100."""
        shares = answer_distributions(log_probs_BxQxO, self.valid_QxO)
        truth = self.truth_CxQxO[group_B]
        ordinal_1xQ, valid_1xQxO = self.ordinal_Q[None], self.valid_QxO[None]
        return 100 * (1 - survey_similarity(shares, truth, ordinal_1xQ, valid_1xQxO))
