"""How a model answered a survey: one type for exact, sampled and recorded answers.

Exact answers are log-probabilities of an item's options. Sampled and recorded answers are the
positions of the options that one or more replies named; their shares then stand in for the
probabilities. Whoever compares answers with people asks this type and need not know which it is.

Where items were shown in several presentations (`jaxalign.surveys.presentations`), responses are
the mean over them, and hold those under each one too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.surveys.survey import Survey
from jaxalign.surveys.tables import option_table

# What stands in `positions` where a reply names no option.
UNREADABLE = -1  # the reply holds no number
OUT_OF_RANGE = -2  # the reply's number belongs to no option
NO_REPLY = -3  # nothing was asked or nothing was returned
OPTION_LIST = -4  # the reply repeats the options and takes none
# Why a reply is no answer, as counted in results.
NOT_ANSWERS = {
    "unreadable": UNREADABLE,
    "out_of_range": OUT_OF_RANGE,
    "option_lists": OPTION_LIST,
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Responses:
    """What a model answers to the Q items of a survey under each of A conditions.

    A condition is whatever an item is asked under: a plain question, a persona, examples, a tuned
    prompt. Items have at most O options; entries past an item's options are -inf in `log_probs`
    and 0 in `distributions()`.

    Attributes:
        survey: The survey whose items were asked, in its order.
        conditions: A labels, one for each condition.
        log_probs: float32 [A, Q, O], natural logarithms, normalised over an item's options.
            NaN for an item without an answer.
        valid_mass: float32 [A, Q]: the probability that a reply begins with an option at all
            (for sampled answers: the share of the replies that name one). None where unknown.
        positions: int [R, A, Q]: for sampled and recorded answers, the position of the option that
            each of R replies named, or `UNREADABLE`, `OUT_OF_RANGE`, `OPTION_LIST` or
            `NO_REPLY`. None for exact answers. Those under several presentations follow each other.
        by_presentation: the responses under each presentation by its name, if there were several.

    Examples:
        >>> import numpy as np
        >>> from jaxalign.surveys import Item, Responses, Survey
        >>> item = Item("q1", "Is the sky blue?", ("yes", "no"), (1, 2))
        >>> survey = Survey("sky", "1", "made up", "official", (item,))
        >>> log_probs = np.log(np.float32([[[0.75, 0.25]]]))
        >>> responses = Responses(survey, ("plain",), log_probs)
        >>> responses.expected()
        array([[1.25]], dtype=float32)
        >>> responses.most_likely()
        array([[1.]], dtype=float32)
        >>> print(responses.table())
        item  plain
        q1    1.25
    """

    survey: Survey
    conditions: tuple[str, ...]
    log_probs: np.ndarray
    valid_mass: np.ndarray | None = None
    positions: np.ndarray | None = None
    by_presentation: Mapping[str, Responses] | None = None

    def __post_init__(self) -> None:
        items = self.survey.items
        shape = len(self.conditions), len(items), max(len(item.options) for item in items)
        if self.log_probs.shape != shape:
            raise ValueError(f"log_probs has shape {self.log_probs.shape}, not {shape}")
        if self.valid_mass is not None and self.valid_mass.shape != shape[:2]:
            raise ValueError(f"valid_mass has shape {self.valid_mass.shape}, not {shape[:2]}")
        if self.positions is not None and self.positions.shape[1:] != shape[:2]:
            raise ValueError(f"positions has shape {self.positions.shape}, not (R, *{shape[:2]})")

    def __repr__(self) -> str:
        labels = ", ".join(self.conditions)
        return f"Responses({self.survey.name!r}, {len(self.survey.items)} items; {labels})"

    @classmethod
    def from_positions(
        cls, survey: Survey, conditions: Sequence[str], positions: np.ndarray
    ) -> Responses:
        """Return the responses that replies make, from the options they name.

        Args:
            survey: The survey that was asked.
            conditions: A labels.
            positions: int [R, A, Q]: which option each of R replies names, counted from 0, or
                `UNREADABLE`, `OUT_OF_RANGE`, `OPTION_LIST` or `NO_REPLY`.

        Returns:
            Responses whose probabilities are shares of the replies that name an option.

        Examples:
            >>> import numpy as np
            >>> from jaxalign.surveys import Responses, vsm
            >>> replies = np.zeros((3, 1, 24), int)  # three replies name the first option
            >>> replies[0] = 1  # one the second
            >>> Responses.from_positions(vsm(), ["persona"], replies).expected()[0, :2]
            array([1.3333334, 1.3333334], dtype=float32)
        """
        # An item's valid mass is the share of its replies that name an option; NaN without replies.
        shares_AxQxO = _shares(survey, positions)
        replies_AxQ = (positions != NO_REPLY).sum(axis=0)
        readable_AxQ = (positions >= 0).sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_probs = np.log(shares_AxQxO)
            valid_mass = (readable_AxQ / replies_AxQ).astype(np.float32)
        return cls(survey, tuple(conditions), log_probs, valid_mass, positions)

    @classmethod
    def from_presentations(cls, by_presentation: Mapping[str, Responses]) -> Responses:
        """Return the mean of responses to the same items under several presentations.

        The mean is that of the probabilities. Of sampled answers it is the mean of the shares, in
        which every presentation with a readable reply counts alike; their replies follow each
        other, presentation by presentation.

        Args:
            by_presentation: The responses by the name of the presentation, all exact or all
                sampled.

        Examples:
            >>> import numpy as np
            >>> from jaxalign.surveys import Responses, vsm
            >>> first, last = np.zeros((1, 1, 24), int), np.full((1, 1, 24), 4)
            >>> a, b = (Responses.from_positions(vsm(), ["x"], p) for p in (first, last))
            >>> Responses.from_presentations({"A": a, "B": b}).expected()[0, :2]
            array([3., 3.], dtype=float32)
        """
        parts = tuple(by_presentation.values())
        first = parts[0]
        if len(parts) == 1:
            return first
        valid_mass = positions = None
        if all(part.valid_mass is not None for part in parts):
            valid_mass = np.mean([part.valid_mass for part in parts], axis=0, dtype=np.float32)
        if first.positions is None:
            log_probs = first.log_probs
            for part in parts[1:]:
                log_probs = np.logaddexp(log_probs, part.log_probs)
            log_probs = log_probs - np.float32(np.log(len(parts)))
        else:
            positions = np.concatenate([part.positions for part in parts])
            with np.errstate(divide="ignore"):
                log_probs = np.log(_mean_shares(parts))
        return cls(
            first.survey, first.conditions, log_probs, valid_mass, positions, dict(by_presentation)
        )

    @classmethod
    def join(cls, parts: Sequence[Responses]) -> Responses:
        """Return the responses of several parts to the same survey, one part's after another's.

        Args:
            parts: Responses under different conditions, all exact or all sampled alike.
        """
        first = parts[0]
        if first.by_presentation is not None:
            names = first.by_presentation
            return cls.from_presentations(
                {name: cls.join([part.by_presentation[name] for part in parts]) for name in names}
            )
        known = all(part.valid_mass is not None for part in parts)
        sampled = first.positions is not None
        return cls(
            first.survey,
            tuple(condition for part in parts for condition in part.conditions),
            np.concatenate([part.log_probs for part in parts]),
            np.concatenate([part.valid_mass for part in parts]) if known else None,
            np.concatenate([part.positions for part in parts], axis=1) if sampled else None,
        )

    def distributions(self) -> np.ndarray:
        """Return float32 [A, Q, O]: the probability, or share of replies, of each option.

        0 past an item's options; NaN for an item without an answer.
        """
        if self.positions is not None and self.by_presentation is not None:
            return _mean_shares(self.by_presentation.values())
        if self.positions is not None:
            # Not exp(log(share)), which may differ from the share in its last bit.
            return _shares(self.survey, self.positions)
        return np.exp(self.log_probs, dtype=np.float32)

    def expected(self) -> np.ndarray:
        """Return float32 [A, Q]: the mean code under the distribution, NaN without an answer."""
        _, codes_QxO = option_table(self.survey)
        return (self.distributions() * codes_QxO).sum(axis=-1)

    def most_likely(self) -> np.ndarray:
        """Return float32 [A, Q]: the code of the most likely option, NaN without an answer."""
        _, codes_QxO = option_table(self.survey)
        position_AxQ = self.most_likely_positions()
        codes_AxQ = codes_QxO[np.arange(len(codes_QxO)), position_AxQ]
        return np.where(position_AxQ < 0, np.float32(np.nan), codes_AxQ)

    def most_likely_positions(self) -> np.ndarray:
        """Return int [A, Q]: which option is most likely, the first of equals; -1 without any."""
        distribution_AxQxO = self.distributions()
        none_AxQ = np.isnan(distribution_AxQxO).any(axis=-1)
        return np.where(none_AxQ, -1, np.argmax(np.nan_to_num(distribution_AxQxO), axis=-1))

    def answers(self) -> np.ndarray:
        """Return float32 [R, A, Q]: the position that each reply names, NaN where it names none.

        Exact answers count as one reply, which names the most likely option.
        """
        position = self.most_likely_positions()[None] if self.positions is None else self.positions
        return np.where(position < 0, np.nan, position).astype(np.float32)

    def counts(self) -> dict[str, int]:
        """Return how many `replies` there are, and how many of these name no option, by reason.

        The keys of the reasons are those of `NOT_ANSWERS`.
        """
        if self.positions is None:
            return {"replies": self.log_probs[..., 0].size} | dict.fromkeys(NOT_ANSWERS, 0)
        return {"replies": int((self.positions != NO_REPLY).sum())} | {
            reason: int((self.positions == mark).sum()) for reason, mark in NOT_ANSWERS.items()
        }

    def unreadable_items(self) -> list[str]:
        """Return the ids of the items with a reply that names no option, in the survey's order."""
        if self.positions is None:
            return []
        unreadable_Q = np.isin(self.positions, list(NOT_ANSWERS.values())).any(axis=(0, 1))
        return [item.id for item, bad in zip(self.survey.items, unreadable_Q, strict=True) if bad]

    def row(self, condition: str) -> int:
        """Return where `condition` stands among the conditions.

        Raises:
            UserError: If there is no such condition.
        """
        if condition not in self.conditions:
            known = ", ".join(self.conditions)
            raise UserError(f"condition {condition!r} was not asked; choose from {known}")
        return self.conditions.index(condition)

    def select(self, conditions: Sequence[str]) -> Responses:
        """Return the responses under some of the conditions, in the order given."""
        rows = [self.row(condition) for condition in conditions]
        return Responses(
            self.survey,
            tuple(conditions),
            self.log_probs[rows],
            None if self.valid_mass is None else self.valid_mass[rows],
            None if self.positions is None else self.positions[:, rows],
            self.by_presentation
            and {name: part.select(conditions) for name, part in self.by_presentation.items()},
        )

    def table(self) -> str:
        """Return the expected code of each item under each condition, as aligned text."""
        rows = [["item", *self.conditions]]
        for item, codes in zip(self.survey.items, self.expected().T, strict=True):
            rows.append([item.id, *(f"{code:.2f}" for code in codes)])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)) for r in rows]
        return "\n".join(line.rstrip() for line in lines)


def _shares(survey: Survey, positions_RxAxQ: np.ndarray) -> np.ndarray:
    """Return float32 [A, Q, O]: the share of replies that name each option, NaN where none does."""
    # Marks such as UNREADABLE are negative, so they equal no option and are not counted.
    options = np.arange(max(len(item.options) for item in survey.items))
    counts = (positions_RxAxQ[..., None] == options).sum(axis=0)
    readable = counts.sum(axis=-1, keepdims=True)
    shares = np.where(readable > 0, counts / np.maximum(readable, 1), np.nan)
    return shares.astype(np.float32)


def _mean_shares(parts: Iterable[Responses]) -> np.ndarray:
    """Return float32 [A, Q, O]: the mean of the shares over the parts that have any."""
    shares = np.stack([_shares(part.survey, part.positions) for part in parts])
    answered = ~np.isnan(shares).any(axis=-1, keepdims=True)
    count = answered.sum(axis=0)
    total = np.where(answered, shares, 0).sum(axis=0, dtype=np.float32)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
