"""Every weight of a LLaMA-3, declared once: shape, logical axes, initial scale, Hugging Face name.

Abstract shapes, shardings, initialisation and checkpoint reading and writing all derive from the
two tables here. Layers 0...L-2 are stacked along a leading axis for `nn.scan`; the last layer is
kept apart, because slicing a stack inside `jit` copies it and the last layer is used differently
(only answer positions leave it).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.lm.config import LlamaConfig
from jaxalign.runtime.sharding import named_sharding

Params = dict[str, Any]  # {"embed", "layers": stacked, "last", "norm", "head"?}


@dataclasses.dataclass(frozen=True)
class Weight:
    """One tensor. `axes` are logical names (see `jaxalign.runtime.sharding`), one per dimension.

    Hugging Face stores linear weights [out, in]; here inputs come first and heads are split, so
    `ours = theirs.T.reshape(shape)` where `transposed`, else `ours = theirs`.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    hf_name: str
    transposed: bool
    fan_in: int | None  # number of inputs summed over; None: a norm scale, initialised to one

    def init(self, key: jax.Array, c: LlamaConfig) -> jax.Array:
        """A random value in `param_dtype`: normal with `initializer_range`; a norm scale is one."""
        if self.fan_in is None:
            return jnp.ones(self.shape, c.param_dtype)
        values = c.initializer_range * jax.random.normal(key, self.shape, jnp.float32)
        return values.astype(c.param_dtype)

    @property
    def hf_shape(self) -> tuple[int, ...]:
        if not self.transposed:
            return self.shape
        return int(np.prod(self.shape)) // self.fan_in, self.fan_in  # [out, in]


def input_dims(shape: tuple[int, ...], fan_in: int) -> int:
    """How many leading dimensions of an unstacked matrix are inputs: their sizes multiply to
    `fan_in`."""
    return next(i for i in range(len(shape)) if math.prod(shape[:i]) == fan_in)


def block_weights(c: LlamaConfig) -> dict[str, Weight]:
    """One decoder layer; `hf_name` is relative to `model.layers.{i}.`."""
    D, F, H = c.hidden_size, c.intermediate_size, c.head_dim
    N, K = c.num_attention_heads, c.num_key_value_heads
    kv = ("embed", "kv_heads", "head_dim")
    return {
        "attention_norm": Weight((D,), ("embed",), "input_layernorm.weight", False, None),
        "q": Weight((D, N, H), ("embed", "heads", "head_dim"), "self_attn.q_proj.weight", True, D),
        "k": Weight((D, K, H), kv, "self_attn.k_proj.weight", True, D),
        "v": Weight((D, K, H), kv, "self_attn.v_proj.weight", True, D),
        "o": Weight(
            (N, H, D), ("heads", "head_dim", "embed"), "self_attn.o_proj.weight", True, N * H
        ),
        "mlp_norm": Weight((D,), ("embed",), "post_attention_layernorm.weight", False, None),
        "gate": Weight((D, F), ("embed", "mlp"), "mlp.gate_proj.weight", True, D),
        "up": Weight((D, F), ("embed", "mlp"), "mlp.up_proj.weight", True, D),
        "down": Weight((F, D), ("mlp", "embed"), "mlp.down_proj.weight", True, F),
    }


def outer_weights(c: LlamaConfig) -> dict[str, Weight]:
    """What stands outside the layers; a tied model has no `head`."""
    D, V = c.hidden_size, c.vocab_size
    weights = {
        "embed": Weight((V, D), ("vocab", "embed"), "model.embed_tokens.weight", False, D),
        "norm": Weight((D,), ("embed",), "model.norm.weight", False, None),
    }
    if not c.tie_word_embeddings:
        weights["head"] = Weight((D, V), ("embed", "vocab"), "lm_head.weight", True, D)
    return weights


def stacked(weight: Weight, layers: int) -> Weight:
    """The same weight for `layers` layers along a leading, never sharded axis."""
    return dataclasses.replace(weight, shape=(layers, *weight.shape), axes=("layers", *weight.axes))


def weight_tree(c: LlamaConfig) -> Params:
    """The table as a tree with the parameters' structure; leaves are `Weight`."""
    block = block_weights(c)
    return {
        **outer_weights(c),
        "layers": {name: stacked(w, c.num_hidden_layers - 1) for name, w in block.items()},
        "last": block,
    }


def is_weight(leaf: object) -> bool:
    return isinstance(leaf, Weight)


def abstract_params(c: LlamaConfig) -> Params:
    """`jax.ShapeDtypeStruct` of every parameter; allocates nothing."""
    dtype = jnp.dtype(c.param_dtype)
    return jax.tree.map(
        lambda w: jax.ShapeDtypeStruct(w.shape, dtype), weight_tree(c), is_leaf=is_weight
    )


def param_shardings(c: LlamaConfig, mesh: jax.sharding.Mesh) -> Params:
    """The sharding of every parameter. UserError where a dimension does not divide."""
    return jax.tree.map(
        lambda w: named_sharding(mesh, w.axes, w.shape), weight_tree(c), is_leaf=is_weight
    )


def init_params(c: LlamaConfig, key: jax.Array) -> Params:
    """Random parameters, each weight by its own `Weight.init`."""
    leaves, tree = jax.tree.flatten(weight_tree(c), is_leaf=is_weight)
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten([w.init(k, c) for k, w in zip(keys, leaves, strict=True)])


def count_params(c: LlamaConfig) -> int:
    leaves = jax.tree.leaves(weight_tree(c), is_leaf=is_weight)
    return sum(int(np.prod(w.shape)) for w in leaves)
