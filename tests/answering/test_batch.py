"""Many questions after many lead-ins: equal to asking each by itself, however cut and spread."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.answering import batch as answers
from jaxalign.answering.ask import ask_after_messages
from jaxalign.answering.batch import answer_exact
from jaxalign.answering.blocks import (
    ANSWER_ROW,
    ROW,
    Conversations,
    cut,
    pad_block,
    plan_block,
    shape_of,
)
from jaxalign.answering.encode import encode
from jaxalign.core.errors import UserError
from jaxalign.core.progress import Progress
from jaxalign.lm.checkpoint import load_checkpoint
from jaxalign.lm.config import LlamaConfig, read_config
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.lm.transformer import Llama
from jaxalign.lm.weights import init_params, param_shardings
from jaxalign.methods.culturespa.styles import (
    NO_GROUP,
    StylePrompts,
    encode_styles,
    load_texts,
)
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.pocket.society import held_out_survey
from jaxalign.runtime.sharding import make_mesh

CONFIG = LlamaConfig(
    62, 32, 48, 3, 4, 2, 8, dtype="float32", param_dtype="float32", initializer_range=0.15
)
SURVEY = held_out_survey()
COUNTRIES = ("USA", "CHN", "BRA", "NGA", "DEU", "IND", "RUS", "SWE")
PROMPTS = StylePrompts(load_texts(), SURVEY, COUNTRIES, count=2)


def some_conversations(lead_ins=5, questions=12, seed=0) -> Conversations:
    """Lead-ins and questions of unequal length; options of one token, of two spellings, and of
    several tokens where one begins like another."""
    random = np.random.default_rng(seed)
    options = (
        [[(40,)], [(41,)], [(42,)]],
        [[(40,), (43,)], [(41,)]],
        [[(40, 50)], [(40, 41, 50)], [(41, 50)], [(42, 50), (44, 40)]],
    )
    stem = random.integers(1, 40, 9)
    return Conversations(
        [random.integers(1, 40, random.integers(1, 30)).astype(np.int32) for _ in range(lead_ins)],
        [
            np.concatenate([stem, random.integers(1, 40, random.integers(1, 25))]).astype(np.int32)
            for _ in range(questions)
        ],
        [options[q % 3] for q in range(questions)],
        [(p, q) for p in range(lead_ins) for q in range(questions)],
    )


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def next_log_probs(config, params, tokens):
    return jax.nn.log_softmax(Llama(config).apply({"params": params}, tokens[None])[0])


def one_by_one(params, conversations: Conversations) -> np.ndarray:
    """Every spelling of every option by itself through the plain forward."""
    most = max(map(len, conversations.options))
    out = np.full((len(conversations), most), -np.inf)
    for n in range(len(conversations)):
        text = conversations.tokens(n)
        for o, spellings in enumerate(conversations.spellings(n)):
            total = []
            for spelling in spellings:
                whole = np.zeros(80, np.int32)  # one shape; causal, so the tail is unseen
                whole[: len(text) + len(spelling)] = [*text, *spelling]
                log_probs = next_log_probs(CONFIG, params, whole)
                at = np.arange(len(spelling)) + len(text) - 1
                total.append(float(log_probs[at, np.array(spelling)].sum()))
            out[n, o] = np.logaddexp.reduce(total)
    return out - np.logaddexp.reduce(out, axis=-1, keepdims=True)


# Planning


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
    lead_ins = draw(st.lists(tokens_of, min_size=1, max_size=4))
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


@settings(max_examples=40, deadline=None)
@given(drawn_conversations(), st.integers(20, 200))
def test_every_answer_node_sees_its_conversation_and_nothing_else(conversations, block_tokens):
    ranges = cut(conversations, block_tokens)
    assert [n for members in ranges for n in members] == list(range(len(conversations)))
    blocks = [plan_block(conversations, members) for members in ranges]
    assert all(len(b.tokens) <= block_tokens or len(b.paths) == 1 for b in blocks)
    shape = shape_of(iter(blocks))
    for members, block in zip(ranges, blocks, strict=True):
        tables = pad_block(block, shape)
        by_answer = seen(tables, tables.answer_keys, tables.answers)
        by_token = seen(tables, tables.keys, np.arange(shape.tokens))
        assert [by_token[a] for a in tables.answers] == by_answer
        flat = tables.scored.reshape(-1)
        for q, n in enumerate(members):
            text = conversations.tokens(n).tolist()
            assert (
                tables.positions[tables.answers[tables.sequences[q, 0, 0, 0] // shape.scored]]
                == len(text) - 1
            )
            for o, spellings in enumerate(conversations.spellings(n)):
                for s, spelling in enumerate(spellings):
                    for k, token in enumerate(spelling):
                        at = tables.sequences[q, o, s, k]
                        assert flat[at] == token
                        assert by_answer[at // shape.scored] == [*text, *spelling[:k]]
                    assert (tables.sequences[q, o, s, len(spelling) :] == -1).all()


def test_shared_text_is_planned_once():
    lead_in, stem = np.arange(1, 21), np.arange(21, 31)
    questions = [np.append(stem, [40 + q, 50]) for q in range(6)]
    every = Conversations([lead_in], questions, [[[(1,)], [(2,)]]] * 6, [(0, q) for q in range(6)])
    assert len(plan_block(every, range(6)).tokens) == 20 + 10 + 6 * 2
    assert cut(every, 42) == [range(6)]
    assert cut(every, 41) == [range(5), range(5, 6)]


def test_shapes_are_whole_rows():
    conversations = some_conversations()
    shape = shape_of(plan_block(conversations, members) for members in cut(conversations, 256))
    assert shape.tokens % ROW == 0
    assert shape.answers % ANSWER_ROW == 0
    assert shape.inner > 0


# Exact answers


def test_exact_equals_one_by_one(params, devices):
    conversations = some_conversations()
    found = answer_exact(CONFIG, params, conversations, make_mesh(data=8), block_tokens=256)
    expected = one_by_one(params, conversations)
    there = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(found), there)
    difference = np.abs(found[there] - expected[there])
    assert difference.max() <= 1e-4
    assert difference.mean() <= 1e-5
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, rtol=1e-5)


@pytest.mark.long
def test_bits_depend_neither_on_devices_nor_on_the_order_asked(params, devices):
    conversations = some_conversations()
    every = answer_exact(CONFIG, params, conversations, make_mesh(data=8), block_tokens=256)
    one = answer_exact(CONFIG, params, conversations, make_mesh(devices[:1]), block_tokens=256)
    np.testing.assert_array_equal(every, one)
    split = make_mesh(data=4, model=2)
    sharded = jax.device_put(params, param_shardings(CONFIG, split))
    four = answer_exact(CONFIG, sharded, conversations, split, block_tokens=256)
    np.testing.assert_allclose(np.nan_to_num(four), np.nan_to_num(every), atol=1e-5)
    turned = dataclasses.replace(conversations, pairs=conversations.pairs[::-1])
    other = answer_exact(CONFIG, params, turned, make_mesh(data=8), block_tokens=256)
    np.testing.assert_array_equal(other[::-1], every)


def test_one_program_for_all_blocks(params, devices):
    before = answers._round._cache_size()
    mesh = make_mesh(devices[:1])
    conversations = some_conversations(lead_ins=9, seed=3)
    assert len(cut(conversations, 192)) > 8
    answer_exact(CONFIG, params, conversations, mesh, block_tokens=192)
    assert answers._round._cache_size() == before + 1


def test_killed_run_continues_with_the_bits_of_an_unbroken_one(
    params, devices, tmp_path, monkeypatch
):
    conversations, mesh = some_conversations(), make_mesh(devices[:2], data=2)
    asking = functools.partial(answer_exact, CONFIG, params, conversations, block_tokens=128)
    unbroken, rounds = asking(mesh), []

    def counting(inner, limit):
        def run(*args):
            if len(rounds) == limit:
                raise KeyboardInterrupt
            rounds.append(args)
            return inner(*args)

        return run

    program = answers._round
    monkeypatch.setattr(answers, "_round", counting(program, 2))
    with pytest.raises(KeyboardInterrupt):
        asking(mesh, folder=tmp_path, key="weights")
    [kept] = tmp_path.iterdir()
    finished = int((~np.isnan(np.load(kept)).any(axis=-1)).sum())
    assert 0 < finished < len(conversations)

    blocks = len(cut(answers._sorted(conversations)[0], 128))
    rounds.clear()
    monkeypatch.setattr(answers, "_round", counting(program, None))
    events: list[Progress] = []
    found = asking(
        make_mesh(devices[:1]), folder=tmp_path, key="weights", on_progress=events.append
    )
    assert len(rounds) == blocks - 2  # the first round's two blocks are not done again
    assert [event.done for event in events] == [*range(2, blocks + 1)]
    np.testing.assert_array_equal(found, unbroken)
    rounds.clear()
    events.clear()
    again = asking(mesh, folder=tmp_path, key="weights", on_progress=events.append)
    np.testing.assert_array_equal(again, unbroken)
    assert not rounds
    assert [(event.done, event.total) for event in events] == [(blocks, blocks)]
    asking(mesh, folder=tmp_path, key="other weights")
    assert rounds
    assert len(list(tmp_path.iterdir())) == 2


def test_damaged_or_foreign_file_is_refused(params, devices, tmp_path):
    conversations, mesh = some_conversations(2, 4), make_mesh(devices[:1])
    answer_exact(CONFIG, params, conversations, mesh, folder=tmp_path, block_tokens=256)
    [kept] = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(UserError, match="delete it"):
        answer_exact(CONFIG, params, conversations, mesh, folder=tmp_path, block_tokens=256)
    np.save(kept, np.zeros(3))
    with pytest.raises(UserError, match=r"float64 \(3,\).* delete it"):
        answer_exact(CONFIG, params, conversations, mesh, folder=tmp_path, block_tokens=256)


def test_nan_is_an_error_and_is_not_kept(params, devices):
    broken = jax.tree.map(lambda w: w * np.nan, params)
    with pytest.raises(UserError, match="NaN"):
        answer_exact(CONFIG, broken, some_conversations(2, 4), make_mesh(devices[:1]))


# The package's own model


@pytest.fixture(scope="module")
def pocket():
    config = read_config(MODEL_FOLDER, "float32")
    params = load_checkpoint(MODEL_FOLDER, config, param_shardings(config, make_mesh()))
    return config, params, Tokenizer.load(MODEL_FOLDER)


def test_conversations_are_the_chat_templates_own(pocket):
    tokens, items = pocket[2], SURVEY.items[:6]
    for style, countries in (("unaware", NO_GROUP), ("p2", COUNTRIES[:2]), ("p1p3", COUNTRIES[:2])):
        found = encode_styles(tokens, PROMPTS, [style], countries, items)
        whole = [
            tokens.encode_chat(PROMPTS.conversation(style, country, item))
            for country in countries
            for item in items
        ]
        assert [found.tokens(n).tolist() for n in range(len(found))] == whole
        assert max(map(len, found.questions)) < min(map(len, whole))


def test_template_that_mixes_question_and_lead_in_is_refused(pocket):
    tokens = pocket[2]
    mixing = "{% for m in messages %}{{ m.content }} {{ messages | length }}<|eot_id|>{% endfor %}"
    other = dataclasses.replace(tokens, template=mixing)
    prompts = PROMPTS.texts.prompts
    with pytest.raises(UserError, match="words a question differently"):
        encode(other, prompts, [[], [prompts.system("China")]], SURVEY.items[:3])
    with pytest.raises(UserError, match=r"0 questions .* nothing to ask"):
        encode_styles(tokens, PROMPTS, ["unaware"], NO_GROUP, [])


def test_exact_equals_the_baselines_tree(pocket, devices):
    config, params, tokens = pocket
    items = SURVEY.items[:4]
    conversations = encode_styles(tokens, PROMPTS, ["p1"], COUNTRIES[:3], items)
    found = answer_exact(config, params, conversations, make_mesh(data=8), block_tokens=256)
    lead_ins = [PROMPTS.lead_in("p1", c, items[0]) for c in COUNTRIES[:3]]
    expected, _ = ask_after_messages(config, params, tokens, PROMPTS.texts.prompts, lead_ins, items)
    np.testing.assert_allclose(
        np.exp(found).reshape(3, 4, -1)[..., : expected.shape[-1]], np.exp(expected), atol=1e-5
    )
