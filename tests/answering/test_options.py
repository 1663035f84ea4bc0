"""Shared-prefix option log-probabilities equal those of the plain forward, whatever the layout."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.answering.options import embed_tokens, option_log_probs, prepare_items
from jaxalign.answering.plan import plan_layout
from jaxalign.answering.plan_suffix import plan_suffix_layout
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.transformer import Llama
from jaxalign.lm.weights import init_params

CONFIG = LlamaConfig(
    61, 32, 48, 3, 4, 2, 8, dtype="float32", param_dtype="float32", initializer_range=0.15
)
PARAMS = init_params(CONFIG, jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def forward(config, params, x):
    return Llama(config).apply({"params": params}, x)


def plain(before, prompts, items, options, config=CONFIG, params=PARAMS):
    """One candidate, item, option and spelling at a time through the plain forward."""
    most = max(map(len, options))
    out = np.full((len(prompts), len(items), most), -np.inf)
    for p, prompt in enumerate(prompts):
        for q, item in enumerate(items):
            for o, spellings in enumerate(options[q]):
                out[p, q, o] = np.logaddexp.reduce(
                    [_sequence_log_prob(before, prompt, item, s, config, params) for s in spellings]
                )
    return out - np.logaddexp.reduce(out, axis=-1, keepdims=True)


def _sequence_log_prob(before, prompt, item, spelling, config, params):
    text = [
        embed_tokens(config, params, np.array(t, np.int32)) for t in (before, [*item, *spelling])
    ]
    x = jnp.concatenate([text[0], prompt, text[1]])
    length = -(-len(x) // 64) * 64  # few shapes, few compilations; causal, so the tail is unseen
    x = jnp.pad(x, ((0, length - len(x)), (0, 0)))
    start = len(before) + len(prompt) + len(item)
    log_probs = jax.nn.log_softmax(forward(config, params, x[None])[0])
    return sum(float(log_probs[start + i - 1, token]) for i, token in enumerate(spelling))


def ours(before, prompts, items, options, chunk=2, config=CONFIG, params=PARAMS):
    layout = plan_layout(before, prompts.shape[1], items, options)
    context = prepare_items(config, params, layout)
    return np.asarray(option_log_probs(config, context, prompts, chunk)), layout, context


def draw_prompts(seed, members, length):
    return 0.3 * jax.random.normal(jax.random.key(seed), (members, length, CONFIG.hidden_size))


def assert_same(found, expected):
    there = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(found), there)
    difference = np.abs(found[there] - expected[there])
    assert difference.max() <= 1e-4, f"largest difference {difference.max():.2e}"
    assert difference.mean() <= 1e-5, f"mean difference {difference.mean():.2e}"


token_lists = st.lists(st.integers(1, 6), min_size=1, max_size=14)
spelling = st.lists(st.integers(40, 44), min_size=1, max_size=3).map(tuple)


@st.composite
def surveys(draw):
    stem = draw(st.lists(st.integers(1, 60), max_size=20))
    items = [stem + tail for tail in draw(st.lists(token_lists, min_size=1, max_size=6))]
    options = [
        draw(
            st.lists(
                st.lists(spelling, min_size=1, max_size=2, unique=True), min_size=2, max_size=4
            )
        )
        for _ in items
    ]
    return items, options


@pytest.mark.long
@settings(max_examples=12, deadline=None)
@given(surveys(), st.lists(st.integers(1, 60), max_size=5), st.integers(0, 4), st.integers(1, 3))
def test_equals_plain_forward(survey, before, length, members):
    items, options = survey
    prompts = draw_prompts(1, members, length)
    found, _, _ = ours(before, prompts, items, options)
    assert_same(found, plain(before, prompts, items, options))


def plain_after(texts, prompts, tails, options):
    """The same, each item's text taken for what stands before the prompt."""
    rows = [
        plain(text, prompts, [tail], [spellings])
        for text, tail, spellings in zip(texts, tails, options, strict=True)
    ]
    most = max(row.shape[-1] for row in rows)
    rows = [
        np.pad(r, ((0, 0), (0, 0), (0, most - r.shape[-1])), constant_values=-np.inf) for r in rows
    ]
    return np.concatenate(rows, axis=1)


@pytest.mark.long
@settings(max_examples=8, deadline=None)
@given(surveys(), st.integers(1, 4), st.integers(1, 3), st.randoms(use_true_random=False))
def test_after_equals_plain_forward(survey, length, members, random):
    """A prompt after the item's text, tails of unequal length, options of several tokens."""
    texts, options = survey
    tails = [[random.randint(1, 60) for _ in range(random.randint(1, 4))] for _ in texts]
    prompts = draw_prompts(1, members, length)
    context = prepare_items(CONFIG, PARAMS, plan_suffix_layout(texts, length, tails, options))
    found = np.asarray(option_log_probs(CONFIG, context, prompts, 2))
    assert_same(found, plain_after(texts, prompts, tails, options))


def test_after_computes_no_text_again():
    texts, tails = [list(range(1, 31)), list(range(5, 45))], [[7, 8], [7, 8]]
    layout = plan_suffix_layout(texts, 4, tails, [[[(40,)], [(41,)]]] * 2)
    assert layout.tokens_computed == 2 * (4 + 2)
    assert layout.tokens_asked == 30 + 40 + 2 * (4 + 2)
    with pytest.raises(ValueError, match="after the prompt"):
        plan_suffix_layout(texts, 4, [[7], []], [[[(40,)]]] * 2)


def test_stems_are_computed_once():
    stem, tails = list(range(1, 31)), [[31 + i, 50, 51] for i in range(8)]
    items = [stem + tail for tail in tails]
    layout = plan_layout([], 4, items, [[[(40,)], [(41,)]]] * 8)
    assert layout.tokens_computed == 4 + 30 + 8 * 3
    assert layout.tokens_asked == 8 * (4 + 33)


def test_order_and_chunk_do_not_matter():
    items = [[1, 2, 3, t, 9] for t in range(10, 17)]
    options = [[[(40,)], [(41,)], [(42,)]]] * 7
    prompts = draw_prompts(2, 5, 3)
    found, _, _ = ours([7, 8], prompts, items, options, chunk=5)
    other, _, _ = ours([7, 8], prompts[::-1], items[::-1], options, chunk=2)
    np.testing.assert_allclose(found, other[::-1, ::-1], atol=2e-6)


@pytest.mark.long
def test_members_do_not_depend_on_each_other():
    items = [[1, 2, 3, t, 9] for t in range(10, 17)]
    options = [[[(40,)], [(41,)]]] * 7
    prompts = draw_prompts(3, 7, 3)
    together, _, context = ours([7], prompts, items, options, chunk=4)
    alone = [option_log_probs(CONFIG, context, p[None], 4)[0] for p in prompts]
    np.testing.assert_array_equal(together, np.stack(alone), "a member's bits depend on others")


@pytest.mark.long
@pytest.mark.parametrize("tied", [False, True])
def test_bfloat16_stays_near_float32(tied):
    config = CONFIG.replace(tie_word_embeddings=tied)
    params = init_params(config, jax.random.key(1))
    items = [[1, 2, 3, t, 9] for t in range(10, 17)]
    options = [[[(40,)], [(41,)], [(42,)]]] * 7
    prompts = draw_prompts(2, 4, 3)
    exact, _, _ = ours([7], prompts, items, options, config=config, params=params)
    half = config.replace(dtype="bfloat16", param_dtype="bfloat16")
    params16 = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    rough, _, _ = ours([7], prompts, items, options, config=half, params=params16)
    assert 0 < np.abs(exact - rough).max() < 0.1


@pytest.mark.long
def test_gradient_equals_finite_difference():
    items = [[1, 2, 3, t, 9] for t in range(10, 14)]
    options = [[[(40,)], [(41, 42)]], [[(40,)], [(41,)], [(43,), (44,)]]] * 2
    prompts = draw_prompts(4, 1, 2)
    _, _, context = ours([], prompts, items, options)

    def score(x):
        out = option_log_probs(CONFIG, context, x, 1)
        return jnp.sum(
            jnp.where(jnp.isfinite(out), jnp.exp(out), 0.0) * jnp.arange(3.0)[None, None]
        )

    direction = draw_prompts(5, 1, 2)
    slope = jnp.vdot(jax.grad(score)(prompts), direction)
    step = 1e-2
    rise = (score(prompts + step * direction) - score(prompts - step * direction)) / (2 * step)
    assert abs(float(slope - rise)) < 0.01 * abs(float(rise)) + 1e-4
