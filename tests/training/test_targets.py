"""Targets that are distributions: the loss is a plain divergence, wherever examples stand."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.lora import LoraConfig
from jaxalign.lm.transformer import Llama
from jaxalign.lm.weights import init_params
from jaxalign.runtime.sharding import make_mesh
from jaxalign.training.loss import option_divergence
from jaxalign.training.packing import Example, Examples, OptionTargets, fill
from jaxalign.training.trainer import HeldOutLoss, TrainConfig, Trainer, fit

CONFIG = LlamaConfig(
    61, 16, 24, 2, 2, 1, 8, dtype="float32", param_dtype="float32", initializer_range=0.3
)


def reference(logits_V: np.ndarray, tokens_O: np.ndarray, masses_O: np.ndarray) -> float:
    """The divergence in float64, written out."""
    q_V = np.exp(np.float64(logits_V) - np.max(logits_V))
    q_V /= q_V.sum()
    total = masses_O.sum()
    return sum(
        float(m) * np.log(m / total / q_V[token])
        for token, m in zip(tokens_O.tolist(), np.float64(masses_O), strict=True)
        if m > 0
    )


def some_targets(random: np.random.Generator, count: int, positions: int = 1) -> OptionTargets:
    """Up to four options, a mass of zero among them; the second position has less than all."""
    tokens = np.stack([random.permutation(61)[:4] for _ in range(count * positions)])
    masses = random.dirichlet(np.ones(4), count * positions)
    masses[::3] = masses[::3] * [1, 1, 1, 0]
    masses = masses.reshape(count, positions, 4)
    masses[:, 0] /= masses[:, 0].sum(axis=-1, keepdims=True)
    masses[:, 1:] *= 0.3
    return OptionTargets(
        tokens.reshape(count, positions, 4).astype(np.int32), masses.astype(np.float32)
    )


def test_the_divergence_and_its_gradient_are_the_ones_written_out():
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (6, 2, 61)).astype(np.float32)
    targets = some_targets(random, 6, 2)
    tokens, masses = targets.tokens_NxAxO, targets.masses_NxAxO
    found = np.asarray(option_divergence(jnp.asarray(logits), tokens, masses))
    expected = [
        [reference(*at) for at in zip(*of, strict=True)]
        for of in zip(logits, tokens, masses, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)
    assert (found > 0).all()
    # The gradient is the softmax over the vocabulary, as often as there is mass, less the masses.
    slope = jax.grad(lambda x: option_divergence(x, tokens, masses).sum())(jnp.asarray(logits))
    dense = np.zeros_like(logits)
    np.put_along_axis(dense, tokens, masses, axis=-1)
    softmax = np.asarray(jax.nn.softmax(logits))
    np.testing.assert_allclose(slope, masses.sum(-1, keepdims=True) * softmax - dense, atol=1e-6)
    # All of the mass on one token is that token's cross-entropy.
    whole = np.float32([1, 0, 0, 0]) * np.ones((6, 2, 1), np.float32)
    log_q = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), tokens, -1)[..., 0]
    np.testing.assert_allclose(option_divergence(logits, tokens, whole), -log_q, rtol=1e-6)


def test_targets_stand_at_the_answers_of_their_examples():
    random = np.random.default_rng(1)
    plain = Examples.of([Example((1, 2, 3, 4), 2), Example((5, 6), 1), Example((7, 8, 9), 1)])
    targets = some_targets(random, 3)
    targets.tokens_NxAxO[2] = -1  # the answer's own token
    several = dataclasses.replace(plain, targets=targets)
    batch = fill(
        [[(several, np.array([1])), (plain, np.array([0]))], [(several, [2, 0])]], 3, 8, 4, 5
    )
    tokens, masses = batch.option_tokens_BxAxO, batch.option_masses_BxAxO
    assert tokens.shape == masses.shape == (3, 4, 5)
    np.testing.assert_array_equal(masses[0, 0, :4], targets.masses_NxAxO[1, 0])
    np.testing.assert_array_equal(tokens[0, 0, :4], targets.tokens_NxAxO[1, 0])
    one = [1, 0, 0, 0, 0]
    own = [(0, 1, 3), (0, 2, 4), (1, 0, 8), (1, 1, 9), (1, 3, 4)]
    for b, a, token in own:
        assert (tokens[b, a, 0], masses[b, a].tolist()) == (token, one)
    np.testing.assert_array_equal(masses[1, 2, :4], targets.masses_NxAxO[0, 0])
    assert not masses[2].any()
    assert not masses[0, 3].any(), "no answer token stands there"


def test_examples_without_probabilities_are_refused():
    train = TrainConfig(target="distribution", batch=4, learning_rate=1e-2)
    examples = [Example((1, 2, 3), 2)]
    with pytest.raises(UserError, match=r"`target` distribution: .*'joint' have no probabilities"):
        Trainer(CONFIG, train, LoraConfig(), {"joint": examples}, make_mesh(jax.devices()[:1]))


@pytest.mark.long
@pytest.mark.parametrize("case", ["one", "several", "full"])
def test_training_minimises_the_divergence(case):
    """Of packed examples, of several adapters side by side and of all weights, in several passes:
    the first loss is that of each example alone, and it falls toward zero."""
    random = np.random.default_rng(2)
    names = ("USA", "CHN") if case == "several" else ("USA",)
    params = init_params(CONFIG, jax.random.key(0))
    data, expected = {}, {}
    for name in names:
        sizes = random.integers(4, 14, 6)
        plain = Examples.of(
            [Example(tuple(random.integers(0, 61, n).tolist()), int(n) - 2) for n in sizes]
        )
        targets = some_targets(random, 6)
        data[name] = dataclasses.replace(plain, targets=targets)
        losses = []
        for n, example in enumerate(plain):
            logits = Llama(CONFIG).apply({"params": params}, jnp.array([example.tokens]))[0]
            at, last = np.asarray(logits[-3]), np.asarray(logits[-2])
            losses.append(reference(at, targets.tokens_NxAxO[n, 0], targets.masses_NxAxO[n, 0]))
            losses.append(reference(last, np.array(example.tokens[-1:]), np.ones(1)))
        expected[name] = float(np.mean(losses))
    train = TrainConfig(
        method="full" if case == "full" else "lora",
        target="distribution",
        batch=6,
        epochs=40,
        learning_rate=3e-2,
        tokens_per_pass=32,
    )
    trainer = Trainer(CONFIG, train, LoraConfig(rank=8), data, make_mesh(jax.devices()[:1]))
    assert trainer.shape.options == 4
    assert bool(trainer.shape.units) == (case == "several")
    held_out = HeldOutLoss(trainer, data)
    rows: list[dict] = []
    fit(trainer, params, log=rows.append, held_out=held_out)
    for name in names:
        assert rows[0][name]["held_out_loss"] == pytest.approx(expected[name], rel=1e-4)
        assert rows[1][name]["loss"] == pytest.approx(expected[name], rel=1e-4)
        assert 0 <= rows[-1][name]["held_out_loss"] < 0.2 * expected[name]
