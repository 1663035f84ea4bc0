"""Low-rank adapters on the linear layers of a frozen LLaMA: W x + (alpha / rank) B A x.

An adapter is a tree shaped like the parameters, `{"layers": {"q_a", "q_b", ...}, "last": ...}`,
float32. `attach` lays it beside the kernels, where the model finds it (`llama.model.project`), so
whatever takes parameters takes adapted ones; gradients taken through `attach` reach the adapter
without touching the frozen weights. `merge` adds the product into the kernels instead.

Source: LoRA (Hu et al. 2021, section 4.1). Start and scale follow PEFT: A uniform in
+-1/sqrt(inputs), B zero.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.transformer import AXES
from jaxalign.lm.weights import Params, Weight, block_weights, input_dims, is_weight, stacked

Adapter = dict[str, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which layers are adapted, and how."""

    rank: int = 8
    """Of the update of each adapted matrix."""
    alpha: float = 16.0
    """The update is scaled by alpha / rank."""
    targets: tuple[str, ...] = tuple(AXES)
    """Linear layers to adapt."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"LoRA rank {self.rank}; at least 1")
        if not math.isfinite(self.alpha):
            raise UserError(f"LoRA alpha {self.alpha}; a finite number")
        if not self.targets or set(self.targets) - set(AXES):
            raise UserError(f"LoRA targets {self.targets}; one or more of {', '.join(AXES)}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def adapter_weights(config: LlamaConfig, lora: LoraConfig) -> dict[str, dict[str, Weight]]:
    """Shape, logical axes and PEFT name (relative to the layer) of every adapter tensor."""
    block: dict[str, Weight] = {}
    for name, kernel in block_weights(config).items():
        if name in lora.targets:
            block |= _pair(name, kernel, lora.rank)
    layers = {name: stacked(w, config.num_hidden_layers - 1) for name, w in block.items()}
    return {"layers": layers, "last": block}


def _pair(name: str, kernel: Weight, rank: int) -> dict[str, Weight]:
    cut = input_dims(kernel.shape, kernel.fan_in)
    stem = kernel.hf_name.removesuffix(".weight")
    a_shape, b_shape = (*kernel.shape[:cut], rank), (rank, *kernel.shape[cut:])
    a_axes, b_axes = (*kernel.axes[:cut], "rank"), ("rank", *kernel.axes[cut:])
    return {
        f"{name}_a": Weight(a_shape, a_axes, f"{stem}.lora_A.weight", True, kernel.fan_in),
        f"{name}_b": Weight(b_shape, b_axes, f"{stem}.lora_B.weight", True, rank),
    }


def abstract_adapter(config: LlamaConfig, lora: LoraConfig) -> Adapter:
    """`jax.ShapeDtypeStruct` of every adapter tensor; allocates nothing."""
    weights = adapter_weights(config, lora)
    return jax.tree.map(
        lambda w: jax.ShapeDtypeStruct(w.shape, jnp.float32), weights, is_leaf=is_weight
    )


def init_adapter(config: LlamaConfig, lora: LoraConfig, key: jax.Array) -> Adapter:
    """A new adapter, which changes nothing yet: B is zero."""
    leaves, tree = jax.tree.flatten(adapter_weights(config, lora), is_leaf=is_weight)
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten([_start(w, k) for w, k in zip(leaves, keys, strict=True)])


def _start(weight: Weight, key: jax.Array) -> jax.Array:
    if ".lora_B." in weight.hf_name:
        return jnp.zeros(weight.shape, jnp.float32)
    bound = 1 / math.sqrt(weight.fan_in)
    return jax.random.uniform(key, weight.shape, jnp.float32, -bound, bound)


def attach(params: Params, adapter: Adapter, lora: LoraConfig) -> Params:
    """The parameters with the adapter beside the kernels, its scale in B. Differentiable."""
    beside = {
        part: {n: w * lora.scale if n.endswith("_b") else w for n, w in weights.items()}
        for part, weights in adapter.items()
    }
    return params | {part: params[part] | beside[part] for part in beside}


def merge(params: Params, adapter: Adapter, lora: LoraConfig) -> Params:
    """The parameters with W + scale * A B in place of each adapted kernel W, in W's dtype.

    ValueError for weights in 8 bits, in which the update would be lost: merge, then `quantize`.
    """
    merged = {}
    if any(name.endswith("_scale") for name in params["last"]):
        raise ValueError("weights in 8 bits cannot take up an adapter; merge before quantize")
    for part, weights in adapter.items():
        lead = "l" if part == "layers" else ""
        merged[part] = dict(params[part])
        for name in lora.targets:
            a, b, kernel = weights[f"{name}_a"], weights[f"{name}_b"], params[part][name]
            inputs, outputs = AXES[name]
            equation = f"{lead}{inputs}r,{lead}r{outputs}->{lead}{inputs}{outputs}"
            update = lora.scale * jnp.einsum(equation, a, b, precision="highest")
            merged[part][name] = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
    return params | merged
