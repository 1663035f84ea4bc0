"""Attention in blocks, and places in units, give what the plain computations give."""

from __future__ import annotations

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.lm.lanes import from_lanes, to_lanes, unit_lanes
from jaxalign.lm.transformer import causal_mask, masked_attention
from jaxalign.runtime.platform import lowering_for
from jaxalign.training import attention
from jaxalign.training.attention import (
    attend_within,
    block_length,
    query_block,
    scores_per_query,
)

HEADS, KEY_HEADS, WIDTH = 4, 2, 8


def row(random, row_length: int, window: int) -> np.ndarray:
    """Segments of a row: examples of 1 to `window` tokens, one of them as long, then padding."""
    sizes = [window, *random.integers(1, window + 1, row_length).tolist()]
    segments = np.repeat(np.arange(1, len(sizes) + 1), sizes)[: row_length - 3]
    return np.pad(segments, (0, row_length - len(segments))).astype(np.int32)


def gradients(attend, q, k, v, g):
    return jax.jit(lambda *x: jax.vjp(lambda *y: attend(*y, None), *x)[1](g))(q, k, v)


@pytest.mark.parametrize(
    ("examples", "scores"),
    [(0, 2**26), (0, 64 * 96 * HEADS), (30, 2**26), (30, 64 * 64 * HEADS)],
)
def test_values_and_gradients_are_those_of_the_whole_row(examples, scores, monkeypatch):
    """In blocks and example by example; all at once and one after the other."""
    monkeypatch.setattr(attention, "_SCORES", scores)
    T, window = 250, 60  # not a multiple of the blocks
    assert block_length(T, window) == 32
    random = np.random.default_rng(0)
    segments = jnp.asarray(row(random, T, window))
    assert 5 < segments.max() < 30
    q, k, v, g = (
        jnp.asarray(random.normal(size=(1, T, n, WIDTH)), jnp.float32)
        for n in (HEADS, KEY_HEADS, KEY_HEADS, HEADS)
    )
    g = g * (segments > 0)[None, :, None, None]  # what padding computes is not used
    whole = jax.tree_util.Partial(masked_attention, causal_mask(segments[None]))
    parts = attend_within(segments, window, examples)
    used = segments > 0
    np.testing.assert_allclose(
        parts(q, k, v, None)[0, used], whole(q, k, v, None)[0, used], atol=2e-6
    )
    for mine, expected in zip(
        gradients(parts, q, k, v, g), gradients(whole, q, k, v, g), strict=True
    ):
        assert float(jnp.abs(expected).max()) > 0.1
        np.testing.assert_allclose(mine, expected, atol=2e-5)


@pytest.mark.long
def test_gradients_in_bfloat16_are_those_of_float32():
    """As close as attention over the whole row in bfloat16 is, or closer."""
    T, window, random = 128, 40, np.random.default_rng(3)
    segments = jnp.asarray(row(random, T, window))
    arrays = [
        jnp.asarray(random.normal(size=(1, T, n, WIDTH)), jnp.bfloat16)
        for n in (HEADS, KEY_HEADS, KEY_HEADS, HEADS)
    ]
    arrays[3] = arrays[3] * (segments > 0)[None, :, None, None]
    whole = jax.tree_util.Partial(masked_attention, causal_mask(segments[None]))
    exact = gradients(whole, *(x.astype(jnp.float32) for x in arrays))
    for examples in (0, 20):
        found = gradients(attend_within(segments, window, examples), *arrays)
        for mine, plain, expected in zip(found, gradients(whole, *arrays), exact, strict=True):
            assert mine.dtype == jnp.bfloat16
            errors = [float(jnp.abs(x.astype(jnp.float32) - expected).max()) for x in (mine, plain)]
            assert errors[0] < 1.5 * errors[1] + 1e-3, errors


def shapes_of(function, *arguments) -> set[tuple[int, ...]]:
    """Return the shapes of everything that a function computes, in inner functions too."""
    found, waiting = set(), [jax.make_jaxpr(function)(*arguments).jaxpr]
    while waiting:
        for equation in waiting.pop().eqns:
            found |= {v.aval.shape for v in equation.outvars if hasattr(v.aval, "shape")}
            waiting += jax.extend.core.jaxprs_in_params(equation.params)
    return found


@pytest.mark.parametrize("examples", [0, 40])
def test_queries_see_no_further_than_an_example(examples):
    """Of a row of 2,048 tokens, a product covers the keys of three blocks or of one example."""
    T = 2048
    q, k = jnp.ones((1, T, HEADS, WIDTH)), jnp.ones((1, T, KEY_HEADS, WIDTH))
    segments = jnp.ones(T, jnp.int32)
    shapes = shapes_of(lambda q, k: attend_within(segments, 60, examples)(q, k, k, None), q, k)
    group = HEADS // KEY_HEADS
    expected = (40, KEY_HEADS, 64 * group, 64) if examples else (64, KEY_HEADS, 32 * group, 96)
    assert expected in shapes, shapes
    assert not any(shape.count(T) > 1 for shape in shapes)
    assert scores_per_query(T, 60, examples) == expected[0] * expected[2] * expected[3] / group / T


@pytest.mark.parametrize(
    ("row_length", "window", "block"),
    [(128, 60, 32), (90, 60, 90), (250, 60, 32), (8192, 250, 96), (320, 250, 320), (1000, 9, 32)],
)
def test_only_rows_hardly_longer_than_an_example_are_one_block(row_length, window, block):
    assert block_length(row_length, window) == block


def test_blocks_of_accelerators():
    with lowering_for("tpu"):
        assert [query_block(window) for window in (60, 132, 2048)] == [64, 128, 256]


def test_units_and_back():
    """Three units of 4, 0 and 3 tokens in a row of 9: each is the other's transpose."""
    lanes, places = unit_lanes(jnp.array([4, 0, 3]), 5, 9)
    np.testing.assert_array_equal(lanes, [[0, 1, 2, 3, 9], [9, 9, 9, 9, 9], [4, 5, 6, 9, 9]])
    np.testing.assert_array_equal(places, [0, 1, 2, 3, 10, 11, 12, 15, 15])
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(9, 2)), jnp.float32)
    y = jnp.asarray(random.normal(size=(3, 5, 2)), jnp.float32)
    there, back = to_lanes(x, lanes, places), from_lanes(y, lanes, places)
    np.testing.assert_array_equal(there[2, :3], x[4:7])
    assert not there[1].any()
    np.testing.assert_array_equal(back[:4], y[0, :4])
    assert not back[7:].any()
    assert float(jnp.vdot(there, y)) == pytest.approx(float(jnp.vdot(x, back)), rel=1e-5)
    _, pullback = jax.vjp(lambda x: to_lanes(x, lanes, places), x)
    np.testing.assert_array_equal(pullback(y)[0], back)
    _, pullback = jax.vjp(lambda y: from_lanes(y, lanes, places), y)
    np.testing.assert_array_equal(pullback(x)[0], there)
