"""Attention in bfloat16 on a CPU: no bit depends on how keys are laid out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.answering.attention import RowTables, tree_attention
from jaxalign.answering.order_free import products, softmax_sum, split

SCORES, SUMS = "kqu,ksu->kqs", "kqs,ksu->kqu"


def vectors(seed: int, count: int, spread: float = 1.0) -> jax.Array:
    """Two heads of vectors whose lengths differ as those of a trained model do."""
    rng = np.random.default_rng(seed)
    lengths = np.exp(spread * rng.normal(size=(2, count, 1)))
    return jnp.asarray(lengths * rng.normal(size=(2, count, 64)), jnp.bfloat16)


@jax.jit
def attention(q, *sets):
    scores = [products(SCORES, split(q), split(k)) for k, _ in sets]
    return softmax_sum(scores, [split(v) for _, v in sets], [SUMS] * len(sets))


def test_sums_over_keys_do_not_depend_on_their_order_or_pieces():
    q, k, v = vectors(0, 40, 0.1) / 8, vectors(1, 75, 0.5), vectors(2, 75)
    found = np.asarray(attention(q, (k, v)))
    order = np.random.default_rng(3).permutation(75)
    np.testing.assert_array_equal(attention(q, (k[:, order], v[:, order])), found)
    pieces = [(k[:, :5], v[:, :5]), (k[:, 5:21], v[:, 5:21]), (k[:, 21:], v[:, 21:])]
    np.testing.assert_array_equal(attention(q, *pieces), found)

    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = q @ k.swapaxes(1, 2)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ v
    error = np.abs(found - expected) / np.abs(expected).max(-1, keepdims=True)
    assert error.max() < 2**-11  # a rounding to bfloat16 is 2^-9


def test_tree_attention_and_its_gradient_are_those_of_float32():
    """A chain of 24 tokens, of which 8 are shared. Rounding to integers has no gradient itself."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 24, n, 16)), jnp.bfloat16) for n in (4, 2, 2))
    places = np.arange(16).reshape(4, 4)
    keys = np.broadcast_to(np.arange(16), (4, 16))
    rows = RowTables(
        jnp.asarray(keys), jnp.asarray(keys[:, None] <= places[..., None]), 8, 16, False
    )
    target = jnp.asarray(rng.normal(size=q.shape), jnp.float32)

    @jax.jit
    def loss(q, k, v):
        nothing = (k[0, :0], v[0, :0])
        return jnp.sum(tree_attention(rows, q, k, v, nothing).astype(jnp.float32) * target)

    found = jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)
    wide = (x.astype(jnp.float32) for x in (q, k, v))
    expected = jax.value_and_grad(loss, argnums=(0, 1, 2))(*wide)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs, atol=0.02 * scale)
