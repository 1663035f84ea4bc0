"""Attention in blocks, and places in units, give what the plain computations give."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.lm.lanes import from_lanes, to_lanes, unit_lanes
from jaxalign.lm.transformer import causal_mask, masked_attention
from jaxalign.training import attention
from jaxalign.training.attention import attend_within, block_length

HEADS, KEY_HEADS, WIDTH = 4, 2, 8


def row(random, row_length: int, window: int) -> np.ndarray:
    """Segments of a row: examples of 1 to `window` tokens, one of them as long, then padding."""
    sizes = [window, *random.integers(1, window + 1, row_length).tolist()]
    segments = np.repeat(np.arange(1, len(sizes) + 1), sizes)[: row_length - 3]
    return np.pad(segments, (0, row_length - len(segments))).astype(np.int32)


@pytest.mark.parametrize("scores", [2**26, 64 * 128 * HEADS])
def test_values_and_gradients_are_those_of_the_whole_row(scores, monkeypatch):
    """All blocks at once, and one after the other."""
    monkeypatch.setattr(attention, "_SCORES", scores)
    T, window = 256, 60
    assert block_length(T, window) == 64
    random = np.random.default_rng(0)
    segments = jnp.asarray(row(random, T, window))
    q, k, v, g = (
        jnp.asarray(random.normal(size=(1, T, n, WIDTH)), jnp.float32)
        for n in (HEADS, KEY_HEADS, KEY_HEADS, HEADS)
    )
    g = g * (segments > 0)[None, :, None, None]  # what padding computes is not used

    def run(attend):
        return jax.jit(lambda *x: jax.vjp(lambda *y: attend(*y, None), *x)[1](g))(q, k, v)

    whole = jax.tree_util.Partial(masked_attention, causal_mask(segments[None]))
    blocks = attend_within(segments, window)
    used = segments > 0
    np.testing.assert_allclose(
        blocks(q, k, v, None)[0, used], whole(q, k, v, None)[0, used], atol=2e-6
    )
    for mine, expected in zip(run(blocks), run(whole), strict=True):
        assert float(jnp.abs(expected).max()) > 0.1
        np.testing.assert_allclose(mine, expected, atol=2e-5)


def test_blocks_see_no_further_than_an_example():
    """Of a row of 2,048 tokens, a product covers the keys of two blocks and not of all."""
    T = 2048
    q, k = jnp.ones((1, T, HEADS, WIDTH)), jnp.ones((1, T, KEY_HEADS, WIDTH))
    segments = jnp.ones(T, jnp.int32)
    jaxpr = jax.make_jaxpr(lambda q, k: attend_within(segments, 60)(q, k, k, None))(q, k)
    shapes = {v.aval.shape for e in jaxpr.eqns for v in e.outvars if hasattr(v.aval, "shape")}
    assert (T // 64, KEY_HEADS, HEADS // KEY_HEADS, 64, 128) in shapes, shapes
    assert not any(shape.count(T) > 1 for shape in shapes)


@pytest.mark.parametrize(
    ("row_length", "window", "block"),
    [
        (128, 60, 64),
        (100, 60, 100),
        (256, 60, 64),
        (8192, 250, 128),
        (320, 250, 320),
        (1000, 9, 1000),
    ],
)
def test_blocks_divide_the_row(row_length, window, block):
    expected = block if row_length > window + block else row_length
    assert block_length(row_length, window) == expected


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
