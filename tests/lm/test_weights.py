"""The table of weights in shapes: as stored, in 8 bits, and as programs take them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.quantize import quantize
from jaxalign.lm.weights import abstract_params, init_params, param_shardings, program_params
from jaxalign.runtime.platform import lowering_for
from jaxalign.runtime.sharding import make_mesh

CONFIG = LlamaConfig(64, 32, 48, 3, 4, 2, 8, dtype="bfloat16", param_dtype="bfloat16")


def test_shapes_of_8_bit_weights_are_those_of_quantize():
    params = jax.eval_shape(lambda key: init_params(CONFIG, key), jax.random.key(0))
    expected = jax.eval_shape(lambda params: quantize(CONFIG, params), params)
    assert abstract_params(CONFIG, "int8") == expected
    assert abstract_params(CONFIG) == params


def test_scales_of_8_bit_weights_are_split_as_their_outputs():
    shardings = param_shardings(CONFIG, make_mesh(model=2), "int8")
    layers = shardings["layers"]
    assert layers["q_scale"].spec == PartitionSpec(None, "model", None)  # layer, head, its width
    assert layers["down"].spec == PartitionSpec(None, "model", None)
    assert layers["down_scale"].spec == PartitionSpec(None, None)  # its outputs are not split


def test_programs_of_a_cpu_take_bits():
    mesh = make_mesh()
    with lowering_for("cpu"):
        params = program_params(CONFIG, mesh)
    assert params["layers"]["q"].dtype == params["embed"].dtype == jnp.uint16
    assert params["embed"].sharding == param_shardings(CONFIG, mesh)["embed"]
    with lowering_for("tpu"):
        assert program_params(CONFIG, mesh)["layers"]["q"].dtype == jnp.bfloat16
