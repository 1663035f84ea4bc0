"""Plan for a soft prompt that stands after an item's text instead of before it.

    item text of q, computed once for all candidates  |  prompt (M)  |  tail of q (N)

Nothing before the prompt depends on it, so a candidate costs M + N tokens an item instead of the
item's text: at published lengths about a quarter of the work. It is another method, not the same
one made faster: the model reads the question without knowing the prompt.

Pure numpy: knows neither model nor JAX. Letters: Q item, S token of an item's text, M prompt token,
N token of a tail, T = M + N token of an item's block, A answer node, Y token read there, O option.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxalign.answering.prefix_tree import PrefixTree, Spellings, pad_rows, sequence_table


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
    inner: np.ndarray  # int32: answer nodes inside an option (see `plan.Layout`)
    sequences: np.ndarray  # [Q, O, spellings, tokens], as in `plan.Layout`
    per_token: bool  # an option counts by the mean log-probability of its tokens
    tokens_asked: int  # tokens of all conversations, each whole

    @property
    def tokens_computed(self) -> int:
        """Token positions per candidate that go through the layers."""
        return self.positions_QxT.size

    @property
    def longest(self) -> int:
        """Tokens of the longest conversation, the inner tokens of its options included."""
        return int(self.positions_QxT.max()) + 1


def plan_suffix_layout(
    texts: Sequence[Sequence[int]],
    prompt_length: int,
    tails: Sequence[Sequence[int]],
    options: Sequence[Spellings],
    per_token: bool = False,
) -> SuffixLayout:
    """Lay out items whose text comes before the prompt.

    Args:
        texts: token ids of each item before the prompt.
        prompt_length: M, tokens of the prompt.
        tails: token ids of each item after the prompt, at least one.
        options: of each item, the token ids of every spelling of every option.
        per_token: whether an option counts by the mean log-probability of its tokens, and not by
            their sum.

    Returns:
        The layout, with a block of M + N tokens for each item.

    Raises:
        ValueError: for an empty tail, or where the lists differ in length.

    >>> yes_or_no = [[(7,)], [(8,)]]
    >>> layout = plan_suffix_layout([[1, 2, 3], [1, 4]], 2, [[5, 6], [5]], [yes_or_no] * 2)
    >>> layout.tails_QxN.tolist(), layout.positions_QxT.tolist()
    ([[5, 6], [5, 0]], [[3, 4, 5, 6], [2, 3, 4, 0]])
    """
    if not len(texts) == len(tails) == len(options) or not all(map(len, tails)):
        raise ValueError("every item needs a text, at least one token after the prompt, options")
    # A first node with a negative number of its own keeps each item's tail apart from the others'.
    # It stands for the item's prompt.
    tree = PrefixTree()
    last_nodes = [tree.insert([-1 - q, *tail]) for q, tail in enumerate(tails)]
    paths = [tree.read_options(*pair) for pair in zip(last_nodes, options, strict=True)]
    blocks = _blocks(tree, len(tails))
    M, T = prompt_length, prompt_length + max(map(len, blocks))
    index = {node: q * T + M + i for q, block in enumerate(blocks) for i, node in enumerate(block)}
    answer_nodes = sorted(tree.scored, key=index.__getitem__)
    scored_AxY = pad_rows([list(tree.scored[node]) for node in answer_nodes], 0)
    item_ends = set(last_nodes)
    # A first token's normaliser cancels between options, but not in means over their tokens.
    inner = [a for a, node in enumerate(answer_nodes) if per_token or node not in item_ends]
    row = {node: a for a, node in enumerate(answer_nodes)}
    return SuffixLayout(
        texts_QxS=pad_rows(texts, 0),
        lengths_Q=np.array([len(text) for text in texts], np.int32),
        prompt_length=M,
        tails_QxN=pad_rows([[tree.token[n] for n in block] for block in blocks], 0),
        positions_QxT=_positions(tree, blocks, [len(text) for text in texts], M, T),
        mask_QxTxT=np.stack([_mask(tree, block, M, T) for block in blocks]),
        answers=np.array([index[node] for node in answer_nodes], np.int32),
        scored_AxY=scored_AxY,
        inner=np.array(inner, np.int32),
        sequences=sequence_table(paths, row, scored_AxY.shape[1]),
        per_token=per_token,
        tokens_asked=sum(len(x) + M + len(y) for x, y in zip(texts, tails, strict=True)),
    )


def _blocks(tree: PrefixTree, items: int) -> list[list[int]]:
    """Return, per item, the nodes of its tail and its options, parents before children."""
    blocks: list[list[int]] = [[] for _ in range(items)]
    item = -1
    for node in tree.depth_first_order():
        if tree.token[node] < 0:
            item = -1 - tree.token[node]
        else:
            blocks[item].append(node)
    return blocks


def _positions(
    tree: PrefixTree, blocks: list[list[int]], starts: Sequence[int], M: int, T: int
) -> np.ndarray:
    """Return the RoPE positions of every block, int32 [Q, T]; 0 for padding."""
    out = np.zeros((len(blocks), T), np.int32)
    for q, (block, start) in enumerate(zip(blocks, starts, strict=True)):
        out[q, :M] = start + np.arange(M)
        # A tail token's depth also counts the node that stands for the prompt.
        out[q, M : M + len(block)] = [start + M + tree.depth[node] - 1 for node in block]
    return out


def _mask(tree: PrefixTree, block: list[int], M: int, T: int) -> np.ndarray:
    """Return who sees whom in a block, bool [T, T].

    The prompt is causal; a token of the tail sees the whole prompt and its own ancestors.
    """
    mask = np.zeros((T, T), bool)
    mask[:M, :M] = np.tril(np.ones((M, M), bool))
    row_of = {node: M + i for i, node in enumerate(block)}
    for node, row in row_of.items():
        # Parents stand before their children: a token sees what its parent sees, and itself.
        parent = row_of.get(tree.parent[node])
        mask[row] = mask[parent] if parent is not None else np.arange(T) < M
        mask[row, row] = True
    return mask
