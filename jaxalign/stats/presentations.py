"""What a result owes to the form in which options were shown: order and numbers.

A model that has learned which numbers to say scores well as long as the numbers stand where they
stood, and badly where they are assigned the other way round. So every score is computed under
several presentations (`jaxalign.surveys.presentations`), and this module says what they have in
common:

- `form_correlation`: do item means agree between two presentations? At -1 the model answers the
  number, whatever stands behind it.
- `spread_over_forms`: how far a score varies between presentations.
- `gain_over_forms`: is a gain on the presentations that were tuned on kept on the others?
- `constant_answers`: does the model say the same mark throughout?

Letters: F presentation, S seed, A condition, Q item, O option.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxalign.stats.intervals import Interval, tails
from jaxalign.stats.seeds import crossed_interval, resampled_counts

KEPT_SHARE = 0.2
"""A gain of which no more than this share is kept on untuned presentations vanishes there."""
THROUGHOUT = 0.9
"""The share of equal answers from which a model is said to answer the same throughout."""

GainVerdict = Literal["kept", "partly kept", "vanishes", "no gain", "not tested"]


def item_positions(shares_xQxO: np.ndarray, range_Q: np.ndarray) -> np.ndarray:
    """Return float64 [..., Q] in [0, 1]: mean positions of answers, the first option 0, the last 1.

    Args:
        shares_xQxO: distributions over options, 0 past an item's options, NaN for no answer.
        range_Q: the number of options less one (`jaxalign.surveys.tables.Tables.range_Q`).
    """
    steps_O = np.arange(shares_xQxO.shape[-1])
    return (np.asarray(shares_xQxO, np.float64) * steps_O).sum(axis=-1) / range_Q


def form_correlation(
    first_AxQ: np.ndarray,
    second_AxQ: np.ndarray,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Interval | None:
    """Correlate item means between two presentations, over items.

    Args:
        first_AxQ: mean positions under one presentation, from `item_positions`; NaN for no answer.
        second_AxQ: the same under another one.
        seed: seed of the resamples.
        resamples: number of resamples of the items.
        level: confidence level in (0, 1).

    Returns:
        Pearson's correlation within each condition, averaged over conditions, and its bootstrap
        interval over items. None where it is not defined: fewer than three items that both have, or
        answers that do not vary over items (or over a few of them).
    """
    x, y = (np.asarray(v, np.float64) for v in (first_AxQ, second_AxQ))
    x, y = (np.atleast_2d(v) for v in (x, y))
    known = ~np.isnan(x) & ~np.isnan(y)
    if known.sum(axis=1).max(initial=0) < 3:
        return None
    x, y = (np.where(known, v, 0.0) for v in (x, y))
    # Per-item terms of the five sums that a correlation is made of, and the count.
    terms_6xAxQ = np.stack([known, x, y, x * x, y * y, x * y])

    def correlations(counts_BxQ: np.ndarray) -> np.ndarray:
        n, sx, sy, sxx, syy, sxy = np.einsum("bq,kaq->kba", counts_BxQ, terms_6xAxQ, optimize=True)
        n = np.maximum(n, 1)
        # Weighted covariance and variances from the sums.
        cov = sxy / n - sx / n * (sy / n)
        var = (sxx / n - (sx / n) ** 2) * (syy / n - (sy / n) ** 2)
        # Variances that rounding alone makes differ from 0 are 0.
        r_BxA = np.divide(
            cov, np.sqrt(np.maximum(var, 0)), out=np.full_like(cov, np.nan), where=var > 1e-20
        )
        return _mean_known(np.clip(r_BxA, -1, 1))

    # The estimate is the resample in which every item occurs once.
    point = float(correlations(np.ones((1, x.shape[1])))[0])
    if math.isnan(point):
        return None
    drawn = np.concatenate(
        [correlations(c) for (c,) in resampled_counts((x.shape[1],), resamples, seed)]
    )
    if np.isnan(drawn).all():
        return None
    low, high = np.nanquantile(drawn, tails(level))
    return Interval(point, float(low), float(high))


def _mean_known(values_BxA: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values_BxA)
    count = known.sum(axis=1)
    total = np.where(known, values_BxA, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


@dataclasses.dataclass(frozen=True)
class FormSpread:
    """A score under each presentation.

    Attributes:
        by_form: the score under each presentation.
        mean: the mean over presentations.
        spread: their standard deviation, dividing by n - 1; None for one presentation. It is the
            residual spread that presentations leave in the mean, before dividing by √n.
        interval: of the mean, over presentations and whatever else was resampled; None where
            nothing was (one presentation, seed and item).
    """

    by_form: dict[str, float]
    mean: float
    spread: float | None
    interval: Interval | None

    def record(self) -> dict[str, Any]:
        """Return the fields as `result.json` holds them."""
        interval = self.interval.record() if self.interval else None
        return {
            "by_presentation": self.by_form,
            "mean": self.mean,
            "spread": self.spread,
            "interval": interval,
        }


def spread_over_forms(
    values_FxxQ: np.ndarray,
    names: Sequence[str],
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> FormSpread:
    """Describe how far a score, or a difference of scores, varies between presentations.

    Args:
        values_FxxQ: float [F, ..., Q]: the first axis is the presentation, others are crossed
            factors such as seeds, the last one is items (of length 1 for a loss); NaN for no value.
        names: the F presentations.
        seed: seed of the resamples.
        resamples: number of resamples.
        level: confidence level in (0, 1).
    """
    values_FxxQ = np.asarray(values_FxxQ)
    if values_FxxQ.ndim == 1:
        values_FxxQ = values_FxxQ[:, None]
    rows = values_FxxQ.reshape(len(names), -1).astype(np.float64)
    # Seeds and items in one row: each presentation's score is the mean of what is known.
    by_form_F = _mean_known(rows)
    known_F = by_form_F[~np.isnan(by_form_F)]
    interval = None
    if max(values_FxxQ.shape) > 1:
        interval = crossed_interval(values_FxxQ, seed, resamples, level)
    return FormSpread(
        dict(zip(names, by_form_F.tolist(), strict=True)),
        float(known_F.mean()) if len(known_F) else math.nan,
        float(known_F.std(ddof=1)) if len(known_F) > 1 else None,
        interval,
    )


@dataclasses.dataclass(frozen=True)
class Gain:
    """How much a loss fell on tuned and on untuned presentations.

    Attributes:
        tuned: loss before less loss after, mean over the presentations tuned on, over seeds ×
            presentations (bounds equal the mean where there is one of each).
        untuned: the same on the presentations never tuned on; None without any.
        loss_tuned: mean loss after tuning on the tuned presentations.
        loss_untuned: the same on the untuned ones; None without any.
        kept: untuned gain as a share of the tuned one; None where there is no tuned gain.
        verdict: "vanishes" where at most 0.2 of the gain is kept, "partly kept" below 0.8 (or where
            the interval of the untuned gain reaches 0), else "kept"; "no gain" where the tuned loss
            did not fall, "not tested" without untuned presentations.
        sentence: the verdict in words, with the numbers.
    """

    tuned: Interval
    untuned: Interval | None
    loss_tuned: float
    loss_untuned: float | None
    kept: float | None
    verdict: GainVerdict
    sentence: str

    @property
    def vanishes(self) -> bool:
        """Whether the gain vanishes on the presentations that were not tuned on."""
        return self.verdict == "vanishes"

    def record(self) -> dict[str, Any]:
        """Return the fields as `result.json` holds them."""
        return {
            "tuned": self.tuned.record(),
            "untuned": self.untuned.record() if self.untuned else None,
            "loss_tuned": self.loss_tuned,
            "loss_untuned": self.loss_untuned,
            "kept": self.kept,
            "verdict": self.verdict,
            "sentence": self.sentence,
        }


def gain_over_forms(
    before: Mapping[str, np.ndarray | float],
    after: Mapping[str, np.ndarray | float],
    tuned: Sequence[str],
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Gain:
    """Compare the fall of a loss on presentations that were tuned on with that on the others.

    Args:
        before: by presentation, the loss without tuning (such as the model asked plainly): a
            number, or one for each seed [S].
        after: by presentation, the loss with it, likewise.
        tuned: the presentations that were tuned on; all others of `after` were not.
        seed: seed of the resamples.
        resamples: number of resamples.
        level: confidence level in (0, 1).
    """
    names = {
        "tuned": [f for f in after if f in tuned],
        "untuned": [f for f in after if f not in tuned],
    }
    if not names["tuned"]:
        raise ValueError(f"none of the presentations {list(tuned)} is among {list(after)}")

    def interval(forms: Sequence[str]) -> Interval:
        # [F, S]: the gain of each seed under each presentation.
        gains = [
            np.atleast_1d(np.asarray(before[f], np.float64))
            - np.atleast_1d(np.asarray(after[f], np.float64))
            for f in forms
        ]
        gain_FxS = np.stack(gains)[..., None]
        found = crossed_interval(gain_FxS, seed, resamples, level)
        return found or Interval(math.nan, math.nan, math.nan)

    def mean_loss(forms: Sequence[str]) -> float:
        return float(np.mean([np.mean(np.asarray(after[f], np.float64)) for f in forms]))

    gain = interval(names["tuned"])
    others = interval(names["untuned"]) if names["untuned"] else None
    # Without a gain there is no share of it that could be kept.
    kept = float(others.mean / gain.mean) if others and gain.mean > 0 else None
    verdict = _gain_verdict(gain, others, kept)
    return Gain(
        gain,
        others,
        mean_loss(names["tuned"]),
        mean_loss(names["untuned"]) if others else None,
        kept,
        verdict,
        _gain_sentence(verdict, gain, others, names["tuned"], names["untuned"]),
    )


def _gain_verdict(gain: Interval, others: Interval | None, kept: float | None) -> GainVerdict:
    if not gain.mean > 0:
        return "no gain"
    if others is None or kept is None:
        return "not tested"
    # A share below 0, a loss that rose, vanishes as well.
    if kept <= KEPT_SHARE:
        return "vanishes"
    return "kept" if kept >= 1 - KEPT_SHARE and others.low > 0 else "partly kept"


def _gain_sentence(
    verdict: GainVerdict,
    gain: Interval,
    others: Interval | None,
    tuned: Sequence[str],
    untuned: Sequence[str],
) -> str:
    """Say in one sentence what becomes of a gain under presentations that were not tuned on."""
    on = f"presentation{'s' if len(tuned) > 1 else ''} {', '.join(tuned)}"
    if verdict == "no gain":
        return f"No gain: the loss on {on} did not fall ({-gain.mean:+.1f} points)."
    fell = f"The loss on {on} fell by {gain.mean:.1f} points"
    if others is None:
        return f"{fell}; no other presentation was tested, so it may be a gain of numbers alone."
    change = "fell" if others.mean >= 0 else "rose"
    rest = f"on {', '.join(untuned)}, never tuned on, it {change} by {abs(others.mean):.1f}"
    words = {
        "kept": "the gain is kept",
        "partly kept": "the gain is kept in part",
        "vanishes": "the gain vanishes on presentations that were not tuned on",
    }
    return f"{fell}, {rest}: {words[verdict]}."


@dataclasses.dataclass(frozen=True)
class ConstantAnswers:
    """How much of the answers is one and the same mark.

    Attributes:
        mark: the mark given most often, such as "1".
        share: its share of all answers, in [0, 1].
        answers: the number of answers.
        sentence: "answers 1 throughout", "answers 1 to 63 % of the items" or "no constant answer".
    """

    mark: str
    share: float
    answers: int
    sentence: str

    def record(self) -> dict[str, Any]:
        """Return the fields as `result.json` holds them."""
        return dataclasses.asdict(self)


def constant_answers(
    positions_xQ: np.ndarray, marks_Q: Sequence[Sequence[str]]
) -> ConstantAnswers | None:
    """Find the mark that is answered most often under one presentation.

    It is the mark that counts, what the model says, not the option behind it: a model that says 1
    throughout does so under every presentation.

    Args:
        positions_xQ: int [..., Q]: the option of the item that is answered (of exact answers the
            most likely one), counted in published order; negative for none.
        marks_Q: for each item, what stands before each of its options, in published order.

    Returns:
        None without answers. Of marks given equally often the one that comes first in the answers.
    """
    rows = np.asarray(positions_xQ).reshape(-1, len(marks_Q))
    counts = Counter(
        str(marks_Q[q][int(position)])
        for row in rows
        for q, position in enumerate(row)
        if position >= 0
    )
    if not counts:
        return None
    (mark, count), total = counts.most_common(1)[0], sum(counts.values())
    share = count / total
    # Words for three cases: nearly all answers, most of them, or no mark that stands out.
    if share >= THROUGHOUT:
        sentence = f"answers {mark} throughout"
        if count < total:
            sentence = f"answers {mark} nearly throughout ({100 * share:.0f} % of the items)"
    elif share > 0.5:
        sentence = f"answers {mark} to {100 * share:.0f} % of the items"
    else:
        sentence = "no constant answer"
    return ConstantAnswers(mark, share, total, sentence)
