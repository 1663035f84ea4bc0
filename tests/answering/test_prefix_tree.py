"""Prefix trees: every distinct prefix is one node, its descendants right behind it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.answering.prefix_tree import PrefixTree, sequence_table

sequences = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=6), min_size=1, max_size=12)
spelling = st.lists(st.integers(4, 6), min_size=1, max_size=3).map(tuple)
options = st.lists(st.lists(spelling, min_size=1, max_size=2, unique=True), min_size=1, max_size=4)


def text(tree, node) -> tuple[int, ...]:
    """The tokens that lead to a node, itself included."""
    path = []
    while node >= 0:
        path.append(tree.token[node])
        node = tree.parent[node]
    return tuple(path[::-1])


def prefixes(sequences) -> set[tuple[int, ...]]:
    return {tuple(s[: i + 1]) for s in sequences for i in range(len(s))}


@settings(deadline=None)
@given(sequences)
def test_every_distinct_prefix_is_one_node(sequences):
    tree = PrefixTree()
    last_nodes = [tree.insert(s) for s in sequences]
    assert [text(tree, n) for n in last_nodes] == [tuple(s) for s in sequences]
    nodes = [text(tree, n) for n in range(len(tree.token))]
    assert len(nodes) == len(set(nodes))
    assert set(nodes) == prefixes(sequences)
    assert tree.depth == [len(t) - 1 for t in nodes]


@settings(deadline=None)
@given(sequences, st.booleans())
def test_descendants_stand_right_behind_a_token(sequences, depth_first):
    tree = PrefixTree(depth_first)
    for s in sequences:
        tree.insert(s)
    order = tree.depth_first_order()
    assert sorted(order) == list(range(len(tree.token)))
    texts, ends = [text(tree, n) for n in order], tree.ends(order)
    for i, own in enumerate(texts):
        below = [len(t) > len(own) and t[: len(own)] == own for t in texts[i + 1 :]]
        count = ends[i] - i - 1
        assert all(below[:count])
        if not depth_first:  # there the same text may come again, as another branch
            assert not any(below[count:])


@settings(deadline=None)
@given(sequences)
def test_sorted_sequences_make_the_same_tree_depth_first(sequences):
    """Sharing with the sequence before is then as good as sharing with all."""
    every, previous = PrefixTree(), PrefixTree(depth_first=True)
    for s in sorted(sequences):
        every.insert(s)
        previous.insert(s)
    assert [text(every, n) for n in every.depth_first_order()] == [
        text(previous, n) for n in previous.depth_first_order()
    ]


def test_depth_first_shares_with_the_sequence_before_it_only():
    tree = PrefixTree(depth_first=True)
    for s in ([1, 2], [1, 3], [1, 2]):
        tree.insert(s)
    assert tree.token == [1, 2, 3, 2]
    tree.insert([1])
    tree.insert([1, 2])  # what stands below an older end is not shared either
    assert tree.token == [1, 2, 3, 2, 2]


@settings(deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), options, st.booleans())
def test_options_are_read_where_they_are_spelled(question, options, depth_first):
    tree = PrefixTree(depth_first)
    paths = tree.read_options(tree.insert(question), options)
    for path, spellings in zip(paths, options, strict=True):
        for places, tokens in zip(path, spellings, strict=True):
            assert len(places) == len(tokens)
            for k, ((node, column), token) in enumerate(zip(places, tokens, strict=True)):
                assert text(tree, node) == (*question, *tokens[:k])
                assert list(tree.scored[node])[column] == token
    nodes = [text(tree, n) for n in range(len(tree.token))]
    assert len(nodes) == len(set(nodes)), "branches that begin alike share their nodes"


def test_an_option_without_spelling_is_refused():
    for options in ([[]], [[(1,)], [()]]):
        tree = PrefixTree()
        with pytest.raises(ValueError, match="no spelling"):
            tree.read_options(tree.insert([1]), options)


def test_the_trunk_ends_before_the_first_answer():
    tree = PrefixTree()
    ends = [tree.insert(s) for s in ([1, 2, 3], [1, 2, 3, 4])]
    assert tree.trunk_length() == 4
    for end in ends:
        tree.read_options(end, [[(7,)], [(8,)]])
    assert tree.trunk_length() == 2


def test_sequence_table_points_at_rows_and_columns():
    tree = PrefixTree()
    paths = [tree.read_options(tree.insert([1]), [[(7,), (8, 9)], [(9,)]])]
    row = {node: a for a, node in enumerate(sorted(tree.scored))}
    assert sequence_table(paths, row, columns=3).tolist() == [
        [[[0, -1], [1, 3]], [[2, -1], [-1, -1]]]
    ]
