"""Declare every weight of a model once: shape, logical axes, initial scale, Hugging Face name.

Abstract shapes, shardings, initialisation, and reading and writing of checkpoints all derive from
the two tables in this module, to which a family of models may add (`jaxalign.lm.families`). Layers
0...L-2 are stacked along a leading axis for `nn.scan`. The last layer is kept separately, because
slicing a stack inside `jit` copies it and the last layer is used differently (only answer positions
leave it).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.lm.bits import as_bits
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.families import FAMILIES
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
        fan_in: Number of inputs that are summed over; None for a bias or the scale of a norm, which
            Hugging Face stores as a vector.
        dtype: Dtype of the parameter; None is the config's `param_dtype`.
        initial: Initial value where there are no inputs.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    hf_name: str
    transposed: bool
    fan_in: int | None
    dtype: str | None = None
    initial: float = 1.0

    def init(self, key: jax.Array, c: LlamaConfig) -> jax.Array:
        """Return initial values in `param_dtype`: normal, or `initial` if there are no inputs."""
        if self.fan_in is None:
            return jnp.full(self.shape, self.initial, c.param_dtype)
        values = c.initializer_range * jax.random.normal(key, self.shape, jnp.float32)
        return values.astype(c.param_dtype)

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """Shape in a Hugging Face checkpoint."""
        if self.fan_in is None:
            return (math.prod(self.shape),)
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
    llama = {
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
    return llama | FAMILIES[c.family].layer_weights(c)


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


def int8_weights(block: dict[str, Weight]) -> dict[str, Weight]:
    """Return the weights of a layer stored in 8 bits: int8 kernels, and a scale beside each.

    A scale has the kernel's outputs as dimensions; `hf_name` is the tensor that it is taken from.
    """
    weights = dict(block)
    for name, kernel in block.items():
        if kernel.fan_in is None:
            continue
        dims = input_dims(kernel.shape, kernel.fan_in)
        weights[name] = dataclasses.replace(kernel, dtype="int8")
        weights[f"{name}_scale"] = Weight(
            kernel.shape[dims:], kernel.axes[dims:], kernel.hf_name, False, None, "float32"
        )
    return weights


def weight_tree(c: LlamaConfig, weights: WeightFormat = "stored") -> Params:
    """Return all weights as a tree with the structure of the parameters; leaves are `Weight`.

    Args:
        c: The model.
        weights: `"int8"` is the tree that `quantize` makes, with int8 kernels and their scales.
    """
    block = block_weights(c)
    if weights == "int8":
        block = int8_weights(block)
    return {
        **outer_weights(c),
        "layers": {name: stacked(w, c.num_hidden_layers - 1) for name, w in block.items()},
        "last": block,
    }


def is_weight(leaf: object) -> bool:
    """Whether a node of `weight_tree` is a leaf, for `jax.tree.map`."""
    return isinstance(leaf, Weight)


def abstract_params(
    c: LlamaConfig, weights: WeightFormat = "stored", mesh: jax.sharding.Mesh | None = None
) -> Params:
    """Return `jax.ShapeDtypeStruct` of every parameter; allocates nothing.

    Args:
        c: The model.
        weights: Storage of the linear layers, as in `load_model`.
        mesh: Devices that the parameters lie on; None leaves out shardings.
    """
    tree = weight_tree(c, weights)
    places = None if mesh is None else param_shardings(c, mesh, weights)

    def shape(weight: Weight, sharding: jax.sharding.Sharding | None = None) -> Any:
        dtype = jnp.dtype(weight.dtype or c.param_dtype)
        return jax.ShapeDtypeStruct(weight.shape, dtype, sharding=sharding)

    trees = (tree,) if places is None else (tree, places)
    return jax.tree.map(shape, *trees, is_leaf=is_weight)


def weight_format(params: Params) -> WeightFormat:
    """Return how a model's weights are stored; kernels in 8 bits have a scale beside them."""
    return "int8" if any(name.endswith("_scale") for name in params["last"]) else "stored"


def param_shardings(
    c: LlamaConfig, mesh: jax.sharding.Mesh, weights: WeightFormat = "stored"
) -> Params:
    """Return the sharding of every parameter; UserError if a mesh axis does not divide one."""
    return jax.tree.map(
        lambda w: named_sharding(mesh, w.axes, w.shape), weight_tree(c, weights), is_leaf=is_weight
    )


def program_params(
    c: LlamaConfig, mesh: jax.sharding.Mesh | None = None, weights: WeightFormat = "stored"
) -> Params:
    """Return the parameters as a compiled program takes them, in shapes.

    That is `abstract_params` with their shardings, and as bits where programs take bits
    (`jaxalign.lm.bits`).
    """
    return as_bits(abstract_params(c, weights, mesh))


def init_params(c: LlamaConfig, key: jax.Array) -> Params:
    """Return random parameters, each weight by its own `Weight.init`."""
    leaves, tree = jax.tree.flatten(weight_tree(c), is_leaf=is_weight)
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten([w.init(k, c) for k, w in zip(keys, leaves, strict=True)])


def count_params(c: LlamaConfig) -> int:
    """Return the number of parameters."""
    leaves = jax.tree.leaves(weight_tree(c), is_leaf=is_weight)
    return sum(int(np.prod(w.shape)) for w in leaves)
