"""The mean over presentations, which every balanced score is made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.stats.presentation_mean import mean_log_probs


def test_it_is_the_logarithm_of_the_mean_probability():
    rng = np.random.default_rng(0)
    logits_PxSxO = rng.normal(size=(2, 5, 4)).astype(np.float32)
    logits_PxSxO[:, 1:4, 3] = -np.inf  # items with three options
    log_probs = np.array(jax.nn.log_softmax(logits_PxSxO))
    index_FxQ = np.array([[0, 1], [4, 2], [0, 3]])
    expected = np.exp(log_probs)[:, index_FxQ].mean(axis=1)
    for found in (
        mean_log_probs(log_probs, index_FxQ),
        jax.jit(lambda x: mean_log_probs(x, index_FxQ))(log_probs),
    ):
        assert found.dtype == np.float32
        np.testing.assert_allclose(np.exp(found), expected, rtol=1e-6)
        np.testing.assert_array_equal(np.isinf(found), expected == 0)


def test_one_presentation_changes_no_bit():
    log_probs = np.log(np.random.default_rng(1).dirichlet(np.ones(5), 24)).astype(np.float32)
    index_FxQ = np.arange(24)[None]
    np.testing.assert_array_equal(mean_log_probs(log_probs, index_FxQ), log_probs)
    np.testing.assert_array_equal(mean_log_probs(jnp.array(log_probs), index_FxQ), log_probs)


def test_missing_options_have_no_gradient():
    log_probs = jnp.array([[-0.5, -1.0, -jnp.inf], [-1.5, -0.2, -jnp.inf]])

    def first(x):
        return mean_log_probs(x, np.array([[0], [1]]))[0, 0]

    gradient = jax.grad(first)(log_probs)
    assert np.isfinite(gradient).all()
    assert (gradient[:, 0] > 0).all()
    assert not gradient[:, 1:].any()
