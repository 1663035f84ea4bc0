"""Training targets that are distributions: what each option's probability asks of the next token.

A model answers with the number (or letter) of an option. Where each number is one token, the
probabilities of the options are those of the tokens after the prompt, and there is nothing to do.
Where digits are tokens, 1 and 10 begin alike: after the prompt stands a 1 with the probability of
both, and behind the 1 the reply goes on or ends. So the spellings of a set of options are a tree,
and the divergence from a distribution over options is a sum over the nodes where spellings part:
each node's own divergence times the probability of the options that pass it.

An example holds one number, so it can train the nodes along one path. The first token always is one
of them; of the others, those along the path that most options take. That is all of them where two
options at most begin alike, as 1 and 10 do, and up to 19 options; of 20 options, that 2 and 20 part
behind the 2 is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxalign.answering.prefix_tree import Spellings
from jaxalign.training.packing import OptionTargets


@dataclasses.dataclass(frozen=True, eq=False)
class OptionPaths:
    """Where the spellings of options part along one path, for K sets of up to O options.

    Attributes:
        tokens_KxAxY: int32, the different tokens at answer position a where spellings part there;
            -1 for none.
        column_KxAxO: int, which of these an option takes; -1 if it is not on the path, or spellings
            do not part.
        through_K: int, the option whose number leads along the path; -1 where spellings part after
            the first tokens alone, so that any number does.
    """

    tokens_KxAxY: np.ndarray
    column_KxAxO: np.ndarray
    through_K: np.ndarray

    @classmethod
    def of(
        cls, sets: Sequence[Spellings], numbers: Sequence[Sequence[tuple[int, ...]]]
    ) -> OptionPaths:
        """Return the paths of several sets of options.

        Args:
            sets: The spellings of each option, of which the first counts. None is the beginning of
                another: where one would be, all end with the end of the turn.
            numbers: The same without the end of the turn: what an example may hold.
        """
        firsts = [[tuple(spellings[0]) for spellings in options] for options in sets]
        paths = [_path(*each) for each in zip(firsts, numbers, strict=True)]
        positions = max(len(nodes) for nodes, _ in paths)
        options = max(map(len, sets))
        tokens_KxAxY = np.full((len(sets), positions, options), -1, np.int32)
        column_KxAxO = np.full((len(sets), positions, options), -1)
        for k, (nodes, _) in enumerate(paths):
            for a, token_of in enumerate(nodes):
                distinct = list(dict.fromkeys(token_of.values()))
                if len(distinct) > 1:
                    tokens_KxAxY[k, a, : len(distinct)] = distinct
                    for option, token in token_of.items():
                        column_KxAxO[k, a, option] = distinct.index(token)
        return cls(tokens_KxAxY, column_KxAxO, np.array([through for _, through in paths]))

    def targets(self, set_N: np.ndarray, shares_NxO: np.ndarray) -> OptionTargets:
        """Return the targets of examples.

        Args:
            set_N: int, the set of options of each example.
            shares_NxO: The options' probabilities, 0 past those of an example.
        """
        column_NxAxO = self.column_KxAxO[set_N]
        masses_NxAxY = np.zeros(column_NxAxO.shape, np.float32)
        # Options that share a token add up.
        for o in range(min(column_NxAxO.shape[-1], shares_NxO.shape[-1])):
            n, a = np.nonzero(column_NxAxO[:, :, o] >= 0)
            masses_NxAxY[n, a, column_NxAxO[n, a, o]] += shares_NxO[n, o]
        return OptionTargets(self.tokens_KxAxY[set_N], masses_NxAxY)


def _path(
    spellings: Sequence[tuple[int, ...]], numbers: Sequence[tuple[int, ...]]
) -> tuple[list[dict[int, int]], int]:
    """Return the token of each option that passes a position of the path, by position, up to the
    last where spellings part; and the option that leads along it, -1 if any does."""
    passing = range(len(spellings))
    nodes: list[dict[int, int]] = []
    last = 0
    while len(passing) > 1:
        nodes.append({option: spellings[option][len(nodes)] for option in passing})
        by_token: dict[int, list[int]] = {}
        for option, token in nodes[-1].items():
            by_token.setdefault(token, []).append(option)
        if len(by_token) > 1:
            last = len(nodes) - 1
        passing = max(by_token.values(), key=len)
    reach = [option for option in nodes[last] if len(numbers[option]) > last]
    through = -1 if len(reach) == len(spellings) else reach[0]
    return nodes[: last + 1], through
