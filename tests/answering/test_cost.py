"""FLOPs by formula against the compiled program, brute force over tokens, and the known ratios."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.answering import cost as t
from jaxalign.answering.conversations import soft_prompt_layout
from jaxalign.answering.options import option_log_probs, prepare_items
from jaxalign.answering.plan import plan_layout
from jaxalign.lm.config import PRESETS, LlamaConfig
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.lm.weights import abstract_params
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.prompts import load_prompts
from jaxalign.runtime.program_facts import read_program
from jaxalign.surveys.survey import vsm

CONFIG = LlamaConfig(2000, 256, 768, 4, 8, 4, 32, dtype="float32", param_dtype="float32")
TINY = CONFIG.replace(hidden_size=32, intermediate_size=48, head_dim=4)


@pytest.fixture(scope="module")
def survey():
    """The 24 items under a prompt of 16 tokens, inside the system message."""
    tokens, items = Tokenizer.load(MODEL_FOLDER), vsm().items
    return soft_prompt_layout(tokens, load_prompts(None), items, "system", 16)


def compiled(config, layout, members, chunk):
    """The program that answers, from shapes alone."""
    params = abstract_params(config)
    context = jax.eval_shape(lambda p: prepare_items(config, p, layout), params)
    prompts = jax.ShapeDtypeStruct((members, layout.prompt_length, config.hidden_size), jnp.float32)
    answer = jax.jit(option_log_probs, static_argnums=(0, 3))
    return read_program(answer.lower(config, context, prompts, chunk).compile())


def test_the_compiled_program_does_what_the_plan_says_and_hardly_more_than_the_least(survey):
    found = compiled(CONFIG, survey, members=8, chunk=4).dot_flops / 8
    assert found == t.candidate_flops(CONFIG, survey).total
    assert found <= 1.05 * t.lower_bound(CONFIG, survey).total


def test_a_prompt_after_the_question_costs_what_the_plan_says():
    """Formula and compiled program, for the texts too; a quarter of the work without a tree."""
    tokens, items = Tokenizer.load(MODEL_FOLDER), vsm().items
    layout = soft_prompt_layout(tokens, load_prompts(None), items, "after", 16)
    plan = t.candidate_flops(CONFIG, layout)
    assert compiled(CONFIG, layout, members=8, chunk=4).dot_flops / 8 == plan.total
    assert plan.total <= 1.05 * t.lower_bound(CONFIG, layout).total
    program = jax.jit(lambda p: prepare_items(CONFIG, p, layout)).lower(abstract_params(CONFIG))
    assert read_program(program.compile()).dot_flops == plan.shared
    front = soft_prompt_layout(tokens, load_prompts(None), items, "front", 16)
    assert plan.total < 0.35 * t.one_by_one_flops(CONFIG, front).total
    assert t.plan_report(CONFIG, layout, 4)["tokens_computed_per_candidate"] == 24 * (16 + 5)


def test_the_text_before_the_prompt_costs_what_is_said(survey):
    assert len(survey.before) > 0
    program = jax.jit(lambda p: prepare_items(CONFIG, p, survey)).lower(abstract_params(CONFIG))
    found = read_program(program.compile()).dot_flops
    assert found == t.candidate_flops(CONFIG, survey).shared


token = st.integers(1, 4)
item = st.lists(token, min_size=1, max_size=9)
spelling = st.lists(st.integers(5, 7), min_size=1, max_size=3).map(tuple)
options = st.lists(st.lists(spelling, min_size=1, max_size=2, unique=True), min_size=2, max_size=3)


@given(
    st.lists(st.tuples(item, options), min_size=1, max_size=5),
    st.lists(token, max_size=4),
    st.integers(0, 4),
)
@settings(deadline=None, max_examples=60)
def test_lower_bound_by_brute_force(survey, before, length):
    """Tokens, visible pairs and option rows counted one by one over sets of prefixes."""
    items, options = zip(*survey, strict=True)
    layout = plan_layout(before, length, items, options)
    stem, nodes, answers = len(before) + length, set(), {}
    for tokens, spellings in zip(items, options, strict=True):
        for sequence in (s for option in spellings for s in option):
            text = (*tokens, *sequence)
            nodes |= {text[: i + 1] for i in range(len(text) - 1)}
            for i in range(len(tokens), len(text)):
                answers.setdefault(text[:i], set()).add(text[i])
    c, before_last = TINY, TINY.num_hidden_layers - 1
    D, F, H = c.hidden_size, c.intermediate_size, c.head_dim
    N, K = c.num_attention_heads, c.num_key_value_heads
    tokens, A = length + len(nodes), len(answers)
    seen = sum(len(before) + i + 1 for i in range(length)) + sum(stem + len(n) for n in nodes)
    seen_last = sum(stem + len(n) for n in answers)
    inner = len(answers.keys() - {tuple(i) for i in items})
    rows = sum(map(len, answers.values()))
    least = t.lower_bound(c, layout)
    assert least.linear == 2 * before_last * tokens * D * (2 * N * H + 2 * K * H + 3 * F)
    assert least.last_layer == 2 * D * (tokens * 2 * K * H + A * (2 * N * H + 3 * F))
    assert least.attention == 4 * N * H * (before_last * seen + seen_last)
    assert least.options == 2 * D * (rows + inner * c.vocab_size)
    assert t.candidate_flops(c, layout).total >= least.total


@given(st.lists(item, min_size=1, max_size=6), st.lists(token, max_size=4), st.integers(0, 4))
@settings(deadline=None, max_examples=40)
def test_item_lengths(items, before, length):
    layout = plan_layout(before, length, items, [[[(5,)], [(6, 5)]]] * len(items))
    expected = [len(before) + length + len(i) for i in items]
    np.testing.assert_array_equal(t.item_lengths(layout), expected)


def test_options_of_several_tokens_are_in_the_formula():
    layout = plan_layout([3, 9, 8], 2, [[1, 2, 4], [1, 2, 5, 6]], [[[(5,)], [(6, 7)]]] * 2)
    assert len(layout.inner) == 2
    found = compiled(TINY, layout, members=2, chunk=2).dot_flops / 2
    assert found == t.candidate_flops(TINY, layout).total


def test_without_sharing_the_least_is_the_design_table():
    """Llama-3-8B, 40 header, 16 prompt, 24 items of 1,888 tokens in all: 25.9 TFLOP a candidate,
    one by one 45.3, padded 63.8 (worked out by hand)."""
    lengths = np.linspace(38, 119.34, 24).round().astype(int)
    lengths[-1] = 120
    lengths[0] += 1888 - lengths.sum()
    items = [[1000 * (i + 1) + j for j in range(n)] for i, n in enumerate(lengths)]
    numbers = [[(500 + o,)] for o in range(5)]
    layout = plan_layout(list(range(40)), 16, items, [numbers] * 24)
    config = PRESETS["llama3-8b"]
    assert t.lower_bound(config, layout).total / 1e12 == pytest.approx(25.9, abs=0.05)
    assert t.one_by_one_flops(config, layout).total / 1e12 == pytest.approx(45.3, abs=0.1)
    assert t.padded_batch_flops(config, layout).total / 1e12 == pytest.approx(63.8, abs=0.1)


def test_plan_report(survey):
    report = t.plan_report(PRESETS["llama3-8b"], survey, chunk=16)
    assert 1 <= report["times_the_lower_bound"] < 1.01
    assert report["padded_batch_times_the_lower_bound"] > report["one_by_one_times_the_lower_bound"]
    assert report["one_by_one_times_the_lower_bound"] > 2
    per_token = 2 * 8 * 128 * 2  # keys and values, 8 heads of 128, bfloat16
    chunk_bytes = 16 * survey.tokens_computed * per_token
    assert report["key_value_bytes_of_a_layer_for_a_chunk"] == chunk_bytes
    assert report["key_value_bytes_before_the_prompt"] == 32 * len(survey.before) * per_token
    assert 0 <= report["attention_padding_percent"] < 100


@pytest.mark.parametrize(
    ("searches", "population", "devices", "chunk", "said"),
    [
        (4, 16, 1, 4, None),
        (
            4,
            16,
            8,
            32,
            "192 of 256 rows a generation, for 64 candidates on 8 devices in chunks of "
            "32; a chunk of 8 or a population of 64 has less",
        ),
        (
            1,
            4,
            4,
            4,
            "12 of 16 rows a generation, for 4 candidates on 4 devices in chunks of 4; a "
            "chunk of 1 or a population of 16 has less",
        ),
        (
            1,
            4,
            8,
            1,
            "4 of 8 rows a generation, for 4 candidates on 8 devices in chunks of 1; a "
            "population of 8 has less",
        ),
        (
            1,
            33,
            1,
            32,
            "31 of 64 rows a generation, for 33 candidates on 1 device in chunks of 32; "
            "a chunk of 17 or a population of 64 has less",
        ),
        (1, 29, 1, 32, None),
    ],
)
def test_padding_is_said_where_it_is_more_than_a_tenth(searches, population, devices, chunk, said):
    found = t.padding_text(searches, population, devices, chunk)
    assert found == ("" if said is None else f"padding: {said}")


def test_parts_add_up(survey):
    flops = t.lower_bound(CONFIG, survey)
    parts = dataclasses.asdict(flops)
    assert flops.total == sum(parts.values()) - parts["shared"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matmul_peak_is_a_rate(dtype):
    assert t.matmul_peak(dtype, seconds=0.01, size=64) > 0


def test_device_has_a_name():
    assert t.device_name().strip()
