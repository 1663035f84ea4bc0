"""Blocks of conversations: every token sees its own conversation and nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.answering.block_plan import plan_blocks, with_one_shape
from jaxalign.answering.blocks import ANSWER_ROW, ROW, Conversations
from jaxalign.answering.partial import digest
from jaxalign.answering.prefix_tree import PrefixTree

tokens_of = st.lists(st.integers(1, 3), min_size=1, max_size=9)
spellings_of = st.lists(
    st.lists(
        st.lists(st.integers(4, 6), min_size=1, max_size=3).map(tuple),
        min_size=1,
        max_size=2,
        unique=True,
    ),
    min_size=2,
    max_size=4,
)


@st.composite
def drawn_conversations(draw):
    """Lead-ins and questions that often begin alike, are repeated, or are empty (lead-ins)."""
    lead_ins = draw(st.lists(st.lists(st.integers(1, 3), max_size=9), min_size=1, max_size=4))
    questions = draw(st.lists(tokens_of, min_size=1, max_size=30))
    options = [draw(spellings_of) for _ in questions]
    every = [(p, q) for p in range(len(lead_ins)) for q in range(len(questions))]
    pairs = draw(st.lists(st.sampled_from(every), min_size=1, max_size=60))
    arrays = [[np.array(t, np.int32) for t in some] for some in (lead_ins, questions)]
    return Conversations(*arrays, options, pairs)


def seen(tables, keys, queries) -> list[list[int]]:
    """Tokens that each query sees in the padded tables, in order."""
    keys = np.repeat(keys, len(queries) // len(keys), axis=0)
    return [
        tables.tree[sorted(k for k in row if 0 <= k <= q < tables.end[k])].tolist()
        for q, row in zip(queries, keys, strict=True)
    ]


def tree_size(conversations: Conversations, members) -> int:
    """Nodes of a prefix tree of the members, in this order, and of the options' inner tokens."""
    tree = PrefixTree(depth_first=True)
    for n in members:
        tree.read_options(tree.insert(conversations.tokens(n)), conversations.spellings(n))
    return len(tree.token)


@settings(max_examples=40, deadline=None)
@given(drawn_conversations(), st.integers(20, 200))
def test_every_answer_node_sees_its_conversation_and_nothing_else(conversations, block_tokens):
    plan = plan_blocks(conversations, block_tokens)
    assert sorted(plan.order_N.tolist()) == list(range(len(conversations)))
    shape, distinct = plan.shape, 0
    for block in range(len(plan)):
        members, tables = plan.members(block), plan.tables(block)
        for table, size in zip(
            dataclasses.astuple(tables), dataclasses.astuple(shape.table_shapes()), strict=True
        ):
            assert (table.shape, table.dtype) == (size, np.int32)
        # Never less than a tree that shares everything with the conversation before; here some
        # conversations are cut into lead-in and question in another place, or are repeated.
        used = int((tables.tree > 0).sum())
        distinct += used
        assert tree_size(conversations, members) <= used
        assert used <= block_tokens or len(members) == 1
        # Who sees whom, by the tables of all tokens and by those of the answer nodes.
        for keys in (*tables.keys, *tables.answer_keys):
            assert len(np.unique(keys[keys >= 0])) == (keys >= 0).sum()
        by_answer = seen(tables, tables.answer_keys, tables.answers)
        by_token = seen(tables, tables.keys, np.arange(shape.tokens))
        real = int((tables.scored >= 0).any(axis=1).sum())
        assert [by_token[a] for a in tables.answers[:real]] == by_answer[:real]
        assert by_token[used:] == [[0]] * (shape.tokens - used)
        flat = tables.scored.reshape(-1)
        for q, n in enumerate(members):
            text, spellings = conversations.tokens(n).tolist(), conversations.spellings(n)
            last = tables.ends[q]
            assert by_answer[last] == text
            read_there = tables.scored[last][tables.scored[last] >= 0].tolist()
            assert sorted(read_there) == sorted({s[0] for option in spellings for s in option})
            for o, option in enumerate(spellings):
                for s, spelling in enumerate(option):
                    for k, token in enumerate(spelling):
                        at = tables.sequences[q, o, s, k]
                        answer = at // shape.scored
                        assert flat[at] == token
                        assert by_answer[answer] == [*text, *spelling[:k]]
                        assert tables.positions[tables.answers[answer]] == len(text) + k - 1
                    assert (tables.sequences[q, o, s, len(spelling) :] == -1).all()
    assert distinct == plan.tokens_distinct


def questions_of_one_stem(count: int, yes_or_no=([(1,)], [(2,)])) -> Conversations:
    lead_in, stem = np.arange(1, 21), np.arange(21, 31)
    questions = [np.append(stem, [40 + q, 50]) for q in range(count)]
    every = [(0, q) for q in range(count)]
    return Conversations([lead_in], questions, [yes_or_no] * count, every)


def test_shared_text_is_planned_once():
    plan = plan_blocks(questions_of_one_stem(6), 42)
    assert plan.tokens_distinct == 20 + 10 + 6 * 2
    assert [plan.members(b).tolist() for b in range(len(plan))] == [[*range(6)]]
    assert plan.tokens_asked == 6 * 32
    assert "6 conversations of 192 tokens: 64 computed in 1 block of 64 (66% of them text)" in (
        plan.describe()
    )
    # One token less, and the last question needs a block with the lead-in again.
    plan = plan_blocks(questions_of_one_stem(6), 41)
    assert [plan.members(b).tolist() for b in range(len(plan))] == [[*range(5)], [5]]


def test_few_blocks_are_equally_long():
    plan = plan_blocks(questions_of_one_stem(300), 512)  # 630 tokens
    assert len(plan) == 2
    assert plan.shape.tokens == 384
    assert np.diff(plan.starts_B).max() <= 177
    assert plan.tokens_distinct / (len(plan) * plan.shape.tokens) > 0.8


def test_sizes_are_whole_rows_and_the_order_asked_changes_nothing():
    asked = questions_of_one_stem(40, ([(7, 9)], [(7, 8, 9)], [(5,), (6,)]))
    plan = plan_blocks(asked, 128)
    assert plan.shape.tokens % ROW == plan.shape.answers % ANSWER_ROW == 0
    turned = plan_blocks(dataclasses.replace(asked, pairs=asked.pairs[::-1]), 128)
    assert turned.shape == plan.shape
    for block in range(len(plan)):
        one, other = plan.tables(block), turned.tables(block)
        assert all(map(np.array_equal, dataclasses.astuple(one), dataclasses.astuple(other)))


def test_what_cannot_be_planned_is_refused():
    asked = questions_of_one_stem(2)
    with pytest.raises(ValueError, match="nothing to ask"):
        plan_blocks(dataclasses.replace(asked, pairs=[]), 64)
    with pytest.raises(ValueError, match="question without tokens"):
        plan_blocks(dataclasses.replace(asked, questions=[np.arange(3), np.arange(0)]), 64)
    with pytest.raises(ValueError, match="no spelling"):
        plan_blocks(dataclasses.replace(asked, options=[[[(1,)], []]] * 2), 64)


def test_digests_differ_with_anything_asked():
    asked = questions_of_one_stem(3)
    others = [
        dataclasses.replace(asked, pairs=asked.pairs[:2]),
        dataclasses.replace(asked, lead_ins=[asked.lead_ins[0][:-1]]),
        dataclasses.replace(asked, questions=[*asked.questions[:2], asked.questions[2] + 1]),
        dataclasses.replace(asked, options=[*asked.options[:2], ([(1,)], [(3,)])]),
    ]
    assert len({digest("x", some) for some in (asked, *others)}) == 5
    # Equal content, though none of it is the same object.
    again = questions_of_one_stem(3, [[(1,)], [(2,)]])
    assert digest("x", dataclasses.replace(again, options=[*map(tuple, again.options)])) == digest(
        "x", dataclasses.replace(asked, options=[*map(tuple, asked.options)])
    )
    rows = np.arange(6, dtype=np.float32)
    assert digest(rows) != digest(rows.reshape(2, 3)) != digest(rows + 1)


def test_jobs_of_one_shape():
    """Blocks of several jobs are padded to the largest; what is computed stays the same."""

    def job(questions: int, options: int) -> Conversations:
        return Conversations(
            [np.arange(3, 3 + questions)],
            [np.array([9, 9, 1000 + q]) for q in range(questions)],
            [[[(1 + o,)] for o in range(options)]] * questions,
            [(0, q) for q in range(questions)],
        )

    plans = [plan_blocks(job(questions, 2), 4096) for questions in (2, 200)]
    assert plans[0].shape != plans[1].shape
    padded = with_one_shape(plans)
    assert padded[0].shape == padded[1].shape == plans[1].shape
    before, after = plans[0].tables(0), padded[0].tables(0)
    used = plans[0].tokens_distinct
    for name in ("tree", "positions", "end"):
        np.testing.assert_array_equal(getattr(after, name)[:used], getattr(before, name)[:used])
    assert dataclasses.astuple(padded[0].shape.table_shapes()) == tuple(
        x.shape for x in dataclasses.astuple(after)
    )
    with pytest.raises(ValueError, match="differ in scored cannot share"):
        with_one_shape([plans[0], plan_blocks(job(2, 3), 4096)])
