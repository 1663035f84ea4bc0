"""Step 3 of CultureSPA: which answers to train on, namely those that change when a group is named.

    crqpc   pairs of question and group whose culture-aware answer differs from the unaware one
            (culture-related question pair collection): by the answer itself, or by how far apart
            the two distributions are
    rds     as many pairs of each group, drawn at random (random data selection)
    cds     as many pairs whose two answers agree (consistent data selection)

Answers are positions of options, -1 for none; a pair needs both answers. What is drawn depends on
the seed, the group and the question alone, not on which other pairs there are or on their order.

Source: Xu, Leng, Yu and Xiong, NAACL 2025 (CultureSPA, arXiv 2410.12971); selection by divergence
is ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.methods.culturespa.styles import Style
from jaxalign.stats.distances import (
    jensen_shannon_divergence,
    ordinal_wasserstein,
    total_variation,
)
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.survey import Item
from jaxalign.training.conversations import held_out_questions

Divergence = Literal["jensen_shannon", "total_variation", "wasserstein"]

# The fine-tuned models of all groups, and the style that each is trained and asked under.
TRAINED_UNDER: dict[str, Style] = {"joint": "p1", "cct": "p2", "rds": "p1", "cds": "p1"}


@dataclasses.dataclass(frozen=True)
class Pair:
    """A question and a group's answer to it.

    Attributes:
        group: The group, such as a country's ISO 3166 alpha-3 code.
        item: The question's id.
        answer: The code of the option, which is the number that a respondent gives.
    """

    group: str
    item: str
    answer: int


@dataclasses.dataclass(frozen=True)
class Selection:
    """Pairs to train on, group by group.

    Attributes:
        pairs: The pairs.
        missing: By group, how many pairs fewer there were than wanted; only where there were.
    """

    pairs: tuple[Pair, ...]
    missing: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of pairs of each group that has any."""
        return dict(Counter(pair.group for pair in self.pairs))

    def by_group(self) -> dict[str, Selection]:
        """Return the pairs of each group that has any."""
        return {
            group: Selection(tuple(pair for pair in self.pairs if pair.group == group))
            for group in self.sizes
        }


def select_pairs(
    answered: Mapping[str, Responses], groups: Sequence[str], items: Sequence[Item], seed: int
) -> dict[str, Selection]:
    """Select the training data of the models in `TRAINED_UNDER`.

    `joint` is CRQPC on the culture-aware prompt (p1); `cct` is CRQPC on cross-culture thinking
    (p2), answered and trained under it. `rds` and `cds` have the sizes of `joint`, group by group.

    Args:
        answered: Responses of the unchanged model under "unaware" [1, Q], "p1" and "p2" [C, Q].
        groups: The groups C.
        items: The questions Q.
        seed: Seed of the draws of `rds` and `cds`.
    """
    unaware_1xQ, p1_CxQ, p2_CxQ = (
        answered[style].most_likely_positions() for style in ("unaware", "p1", "p2")
    )
    joint = crqpc(changed(unaware_1xQ, p1_CxQ), p1_CxQ, groups, items)
    return {
        "joint": joint,
        "cct": crqpc(changed(unaware_1xQ, p2_CxQ), p2_CxQ, groups, items),
        "rds": rds(p1_CxQ, groups, items, joint.sizes, seed),
        "cds": cds(unaware_1xQ, p1_CxQ, groups, items, joint.sizes, seed),
    }


def describe_selection(
    answered: Mapping[str, Responses], groups: Sequence[str], selected: Mapping[str, Selection]
) -> dict[str, Any]:
    """Return the counts of one seed's selection, for `result.json`.

    `changed_share` is the share of the questions answered both ways whose answer changed; `noise`
    is the chance that two draws from the unaware model's distribution differ, which is what
    sampling alone would select. Both are None where there are no answers.
    """
    unaware_1xQ, p1_CxQ = (answered[style].most_likely_positions() for style in ("unaware", "p1"))
    both_C = ((unaware_1xQ >= 0) & (p1_CxQ >= 0)).sum(axis=1)
    noise_Q = expected_noise(answered["unaware"].distributions()[0])
    noise_Q = noise_Q[~np.isnan(noise_Q)]
    return {
        "questions": unaware_1xQ.shape[1],
        "pairs": {name: selection.sizes for name, selection in selected.items()},
        "missing": {name: dict(selection.missing) for name, selection in selected.items()},
        "changed_share": {
            group: selected["joint"].sizes.get(group, 0) / int(both) if both else None
            for group, both in zip(groups, both_C, strict=True)
        },
        "noise": float(noise_Q.mean()) if len(noise_Q) else None,
    }


def changed(unaware_xQ: np.ndarray, aware_xQ: np.ndarray) -> np.ndarray:
    """Return where both answered, and differently: bool [..., Q]. Leading dimensions broadcast."""
    return (unaware_xQ >= 0) & (aware_xQ >= 0) & (unaware_xQ != aware_xQ)


def divergence(
    unaware_QxO: np.ndarray,
    aware_CxQxO: np.ndarray,
    items: Sequence[Item],
    measure: Divergence = "jensen_shannon",
) -> np.ndarray:
    """Compute how far apart unaware and culture-aware distributions are.

    Args:
        unaware_QxO: Option probabilities of the unaware model, NaN where there is no answer.
        aware_CxQxO: Option probabilities asked for each group.
        items: The questions Q.
        measure: "jensen_shannon" in bits; "total_variation"; "wasserstein" in steps divided by the
            scale's length, and total variation for nominal items, whose options have no distance.

    Returns:
        float32 [C, Q] in [0, 1]; NaN where one of the two is missing.

    Raises:
        UserError: If the measure is unknown.
    """
    if measure not in get_args(Divergence):
        raise UserError(f"{measure!r} is no divergence; choose from {get_args(Divergence)}")
    unaware_CxQxO = np.broadcast_to(unaware_QxO[None], aware_CxQxO.shape)
    known_CxQ = ~np.isnan(unaware_CxQxO + aware_CxQxO).any(axis=-1)
    return np.where(known_CxQ, _distance(unaware_CxQxO, aware_CxQxO, items, measure), np.nan)


def _distance(
    p_CxQxO: np.ndarray, q_CxQxO: np.ndarray, items: Sequence[Item], measure: Divergence
) -> np.ndarray:
    if measure == "jensen_shannon":
        return np.asarray(jensen_shannon_divergence(p_CxQxO, q_CxQxO))
    variation_CxQ = np.asarray(total_variation(p_CxQxO, q_CxQxO))
    if measure == "total_variation":
        return variation_CxQ
    options = np.array([len(item.options) for item in items])
    valid_QxO = np.arange(p_CxQxO.shape[-1]) < options[:, None]
    steps_CxQ = np.asarray(ordinal_wasserstein(p_CxQxO, q_CxQxO, valid_QxO[None]))
    ordinal_Q = np.array([item.scale == "ordinal" for item in items])
    return np.where(ordinal_Q, steps_CxQ, variation_CxQ)


def diverged(divergence_CxQ: np.ndarray, threshold: float) -> np.ndarray:
    """Return where a divergence exceeds the threshold: bool [C, Q], false for missing answers.

    Raises:
        UserError: If the threshold is outside [0, 1).
    """
    if not 0 <= threshold < 1:
        raise UserError(f"threshold {threshold} must be at least 0 and less than 1")
    return divergence_CxQ > threshold


def crqpc(
    chosen_CxQ: np.ndarray, aware_CxQ: np.ndarray, groups: Sequence[str], items: Sequence[Item]
) -> Selection:
    """Select the pairs that `changed` or `diverged` marks, with the culture-aware answer."""
    chosen_CxQ = chosen_CxQ & (aware_CxQ >= 0)
    pairs_of = _pairs_by_group(chosen_CxQ, aware_CxQ, groups, items)
    return Selection(tuple(pair for pairs in pairs_of.values() for pair in pairs))


def rds(
    aware_CxQ: np.ndarray,
    groups: Sequence[str],
    items: Sequence[Item],
    sizes: Mapping[str, int],
    seed: int,
) -> Selection:
    """Draw `sizes[group]` pairs of each group from all that it answered."""
    pairs_of = _pairs_by_group(aware_CxQ >= 0, aware_CxQ, groups, items)
    return _draw(pairs_of, sizes, f"rds {seed}")


def cds(
    unaware_xQ: np.ndarray,
    aware_CxQ: np.ndarray,
    groups: Sequence[str],
    items: Sequence[Item],
    sizes: Mapping[str, int],
    seed: int,
) -> Selection:
    """Draw `sizes[group]` pairs of each group from those whose answer stayed the same."""
    same_CxQ = (aware_CxQ >= 0) & (aware_CxQ == unaware_xQ)
    pairs_of = _pairs_by_group(same_CxQ, aware_CxQ, groups, items)
    return _draw(pairs_of, sizes, f"cds {seed}")


def fraction(selection: Selection, share: float, seed: int) -> Selection:
    """Draw a share of each group's pairs, rounded to whole pairs.

    With the same seed, the pairs of a smaller share are among those of a larger one.

    Raises:
        UserError: If the share is outside (0, 1].
    """
    if not 0 < share <= 1:
        raise UserError(f"fraction {share} must be more than 0 and at most 1")
    pairs_of = {group: part.pairs for group, part in selection.by_group().items()}
    sizes = {group: round(share * len(pairs)) for group, pairs in pairs_of.items()}
    return _draw(pairs_of, sizes, f"fraction {seed}")


def hold_out(selection: Selection, share: float, seed: int) -> tuple[Selection, Selection]:
    """Hold out a share of the questions, with all groups' answers to them.

    No question is on both sides.

    Args:
        selection: Pairs of questions and groups.
        share: Share of the distinct questions to hold out, rounded to whole ones.
        seed: Seed of the draw.

    Returns:
        The pairs to train on, and the pairs held out.

    Raises:
        UserError: If one side would be empty.
    """
    held_out = held_out_questions((pair.item for pair in selection.pairs), share, seed)
    train = tuple(pair for pair in selection.pairs if pair.item not in held_out)
    rest = tuple(pair for pair in selection.pairs if pair.item in held_out)
    return Selection(train), Selection(rest)


def expected_noise(distribution_xO: np.ndarray) -> np.ndarray:
    """Return the probability that two draws from a distribution differ: 1 - sum p squared."""
    return 1 - np.sum(np.square(distribution_xO), axis=-1)


def _pairs_by_group(
    chosen_CxQ: np.ndarray, aware_CxQ: np.ndarray, groups: Sequence[str], items: Sequence[Item]
) -> dict[str, list[Pair]]:
    """Return each group's chosen pairs in the order of the items."""
    return {
        group: [
            Pair(group, items[q].id, items[q].codes[int(aware_CxQ[c, q])])
            for q in np.flatnonzero(chosen_CxQ[c])
        ]
        for c, group in enumerate(groups)
    }


def _draw(pairs_of: Mapping[str, Sequence[Pair]], sizes: Mapping[str, int], name: str) -> Selection:
    """Draw `sizes[group]` pairs of each group without replacement, kept in their order.

    Pairs are ranked by a hash of `name`, which contains the seed, so that a draw does not depend on
    the order or the number of the other pairs.
    """
    pairs, missing = [], {}
    for group, candidates in pairs_of.items():
        size = sizes.get(group, 0)
        if size > len(candidates):
            missing[group] = size - len(candidates)
        drawn = set(sorted(candidates, key=lambda pair: _rank(name, pair))[:size])
        pairs += [pair for pair in candidates if pair in drawn]
    return Selection(tuple(pairs), missing)


def _rank(name: str, pair: Pair) -> bytes:
    return hashlib.sha256(f"{name}\n{pair.group}\n{pair.item}".encode()).digest()
