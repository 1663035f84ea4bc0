"""Attention in bfloat16 on a CPU: no bit depends on how keys are laid out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.answering.attention import RowTables, tree_attention
from jaxalign.answering.key_order import BLOCK, _product, attend_in_order, ordered_keys

HEADS, KEY_HEADS, WIDTH = 4, 2, 16


@pytest.mark.parametrize(
    ("queries", "terms", "columns"), [(1, 64, 512), (24, 128, 320), (48, 64, 128), (6, 512, 128)]
)
def test_a_product_adds_up_its_terms_one_after_another(queries, terms, columns):
    """What the order of sums relies on; it is XLA's doing on a CPU."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, queries, terms)).astype(np.float32)
    y = rng.normal(size=(3, terms, columns)).astype(np.float32)
    expected = np.zeros((3, queries, columns), np.float32)
    for n in range(terms):
        # The product of two float32 numbers is exact in float64, as in a fused multiply-add.
        term = x[:, :, n, None].astype(np.float64) * y[:, n, None]
        expected = (expected + term).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(_product)(x, y), expected)


def chains(lengths, fork):
    """Return, per token of a tree in depth-first order, the tokens it sees: chains that fork."""
    sees, start = [], 0
    for length in lengths:
        above = list(range(fork)) if sees else []
        for i in range(length - len(above)):
            sees.append([*above, *range(start, start + i + 1)])
        start += length - len(above)
    return sees


def rows_of(sees, length):
    """Cut the tokens into rows of a length: keys [R, S] and who sees them [R, L, S]."""
    rows = [sees[i : i + length] for i in range(0, len(sees), length)]
    keys = [sorted(set().union(*row)) for row in rows]
    table = np.zeros((len(rows), max(map(len, keys))), np.int32)
    mask = np.zeros((len(rows), length, table.shape[1]), bool)
    for r, (row, some) in enumerate(zip(rows, keys, strict=True)):
        table[r, : len(some)] = some
        for q, seen in enumerate(row):
            mask[r, q, np.searchsorted(some, seen)] = True
    return jnp.asarray(table), jnp.asarray(mask)


def vectors(seed, count, heads):
    """Vectors of a few heads whose lengths differ as those of a trained model do."""
    rng = np.random.default_rng(seed)
    lengths = np.exp(0.5 * rng.normal(size=(1, count, heads, 1)))
    return jnp.asarray(lengths * rng.normal(size=(1, count, heads, WIDTH)), jnp.bfloat16)


@pytest.mark.long
@pytest.mark.parametrize(
    "lengths",
    [(40, 37, 52), (500, 900, 450)],
    ids=["short", "blocks"],
)
def test_bits_do_not_depend_on_rows_neighbours_or_what_is_kept_apart(lengths):
    fork = 30
    sees = chains(lengths, fork)
    positions = jnp.asarray([len(seen) - 1 for seen in sees])
    T = len(sees)
    q, k, v = vectors(0, T, HEADS), vectors(1, T, KEY_HEADS), vectors(2, T, KEY_HEADS)
    attend = jax.jit(attend_in_order)

    def whole(length, consecutive=True):
        return attend(ordered_keys(*rows_of(sees, length), positions, 0, 900, consecutive), q, k, v)

    found = np.asarray(whole(8))
    for other in (whole(32), whole(8, consecutive=False)):
        np.testing.assert_array_equal(other, found)
    # The last chain alone, and with what it shares kept apart from its own tokens.
    own = np.array(sees[-1])
    chain = chains([len(own)], 0)
    alone = ordered_keys(*rows_of(chain, 16), positions[own], 0, len(own), True)
    np.testing.assert_array_equal(attend(alone, q[:, own], k[:, own], v[:, own]), found[:, own])
    tree = chains([len(own) - fork], 0)
    apart = ordered_keys(*rows_of(tree, 64), positions[own], fork, len(own), True)
    ours = attend(apart, q[:, own[fork:]], k[:, own], v[:, own])
    np.testing.assert_array_equal(ours, found[:, own[fork:]])
    assert (len(own) > BLOCK) == (len(apart.widths) > 1)

    # Against float64: the last token of the tree.
    last, keys, values = (np.asarray(x, np.float64)[0] for x in (q[:, -1], k[:, own], v[:, own]))
    for n in range(HEADS):
        scores = keys[:, n // 2] @ last[n] / 4
        weights = np.exp(scores - scores.max())
        expected = weights / weights.sum() @ values[:, n // 2]
        error = np.abs(found[0, -1, n].astype(np.float64) - expected).max()
        assert error < 2**-8 * np.abs(expected).max()  # half of it is the rounding to bfloat16


def test_tree_attention_and_its_gradient_are_those_of_float32():
    """A chain of 24 tokens, of which 8 are shared. Weights in whole numbers have no gradient."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 24, n, 16)), jnp.bfloat16) for n in (4, 2, 2))
    places = np.arange(16).reshape(4, 4)
    keys = np.broadcast_to(np.arange(16), (4, 16))
    rows = RowTables(
        jnp.asarray(keys), jnp.asarray(keys[:, None] <= places[..., None]), 8, 16, False
    )
    target = jnp.asarray(rng.normal(size=q.shape), jnp.float32)

    def loss(rows, q, k, v):
        nothing = (k[0, :0], v[0, :0])
        return jnp.sum(tree_attention(rows, q, k, v, nothing).astype(jnp.float32) * target)

    compute = jax.jit(jax.value_and_grad(loss, argnums=(1, 2, 3)))
    found = compute(rows.in_order(jnp.arange(24), 0, 24), q, k, v)
    wide = (x.astype(jnp.float32) for x in (q, k, v))
    expected = compute(rows, *wide)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs, atol=0.02 * scale)
