"""How far sampled questionnaires agree with each other, and personas with each other.

A questionnaire that is answered by sampling can be answered again. `replicate_agreement` says how
much of the variation of answers lies between items and how much between repetitions of one item:
the intraclass correlation ICC(1,1) of Shrout and Fleiss (1979), from a one-way analysis of variance
with items as targets. It is the one-way form because repetition 1 of one item has nothing in common
with repetition 1 of another: every reply is drawn by itself. ICC(1,k) is the same for the mean of k
repetitions.

    ICC(1,1) = (MSB - MSW) / (MSB + (k - 1) MSW),    ICC(1,k) = (MSB - MSW) / MSB

MSB and MSW are the mean squares between items and within items. Where replies are missing, k is the
average number of replies that the analysis of variance needs (Searle, Casella and McCulloch 1992):
k = (N - Σ kᵢ² / N) / (Q - 1). The interval is the exact one of the F distribution for equal k.

`persona_dispersion` compares how far personas differ with how far people differ.

Letters: R repetition, Q item, C country.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from scipy.special import fdtri  # SciPy is a dependency of JAX

from jaxalign.stats.intervals import Interval, tails
from jaxalign.stats.seeds import resampled_counts


@dataclasses.dataclass(frozen=True)
class ReplicateAgreement:
    """How far R repetitions of a questionnaire agree.

    Attributes:
        icc: ICC(1,1) and its interval: the agreement of single repetitions, 1 where they are equal
            and 0 where they vary as much within an item as between items; it may be negative.
            None where answers do not vary at all, or no item was answered twice.
        icc_mean: ICC(1,k), the same of the mean of k repetitions; None likewise.
        flips: share of the items whose repetitions do not all name the same option. It grows with
            the number of repetitions.
        disagreement: probability that two repetitions of an item name different options.
        repetitions: average number of readable repetitions per item.
        items: number of items with at least two readable repetitions.
    """

    icc: Interval | None
    icc_mean: float | None
    flips: float
    disagreement: float
    repetitions: float
    items: int

    def record(self) -> dict[str, Any]:
        """Return the fields as `result.json` holds them."""
        fields = dataclasses.asdict(self)
        return fields | {"icc": self.icc.record() if self.icc else None}


def replicate_agreement(
    positions_RxQ: np.ndarray, range_Q: np.ndarray, level: float = 0.95
) -> ReplicateAgreement | None:
    """Compute how far repeated questionnaires agree.

    Args:
        positions_RxQ: position of the option that each of R repetitions names for each item;
            negative or NaN for a reply that names none. The Q items may be those of several
            conditions side by side.
        range_Q: the number of options less one, so that items of any length count alike.
        level: level of the interval of the ICC.

    Returns:
        None if no item has two readable repetitions.
    """
    positions = np.asarray(positions_RxQ, np.float64)
    known = ~np.isnan(positions) & (np.nan_to_num(positions) >= 0)
    count_Q = known.sum(axis=0)
    used_Q = count_Q >= 2
    if not used_Q.any():
        return None
    # An item with a single readable reply says nothing about agreement.
    positions, known, count_Q = positions[:, used_Q], known[:, used_Q], count_Q[used_Q]
    values = np.where(known, positions / np.asarray(range_Q, np.float64)[used_Q], 0.0)
    icc, icc_mean = _intraclass(values, known, level)
    same_Q = [len(set(positions[known[:, q], q])) == 1 for q in range(len(count_Q))]
    # Of an item's ordered pairs of repetitions, the share that name different options.
    options = np.unique(positions[known])
    named_OxQ = np.stack([((positions == o) & known).sum(axis=0) for o in options])
    # n named alike make n (n - 1) ordered pairs of equal replies.
    equal_Q = (named_OxQ * (named_OxQ - 1)).sum(axis=0) / (count_Q * (count_Q - 1))
    return ReplicateAgreement(
        icc,
        icc_mean,
        float(1 - np.mean(same_Q)),
        float(1 - equal_Q.mean()),
        float(count_Q.mean()),
        len(count_Q),
    )


def _intraclass(
    values_RxQ: np.ndarray, known_RxQ: np.ndarray, level: float
) -> tuple[Interval | None, float | None]:
    """Return ICC(1,1) with its interval, and ICC(1,k)."""
    count_Q = known_RxQ.sum(axis=0)
    items, total = len(count_Q), count_Q.sum()
    if items < 2:
        return None, None
    mean_Q = np.where(known_RxQ, values_RxQ, 0.0).sum(axis=0) / count_Q
    grand = (mean_Q * count_Q).sum() / total
    # Mean squares: between items over Q - 1, within items over N - Q degrees of freedom.
    between = (count_Q * (mean_Q - grand) ** 2).sum() / (items - 1)
    within = np.where(known_RxQ, (values_RxQ - mean_Q) ** 2, 0.0).sum() / (total - items)
    # The average number of replies; exactly it where all items have as many.
    k = (total - (count_Q**2).sum() / total) / (items - 1)
    if between + within < 1e-20:
        return None, None
    icc = (between - within) / (between + (k - 1) * within)
    # Repetitions that all agree: F is infinite.
    if within < 1e-20:
        return Interval(1.0, 1.0, 1.0), 1.0
    icc_mean = float((between - within) / between) if between > 1e-20 else None
    # Shrout and Fleiss 1979: divide and multiply F by its quantiles.
    ratio, (low, high) = between / within, tails(level)
    f_low = ratio / float(fdtri(items - 1.0, float(total - items), high))
    f_high = ratio / float(fdtri(items - 1.0, float(total - items), low))
    bounds = ((f - 1) / (f + k - 1) for f in (f_low, f_high))
    return Interval(float(icc), *map(float, bounds)), icc_mean


@dataclasses.dataclass(frozen=True)
class PersonaDispersion:
    """How far personas differ, against how far people differ.

    Attributes:
        personas: standard deviation of item means over personas (dividing by C - 1), mean over
            items, in units of the scale's length.
        people: the same over the countries' people.
        ratio: personas / people with its bootstrap interval over items; below 1 personas are more
            alike than people. None where people do not differ.
        countries: number of countries.
        items: number of items.
    """

    personas: float
    people: float
    ratio: Interval | None
    countries: int
    items: int

    def record(self) -> dict[str, Any]:
        """Return the fields as `result.json` holds them."""
        fields = dataclasses.asdict(self)
        return fields | {"ratio": self.ratio.record() if self.ratio else None}


def persona_dispersion(
    personas_CxQ: np.ndarray,
    people_CxQ: np.ndarray,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> PersonaDispersion | None:
    """Compare the spread of personas over countries with that of the countries' people.

    Args:
        personas_CxQ: item means of the personas on [0, 1], from
            `jaxalign.stats.presentations.item_positions`; NaN for no answer.
        people_CxQ: item means of the countries' people, likewise.
        seed: seed of the resamples.
        resamples: number of resamples of the items.
        level: confidence level in (0, 1).

    Returns:
        None where fewer than two countries, or no item, have both.
    """
    both = ~np.isnan(personas_CxQ) & ~np.isnan(people_CxQ)
    used_Q = both.sum(axis=0) >= 2
    if not used_Q.any():
        return None

    # Both spreads are over the same countries, item by item.
    def deviation(values_CxQ: np.ndarray) -> np.ndarray:
        columns = zip(np.asarray(values_CxQ, np.float64).T[used_Q], both.T[used_Q], strict=True)
        return np.array([values[known].std(ddof=1) for values, known in columns])

    personas_Q, people_Q = deviation(personas_CxQ), deviation(people_CxQ)
    ratio = None
    if people_Q.mean() > 1e-9:
        # The ratio of mean spreads, not the mean of ratios: people agree on some items.
        drawn = [
            np.divide(
                c @ personas_Q, c @ people_Q, out=np.full(len(c), math.nan), where=c @ people_Q > 0
            )
            for (c,) in resampled_counts((len(personas_Q),), resamples, seed)
        ]
        low, high = np.nanquantile(np.concatenate(drawn), tails(level))
        ratio = Interval(float(personas_Q.mean() / people_Q.mean()), float(low), float(high))
    return PersonaDispersion(
        float(personas_Q.mean()),
        float(people_Q.mean()),
        ratio,
        len(personas_CxQ),
        int(used_Q.sum()),
    )
