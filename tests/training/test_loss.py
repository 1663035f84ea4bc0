"""The output head in chunks of answers gives what it gives for all of them at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.lanes import LANES
from jaxalign.lm.lora import LoraConfig, abstract_adapter, attach
from jaxalign.lm.transformer import Llama, _merges
from jaxalign.lm.weights import init_params
from jaxalign.runtime.platform import lowering_for
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


def lora_gradient(merge: bool, examples: int):
    """Loss and gradient of an adapter on a row of 300 tokens."""
    from jaxalign.training.packing import Example, Examples, fill

    random, lora = np.random.default_rng(2), LoraConfig(rank=2)
    several = Examples.of(
        [Example(tuple(random.integers(0, 61, n).tolist()), n - 2) for n in (40, 35, 38, 33) * 2]
    )
    batch = fill([[(several, np.arange(8))]], 1, 300, 18)
    leaves, tree = jax.tree.flatten(abstract_adapter(CONFIG, lora))
    adapter = tree.unflatten(
        [jnp.asarray(random.normal(size=x.shape, scale=0.1), jnp.float32) for x in leaves]
    )
    params = init_params(CONFIG, jax.random.key(0))

    def total(adapter):
        full = attach(params, adapter, lora)
        return loss.loss_sum(Llama(CONFIG, merge=merge), full, batch, 40, examples)

    return jax.jit(jax.value_and_grad(total))(adapter)


@pytest.mark.long
def test_merged_adapters_and_single_examples_change_nothing():
    """Adapters added into kernels, attention example by example: gradients differ by rounding."""
    value, gradient = lora_gradient(merge=False, examples=0)
    other, merged = lora_gradient(merge=True, examples=8)
    assert float(other) == pytest.approx(float(value), rel=1e-6)
    for mine, expected in zip(jax.tree.leaves(merged), jax.tree.leaves(gradient), strict=True):
        largest = float(jnp.abs(expected).max())
        assert largest > 1e-3
        np.testing.assert_allclose(mine, expected, atol=2e-5 * largest)


def test_adapters_are_merged_only_where_that_is_exact_and_pays():
    """Bfloat16 would round the adapter away; a few tokens cost less than a copy of the kernel."""
    x, w = jnp.ones((1, 512, 16)), {name: jnp.ones((16, 24)) for name in ("up", "up_a", "up_b")}
    assert _merges(x, w, "up")
    assert not _merges(x[:, :16], w, "up")
    assert not _merges(x, {"up": w["up"]}, "up")
    assert not _merges(x, w | {LANES: jnp.zeros((1, 1), int)}, "up")
    assert not _merges(x, w | {"up_scale": jnp.ones(24)}, "up")
    assert not _merges(x.astype(jnp.bfloat16), w, "up")
    assert not _merges(x, w | {"up": w["up"].astype(jnp.bfloat16)}, "up")
    with lowering_for("tpu"):
        assert not _merges(x, w, "up")
