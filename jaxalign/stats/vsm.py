"""The six scores of the Values Survey Module 2013: formulas, readings of answers, losses.

Pure functions of an answer's log-probabilities, which know no model:

    log-probabilities --answer_distributions--> distributions --item_means or
    most_likely_answers--> 24 answers --dimension_scores--> six scores --loss--> one number

Leading dimensions (members, countries) are arbitrary everywhere; only the last one or two are
named. All values are float32. There are two readings of a model's answer to an item. "expected",
the mean code under its distribution, is smooth in the log-probabilities. "most_likely", the code of
its most probable option, is what one sampled integer at temperature 0 gives, and moves in steps.

The last part computes what the loss amounts to without any model.

Source of the formulas: Hofstede and Minkov, Values Survey Module 2013 Manual.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.surveys.hofstede import DIMENSIONS
from jaxalign.surveys.survey import Survey
from jaxalign.surveys.tables import option_table

Reading = Literal["expected", "most_likely"]
READINGS: tuple[Reading, ...] = ("expected", "most_likely")

VALUE_ITEMS = tuple(f"m{i:02d}" for i in range(1, 25))
VALUE_CODES = (1, 2, 3, 4, 5)

MasWeight = Literal[35, 25]
MAS_WEIGHTS: tuple[MasWeight, ...] = (35, 25)
"""Weight of the second difference of MAS: the manual's 35, and the 25 that some papers print."""

# score = first * (item - item) + second * (item - item) + constant, with items by number, as the
# manual has them. `formulas` exchanges the second weight of MAS.
FORMULAS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "pdi": ((35, 7, 2), (25, 20, 23)),
    "idv": ((35, 4, 1), (35, 9, 6)),
    "mas": ((35, 5, 3), (35, 8, 10)),
    "uai": ((40, 18, 15), (25, 21, 24)),
    "lto": ((40, 13, 14), (25, 19, 22)),
    "ivr": ((35, 12, 11), (40, 17, 16)),
}


def formulas(mas_weight: int = 35) -> dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]]:
    """Return `FORMULAS` with another weight of the second difference of MAS.

    Raises:
        UserError: the weight is neither 35 nor 25.
    """
    if mas_weight not in MAS_WEIGHTS:
        raise UserError(
            f"`mas_weight` {mas_weight}: choose 35, as in the manual, or 25, as some papers print"
        )
    first, (_, plus, minus) = FORMULAS["mas"]
    return FORMULAS | {"mas": (first, (mas_weight, plus, minus))}


def weights(mas_weight: int = 35) -> np.ndarray:
    """Return float32 [6, 24]: points of score per unit of an item's mean answer, m01 to m24."""
    out = np.zeros((len(DIMENSIONS), len(VALUE_ITEMS)), np.float32)
    # No item enters a dimension twice, so each weight is simply written to its place.
    for row, dimension in zip(out, DIMENSIONS, strict=True):
        for weight, plus, minus in formulas(mas_weight)[dimension]:
            row[plus - 1], row[minus - 1] = weight, -weight
    return out


def answer_distributions(log_probs_QxO: jax.Array, valid_QxO: jax.Array) -> jax.Array:
    """Compute the probability of each option, given that one of the item's options is answered.

    Args:
        log_probs_QxO: float [..., Q, O] in nats, up to a constant per item.
        valid_QxO: bool [Q, O], or with the same leading dimensions; false past an item's options,
            where the log-probability may be anything.

    Returns:
        float32 [..., Q, O]: rows sum to 1, and are 0 past the options.
    """
    x = log_probs_QxO.astype(jnp.float32)
    valid = jnp.broadcast_to(valid_QxO, x.shape)
    # Replaced before the softmax: NaN or -inf in the padding would otherwise reach the gradient.
    return jax.nn.softmax(jnp.where(valid, x, 0.0), axis=-1, where=valid)


def item_means(distributions_QxO: jax.Array, codes_QxO: jax.Array) -> jax.Array:
    """Compute the mean code of each item, the "expected" reading.

    Args:
        distributions_QxO: float32 [..., Q, O], 0 past an item's options.
        codes_QxO: [Q, O], any finite number past an item's options.

    Returns:
        float32 [..., Q] in units of the codes.
    """
    codes = jnp.broadcast_to(codes_QxO, distributions_QxO.shape)
    return jnp.sum(distributions_QxO * codes.astype(jnp.float32), axis=-1)


def most_likely_answers(distributions_QxO: jax.Array, codes_QxO: jax.Array) -> jax.Array:
    """Return the code of each item's most probable option, the "most_likely" reading.

    Of equally probable options the first counts. The gradient is zero. A row with NaN gives NaN, so
    that a broken candidate cannot look like a good one.

    Args:
        distributions_QxO: float32 [..., Q, O], 0 past an item's options.
        codes_QxO: [Q, O], any finite number past an item's options.

    Returns:
        float32 [..., Q] in units of the codes.
    """
    best = jnp.argmax(distributions_QxO, axis=-1, keepdims=True)
    codes = jnp.broadcast_to(codes_QxO, distributions_QxO.shape).astype(jnp.float32)
    answers = jnp.take_along_axis(codes, best, axis=-1)[..., 0]
    return jnp.where(jnp.isnan(distributions_QxO).any(axis=-1), jnp.nan, answers)


def dimension_scores(
    means_24: jax.Array, constants_6: jax.Array, mas_weight: int = 35
) -> jax.Array:
    """Compute the six scores by the formulas of the VSM 2013 manual (`FORMULAS`).

    Args:
        means_24: float [..., 24], answers to m01 to m24 on 1 to 5.
        constants_6: [..., 6] or [6], the free constant C of each dimension.
        mas_weight: weight of the second difference of MAS, 35 or 25.

    Returns:
        float32 [..., 6] in points, in the order of `DIMENSIONS`. Without C a score spans ±240
        (PDI), ±280 (IDV, MAS), ±260 (UAI, LTO), ±300 (IVR).
    """
    # An accelerator's default precision would round an answer by 0.01, and a score by a point.
    raw = jnp.einsum("...i,di->...d", means_24, weights(mas_weight), precision="highest")
    return raw + jnp.broadcast_to(constants_6, raw.shape)


def loss(scores_6: jax.Array, target_6: jax.Array, used_6: jax.Array) -> jax.Array:
    """Compute the sum of |score − target| over the dimensions used.

    Args:
        scores_6: float32 [..., 6] in points.
        target_6: published scores, broadcast to `scores_6`; may be NaN where not used.
        used_6: bool, broadcast to `scores_6`.

    Returns:
        float32 [...] in points, at least 0. Source: Masoud et al. 2025 (arXiv 2503.16094).
    """
    used = jnp.broadcast_to(used_6, scores_6.shape)
    # NaN in a dimension that is left out would pass through the gradient of a product, or of a
    # `where` around the difference. So both operands are replaced before they meet.
    target = jnp.where(used, jnp.broadcast_to(target_6, scores_6.shape), 0.0)
    return jnp.sum(jnp.abs(jnp.where(used, scores_6, 0.0) - target), axis=-1)


def anchor_constants(raw_Rx6: jax.Array, published_Rx6: jax.Array) -> jax.Array:
    """Compute the constants C that bring reference countries closest to their published scores.

    The C that minimises the squared differences is the mean difference.

    Args:
        raw_Rx6: [..., R, 6], scores of R reference countries computed with C = 0.
        published_Rx6: their published scores; NaN where there is none.

    Returns:
        float32 [..., 6] in points; NaN for a dimension that no reference country has.
    """
    gap = jnp.broadcast_to(published_Rx6, raw_Rx6.shape) - raw_Rx6
    return jnp.mean(gap, axis=-2, where=~jnp.isnan(gap))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scorer:
    """A survey that holds m01 to m24, as the arrays that its scores need. A pytree.

    Attributes:
        valid: bool [Q, O], false past an item's options.
        codes: float32 [Q, O], 0 past an item's options.
        columns: int32 [24], the positions of m01 to m24 among the Q items.
        constants: float32 [6], the constant C of each dimension in points.
        mas_weight: weight of the second difference of MAS, 35 or 25.
    """

    valid: jax.Array
    codes: jax.Array
    columns: jax.Array
    constants: jax.Array
    mas_weight: int = dataclasses.field(default=35, metadata={"static": True})

    def distributions(self, log_probs_QxO: jax.Array) -> jax.Array:
        """Return float32 [..., Q, O]; see `answer_distributions`."""
        return answer_distributions(log_probs_QxO, self.valid)

    def answers(self, log_probs_QxO: jax.Array, reading: Reading = "expected") -> jax.Array:
        """Return float32 [..., Q] in units of the codes."""
        read = {"expected": item_means, "most_likely": most_likely_answers}[reading]
        return read(self.distributions(log_probs_QxO), self.codes)

    def scores(self, log_probs_QxO: jax.Array, reading: Reading = "expected") -> jax.Array:
        """Return the six scores, float32 [..., 6] in points."""
        answers_24 = jnp.take(self.answers(log_probs_QxO, reading), self.columns, axis=-1)
        return dimension_scores(answers_24, self.constants, self.mas_weight)


def make_scorer(
    survey: Survey, constants: float | np.ndarray = 0.0, mas_weight: int = 35
) -> Scorer:
    """Make the scorer of a survey.

    Args:
        survey: a survey that holds m01 to m24, in any order and possibly beside other items.
        constants: the constant C in points, one number or one per dimension.
        mas_weight: weight of the second difference of MAS, 35 or 25.

    Raises:
        UserError: the formulas do not fit the survey, the constants are not one or six finite
            numbers, or the weight is neither 35 nor 25.
    """
    constants_6 = np.asarray(constants, np.float32)
    if constants_6.shape not in ((), (len(DIMENSIONS),)):
        raise UserError(
            f"the constant C has {constants_6.size} values; give one, or one per dimension: 6"
        )
    if not np.isfinite(constants_6).all():
        raise UserError(f"the constant C must be finite, not {constants_6.tolist()}")
    formulas(mas_weight)  # refuses another weight
    valid_QxO, codes_QxO = option_table(survey)
    return Scorer(
        jnp.asarray(valid_QxO),
        jnp.asarray(codes_QxO),
        jnp.asarray(value_columns(survey)),
        jnp.asarray(np.broadcast_to(constants_6, (len(DIMENSIONS),))),
        mas_weight,
    )


def value_columns(survey: Survey) -> np.ndarray:
    """Return int32 [24]: the positions of m01 to m24 among the survey's items.

    Raises:
        UserError: items are missing, or are not ordinal with codes 1 to 5; the weights of the
            formulas hold for that scale only.
    """
    position = {item.id: q for q, item in enumerate(survey.items)}
    if missing := [i for i in VALUE_ITEMS if i not in position]:
        raise UserError(f"survey {survey.name!r} lacks items {', '.join(missing)}")
    columns = np.array([position[i] for i in VALUE_ITEMS], np.int32)
    for item in (survey.items[q] for q in columns):
        if item.scale != "ordinal" or tuple(sorted(item.codes)) != VALUE_CODES:
            raise UserError(
                f"survey {survey.name!r}: item {item.id} is {item.scale} with codes "
                f"{list(item.codes)}; the six scores need ordinal items with codes 1 to 5"
            )
    return columns


# Without its constant a score is w1·d1 + w2·d2, where d1 and d2 are differences of two items'
# answers and no item enters twice. Integer answers on 1 to 5 give differences of −4 to 4, so 81
# pairs exhaust a dimension, and the figures below are exact.
_DIFFERENCES = np.arange(VALUE_CODES[0] - VALUE_CODES[-1], VALUE_CODES[-1] - VALUE_CODES[0] + 1)


def integer_scores(mas_weight: int = 35) -> np.ndarray:
    """Return float64 [6, 81]: every score, in points and without C, that integer answers give."""
    d1, d2 = (d.ravel() for d in np.meshgrid(_DIFFERENCES, _DIFFERENCES, indexing="ij"))
    chosen = formulas(mas_weight)
    pairs = [[weight for weight, _, _ in chosen[dimension]] for dimension in DIMENSIONS]
    return np.array([w1 * d1 + w2 * d2 for w1, w2 in pairs], np.float64)


def integer_chances() -> np.ndarray:
    """Return float64 [81]: the probability of each column of `integer_scores` if every item is
    answered uniformly at random."""
    n = len(VALUE_CODES)
    # The difference of two independent uniform answers has a triangular distribution.
    chance = (n - np.abs(_DIFFERENCES)) / n**2
    return np.outer(chance, chance).ravel()


def trivial_lines(
    target_6: np.ndarray, used_6: np.ndarray, constants_6: np.ndarray, mas_weight: int = 35
) -> dict[str, float]:
    """Compute the losses that need no model, to print beside every result.

    Args:
        target_6: published scores in points; may be NaN where not used.
        used_6: bool, the dimensions that enter the loss.
        constants_6: the free constant C of each dimension in points.
        mas_weight: weight of the second difference of MAS, 35 or 25.

    Returns:
        Losses in points, summed over the dimensions used:

        - `all_middle`: answering 3 throughout, or a uniform distribution read as its mean; both
          give scores of C.
        - `uniform_random`: expected loss of independent uniform integer answers.
        - `smallest_integer`: the least loss that one integer answer per item can reach.
    """
    used = np.asarray(used_6, bool)
    gap = (np.asarray(target_6, np.float64) - np.asarray(constants_6, np.float64))[used]
    errors = np.abs(integer_scores(mas_weight)[used] - gap[:, None])
    return {
        "all_middle": float(np.abs(gap).sum()),
        "uniform_random": float((errors @ integer_chances()).sum()),
        "smallest_integer": float(errors.min(axis=1).sum()),
    }


def other_groups_lines(
    target_6: np.ndarray, others_Gx6: np.ndarray, used_6: np.ndarray
) -> dict[str, float]:
    """Compute what the published scores of other groups would lose, as further lines.

    Args:
        target_6: a group's published scores in points; may be NaN where not used.
        others_Gx6: those of other groups; NaN where a score was not published. A group without
            a score in one of the dimensions used is left out.
        used_6: bool, the dimensions that enter the loss.

    Returns:
        Losses in points, summed over the dimensions used; empty where no other group is left:

        - `mean_of_others`: the mean of the other groups' scores.
        - `another_country`: one other group's scores, mean over the others.
    """
    used = np.asarray(used_6, bool)
    others_Gx6 = np.asarray(others_Gx6, np.float64).reshape(-1, len(DIMENSIONS))[:, used]
    others_Gx6 = others_Gx6[~np.isnan(others_Gx6).any(axis=1)]
    if not len(others_Gx6):
        return {}
    target = np.asarray(target_6, np.float64)[used]
    return {
        "mean_of_others": float(np.abs(others_Gx6.mean(axis=0) - target).sum()),
        "another_country": float(np.abs(others_Gx6 - target).sum(axis=1).mean()),
    }
