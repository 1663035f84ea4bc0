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
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """Pairs N to train on, as arrays: 18 groups and 13,000 questions make 100,000 and more.

    Attributes:
        groups: Names of the groups that pairs may belong to.
        items: Ids of the questions that pairs may be about.
        group_N: int32, position of each pair's group in `groups`.
        item_N: int32, position of each pair's question in `items`.
        answer_N: int32, the code of each pair's answer.
        missing: By group, how many pairs fewer there were than wanted; only where there were.
    """

    groups: tuple[str, ...]
    items: tuple[str, ...] = dataclasses.field(repr=False)
    group_N: np.ndarray
    item_N: np.ndarray
    answer_N: np.ndarray
    missing: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        pairs: Selection | Iterable[Pair | Sequence[Any]],
        missing: Mapping[str, int] | None = None,
    ) -> Selection:
        """Return the selection of some pairs, in their order; a selection is returned as it is.

        A pair may also be a sequence of its group, item and answer.
        """
        if isinstance(pairs, Selection):
            return pairs
        rows = [dataclasses.astuple(p) if isinstance(p, Pair) else tuple(p) for p in pairs]
        groups, items, answers = zip(*rows, strict=True) if rows else ((), (), ())
        group_at = {group: c for c, group in enumerate(dict.fromkeys(groups))}
        item_at = {item: q for q, item in enumerate(dict.fromkeys(items))}
        return cls(
            tuple(group_at),
            tuple(item_at),
            np.array([group_at[group] for group in groups], np.int32),
            np.array([item_at[item] for item in items], np.int32),
            np.array(answers, np.int32),
            missing or {},
        )

    def __len__(self) -> int:
        return len(self.group_N)

    def __iter__(self) -> Iterator[Pair]:
        for c, q, answer in zip(
            self.group_N.tolist(), self.item_N.tolist(), self.answer_N.tolist(), strict=True
        ):
            yield Pair(self.groups[c], self.items[q], answer)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Selection):
            return NotImplemented
        return self.pairs == other.pairs and dict(self.missing) == dict(other.missing)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The pairs as objects; for looking at, not for long loops."""
        return tuple(self)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of pairs of each group that has any."""
        counts = np.bincount(self.group_N, minlength=len(self.groups)).tolist()
        return {group: count for group, count in zip(self.groups, counts, strict=True) if count}

    def where(self, chosen_N: np.ndarray) -> Selection:
        """Return some of the pairs, in their order: a mask, or increasing positions."""
        return dataclasses.replace(
            self,
            group_N=self.group_N[chosen_N],
            item_N=self.item_N[chosen_N],
            answer_N=self.answer_N[chosen_N],
            missing={},
        )

    def by_group(self) -> dict[str, Selection]:
        """Return the pairs of each group that has any."""
        return {
            group: self.where(self.group_N == c)
            for c, group in enumerate(self.groups)
            if np.any(self.group_N == c)
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
    return _chosen(chosen_CxQ & (aware_CxQ >= 0), aware_CxQ, groups, items)


def rds(
    aware_CxQ: np.ndarray,
    groups: Sequence[str],
    items: Sequence[Item],
    sizes: Mapping[str, int],
    seed: int,
) -> Selection:
    """Draw `sizes[group]` pairs of each group from all that it answered."""
    return _draw(_chosen(aware_CxQ >= 0, aware_CxQ, groups, items), sizes, f"rds {seed}")


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
    return _draw(_chosen(same_CxQ, aware_CxQ, groups, items), sizes, f"cds {seed}")


def fraction(selection: Selection, share: float, seed: int) -> Selection:
    """Draw a share of each group's pairs, rounded to whole pairs.

    With the same seed, the pairs of a smaller share are among those of a larger one.

    Raises:
        UserError: If the share is outside (0, 1].
    """
    if not 0 < share <= 1:
        raise UserError(f"fraction {share} must be more than 0 and at most 1")
    sizes = {group: round(share * size) for group, size in selection.sizes.items()}
    return _draw(selection, sizes, f"fraction {seed}")


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
    asked = np.unique(selection.item_N).tolist()
    held_out = held_out_questions((selection.items[q] for q in asked), share, seed)
    apart_N = np.array([item in held_out for item in selection.items], bool)[selection.item_N]
    return selection.where(~apart_N), selection.where(apart_N)


def pairs_by_topic(selection: Selection, items: Sequence[Item]) -> dict[str, dict[str, Any]]:
    """Return, for each topic, its number of questions and the pairs selected of each group.

    Args:
        selection: Pairs of questions and groups.
        items: All questions, selected or not.
    """
    topic_of = {item.id: item.topic for item in items}
    topics = list(dict.fromkeys(topic_of.values()))
    topic_I = np.array([topics.index(topic_of[i]) for i in selection.items], np.int64)
    pairs_TxC = np.zeros((len(topics), len(selection.groups)), np.int64)
    np.add.at(pairs_TxC, (topic_I[selection.item_N], selection.group_N), 1)
    questions = Counter(topic_of.values())
    return {
        topic: {
            "questions": questions[topic],
            "pairs": dict(zip(selection.groups, pairs_TxC[t].tolist(), strict=True)),
        }
        for t, topic in enumerate(topics)
    }


def expected_noise(distribution_xO: np.ndarray) -> np.ndarray:
    """Return the probability that two draws from a distribution differ: 1 - sum p squared."""
    return 1 - np.sum(np.square(distribution_xO), axis=-1)


def _chosen(
    chosen_CxQ: np.ndarray, aware_CxQ: np.ndarray, groups: Sequence[str], items: Sequence[Item]
) -> Selection:
    """Return the chosen pairs, group by group in the order of the items."""
    codes_QxO = np.zeros((len(items), max(len(item.codes) for item in items)), np.int32)
    for q, item in enumerate(items):
        codes_QxO[q, : len(item.codes)] = item.codes
    group_N, item_N = (x.astype(np.int32) for x in np.nonzero(chosen_CxQ))  # in row-major order
    answer_N = codes_QxO[item_N, aware_CxQ[group_N, item_N].astype(np.int32)]
    return Selection(tuple(groups), tuple(i.id for i in items), group_N, item_N, answer_N)


def _draw(candidates: Selection, sizes: Mapping[str, int], name: str) -> Selection:
    """Draw `sizes[group]` pairs of each group without replacement, kept in their order.

    Pairs are ranked by a hash of `name`, which contains the seed, so that a draw does not depend on
    the order or the number of the other pairs.
    """
    drawn, missing = [], {}
    for c, group in enumerate(candidates.groups):
        places = np.flatnonzero(candidates.group_N == c)
        size = sizes.get(group, 0)
        if size > len(places):
            missing[group] = size - len(places)
        ranks = _ranks(f"{name}\n{group}\n", candidates.items, candidates.item_N[places])
        # The lowest ranks are drawn; sorting their places brings back the order given.
        drawn.append(np.sort(places[np.argsort(ranks, kind="stable")[:size]]))
    chosen = np.concatenate(drawn) if drawn else np.empty(0, int)
    return dataclasses.replace(candidates.where(chosen), missing=missing)


def _ranks(start: str, items: Sequence[str], item_N: np.ndarray) -> np.ndarray:
    """Return the first 8 bytes of the SHA-256 of `start` and each item's id, as uint64."""
    prefix = hashlib.sha256(start.encode())
    ranks = np.empty(len(item_N), np.uint64)
    for n, q in enumerate(item_N.tolist()):
        hashed = prefix.copy()
        hashed.update(items[q].encode())
        ranks[n] = int.from_bytes(hashed.digest()[:8], "big")
    return ranks
