"""Does a survey measure anything on this model? The gate that opens every report.

A model is asked as a person of each country, and its answers are averaged over presentations. Two
things must hold before scores on it are read as anything at all:

1. Differences between its personas follow those between the countries' people: the correlation of
   deviations from the mean over countries, over items × countries, has an interval above 0.
2. Its personas are closer to their people than a uniform answer is: the mean difference in
   similarity has an interval above 0. Where answers are shares of a few sampled replies, the
   uniform answer is drawn likewise: few replies are far from people's distributions, whoever gives
   them, a random respondent included.

Where either fails, no verdict on the model's scores can be drawn in either direction: not "no
effect" but "instrument without signal on this model" (`NO_SIGNAL`).

Intervals come from a bootstrap over countries × items, both drawn anew (`jaxalign.stats.seeds`),
widened by the spread over presentations (`jaxalign.stats.intervals.widened`). The correlation is

    r = Σ x·y / √(Σ x² · Σ y²),    x = persona's item mean less its mean over countries,
                                   y = the people's item mean less its mean over countries,

with item means on [0, 1] from the first to the last option. Because deviations of an item sum to 0
this is Pearson's correlation wherever every country answered every item. It takes ordinal items and
those of two options; the second test takes all.

Letters: F presentation, C country, Q item, O option.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.report.wording import NO_SIGNAL
from jaxalign.stats.held_out import permutation_test
from jaxalign.stats.intervals import Interval, tails, widened
from jaxalign.stats.lines import similarity_to_people, uniform_shares
from jaxalign.stats.presentations import item_positions
from jaxalign.stats.seeds import resampled_counts
from jaxalign.surveys.presentations import PUBLISHED
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.tables import Tables, make_tables

MIN_COUNTRIES = 4
"""The number of countries from which a permutation over them can reach a p-value below 0.05."""

_UNIFORM_DRAWS = 100
_SMALLEST_SPREAD = 1e-6  # personas that differ by less differ by rounding alone


@dataclasses.dataclass(frozen=True)
class Validity:
    """What the validity gate found.

    Attributes:
        passes: whether both tests hold; None where there are too few countries or items to tell.
        sentence: the verdict in words, with the numbers.
        correlation: of persona deviations with people's; None where it is not defined.
        over_uniform: similarity of the personas to their people less that of a uniform answer, both
            in [0, 1]; None where no item was answered by both.
        similarity: mean similarity of the personas.
        uniform_similarity: mean similarity of a uniform answer, of as many replies.
        permutation: the test that assigns personas to countries at random
            (`jaxalign.stats.held_out.permutation_test`), of the products of deviations; None with
            fewer than four countries.
        persona_spread: standard deviation of item means over personas, mean over items, in units of
            the scale's length.
        human_spread: the same over the countries' people.
        countries: number of countries.
        items: number of items that enter the correlation.
        presentations: names of the presentations that answers were averaged over.
        replies: number of sampled replies behind each answer; None for exact probabilities.
    """

    passes: bool | None
    sentence: str
    correlation: Interval | None
    over_uniform: Interval | None
    similarity: float
    uniform_similarity: float
    permutation: dict[str, Any] | None
    persona_spread: float
    human_spread: float
    countries: int
    items: int
    presentations: tuple[str, ...]
    replies: int | None

    def record(self) -> dict[str, Any]:
        """Return the fields as `result.json` holds them."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("correlation", "over_uniform"):
            fields[name] = fields[name].record() if fields[name] else None
        return fields | {"presentations": list(self.presentations)}


def check_validity(
    responses: Responses, countries: Sequence[str], seed: int = 0, resamples: int = 4_000
) -> Validity:
    """Test whether a survey measures anything on a model, from what `jaxalign.ask` returns.

    Args:
        responses: answers as a person of each country, one condition per country, to a survey that
            says how the countries answered; under one presentation or several.
        countries: the countries, in the order of the conditions.
        seed: seed of the resamples behind the intervals.
        resamples: their number.

    Raises:
        UserError: the survey does not say how one of the countries answered, or there is not one
            country for each condition.

    Example:
        >>> import numpy as np
        >>> from jaxalign.stats import check_validity
        >>> from jaxalign.surveys import Item, Responses, Survey
        >>> items = [Item(f"q{i}", "Is it so?", ("yes", "no"), (1, 2)) for i in range(9)]
        >>> tea = {f"q{i}": (i / 8, 1 - i / 8) for i in range(9)}
        >>> coffee = {f"q{i}": (1 - i / 8, i / 8) for i in range(9)}
        >>> survey = Survey("s", "1", "made up", "official", tuple(items), {"A": tea, "B": coffee})
        >>> shares = np.stack([survey.truth_QxO("A"), survey.truth_QxO("B")])
        >>> with np.errstate(divide="ignore"):
        ...     answers = Responses(survey, ("as A", "as B"), np.log(shares))
        >>> check_validity(answers, ["A", "B"]).passes
        True
    """
    if len(countries) != len(responses.conditions):
        raise UserError(
            f"`countries` {' '.join(countries)}: give one for each of the "
            f"{len(responses.conditions)} conditions that were asked"
        )
    forms = responses.by_presentation or {PUBLISHED: responses}
    replies = None if responses.positions is None else len(responses.positions)
    personas_FxCxQxO = np.stack([form.distributions() for form in forms.values()])
    tables = make_tables(responses.survey, countries)
    return validity_gate(
        personas_FxCxQxO, tables, tuple(forms), replies=replies, resamples=resamples, seed=seed
    )


def validity_gate(
    personas_FxCxQxO: np.ndarray,
    tables: Tables,
    presentations: Sequence[str] = ("A",),
    *,
    replies: int | None = None,
    resamples: int = 4_000,
    level: float = 0.95,
    seed: int = 0,
) -> Validity:
    """Test whether personas' answers follow people's and beat a uniform answer.

    Args:
        personas_FxCxQxO: probability of each option as a person of each country under each
            presentation; options in published order, 0 past an item's options, NaN for an item
            without an answer.
        tables: how the same countries answered the same items, in the same order.
        presentations: names of the F presentations.
        replies: number of sampled replies to an item, over all presentations, where the
            probabilities are shares of them.
        resamples: number of resamples.
        level: level of the intervals.
        seed: seed of the resamples.
    """
    personas = np.asarray(personas_FxCxQxO, np.float64)
    shape = (len(presentations), *tables.truth_CxQxO.shape)
    if personas.shape != shape:
        raise ValueError(f"personas have shape {personas.shape}, not {shape}")
    correlation, permutation, spreads, items = _correlation(
        personas, tables, resamples, level, seed
    )
    uniform_CxQ = _uniform_similarities(tables, replies, seed)
    over_uniform, similarity, uniform = _over_uniform(
        personas, uniform_CxQ, tables, resamples, level, seed
    )
    passes = _passes(correlation, over_uniform, tables, items, spreads[0])
    fields = {
        "passes": passes,
        "correlation": correlation,
        "over_uniform": over_uniform,
        "similarity": similarity,
        "uniform_similarity": uniform,
        "permutation": permutation,
        "persona_spread": spreads[0],
        "human_spread": spreads[1],
        "countries": len(tables.countries),
        "items": items,
        "presentations": tuple(presentations),
        "replies": replies,
    }
    return Validity(sentence=_sentence(fields), **fields)


def deviations(
    personas_FxCxQxO: np.ndarray, tables: Tables
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how far each country's personas, and its people, lie from the mean over countries.

    Returns:
        `x_FxCxQ` and `y_CxQ`, float64 in units of the scale's length, 0 where an item does not
        count; and `counts_CxQ`, bool: ordinal items and those of two options that this and at least
        one other country has answers to.
    """
    # Item means of the personas x and of their people y, on [0, 1].
    x_FxCxQ = item_positions(personas_FxCxQxO, tables.range_Q)
    y_CxQ = item_positions(tables.truth_CxQxO, tables.range_Q)
    counts_CxQ = ~np.isnan(x_FxCxQ).any(axis=0) & ~np.isnan(y_CxQ)
    counts_CxQ &= tables.ordinal_Q | (tables.range_Q == 1)
    # One country alone has no deviation.
    counts_CxQ &= counts_CxQ.sum(axis=0) >= 2
    number_Q = np.maximum(counts_CxQ.sum(axis=0), 1)

    def centred(v_xCxQ: np.ndarray) -> np.ndarray:
        v_xCxQ = np.where(counts_CxQ, v_xCxQ, 0.0)
        mean = v_xCxQ.sum(axis=-2, keepdims=True) / number_Q
        return np.where(counts_CxQ, v_xCxQ - mean, 0.0)

    return centred(x_FxCxQ), centred(y_CxQ), counts_CxQ


def _correlation(
    personas_FxCxQxO: np.ndarray, tables: Tables, resamples: int, level: float, seed: int
) -> tuple[Interval | None, dict[str, Any] | None, tuple[float, float], int]:
    """Return the correlation, the permutation test, both spreads, and the number of items."""
    x_FxCxQ, y_CxQ, counts_CxQ = deviations(personas_FxCxQxO, tables)
    # Deviations are linear in the shares, so those of the averaged answers are their mean.
    x_CxQ = x_FxCxQ.mean(axis=0)
    items = int(counts_CxQ.any(axis=0).sum())
    spreads = _spread(x_CxQ, counts_CxQ), _spread(y_CxQ, counts_CxQ)

    if math.isnan(spreads[0]) or spreads[0] < _SMALLEST_SPREAD:
        return None, None, spreads, items

    def correlations(sums_3xB: np.ndarray) -> np.ndarray:
        product, squares = sums_3xB[0], sums_3xB[1] * sums_3xB[2]
        return np.divide(
            product, np.sqrt(squares), out=np.full_like(product, np.nan), where=squares > 1e-20
        )

    # What a country and item adds to Σ x·y, Σ x² and Σ y².
    terms_3xCxQ = np.stack([x_CxQ * y_CxQ, x_CxQ**2, y_CxQ**2])
    point, *bounds = _bootstrap(terms_3xCxQ, correlations, resamples, level, seed)
    if math.isnan(point):
        return None, None, spreads, items
    # The same correlation under each presentation alone, for the spread between them.
    alone_F = [
        correlations(np.array([[(x * y_CxQ).sum()], [(x**2).sum()], [(y_CxQ**2).sum()]]))[0]
        for x in x_FxCxQ
    ]
    # products[p, c]: how far persona p deviates the way country c's people do.
    permuted = len(tables.countries) >= MIN_COUNTRIES
    permutation = permutation_test(x_CxQ @ y_CxQ.T, seed) if permuted else None
    interval = widened(Interval(point, *bounds), alone_F, level)
    # No correlation lies beyond ±1, however far presentations are apart.
    low, high = max(-1.0, interval.low), min(1.0, interval.high)
    return Interval(point, low, high), permutation, spreads, items


def _bootstrap(
    terms_KxCxQ: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    resamples: int,
    level: float,
    seed: int,
) -> tuple[float, float, float]:
    """Compute a statistic of sums over countries and items, and its bounds when both are drawn.

    Args:
        terms_KxCxQ: what each country and item adds to each of K sums.
        statistic: from sums [K, B] to the statistic [B].
        resamples: number of resamples.
        level: confidence level.
        seed: seed of the resamples.
    """
    C, Q = terms_KxCxQ.shape[1:]

    def values(counts_BxC: np.ndarray, counts_BxQ: np.ndarray) -> np.ndarray:
        # Items are weighted in a matrix product, countries in the sum that follows.
        sums = [((counts_BxQ @ terms.T) * counts_BxC).sum(axis=1) for terms in terms_KxCxQ]
        return statistic(np.stack(sums))

    point = float(values(np.ones((1, C)), np.ones((1, Q)))[0])
    if math.isnan(point):
        return point, point, point
    drawn = [values(*counts) for counts in resampled_counts((C, Q), resamples, seed)]
    low, high = np.nanquantile(np.concatenate(drawn), tails(level))
    return point, float(low), float(high)


def _spread(deviation_CxQ: np.ndarray, counts_CxQ: np.ndarray) -> float:
    """Return the standard deviation over countries (dividing by C - 1), mean over items."""
    number_Q = counts_CxQ.sum(axis=0)
    used_Q = number_Q >= 2
    if not used_Q.any():
        return math.nan
    variance_Q = (deviation_CxQ**2).sum(axis=0)[used_Q] / (number_Q[used_Q] - 1)
    return float(np.sqrt(variance_Q).mean())


def _uniform_similarities(tables: Tables, replies: int | None, seed: int) -> np.ndarray:
    """Return the similarity of a uniform answer to each country's people, float64 [C, Q].

    That of `replies` uniform random replies is averaged over `_UNIFORM_DRAWS` draws.
    """
    uniform_QxO, shape = uniform_shares(tables), tables.truth_CxQxO.shape
    if replies is None:
        return similarity_to_people(np.broadcast_to(uniform_QxO, shape), tables)
    random = np.random.default_rng(seed)
    drawn_DxCxQ = [
        # All countries are compared with the same replies.
        similarity_to_people(
            np.broadcast_to(random.multinomial(replies, uniform_QxO) / replies, shape), tables
        )
        for _ in range(_UNIFORM_DRAWS)
    ]
    return np.mean(drawn_DxCxQ, axis=0)


def _over_uniform(
    personas_FxCxQxO: np.ndarray,
    uniform_CxQ: np.ndarray,
    tables: Tables,
    resamples: int,
    level: float,
    seed: int,
) -> tuple[Interval | None, float, float]:
    """Return the interval of similarity less a uniform answer's, and both similarities."""
    own_CxQ = similarity_to_people(personas_FxCxQxO.mean(axis=0), tables)
    known_CxQ = ~np.isnan(own_CxQ)
    if not known_CxQ.any():
        return None, math.nan, math.nan
    # Paired by country and item: the uniform answer is compared on the same ones.
    difference_CxQ = np.where(known_CxQ, own_CxQ - uniform_CxQ, 0.0)
    terms_2xCxQ = np.stack([difference_CxQ, known_CxQ])
    _, *bounds = _bootstrap(terms_2xCxQ, _mean, resamples, level, seed)
    own, uniform = float(own_CxQ[known_CxQ].mean()), float(uniform_CxQ[known_CxQ].mean())
    alone_F = [
        float(np.nanmean(np.where(known_CxQ, similarity_to_people(shares, tables), np.nan)))
        for shares in personas_FxCxQxO
    ]
    return widened(Interval(own - uniform, *bounds), alone_F, level), own, uniform


def _mean(sums_2xB: np.ndarray) -> np.ndarray:
    total_B, count_B = sums_2xB
    return np.divide(total_B, count_B, out=np.full_like(total_B, np.nan), where=count_B > 0)


def _passes(
    correlation: Interval | None,
    over_uniform: Interval | None,
    tables: Tables,
    items: int,
    persona_spread: float,
) -> bool | None:
    # Strictly above 0: an interval that begins at 0 does not beat anything.
    beats = over_uniform is not None and over_uniform.low > 0
    if over_uniform is None or len(tables.countries) < 2 or items < 2:
        # One test cannot be made. The other alone can fail the gate, but not pass it.
        return None if beats or over_uniform is None else False
    if correlation is None:
        return False if persona_spread < _SMALLEST_SPREAD else None
    return bool(correlation.low > 0 and beats)


def _uniform_words(replies: int | None) -> str:
    if replies is None:
        return "a uniform answer"
    return "one random reply" if replies == 1 else f"{replies} random replies"


def _sentence(fields: dict[str, Any]) -> str:
    """Say in words what the gate found."""
    r, over = fields["correlation"], fields["over_uniform"]
    if r is None and fields["persona_spread"] < _SMALLEST_SPREAD:
        averaged = ", averaged over presentations," if len(fields["presentations"]) > 1 else ""
        follows = f"persona answers{averaged} do not differ between countries"
    elif r is None:
        few = "one country has" if fields["countries"] < 2 else "too few items have"
        follows = f"{few} no differences between countries to follow"
    else:
        does = "follow" if r.low > 0 else "do not follow"
        follows = (
            f"persona answers {does} people's differences between countries "
            f"(r = {r.mean:.2f} [{r.low:.2f}, {r.high:.2f}])"
        )
    if over is None:
        beats = "no item was answered by both"
    else:
        does = "are closer" if over.low > 0 else "are not closer"
        beats = (
            f"they {does} to people than {_uniform_words(fields['replies'])} "
            f"({over.mean:+.3f} [{over.low:+.3f}, {over.high:+.3f}])"
        )
    verdict = {
        True: "The instrument carries signal on this model",
        False: NO_SIGNAL[0].upper() + NO_SIGNAL[1:],
        None: "Whether the instrument carries signal on this model cannot be told",
    }[fields["passes"]]
    return f"{verdict}: {follows}, and {beats}."
