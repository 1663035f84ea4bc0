"""Many questions after many lead-ins: equal to asking each by itself, however cut and spread."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.answering import block_program
from jaxalign.answering.batch import answer_exact
from jaxalign.answering.block_plan import plan_blocks
from jaxalign.answering.blocks import Conversations
from jaxalign.answering.conversations import option_spellings, split_at_soft_prompt
from jaxalign.answering.encode import SoftLeadIn, encode
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


EXTRA = np.random.default_rng(1).normal(0, 0.3, (6, 32)).astype(np.float32)


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


def with_soft_prompts(conversations: Conversations) -> Conversations:
    """The same with rows of `EXTRA` before, within and behind some of the texts."""
    V = CONFIG.vocab_size
    first, second, *others = conversations.lead_ins
    first = np.array([V, V + 1, *first], np.int32)
    second = np.array([*second[:1], V + 2, V + 3, *second[1:]], np.int32)
    *questions, last = conversations.questions
    last = np.array([*last, V + 4, V + 5, 7], np.int32)
    return dataclasses.replace(
        conversations, lead_ins=[first, second, *others], questions=[*questions, last]
    )


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def next_log_probs(config, params, tokens):
    every = jnp.concatenate([params["embed"], EXTRA])
    return jax.nn.log_softmax(Llama(config).apply({"params": params}, every[tokens][None])[0])


def one_by_one(params, conversations: Conversations) -> tuple[np.ndarray, np.ndarray]:
    """Every spelling of every option by itself through the plain forward and the full softmax."""
    most = max(map(len, conversations.options))
    out = np.full((len(conversations), most), -np.inf)
    mass = np.zeros(len(conversations))
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
        begins = {s[0] for spellings in conversations.spellings(n) for s in spellings}
        mass[n] = np.exp(log_probs[len(text) - 1, np.array([*begins])]).sum()
    return out - np.logaddexp.reduce(out, axis=-1, keepdims=True), mass


def asked(*args, **kwargs) -> np.ndarray:
    """Both results of `answer_exact`, the mass behind the options."""
    answers = answer_exact(*args, extra_ExD=EXTRA, **kwargs)
    return np.column_stack([answers.log_probs_NxO, answers.valid_mass_N])


# Exact answers


def test_exact_equals_one_by_one(params, devices):
    conversations = with_soft_prompts(some_conversations())
    mesh = make_mesh(population=4, data=2)
    found = answer_exact(CONFIG, params, conversations, mesh, extra_ExD=EXTRA, block_tokens=256)
    expected, mass = one_by_one(params, conversations)
    there = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(found.log_probs_NxO), there)
    difference = np.abs(found.log_probs_NxO[there] - expected[there])
    assert difference.max() <= 1e-4
    assert difference.mean() <= 1e-5
    np.testing.assert_allclose(np.exp(found.log_probs_NxO).sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(found.valid_mass_N, mass, rtol=1e-4)


def test_every_device_answers_blocks_of_its_own(params, devices):
    """Neither axis of the mesh is idle, and the bits are those of one device."""
    conversations = with_soft_prompts(some_conversations())
    mesh = make_mesh(population=4, data=2)
    every = asked(CONFIG, params, conversations, mesh, block_tokens=256)
    [rounds] = {-(-len(plan_blocks(conversations, 256)) // 8)}
    assert (block_program.block_devices(mesh), rounds) == (8, 1)
    one = asked(CONFIG, params, conversations, make_mesh(devices[:1]), block_tokens=256)
    np.testing.assert_array_equal(every, one)


@pytest.mark.long
def test_bits_do_not_depend_on_the_order_asked_and_weights_may_be_split(params, devices):
    conversations = with_soft_prompts(some_conversations())
    mesh = make_mesh(population=4, data=2)
    every = asked(CONFIG, params, conversations, mesh, block_tokens=256)
    split = make_mesh(population=2, data=2, model=2)
    sharded = jax.device_put(params, param_shardings(CONFIG, split))
    four = asked(CONFIG, sharded, conversations, split, block_tokens=256)
    np.testing.assert_allclose(np.nan_to_num(four), np.nan_to_num(every), atol=1e-5)
    turned = dataclasses.replace(conversations, pairs=conversations.pairs[::-1])
    other = asked(CONFIG, params, turned, mesh, block_tokens=256)
    np.testing.assert_array_equal(other[::-1], every)


def test_one_program_for_all_blocks_and_for_equal_shapes(params, devices):
    before = block_program.answer_blocks._cache_size()
    mesh = make_mesh(devices[:1])
    conversations = some_conversations(lead_ins=9, seed=3)
    plan = plan_blocks(conversations, 192)
    assert len(plan) > 8
    asked(CONFIG, params, conversations, mesh, block_tokens=192)
    assert block_program.answer_blocks._cache_size() == before + 1
    # The ids alone tell its shapes, and another prompt of the same length has the same.
    jitted, arguments = block_program.answer_program(CONFIG, mesh, plan.shape, extra_rows=6)
    text = jitted.lower(*arguments).as_text()
    assert f"tensor<1x{plan.shape.tokens}xi32>" in text
    asked(CONFIG, params, conversations, mesh, block_tokens=192, key="again")
    assert block_program.answer_blocks._cache_size() == before + 1


def test_killed_run_continues_with_the_bits_of_an_unbroken_one(
    params, devices, tmp_path, monkeypatch
):
    conversations, mesh = some_conversations(), make_mesh(devices[:2], data=2)
    asking = functools.partial(asked, CONFIG, params, conversations, block_tokens=128)
    unbroken, rounds = asking(mesh), []

    def counting(inner, limit):
        def run(*args):
            if len(rounds) == limit:
                raise KeyboardInterrupt
            rounds.append(args)
            return inner(*args)

        return run

    program = block_program.answer_blocks
    monkeypatch.setattr(block_program, "answer_blocks", counting(program, 2))
    with pytest.raises(KeyboardInterrupt):
        asking(mesh, folder=tmp_path, key="weights")
    [kept] = tmp_path.iterdir()
    finished = int((np.load(kept)["crc"] != 0).sum())
    assert 0 < finished < len(conversations)

    blocks = len(plan_blocks(conversations, 128))
    rounds.clear()
    monkeypatch.setattr(block_program, "answer_blocks", counting(program, None))
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
    answer_exact(
        CONFIG, params, conversations, mesh, folder=tmp_path, key="weights", block_tokens=128
    )  # another soft prompt, though no conversation reads it
    assert len(list(tmp_path.iterdir())) == 3


def test_damaged_or_foreign_file_is_refused(params, devices, tmp_path):
    conversations, mesh = some_conversations(2, 4), make_mesh(devices[:1])
    answer_exact(CONFIG, params, conversations, mesh, folder=tmp_path, block_tokens=256)
    [kept] = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(UserError, match="delete it"):
        answer_exact(CONFIG, params, conversations, mesh, folder=tmp_path, block_tokens=256)
    np.save(kept, np.zeros(3))
    with pytest.raises(UserError, match=r"holds 3 rows of float64 and not .* delete it"):
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


def test_template_that_writes_the_system_message_into_the_question(pocket):
    """As Llama 2's does: no special token stands between a persona and the question."""
    llama2 = (
        "{% for m in messages %}{% if m.role == 'system' %}"
        "{% elif loop.index0 == 1 and messages[0].role == 'system' %}"
        "{{ '<|begin_of_text|>[INST] <<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' }}"
        "{{ m.content + ' [/INST]' }}"
        "{% else %}{{ '<|begin_of_text|>[INST] ' + m.content + ' [/INST]' }}{% endif %}"
        "{% endfor %}"
    )
    tokens = dataclasses.replace(pocket[2], template=llama2)
    prompts, items = PROMPTS.texts.prompts, SURVEY.items[:4]
    lead_ins = [[], *([prompts.system(country)] for country in ("China", "the United States")), []]
    found = encode(tokens, prompts, lead_ins, items)
    whole = [tokens.encode_chat([*lead, prompts.user(item)]) for lead in lead_ins for item in items]
    assert [found.tokens(n).tolist() for n in range(len(found))] == whole
    assert len(found.questions) == 2 * len(items)
    each = option_spellings(tokens, items)
    assert [found.spellings(n) for n in range(len(found))] == each * len(lead_ins)
    behind = SoftLeadIn([tokens.vocab_size], "after")
    mixed = encode(tokens, prompts, [behind, *lead_ins[:2]], items)
    assert [mixed.tokens(n).tolist() for n in range(4, 12)] == whole[:8]


def test_template_that_mixes_question_and_lead_in_is_refused(pocket):
    tokens = pocket[2]
    mixing = (
        "{% for m in messages %}{{ m.content }} {{ messages[0].content | length }}<|eot_id|>"
        "{% endfor %}"
    )
    other = dataclasses.replace(tokens, template=mixing)
    prompts = PROMPTS.texts.prompts
    lead_ins = [[prompts.system(country)] for country in ("China", "the United States")]
    with pytest.raises(UserError, match="words a question differently"):
        encode(other, prompts, lead_ins, SURVEY.items[:3])
    with pytest.raises(UserError, match=r"0 questions .* nothing to ask"):
        encode_styles(tokens, PROMPTS, ["unaware"], NO_GROUP, [])


@pytest.mark.parametrize("placement", ["front", "system", "after"])
def test_soft_prompts_are_encoded_where_they_stand(pocket, placement):
    tokens, items, prompts = pocket[2], SURVEY.items[:4], PROMPTS.texts.prompts
    messages = [] if placement == "system" else [prompts.system("China")]
    ids = [2000, 2001], [2002]
    soft = [SoftLeadIn(some, placement, messages) for some in ids]
    found = encode(tokens, prompts, [[], *soft], items)
    for p, some in enumerate(ids):
        for q, item in enumerate(items):
            chat = [*messages, prompts.user(item)]
            before, after = split_at_soft_prompt(tokens, chat, placement)
            n = (1 + p) * len(items) + q
            assert found.tokens(n).tolist() == [*before, *some, *after]
            assert found.spellings(n) == found.spellings(q)
    # Whatever the placement, no text is held once for each prompt.
    texts = len(found.lead_ins) + len(found.questions)
    assert texts == (1 + 4 + 4 + 2 if placement == "after" else 3 + 4)
