"""Bfloat16 weights that enter a CPU's programs as bits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.lm.bits import as_bits, from_bits
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.lora import LoraConfig, attach, init_adapter
from jaxalign.lm.transformer import Llama
from jaxalign.lm.weights import init_params
from jaxalign.runtime.platform import lowering_for

BF16 = LlamaConfig(128, 64, 256, 9, 4, 2, 16, dtype="bfloat16", param_dtype="bfloat16")


def test_bits_of_arrays_shapes_and_tracers():
    tree = {"a": jnp.arange(6, dtype=jnp.bfloat16), "b": jnp.ones(2, jnp.int8), "c": None}
    bits = as_bits(tree)
    assert (bits["a"].dtype, bits["b"].dtype, bits["c"]) == (jnp.uint16, jnp.int8, None)
    np.testing.assert_array_equal(from_bits(bits)["a"], tree["a"])
    assert jax.tree.map(lambda x, y: x is y, as_bits(bits), bits) == {
        "a": True,
        "b": True,
        "c": None,
    }
    shapes = as_bits(jax.eval_shape(lambda: tree))
    assert (shapes["a"].dtype, shapes["b"].dtype) == (jnp.uint16, jnp.int8)
    assert jax.eval_shape(as_bits, tree)["a"].dtype == jnp.uint16
    with lowering_for("gpu"):
        assert as_bits(tree) is tree


@pytest.mark.parametrize("split", [None, "x"])
def test_bits_are_a_view_of_the_same_memory(split):
    devices = jax.devices()[:2]
    mesh = jax.sharding.Mesh(np.array(devices), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(split))
    x = jax.device_put(jnp.arange(64, dtype=jnp.bfloat16), sharding)
    bits = as_bits(x)
    assert bits.sharding == x.sharding
    for old, new in zip(x.addressable_shards, bits.addressable_shards, strict=True):
        assert new.data.unsafe_buffer_pointer() == old.data.unsafe_buffer_pointer()
    del x  # the view keeps the memory
    np.testing.assert_array_equal(from_bits(bits), np.arange(64, dtype=np.float32))


def test_no_loop_copies_the_weights_and_gradients_reach_the_adapter():
    """The loss of an adapted model, summed in a loop over batches, with remat; and its gradient.

    As bits it equals the plain computation, and temporaries stay below the weights' own bytes. The
    plain program held a float32 copy of them before jax 0.12.
    """
    params = jax.jit(lambda key: init_params(BF16, key))(jax.random.key(0))
    lora = LoraConfig(rank=2, targets=("q", "down"))
    adapter = init_adapter(BF16, lora, jax.random.key(1))
    adapter = jax.tree.map(lambda x: x + 0.02, adapter)  # a new one changes nothing
    tokens = jax.random.randint(jax.random.key(2), (3, 1, 8), 0, 128)
    model = Llama(BF16, remat=True)

    def loss(adapter, params, tokens):
        adapted = attach(params, adapter, lora)

        def one(tokens):
            logits = model.apply({"params": adapted}, tokens)
            return jax.nn.log_softmax(logits)[..., 0].sum()

        return jax.lax.map(one, tokens).sum()

    results, temporaries = [], []
    for weights in (params, as_bits(params)):
        step = jax.jit(jax.value_and_grad(loss)).lower(adapter, weights, tokens).compile()
        results.append(step(adapter, weights, tokens))
        temporaries.append(step.memory_analysis().temp_size_in_bytes)
    (plain, plain_gradient), (bits, bits_gradient) = results
    np.testing.assert_allclose(bits, plain, rtol=2e-3)
    for ours, expected in zip(*map(jax.tree.leaves, (bits_gradient, plain_gradient)), strict=True):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(ours, expected, atol=0.03 * scale)
    stored = sum(x.nbytes for x in jax.tree.leaves(params))
    assert temporaries[1] < stored
