"""Plan which tokens a batch of prompts x items needs, each once, and which tokens each one sees.

Items that follow a soft prompt share text: chat header, instruction, question stem. The planner
puts all items into a prefix tree, where shared text is one node a token, and lays the tree out in
depth-first order:

    before (S tokens)  |  prompt (M)  |  trunk  |  tree (T tokens)
    cached once for all   \\______ common, W ______/

Every tree token sees all of `before` and `common`; within the tree it sees its ancestors. Tree
tokens are cut into rows of equal length: a row's keys are the union of its tokens' ancestors,
gathered by a static table. Matrix products see every token exactly once, without padding; only
attention has a mask. Options of more than one token are branches of the same tree.

Pure numpy: knows neither model nor JAX. Letters: S token before the prompt or key of a row, M
prompt token, W common token, T tree token, R row, L query of a row, A answer node, Y token read
there, Q item, O option.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxalign.answering.prefix_tree import PrefixTree, Spellings, pad_rows, sequence_table

_ROW_LENGTHS = (8, 16, 32, 64, 128)
# Gathering a key costs about as much as this many queries attending to it (measured on CPU).
_GATHER_COST = 8


@dataclasses.dataclass(frozen=True)
class Rows:
    """Attention of tree queries, cut into rows. Tree indices count from the tree's first token."""

    keys_RxS: np.ndarray  # int32: tree index of each key of a row (padding repeats key 0)
    mask_RxLxS: np.ndarray  # bool: query l of row r sees key s
    queries: int  # number of real queries; the end of the last row is padding


@dataclasses.dataclass(frozen=True)
class Layout:
    """Everything static about scoring Q items after a prompt of M tokens.

    Answer nodes A are the tokens whose next-token logits are read: the last token of each item
    and the inner tokens of options longer than one token.
    """

    before: np.ndarray  # int32 [S]: token ids before the prompt
    prompt_length: int  # M
    trunk: np.ndarray  # int32: token ids that every item has right after the prompt
    tree: np.ndarray  # int32 [T]: token ids in depth-first order
    ends: np.ndarray  # int32 [T]: tree index after the last descendant of each tree token
    positions: np.ndarray  # int32 [W + T]: RoPE position of common and tree tokens
    rows: Rows
    answers: np.ndarray  # int32 [A]: tree index of each answer node
    answer_rows: Rows
    scored_AxY: np.ndarray  # int32: token ids whose logits are read at each answer node
    inner: np.ndarray  # int32: answer nodes that need the full normaliser: inside an option
    # [Q, O, spellings, tokens]: index into the flat [A * Y] table, -1 where there is none
    sequences: np.ndarray
    per_token: bool  # an option counts by the mean log-probability of its tokens
    tokens_asked: int  # prompt and item tokens if nothing after `before` were shared

    @property
    def common_length(self) -> int:
        """W: tokens of the prompt and the trunk."""
        return self.prompt_length + len(self.trunk)

    @property
    def tokens_computed(self) -> int:
        """Token positions per candidate that go through the layers."""
        return self.common_length + len(self.tree)

    @property
    def longest(self) -> int:
        """Tokens of the longest conversation, the inner tokens of its options included."""
        return int(self.positions.max()) + 1


def plan_layout(
    before: Sequence[int],
    prompt_length: int,
    items: Sequence[Sequence[int]],
    options: Sequence[Spellings],
    per_token: bool = False,
) -> Layout:
    """Lay out items that follow a prompt, and the options that each is answered with.

    Args:
        before: token ids before the prompt, the same for all items.
        prompt_length: M, tokens of the prompt; 0 for no prompt.
        items: token ids of each item, from the first after the prompt to the last before the
            answer.
        options: of each item, the token ids of every spelling of every option.
        per_token: whether an option counts by the mean log-probability of its tokens, and not by
            their sum.

    Returns:
        The layout, in which each distinct token stands once.

    Raises:
        ValueError: for an item without tokens or an option without spelling.

    >>> yes_or_no = [[(7,)], [(8,)]]
    >>> layout = plan_layout([], 4, [[1, 2, 3], [1, 2, 5, 6]], [yes_or_no] * 2)
    >>> layout.trunk.tolist(), layout.tree.tolist()
    ([1, 2], [3, 5, 6])
    >>> layout.tokens_asked, layout.tokens_computed
    (15, 9)
    """
    if any(len(item) == 0 for item in items) or len(items) != len(options):
        raise ValueError("every item needs at least one token and its own options")
    # All items go in before any option, which decides the order in which siblings stand.
    tree = PrefixTree()
    last_nodes = [tree.insert(item) for item in items]
    paths = [tree.read_options(*pair) for pair in zip(last_nodes, options, strict=True)]
    order = tree.depth_first_order()
    trunk = tree.trunk_length()
    index = {node: i - trunk for i, node in enumerate(order)}  # negative in the trunk
    ancestors = _visible_in_tree(tree, order[trunk:], index)

    answer_nodes = sorted(tree.scored, key=index.__getitem__)
    answers = np.array([index[node] for node in answer_nodes], np.int32)
    scored_AxY = pad_rows([list(tree.scored[node]) for node in answer_nodes], 0)
    item_ends = set(last_nodes)
    # A first token's normaliser cancels between options, but not in means over their tokens.
    inner = [a for a, node in enumerate(answer_nodes) if per_token or node not in item_ends]
    row = {node: a for a, node in enumerate(answer_nodes)}
    # Positions count everything before a token on its own path through the tree.
    first = len(before) + prompt_length
    positions = [*range(len(before), first), *(first + tree.depth[node] for node in order)]
    return Layout(
        before=np.asarray(before, np.int32),
        prompt_length=prompt_length,
        trunk=np.array([tree.token[n] for n in order[:trunk]], np.int32),
        tree=np.array([tree.token[n] for n in order[trunk:]], np.int32),
        ends=tree.ends(order)[trunk:] - np.int32(trunk),
        positions=np.array(positions, np.int32),
        rows=_best_rows(range(len(order) - trunk), ancestors),
        answers=answers,
        answer_rows=_best_rows(answers.tolist(), ancestors),
        scored_AxY=scored_AxY,
        inner=np.array(inner, np.int32),
        sequences=sequence_table(paths, row, scored_AxY.shape[1]),
        per_token=per_token,
        tokens_asked=sum(prompt_length + len(item) for item in items),
    )


def _visible_in_tree(
    tree: PrefixTree, nodes: Sequence[int], index: dict[int, int]
) -> list[np.ndarray]:
    """Return, per tree token, the tree indices it sees: ancestors after the trunk, and itself."""
    visible: list[np.ndarray] = []
    for node in nodes:
        # A parent stands before its children, so what it sees is known by now.
        parent = index.get(tree.parent[node], -1)
        above = visible[parent] if parent >= 0 else np.empty(0, np.int32)
        visible.append(np.append(above, np.int32(index[node])))
    return visible


def _best_rows(queries: Sequence[int], ancestors: list[np.ndarray]) -> Rows:
    """Cut the queries into rows of the length that makes the least work."""
    # Long rows gather few keys but compute many (query, key) pairs that nobody sees.
    lengths = [n for n in _ROW_LENGTHS if n < 2 * len(queries)] or [len(queries)]
    candidates = [(n, _row_keys(queries, ancestors, n)) for n in lengths]
    length, keys = min(candidates, key=lambda candidate: _cost(*candidate))
    mask = np.zeros((len(keys), length, max(map(len, keys))), bool)
    for i, query in enumerate(queries):
        r, row_query = divmod(i, length)
        # A row's keys are sorted, so an ancestor's column is found by bisection.
        mask[r, row_query, np.searchsorted(keys[r], ancestors[query])] = True
    return Rows(pad_rows(keys, 0), mask, len(queries))


def _row_keys(queries: Sequence[int], ancestors: list[np.ndarray], length: int) -> list[np.ndarray]:
    """Return, per row of `length` queries, the sorted tree indices that any of them sees."""
    starts = range(0, len(queries), length)
    return [
        np.unique(np.concatenate([ancestors[q] for q in queries[i : i + length]])) for i in starts
    ]


def _cost(length: int, keys: list[np.ndarray]) -> int:
    """Return the work of attention in rows of `length` queries, in (query, key) pairs."""
    return len(keys) * max(map(len, keys)) * (length + _GATHER_COST)
