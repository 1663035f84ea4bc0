"""Plan for a soft prompt that stands *after* an item's text, instead of before it.

    item text of q, computed once for all candidates  |  prompt (M)  |  tail of q (N)

Nothing before the prompt depends on it, so a candidate costs M + N tokens an item instead of the
item's text: at published lengths about a quarter of the work. It is another method, not the same
one faster: the question is read without knowledge of the prompt.

Pure numpy: knows neither model nor JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxalign.answering.plan import PrefixTree, Spellings, option_paths, pad_rows, sequence_table


@dataclasses.dataclass(frozen=True)
class SuffixLayout:
    """Everything static about scoring Q items; block q is [prompt (M) | tail (N, padded)]."""

    texts_QxS: np.ndarray  # int32 token ids before the prompt, padded with 0
    lengths_Q: np.ndarray  # int32, how many of them are real
    prompt_length: int
    tails_QxN: np.ndarray  # int32 token ids after the prompt, padded with 0
    positions_QxT: np.ndarray  # int32, RoPE positions of a block's T = M + N tokens
    mask_QxTxT: np.ndarray  # bool: token sees token within the block
    answers: np.ndarray  # int32 [A]: index into the Q * T block tokens of each answer node
    scored_AxY: np.ndarray  # int32: token ids whose logits are read at each answer node
    inner: np.ndarray  # int32: answer nodes inside an option (see `layout.Layout`)
    sequences: np.ndarray  # [Q, O, spellings, tokens], as in `layout.Layout`
    tokens_asked: int  # tokens of all conversations, each whole

    @property
    def tokens_computed(self) -> int:
        """Token positions per candidate that go through the layers."""
        return self.positions_QxT.size


def plan_suffix_layout(
    texts: Sequence[Sequence[int]],
    prompt_length: int,
    tails: Sequence[Sequence[int]],
    options: Sequence[Spellings],
) -> SuffixLayout:
    """Lay out items whose `texts` come before the prompt and whose `tails` come after it.

    Raises ValueError for an empty tail, or where the lists differ in length.
    """
    if not len(texts) == len(tails) == len(options) or not all(map(len, tails)):
        raise ValueError("every item needs a text, at least one token after the prompt, options")
    # One node below the root for each item keeps their tails apart; it stands for the prompt.
    tree = PrefixTree()
    ends = [tree.insert([-1 - q, *tail]) for q, tail in enumerate(tails)]
    scored, paths = option_paths(tree, ends, options)
    blocks = _blocks(tree, len(tails))
    M, T = prompt_length, prompt_length + max(map(len, blocks))
    index = {node: q * T + M + i for q, block in enumerate(blocks) for i, node in enumerate(block)}
    answer_nodes = sorted(scored, key=index.__getitem__)
    scored_AxY = pad_rows([list(scored[node]) for node in answer_nodes], 0)
    return SuffixLayout(
        texts_QxS=pad_rows(texts, 0),
        lengths_Q=np.array([len(text) for text in texts], np.int32),
        prompt_length=M,
        tails_QxN=pad_rows([[tree.token[n] for n in block] for block in blocks], 0),
        positions_QxT=_positions(tree, blocks, [len(text) for text in texts], M, T),
        mask_QxTxT=np.stack([_mask(tree, block, M, T) for block in blocks]),
        answers=np.array([index[node] for node in answer_nodes], np.int32),
        scored_AxY=scored_AxY,
        inner=np.array([a for a, n in enumerate(answer_nodes) if n not in set(ends)], np.int32),
        sequences=sequence_table(paths, answer_nodes, scored, scored_AxY.shape[1]),
        tokens_asked=sum(len(x) + M + len(y) for x, y in zip(texts, tails, strict=True)),
    )


def _blocks(tree: PrefixTree, items: int) -> list[list[int]]:
    """Per item its tail's nodes and those of its options, parents before children."""
    blocks: list[list[int]] = [[] for _ in range(items)]
    item = -1
    for node in tree.preorder():
        if tree.token[node] < 0:
            item = -1 - tree.token[node]
        else:
            blocks[item].append(node)
    return blocks


def _positions(
    tree: PrefixTree, blocks: list[list[int]], starts: Sequence[int], M: int, T: int
) -> np.ndarray:
    """A tail token's depth counts the node that stands for the prompt: two for the first."""
    out = np.zeros((len(blocks), T), np.int32)
    for q, (block, start) in enumerate(zip(blocks, starts, strict=True)):
        out[q, :M] = start + np.arange(M)
        out[q, M : M + len(block)] = [start + M + tree.depth[node] - 2 for node in block]
    return out


def _mask(tree: PrefixTree, block: list[int], M: int, T: int) -> np.ndarray:
    """Prompt: causal. Tail: the whole prompt, and its own ancestors in the block."""
    mask = np.zeros((T, T), bool)
    mask[:M, :M] = np.tril(np.ones((M, M), bool))
    place = {node: M + i for i, node in enumerate(block)}
    for node, row in place.items():
        parent = place.get(tree.parent[node])
        mask[row] = mask[parent] if parent is not None else np.arange(T) < M
        mask[row, row] = True
    return mask
