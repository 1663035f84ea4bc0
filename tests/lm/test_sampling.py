"""The logits that are kept equal those of transformers; draws follow their distribution."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from jaxalign.core.errors import UserError
from jaxalign.lm.sampling import Sampling, kept_logits, next_tokens

SETTINGS = [
    Sampling(temperature=0.7),
    Sampling(top_k=1),
    Sampling(top_k=5, temperature=2.0),
    Sampling(top_k=1000),
    Sampling(top_p=0.9),
    Sampling(top_p=1e-6),
    Sampling(temperature=0.5, top_p=0.6, top_k=7),
    Sampling(temperature=3.0, top_p=0.95, top_k=40),
]
LOGITS_BxV = (4 * np.random.RandomState(0).normal(size=(64, 50))).astype(np.float32)


def by_sorting(s: Sampling, logits_V: np.ndarray) -> np.ndarray:
    """The logits kept by definition, for one row, in float64."""
    x = logits_V.astype(np.float64) / s.temperature
    order = np.argsort(-x)
    kept = order[: s.top_k or None]
    p = np.exp(x[kept] - x.max())
    before = np.cumsum(p / p.sum()) - p / p.sum()  # probability of the more likely tokens
    kept = kept[before < s.top_p]
    out = np.full_like(x, -np.inf)
    out[kept] = x[kept]
    return out


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_kept_logits_equal_sorting(sampling: Sampling) -> None:
    found = kept_logits(sampling, jnp.asarray(LOGITS_BxV))
    expected = [by_sorting(sampling, row) for row in LOGITS_BxV]
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-6)


if importlib.util.find_spec("torch") is not None:

    @pytest.mark.parametrize("sampling", SETTINGS, ids=str)
    def test_kept_logits_equal_transformers(sampling: Sampling) -> None:
        """The logits kept by the processors that transformers uses for the same settings."""
        import torch
        from transformers import LogitsProcessorList, TemperatureLogitsWarper
        from transformers import TopKLogitsWarper as TopK
        from transformers import TopPLogitsWarper as TopP

        processors = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
        processors += [TopK(sampling.top_k)] if sampling.top_k else []
        processors += [TopP(sampling.top_p)] if sampling.top_p < 1 else []
        theirs = processors(torch.zeros(64, 1, dtype=torch.long), torch.from_numpy(LOGITS_BxV))
        ours = kept_logits(sampling, jnp.asarray(LOGITS_BxV))
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)


def test_ties_and_signed_zeros_are_kept_together() -> None:
    logits = jnp.array([[0.0, -0.0, -1.0, -2.0], [-3.0, -3.0, -3.0, -9.0]])
    kept = np.isfinite(kept_logits(Sampling(top_k=1), logits))
    np.testing.assert_array_equal(kept, [[1, 1, 0, 0], [1, 1, 1, 0]])
    kept = np.isfinite(kept_logits(Sampling(top_p=0.3), logits))
    np.testing.assert_array_equal(kept, [[1, 1, 0, 0], [1, 1, 1, 0]])


def test_draws_follow_the_kept_distribution() -> None:
    n, sampling = 20_000, Sampling(temperature=1.5, top_p=0.9, top_k=12)
    logits = jnp.broadcast_to(LOGITS_BxV[:1] / 2, (n, 50))
    keys = jax.random.split(jax.random.key(0), n)
    tokens = np.asarray(jax.jit(next_tokens, static_argnums=0)(sampling, keys, logits))
    expected = np.asarray(jax.nn.softmax(kept_logits(sampling, logits[:1])[0]), np.float64)
    likely = expected > 0
    counts = np.bincount(tokens, minlength=50)
    assert likely.sum() > 3
    assert counts[~likely].sum() == 0
    assert chisquare(counts[likely], n * expected[likely] / expected.sum()).pvalue > 1e-3


def test_greedy_takes_the_first_best() -> None:
    keys = jax.random.split(jax.random.key(0), 2)
    tokens = next_tokens(
        Sampling(temperature=0.0), keys, jnp.array([[0.0, 2.0, 2.0], [-1.0, -3.0, -2.0]])
    )
    np.testing.assert_array_equal(tokens, [1, 0])


@pytest.mark.parametrize(
    "bad",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
    ],
)
def test_bad_settings(bad: dict) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        Sampling(**bad)
