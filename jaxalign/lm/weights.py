"""Declare every weight of a LLaMA-3 once: shape, logical axes, initial scale, Hugging Face name.

Abstract shapes, shardings, initialisation, and reading and writing of checkpoints all derive from
the two tables in this module. Layers 0...L-2 are stacked along a leading axis for `nn.scan`. The
last layer is kept separately, because slicing a stack inside `jit` copies it and the last layer is
used differently (only answer positions leave it).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.lm.bits import as_bits
from jaxalign.lm.config import LlamaConfig
from jaxalign.runtime.sharding import named_sharding

Params = dict[str, Any]  # {"embed", "layers": stacked, "last", "norm", "head"?}
WeightFormat = Literal["stored", "int8"]


@dataclasses.dataclass(frozen=True)
class Weight:
    """One tensor of the model.

    Hugging Face stores linear weights as [out, in]. Here inputs come first and heads are split, so
    `ours = theirs.T.reshape(shape)` if `transposed`, else `ours = theirs`.

    Attributes:
        shape: Shape of the tensor.
        axes: Logical name of each dimension (see `jaxalign.runtime.sharding`).
        hf_name: Name in a Hugging Face checkpoint, relative to the layer if it is in one.
        transposed: Whether Hugging Face stores it the other way round.
        fan_in: Number of inputs that are summed over; None for the scale of a norm.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    hf_name: str
    transposed: bool
    fan_in: int | None

    def init(self, key: jax.Array, c: LlamaConfig) -> jax.Array:
        """Return initial values in `param_dtype`: normal, or ones for the scale of a norm."""
        if self.fan_in is None:
            return jnp.ones(self.shape, c.param_dtype)
        values = c.initializer_range * jax.random.normal(key, self.shape, jnp.float32)
        return values.astype(c.param_dtype)

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """Shape in a Hugging Face checkpoint."""
        if not self.transposed:
            return self.shape
        return int(np.prod(self.shape)) // self.fan_in, self.fan_in  # [out, in]


def input_dims(shape: tuple[int, ...], fan_in: int) -> int:
    """Return how many leading dimensions of an unstacked matrix are inputs.

    Their sizes multiply to `fan_in`.
    """
    return next(i for i in range(len(shape)) if math.prod(shape[:i]) == fan_in)


def block_weights(c: LlamaConfig) -> dict[str, Weight]:
    """Return the weights of one decoder layer; `hf_name` is relative to `model.layers.{i}.`."""
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
    """Return the weights outside the layers; a model with tied embeddings has no `head`."""
    D, V = c.hidden_size, c.vocab_size
    weights = {
        "embed": Weight((V, D), ("vocab", "embed"), "model.embed_tokens.weight", False, D),
        "norm": Weight((D,), ("embed",), "model.norm.weight", False, None),
    }
    if not c.tie_word_embeddings:
        weights["head"] = Weight((D, V), ("embed", "vocab"), "lm_head.weight", True, D)
    return weights


def stacked(weight: Weight, layers: int) -> Weight:
    """Return the weight for `layers` layers, along a leading axis that is never sharded."""
    return dataclasses.replace(weight, shape=(layers, *weight.shape), axes=("layers", *weight.axes))


def weight_tree(c: LlamaConfig) -> Params:
    """Return all weights as a tree with the structure of the parameters; leaves are `Weight`."""
    block = block_weights(c)
    return {
        **outer_weights(c),
        "layers": {name: stacked(w, c.num_hidden_layers - 1) for name, w in block.items()},
        "last": block,
    }


def is_weight(leaf: object) -> bool:
    """Whether a node of `weight_tree` is a leaf, for `jax.tree.map`."""
    return isinstance(leaf, Weight)


def abstract_params(c: LlamaConfig, weights: WeightFormat = "stored") -> Params:
    """Return `jax.ShapeDtypeStruct` of every parameter; allocates nothing.

    Args:
        c: The model.
        weights: "int8" is the tree that `jaxalign.lm.quantize.quantize` returns.
    """
    return _of_every(c, weights, lambda w, dtype: jax.ShapeDtypeStruct(w.shape, dtype))


def param_shardings(
    c: LlamaConfig, mesh: jax.sharding.Mesh, weights: WeightFormat = "stored"
) -> Params:
    """Return the sharding of every parameter; UserError if a mesh axis does not divide one."""
    return _of_every(c, weights, lambda w, _: named_sharding(mesh, w.axes, w.shape))


def program_params(
    c: LlamaConfig, mesh: jax.sharding.Mesh | None = None, weights: WeightFormat = "stored"
) -> Params:
    """Return the parameters as a compiled program takes them, in shapes.

    That is `abstract_params` with their shardings, and as bits where programs take bits
    (`jaxalign.lm.bits`).
    """
    params = abstract_params(c, weights)
    if mesh is not None:
        params = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            params,
            param_shardings(c, mesh, weights),
        )
    return as_bits(params)


def _of_every(c: LlamaConfig, weights: WeightFormat, leaf: Callable[[Weight, Any], Any]) -> Params:
    """Return a tree with `leaf(weight, dtype)` of every parameter as it is stored."""
    dtype, tree = jnp.dtype(c.param_dtype), weight_tree(c)
    if weights == "stored":
        return jax.tree.map(lambda w: leaf(w, dtype), tree, is_leaf=is_weight)
    out = {name: leaf(tree[name], dtype) for name in outer_weights(c)}
    for group, leading in (("layers", 1), ("last", 0)):
        out[group] = {}
        for name, weight in tree[group].items():
            if weight.fan_in is None:
                out[group][name] = leaf(weight, dtype)
                continue
            # A matrix in 8 bits, and a scale for each of its outputs.
            outputs = leading + input_dims(weight.shape[leading:], weight.fan_in)
            scale = dataclasses.replace(
                weight,
                shape=weight.shape[:leading] + weight.shape[outputs:],
                axes=weight.axes[:leading] + weight.axes[outputs:],
            )
            out[group][name] = leaf(weight, jnp.dtype(jnp.int8))
            out[group][f"{name}_scale"] = leaf(scale, jnp.dtype(jnp.float32))
    return out


def init_params(c: LlamaConfig, key: jax.Array) -> Params:
    """Return random parameters, each weight by its own `Weight.init`."""
    leaves, tree = jax.tree.flatten(weight_tree(c), is_leaf=is_weight)
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten([w.init(k, c) for k, w in zip(keys, leaves, strict=True)])


def count_params(c: LlamaConfig) -> int:
    """Return the number of parameters."""
    leaves = jax.tree.leaves(weight_tree(c), is_leaf=is_weight)
    return sum(int(np.prod(w.shape)) for w in leaves)
