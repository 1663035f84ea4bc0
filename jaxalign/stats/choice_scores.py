"""How many questions of a test with right answers are answered rightly, and what needs no model.

A question is one item, or several that count as one and are right only when all of them are
(CulturalBench Hard: four proposed answers, each judged true or false). Scored item by item, such a
question would reward a constant answer: of four rows with one that is true, three are right for
someone who always says false.

A method may have several voices, such as sampled replies or soft prompts: each is scored by itself,
and a question's score is their mean.

Letters: S voice, Q item, G question.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxalign.stats.intervals import Interval, normal_quantile, tails
from jaxalign.surveys.choice_test import ChoiceTest

NOT_ASKED = -9
"""Position of the answer to an item that a voice was not asked. Other negative positions are
replies that name no option: they are wrong."""


@dataclasses.dataclass(frozen=True)
class ChoiceScores:
    """What one method answered to a test.

    Attributes:
        right_G: float64, share of the voices that are right on the question; NaN where none was
            asked.
        items_G: float64, share of its items that are right, mean over voices; NaN likewise.
        most_common: position of the answer given most often.
        most_common_share: its share of all answers.
        unreadable_share: share of replies that name no option.
    """

    right_G: np.ndarray
    items_G: np.ndarray
    most_common: int
    most_common_share: float
    unreadable_share: float


def questions_of(test: ChoiceTest) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the labels of the questions in the order of the file, and each item's question.

    Returns:
        G labels, and int [Q].
    """
    number = {label: g for g, label in enumerate(dict.fromkeys(test.groups))}
    return tuple(number), np.array([number[label] for label in test.groups])


def choice_scores(test: ChoiceTest, positions_SxQ: np.ndarray) -> ChoiceScores:
    """Score the answers of one method.

    Args:
        test: the questions with their right answers.
        positions_SxQ: int, the position of the option that each voice chose; negative for a reply
            that names none, `NOT_ASKED` where it was not asked. A voice has to have been asked all
            items of a question for its answer to count.
    """
    positions_SxQ = np.asarray(positions_SxQ)
    asked_SxQ = positions_SxQ != NOT_ASKED
    right_SxQ = positions_SxQ == np.array(test.answers)
    labels, question_Q = questions_of(test)
    sizes_G = np.bincount(question_Q)
    shape = (len(positions_SxQ), len(labels))
    asked_SxG, right_SxG = (np.zeros(shape, int) for _ in range(2))
    for s in range(len(positions_SxQ)):
        asked_SxG[s] = np.bincount(question_Q, asked_SxQ[s], len(labels))
        right_SxG[s] = np.bincount(question_Q, right_SxQ[s], len(labels))
    complete_SxG = asked_SxG == sizes_G
    given = positions_SxQ[asked_SxQ]
    counts = np.bincount(given[given >= 0], minlength=1)
    return ChoiceScores(
        right_G=_mean_over_voices(right_SxG == sizes_G, complete_SxG),
        items_G=_mean_over_voices(right_SxG / sizes_G, complete_SxG),
        most_common=int(counts.argmax()),
        most_common_share=float(counts.max() / max(len(given), 1)),
        unreadable_share=float((given < 0).mean()) if len(given) else 0.0,
    )


def picked_right(test: ChoiceTest, true_probs_SxQ: np.ndarray) -> np.ndarray:
    """Score a test of true-or-false rows as if one row had to be picked, by its probability.

    Nothing is told of the rule that a question has one true row, so this is the more lenient
    reading: it asks whether the true row is the likeliest of its question. Rows that are equally
    likely share the point. By chance one in four questions is right.

    Args:
        test: a test whose option 0 is "true".
        true_probs_SxQ: float, the probability of "true"; NaN where a voice was not asked.

    Returns:
        float64 [G], mean over voices; NaN for a question with another number of true rows than one.
    """
    labels, question_Q = questions_of(test)
    true_Q = np.array(test.answers) == 0
    score_SxG = np.full((len(true_probs_SxQ), len(labels)), np.nan)
    for g in range(len(labels)):
        rows = np.flatnonzero(question_Q == g)
        if true_Q[rows].sum() != 1:
            continue
        probs_SxR = np.asarray(true_probs_SxQ, np.float64)[:, rows]
        highest = probs_SxR == probs_SxR.max(axis=1, keepdims=True)
        score = (highest & true_Q[rows]).sum(axis=1) / np.maximum(highest.sum(axis=1), 1)
        score_SxG[:, g] = np.where(np.isnan(probs_SxR).any(axis=1), np.nan, score)
    return _mean_over_voices(np.nan_to_num(score_SxG), ~np.isnan(score_SxG))


def _mean_over_voices(values_SxG: np.ndarray, known_SxG: np.ndarray) -> np.ndarray:
    count_G = known_SxG.sum(axis=0)
    sum_G = np.where(known_SxG, values_SxG, 0.0).sum(axis=0)
    return np.where(count_G > 0, sum_G / np.maximum(count_G, 1), np.nan)


# What needs no model


@dataclasses.dataclass(frozen=True)
class TrivialAnswers:
    """What answers that need no model would score, as shares of the questions and of the items.

    Attributes:
        chance: an option drawn at random for each item.
        chance_items: the same, item by item.
        constant: by position of an option, answering it everywhere.
        constant_items: the same, item by item.
        one_true: for a test of true-or-false rows, calling one row of a question true at random;
            None for other tests.
    """

    chance: float
    chance_items: float
    constant: tuple[float, ...]
    constant_items: tuple[float, ...]
    one_true: float | None


def trivial_answers(test: ChoiceTest) -> TrivialAnswers:
    """Return the scores of answers that need no model."""
    labels, question_Q = questions_of(test)
    each_Q = np.array([1 / len(item.options) for item in test.items])
    chance_G = np.ones(len(labels))
    np.multiply.at(chance_G, question_Q, each_Q)
    most = max(len(item.options) for item in test.items)
    constant = [
        choice_scores(test, np.full((1, len(test.items)), option)) for option in range(most)
    ]
    one_true = None
    if len(labels) < len(test.items):
        # Of a question with R rows of which one is true, a random row is the right one in 1 of R.
        sizes_G = np.bincount(question_Q)
        trues_G = np.bincount(question_Q, np.array(test.answers) == 0)
        one_true = float(np.where(trues_G == 1, 1 / sizes_G, 0.0).mean())
    return TrivialAnswers(
        chance=float(chance_G.mean()),
        chance_items=float(each_Q.mean()),
        constant=tuple(float(scores.right_G.mean()) for scores in constant),
        constant_items=tuple(float(scores.items_G.mean()) for scores in constant),
        one_true=one_true,
    )


# Intervals


def share_interval(values_G: np.ndarray, level: float = 0.95) -> tuple[Interval, int] | None:
    """Compute the mean of scores in [0, 1] with Wilson's interval over questions (Wilson 1927).

    It has sensible bounds also where all of a few questions are right, or none. For scores between
    0 and 1, such as means over several prompts, it is wider than need be: no values in [0, 1] vary
    more than zeros and ones of the same mean.

    Returns:
        The interval and the number of questions; None if no question was asked.
    """
    known = values_G[~np.isnan(values_G)]
    n = len(known)
    if n == 0:
        return None
    mean, z = float(known.mean()), normal_quantile(level)
    centre = (mean + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (mean * (1 - mean) / n + z**2 / (4 * n**2)) ** 0.5
    return Interval(mean, max(0.0, centre - half), min(1.0, centre + half)), n


def paired_difference(
    values_G: np.ndarray,
    others_G: np.ndarray,
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> tuple[Interval, int] | None:
    """Compute the mean of `values - others` over the questions that both have, and its interval.

    The interval is the bootstrap's over questions. Differences take few distinct values (-1, 0 and
    1, mostly), so a resample is drawn as how often each value occurs in it: the same distribution
    as drawing questions, at a cost that does not depend on their number.

    Args:
        values_G: float, NaN where a question has no score.
        others_G: float, likewise.
        resamples: number of resamples.
        seed: seed of the draws.
        level: confidence level in (0, 1).

    Returns:
        The interval and the number of questions; None if there is no question that both have.
    """
    difference = values_G - others_G
    difference = difference[~np.isnan(difference)]
    n = len(difference)
    if n == 0:
        return None
    values, counts = np.unique(np.round(difference, 12), return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    low, high = np.quantile(drawn @ values / n, tails(level))
    return Interval(float(difference.mean()), float(low), float(high)), n


def by_label(labels_G: Sequence[str]) -> dict[str, np.ndarray]:
    """Return, for each label in alphabetical order, bool [G]: which questions have it."""
    labels = np.array(labels_G, object)
    return {label: labels == label for label in sorted(set(labels_G))}
