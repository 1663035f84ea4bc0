"""Answers that need no model, so that every survey score can stand beside what they score.

Each line is one distribution over an item's options for every country:

    uniform         every option equally likely
    midpoint        the middle of the scale (between two options: half of each)
    mean_of_others  mean of the other countries' distributions
    own_mean        the mean answer of the country's own people, as everybody's answer

and one is a person: `random_respondent`, an answer drawn from the country's own distribution, item
by item, whose score is averaged over draws.

`similarity_lines` scores them against people, item by item. `loss_lines` passes them to any
objective. The lines of CultureSPA's alignment score are `jaxalign.stats.alignment.culture_lines`,
those of the six VSM scores `jaxalign.stats.vsm.trivial_lines`.

Letters: C country, Q item, O option, B draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.stats.distances import item_similarities
from jaxalign.surveys.survey import Survey
from jaxalign.surveys.tables import Tables, option_table

LINE_NAMES = {
    "uniform": "uniform answer",
    "midpoint": "scale midpoint",
    "mean_of_others": "mean of other countries",
    "own_mean": "own country's mean answer",
    "random_respondent": "a random respondent of the country",
}
"""What terminal, figures and reports call the lines."""
TRIVIAL_NAMES = LINE_NAMES | {
    "all_middle": "answering 3 to everything",
    "uniform_random": "random answers",
    "smallest_integer": "best whole answers",
    "another_country": "another country's scores",
}
"""What they call all answers that need no model, those of the six VSM scores
(`jaxalign.stats.vsm.trivial_lines`) included."""


def uniform_shares(tables: Tables) -> np.ndarray:
    """Return float64 [Q, O]: every option of an item equally likely."""
    return tables.valid_QxO / tables.valid_QxO.sum(axis=-1, keepdims=True)


def line_shares(tables: Tables) -> dict[str, np.ndarray]:
    """Return float64 [C, Q, O] for each line that is one distribution per item and country.

    NaN where a line has no answer: where no other country, or not the country itself, was asked.
    """
    shape = tables.truth_CxQxO.shape
    truth = tables.truth_CxQxO.astype(np.float64)
    known_CxQ = ~np.isnan(truth).any(axis=-1)
    total_QxO = np.where(known_CxQ[..., None], truth, 0.0).sum(axis=0)
    own_CxQxO = np.where(known_CxQ[..., None], truth, 0.0)
    # All countries less the country itself, both in the sum and in the count.
    others_CxQ = (known_CxQ.sum(axis=0) - known_CxQ)[..., None]
    mean_of_others = np.where(
        others_CxQ > 0, (total_QxO - own_CxQxO) / np.maximum(others_CxQ, 1), np.nan
    )
    own_mean_CxQ = (truth * np.arange(shape[-1])).sum(axis=-1)
    middle_CxQ = np.broadcast_to(tables.range_Q / 2, shape[:2])
    return {
        "uniform": np.broadcast_to(uniform_shares(tables), shape),
        "midpoint": shares_at(middle_CxQ, shape[-1]),
        # A difference of sums may fall below 0 by rounding.
        "mean_of_others": np.maximum(mean_of_others, 0.0),
        "own_mean": shares_at(own_mean_CxQ, shape[-1]),
    }


def shares_at(positions_xQ: np.ndarray, options: int) -> np.ndarray:
    """Return float64 [..., Q, options]: all weight at a position, shared between the two options
    beside it in proportion to their nearness; NaN where the position is."""
    distance = np.abs(np.asarray(positions_xQ, np.float64)[..., None] - np.arange(options))
    return np.maximum(1 - distance, 0.0)


def similarity_lines(tables: Tables, groups: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Score every line against people, item by item, as held-out answers are scored.

    Args:
        tables: how all groups answered; all but a group itself are its others.
        groups: the C groups to return, in this order; default: all of the tables.

    Returns:
        By line, float64 [C, Q] in [0, 1]: `jaxalign.stats.distances.item_similarities` of the line
        to the country, NaN where one of them has no answer. `random_respondent` is the expected
        similarity of one person's answers.
    """
    lines = {
        name: similarity_to_people(shares, tables) for name, shares in line_shares(tables).items()
    }
    shape = tables.truth_CxQxO.shape
    # Similarity of answering option o to everybody's distribution, weighted by how many do.
    by_option_OxCxQ = np.stack(
        [similarity_to_people(np.broadcast_to(one_O, shape), tables) for one_O in np.eye(shape[-1])]
    )
    # Options that nobody chose would bring in the NaN of items that were not asked.
    shares_OxCxQ = np.moveaxis(tables.truth_CxQxO.astype(np.float64), -1, 0)
    respondent = (np.where(shares_OxCxQ > 0, by_option_OxCxQ, 0.0) * shares_OxCxQ).sum(axis=0)
    lines["random_respondent"] = respondent
    if groups is None:
        return lines
    rows_C = np.array([tables.row(group) for group in groups])
    return {name: values_CxQ[rows_C] for name, values_CxQ in lines.items()}


def similarity_to_people(shares_CxQxO: np.ndarray, tables: Tables) -> np.ndarray:
    """Return the similarity of each country's answers to its own people, item by item.

    Args:
        shares_CxQxO: distributions over options; NaN for no answer.
        tables: how the same countries answered.

    Returns:
        float64 [C, Q] in [0, 1], NaN where one of them has no answer; see
        `jaxalign.stats.distances.item_similarities`.
    """
    found = _item_similarities(
        jnp.asarray(shares_CxQxO, jnp.float32),
        tables.truth_CxQxO,
        tables.ordinal_Q[None],
        tables.valid_QxO[None],
    )
    return np.asarray(found, np.float64)


_item_similarities = jax.jit(item_similarities)


def respondent_draws(tables: Tables, draws: int = 256, seed: int = 0) -> np.ndarray:
    """Draw answers from each country's own distributions, item by item.

    Returns:
        int [B, C, Q]: positions of options, -1 where the country was not asked.
    """
    uniform_BxQ = np.random.default_rng(seed).random((draws, tables.truth_CxQxO.shape[1]))
    # All countries see the same uniform numbers, so that they differ by their shares alone.
    cumulative_CxQxO = np.cumsum(np.nan_to_num(tables.truth_CxQxO.astype(np.float64)), axis=-1)
    passed = (uniform_BxQ[:, None, :, None] > cumulative_CxQxO[None]).sum(axis=-1)
    # Shares may sum to slightly less than 1, so that a draw passes even the last option.
    drawn = np.minimum(passed, tables.range_Q.astype(int))
    asked_CxQ = ~np.isnan(tables.truth_CxQxO).any(axis=-1)
    return np.where(asked_CxQ, drawn, -1)


Loss = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""An objective's loss: from log-probabilities [B, Q, O] and int [B], the group of each, to [B]."""


def loss_lines(
    loss: Loss, tables: Tables, groups: Sequence[str], draws: int = 256, seed: int = 0
) -> dict[str, np.ndarray]:
    """Compute the loss of every line for every group of an objective.

    Args:
        loss: the objective's loss.
        tables: how all groups answered; all but a group itself are its others.
        groups: the C groups of the objective, in its order.
        draws: number of random respondents.
        seed: seed of their answers.

    Returns:
        By line, float64 [C]; NaN where a line has no answer to an item.
    """
    # Groups are rows of the tables, and are numbered 0 ... C - 1 in the objective.
    rows_C = np.array([tables.row(group) for group in groups])
    numbers_C = np.arange(len(groups), dtype=np.int32)
    lines = {
        name: np.asarray(loss(_logs(shares_xQxO[rows_C]), numbers_C), np.float64)
        for name, shares_xQxO in line_shares(tables).items()
    }
    options = tables.truth_CxQxO.shape[-1]
    positions_BxCxQ = respondent_draws(tables, draws, seed)[:, rows_C]
    # A respondent's answers are certain: all weight on one option of each item.
    answered = np.where(positions_BxCxQ >= 0, positions_BxCxQ, np.nan)
    lines["random_respondent"] = np.array(
        [
            np.mean(loss(_logs(shares_at(answered[:, c], options)), np.full(draws, c, np.int32)))
            for c in numbers_C
        ]
    )
    return lines


def uninformed_lines(loss: Loss, survey: Survey, groups: int) -> dict[str, np.ndarray]:
    """Compute the losses of the two lines that need no group's answers: uniform and midpoint.

    Args:
        loss: the objective's loss.
        survey: the survey, which need not say how anybody answered.
        groups: number of groups C of the objective.

    Returns:
        By line, float64 [C].
    """
    valid_QxO, _ = option_table(survey)
    options_Q = valid_QxO.sum(axis=-1)
    shares = {
        "uniform": valid_QxO / options_Q[:, None],
        "midpoint": shares_at((options_Q - 1) / 2, valid_QxO.shape[-1]),
    }
    numbers_C = np.arange(groups, dtype=np.int32)
    return {
        name: np.asarray(loss(_logs(np.stack([x_QxO] * groups)), numbers_C), np.float64)
        for name, x_QxO in shares.items()
    }


def _logs(shares_xQxO: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(shares_xQxO, np.float32))
