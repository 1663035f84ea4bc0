"""Conversations as token ids, and the tables of a block of them: what one pass of a model reads.

A block is a prefix tree of its conversations in depth-first order, so that what neighbours share, a
lead-in or a question's stem, is computed once. One number a token, where its descendants end, says
who sees whom; masks are made on the device. `jaxalign.answering.block_plan` cuts conversations into
blocks, all padded to one shape, so that one compiled program answers all of them.

Pure numpy: knows neither model nor JAX. Letters: T token, S key of a row, A answer node, Y token
read there, R row, Q conversation, O option, N conversation of a whole job.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from jaxalign.answering.prefix_tree import PrefixTree, Spellings, pad_rows, sequence_table

ROW, ANSWER_ROW = 64, 8  # queries that share a table of keys: tree tokens, answer nodes


@dataclasses.dataclass(frozen=True)
class Conversations:
    """Questions after lead-ins, as token ids; each distinct lead-in and question is held once.

    Conversation n is the tokens of `lead_ins[p]`, then those of `questions[q]`, where p, q is
    `pairs[n]`. An id beyond the vocabulary is a virtual token: `vocab_size + i` is row i of the
    embeddings that are given besides the model's own.

    Attributes:
        lead_ins: token ids of each lead-in; may be empty.
        questions: token ids of each question, at least one.
        options: of each question, the spellings of its options.
        pairs: int32 [N, 2], or anything that makes such an array.
    """

    lead_ins: Sequence[np.ndarray]
    questions: Sequence[np.ndarray]
    options: Sequence[Spellings]
    pairs: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", np.asarray(self.pairs, np.int32).reshape(-1, 2))

    def __len__(self) -> int:
        return len(self.pairs)

    def tokens(self, n: int) -> np.ndarray:
        """Return the token ids of conversation n."""
        p, q = self.pairs[n]
        return np.concatenate([self.lead_ins[p], self.questions[q]])

    def spellings(self, n: int) -> Spellings:
        """Return the spellings of the options of conversation n's question."""
        return self.options[self.pairs[n, 1]]

    @functools.cached_property
    def lengths_N(self) -> np.ndarray:
        """Number of tokens of each conversation, int64 [N]."""
        lead_ins, questions = (
            np.array([len(row) for row in rows], np.int64)
            for rows in (self.lead_ins, self.questions)
        )
        return lead_ins[self.pairs[:, 0]] + questions[self.pairs[:, 1]]

    @property
    def read_lengths_N(self) -> np.ndarray:
        """Number of tokens the model reads of each conversation, inside its options too, int64."""
        sets, set_of_question = self.option_sets
        inside = [max(len(s) for option in options for s in option) - 1 for options in sets]
        return self.lengths_N + np.array(inside)[set_of_question[self.pairs[:, 1]]]

    @functools.cached_property
    def option_sets(self) -> tuple[list[Spellings], np.ndarray]:
        """The distinct sets of options, and the number of each question's set, int32."""
        # Questions with the same codes share one object, which saves comparing its content.
        number_of: dict[int, int] = {}
        known: dict[tuple, int] = {}
        sets: list[Spellings] = []
        for options in self.options:
            if id(options) not in number_of:
                content = tuple(tuple(tuple(s) for s in option) for option in options)
                if content not in known:
                    known[content] = len(sets)
                    sets.append(options)
                number_of[id(options)] = known[content]
        return sets, np.array([number_of[id(options)] for options in self.options], np.int32)


@dataclasses.dataclass(frozen=True)
class OptionTables:
    """What each distinct set of options adds to a conversation, padded to common sizes.

    Options longer than one token are branches behind the conversation's last token. Answer node 0
    of a set is that last token; node i is its i-th inner token.

    Letters: K set of options, I inner token, Y token read at a node.
    """

    inner_K: np.ndarray  # int32: number of inner tokens
    tokens_KxI: np.ndarray  # int32 token ids
    depth_KxI: np.ndarray  # int32: tokens between the conversation and this one
    end_KxI: np.ndarray  # int32: place after the last descendant; the first inner token is place 0
    scored_KxAxY: np.ndarray  # int32 [K, 1 + I, Y]: token ids read at each node; -1 for none
    sequences_KxOxSxY: np.ndarray  # int32 [K, O, spellings, tokens]: node * Y + column, -1 for none

    @classmethod
    def of(cls, sets: Sequence[Spellings]) -> OptionTables:
        """Return the tables of the sets.

        Raises:
            ValueError: for an option without a spelling.
        """
        trees, paths = [], []
        for options in sets:
            # A first token stands for the conversation.
            tree = PrefixTree(depth_first=True)
            paths.append(tree.read_options(tree.insert([0]), options))
            trees.append(tree)
        columns = max(len(read) for tree in trees for read in tree.scored.values())
        inner = max(len(tree.token) for tree in trees) - 1
        scored = np.full((len(sets), 1 + inner, columns), -1, np.int32)
        for table, tree in zip(scored, trees, strict=True):
            for node, read in tree.scored.items():
                table[node, : len(read)] = list(read)
        node_is_row = {node: node for node in range(1 + inner)}
        ends = [tree.ends(range(len(tree.token)))[1:] - 1 for tree in trees]
        return cls(
            inner_K=np.array([len(tree.token) - 1 for tree in trees], np.int32),
            tokens_KxI=pad_rows([tree.token[1:] for tree in trees], 0, inner),
            depth_KxI=pad_rows([np.array(tree.depth[1:]) - 1 for tree in trees], 0, inner),
            end_KxI=pad_rows(ends, 0, inner),
            scored_KxAxY=scored,
            sequences_KxOxSxY=sequence_table(paths, node_is_row, columns),
        )


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of padded tables; what a compiled program depends on."""

    tokens: int  # T
    keys: int  # S of a row of tree tokens
    answers: int  # A
    answer_keys: int  # S of a row of answer nodes
    scored: int  # Y
    questions: int  # Q
    options: int  # O
    spellings: int
    spelling_tokens: int

    def table_shapes(self) -> Tables:
        """Return the shape of each table, in place of the table."""
        T, A, Q = self.tokens, self.answers, self.questions
        return Tables(
            tree=(T,),
            positions=(T,),
            end=(T,),
            keys=(T // ROW, self.keys),
            answers=(A,),
            answer_keys=(A // ANSWER_ROW, self.answer_keys),
            scored=(A, self.scored),
            ends=(Q,),
            sequences=(Q, self.options, self.spellings, self.spelling_tokens),
        )


@dataclasses.dataclass(frozen=True)
class Tables:
    """A block padded to a shape; int32. A padding token sees itself only, and no other sees it."""

    tree: np.ndarray  # [T] token ids in depth-first order
    positions: np.ndarray  # [T]: how many tokens come before it in its conversation
    end: np.ndarray  # [T]: place after the token's last descendant
    keys: np.ndarray  # [R, S]: places that any token of a row sees; -1 for padding
    answers: np.ndarray  # [A]: place of each token whose next token is read
    answer_keys: np.ndarray  # [R', S']; -1 for padding
    scored: np.ndarray  # [A, Y]: token ids that are read there; -1 for none
    ends: np.ndarray  # [Q]: which answer node is a conversation's last token
    sequences: np.ndarray  # [Q, O, spellings, tokens]: index into flat [A * Y]; -1 for none
