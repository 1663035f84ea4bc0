"""Low-rank adapters on the linear layers of a frozen Llama: W x + (alpha / rank) B A x.

The weights of an adapter are a tree shaped like the parameters, `{"layers": {"q_a", "q_b", ...},
"last": ...}`, in float32. `attach` puts them beside the kernels, where the model finds them
(`jaxalign.lm.transformer.project`), so any function that takes parameters takes adapted ones, and
gradients through `attach` reach the adapter without touching the frozen weights. `merge` adds the
product to the kernels instead.

Source: LoRA (Hu et al. 2021, section 4.1). Initial values and scale follow PEFT: A uniform in
+-1/sqrt(inputs), B zero.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.model import LM, ModelFiles
from jaxalign.lm.transformer import AXES
from jaxalign.lm.weights import Params, Weight, block_weights, input_dims, is_weight, stacked

AdapterWeights = dict[str, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which layers are adapted, and how."""

    rank: int = 8
    """Rank of the low-rank update."""
    alpha: float = 16.0
    """Numerator of the update's scale, alpha / rank."""
    targets: tuple[str, ...] = tuple(AXES)
    """Linear layers to adapt."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"`rank` {self.rank}: must be at least 1")
        if not math.isfinite(self.alpha):
            raise UserError(f"`alpha` {self.alpha}: must be a finite number")
        if not self.targets or set(self.targets) - set(AXES):
            raise UserError(f"`targets` {self.targets}: give one or more of {', '.join(AXES)}")

    @property
    def scale(self) -> float:
        """The factor of the update, alpha / rank."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
    """A low-rank adapter: its weights, its settings, and the model it belongs to.

    Attributes:
        weights: float32 tree, `{"layers": {"q_a", "q_b", ...}, "last": ...}`; the layers but the
            last one are stacked along the leading axis.
        config: Rank, scale and adapted layers.
        model: The config of the model that it was trained on.
        base_model: The name or folder of that model, for the records of PEFT.

    Example:
        >>> import tempfile
        >>> import jaxalign as ja
        >>> lm = ja.pocket_model()
        >>> talk = [{"role": "user", "content": "1 or 2?"}, {"role": "assistant", "content": "2"}]
        >>> lora = ja.training.LoraConfig(rank=4, targets=("q", "v"))
        >>> adapter = ja.fine_tune(lm, [talk], lora=lora)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     adapter.save_peft(folder)
        ...     again = ja.Adapter.load(folder, lm)
        >>> again.config.rank, again.weights["last"]["q_a"].shape
        (4, (128, 4))
    """

    weights: AdapterWeights = dataclasses.field(repr=False)
    config: LoraConfig
    model: LlamaConfig = dataclasses.field(repr=False)
    base_model: str

    @classmethod
    def load(cls, folder: str | Path, lm: LM | ModelFiles) -> Adapter:
        """Read an adapter that `save_peft` or PEFT wrote.

        Args:
            folder: Holds `adapter_config.json` and `adapter_model.safetensors`.
            lm: The model that the adapter belongs to, or its files.

        Raises:
            UserError: If a file is missing or damaged, the adapter was made for a model of other
                shapes, or it uses a variant of LoRA that is not computed here.
        """
        from jaxalign.lm.peft import load_lora  # here, because that module imports this one

        config, weights = load_lora(Path(folder), lm.config)
        return cls(weights, config, lm.config, lm.name)

    def save_peft(self, folder: str | Path) -> None:
        """Write the adapter as float32, for `PeftModel.from_pretrained(model, folder)`."""
        from jaxalign.lm.peft import save_lora

        save_lora(Path(folder), self.weights, self.model, self.config, self.base_model)

    def attach(self, lm: LM) -> LM:
        """Return the model with this adapter beside its weights, which are not copied."""
        return dataclasses.replace(lm, params=attach(lm.params, self.weights, self.config))

    def merge(self, lm: LM) -> LM:
        """Return the model with this adapter added into its weights, in their dtype."""
        return dataclasses.replace(lm, params=merge(lm.params, self.weights, self.config))


def adapter_weights(config: LlamaConfig, lora: LoraConfig) -> dict[str, dict[str, Weight]]:
    """Return shape, logical axes and PEFT name (relative to the layer) of every adapter tensor."""
    block: dict[str, Weight] = {}
    for name, kernel in block_weights(config).items():
        if name in lora.targets:
            block |= weight_pair(name, kernel, lora.rank)
    layers = {name: stacked(w, config.num_hidden_layers - 1) for name, w in block.items()}
    return {"layers": layers, "last": block}


def weight_pair(name: str, kernel: Weight, rank: int) -> dict[str, Weight]:
    """Return A and B of one kernel: A has the kernel's inputs, B its outputs."""
    cut = input_dims(kernel.shape, kernel.fan_in)
    stem = kernel.hf_name.removesuffix(".weight")
    a_shape, b_shape = (*kernel.shape[:cut], rank), (rank, *kernel.shape[cut:])
    a_axes, b_axes = (*kernel.axes[:cut], "rank"), ("rank", *kernel.axes[cut:])
    return {
        f"{name}_a": Weight(a_shape, a_axes, f"{stem}.lora_A.weight", True, kernel.fan_in),
        f"{name}_b": Weight(b_shape, b_axes, f"{stem}.lora_B.weight", True, rank),
    }


def abstract_adapter(config: LlamaConfig, lora: LoraConfig) -> AdapterWeights:
    """Return `jax.ShapeDtypeStruct` of every adapter tensor; allocates nothing."""
    return jax.tree.map(
        lambda w: jax.ShapeDtypeStruct(w.shape, jnp.float32),
        adapter_weights(config, lora),
        is_leaf=is_weight,
    )


def init_adapter(config: LlamaConfig, lora: LoraConfig, key: jax.Array) -> AdapterWeights:
    """Return the weights of a new adapter, which changes nothing yet: B is zero."""
    leaves, tree = jax.tree.flatten(adapter_weights(config, lora), is_leaf=is_weight)
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten([_initial(w, k) for w, k in zip(leaves, keys, strict=True)])


def _initial(weight: Weight, key: jax.Array) -> jax.Array:
    if ".lora_B." in weight.hf_name:
        return jnp.zeros(weight.shape, jnp.float32)
    # Kaiming uniform with a = sqrt(5), as PEFT: the bound comes to 1 / sqrt(inputs).
    bound = 1 / math.sqrt(weight.fan_in)
    return jax.random.uniform(key, weight.shape, jnp.float32, -bound, bound)


def attach(params: Params, adapter: AdapterWeights, lora: LoraConfig) -> Params:
    """Return the parameters with the adapter beside the kernels; differentiable.

    The scale alpha / rank is multiplied into B, so that the model need not know it.
    """
    beside = {
        group: {n: w * lora.scale if n.endswith("_b") else w for n, w in weights.items()}
        for group, weights in adapter.items()
    }
    return params | {group: params[group] | beside[group] for group in beside}


def merge(params: Params, adapter: AdapterWeights, lora: LoraConfig) -> Params:
    """Return the parameters with W + scale * A B in place of each adapted kernel W, in W's dtype.

    Raises:
        ValueError: If the weights are in 8 bits, where the update would be lost in rounding; merge
            first and `quantize` afterwards.
    """
    merged = {}
    if any(name.endswith("_scale") for name in params["last"]):
        raise ValueError("weights in 8 bits cannot take up an adapter; merge before quantize")
    for group, weights in adapter.items():
        lead = "l" if group == "layers" else ""  # the axis of stacked layers
        merged[group] = dict(params[group])
        for name in lora.targets:
            a, b, kernel = weights[f"{name}_a"], weights[f"{name}_b"], params[group][name]
            inputs, outputs = AXES[name]
            equation = f"{lead}{inputs}r,{lead}r{outputs}->{lead}{inputs}{outputs}"
            update = lora.scale * jnp.einsum(equation, a, b, precision="highest")
            merged[group][name] = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
    return params | merged
