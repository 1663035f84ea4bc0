"""The output head in chunks of answers gives what it gives for all of them at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.transformer import Llama
from jaxalign.lm.weights import init_params
from jaxalign.training import loss

CONFIG = LlamaConfig(61, 16, 24, 2, 2, 1, 8, dtype="float32", param_dtype="float32")


def test_chunks_of_answers_have_the_loss_and_gradient_of_all(monkeypatch):
    params = init_params(CONFIG, jax.random.key(0))
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(2, 23, 16)), jnp.float32)
    targets = jnp.asarray(random.integers(0, 61, (2, 23)))
    weight = jnp.asarray(random.normal(size=(2, 23)), jnp.float32)

    def run():
        def total(x):
            losses = loss._head_losses(Llama(CONFIG), params, x, targets)
            return jnp.sum(losses * weight), losses

        return jax.jit(jax.grad(total, has_aux=True))(x), jax.make_jaxpr(total)(x)

    (whole, losses), _ = run()
    monkeypatch.setattr(loss, "HEAD_POSITIONS", 5)
    (chunked, same), jaxpr = run()
    np.testing.assert_allclose(same, losses, rtol=1e-6)
    np.testing.assert_allclose(chunked, whole, atol=1e-6)
    assert "23,61" not in str(jaxpr), "all logits at once"
    assert "2,5,61" in str(jaxpr)


def test_few_answers_leave_the_last_layer_alone():
    assert loss._has_few_answers(8, 128)
    assert not loss._has_few_answers(9, 128)


@pytest.mark.long
def test_long_answers_have_the_loss_of_every_position():
    """With many answer tokens the last layer is computed whole; the loss is the same."""
    from jaxalign.training.packing import Example, Examples, fill

    params = init_params(CONFIG, jax.random.key(0))
    random = np.random.default_rng(1)
    example = Example(tuple(random.integers(0, 61, 40).tolist()), 4)
    batch = fill([[(Examples.of([example]), np.array([0]))]], 1, 64, 36)
    found = jax.jit(loss.loss_sum, static_argnums=(0, 3))(Llama(CONFIG), params, batch, 40)
    logits = Llama(CONFIG).apply({"params": params}, jnp.array([example.tokens]))[0]
    log_p = jax.nn.log_softmax(logits)
    expected = -sum(float(log_p[at - 1, example.tokens[at]]) for at in range(4, 40))
    assert float(found) == pytest.approx(expected, rel=1e-5)
