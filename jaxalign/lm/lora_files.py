"""LoRA adapters on disk, in the folder layout of PEFT (Hugging Face's adapter library)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.lm.adapter_files import (
    CONFIG,
    WEIGHTS,
    read_adapter_config,
    read_tensors,
    write_adapter,
)
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.lora import Adapter, LoraConfig, adapter_weights
from jaxalign.lm.weights import Weight, block_weights

# Settings under which PEFT computes something else; each must be absent, or say that it is off.
_OTHERWISE = (
    "use_rslora", "use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern",
    "modules_to_save", "layers_to_transform", "layer_replication", "target_parameters",
    "lora_bias", "exclude_modules", "trainable_token_indices", "alora_invocation_tokens",
)  # fmt: skip


_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # leave the base weights alone


def save_lora(
    folder: Path, adapter: Adapter, config: LlamaConfig, lora: LoraConfig, base_model: str
) -> None:
    """Write an adapter for `PeftModel.from_pretrained`, in float32.

    base_model: the name or path of the model, for PEFT's records.
    """
    tensors = {
        name: np.ascontiguousarray(_theirs(np.asarray(value, np.float32), weight))
        for name, (value, weight) in _named(adapter, config, lora).items()
    }
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(_modules(config)[name] for name in lora.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_adapter(folder, fields, tensors)


def load_lora(folder: Path, config: LlamaConfig) -> tuple[LoraConfig, Adapter]:
    """An adapter that PEFT or `save_lora` wrote, float32, and its settings.

    Raises UserError naming the file where one is missing or truncated, was made for another model,
    or uses a variant of LoRA that is not computed here.
    """
    lora = _read_config(folder, config)
    weights = adapter_weights(config, lora)
    names = _named(weights, config, lora)
    tensors, _ = read_tensors(folder / WEIGHTS, set(names), f"this model's LoRA {lora.targets}")
    for name, (_, weight) in names.items():
        if tensors[name].shape != weight.hf_shape:
            raise UserError(
                f"{folder / WEIGHTS}: {name} is {list(tensors[name].shape)}, for this model it is "
                f"{list(weight.hf_shape)}"
            )
    loaded: Adapter = {"layers": {}, "last": {}}
    for key, weight in weights["last"].items():
        *stack, last = (
            _ours(tensors[_peft_name(i, weight)], weight) for i in range(config.num_hidden_layers)
        )
        loaded["layers"][key] = np.stack(stack) if stack else np.zeros((0, *weight.shape))
        loaded["last"][key] = last
    return lora, jax.tree.map(lambda x: jax.numpy.asarray(x, np.float32), loaded)


def _read_config(folder: Path, config: LlamaConfig) -> LoraConfig:
    fields, where = read_adapter_config(folder, "LORA"), folder / CONFIG
    for name in _OTHERWISE:
        if fields.get(name):
            raise UserError(f"{where}: {name}={fields[name]!r} is not supported")
    if (start := fields.get("init_lora_weights", True)) not in _STARTS:
        raise UserError(
            f"{where}: init_lora_weights={start!r} is not supported: it may change the base weights"
        )
    if fields.get("bias", "none") != "none":
        raise UserError(f"{where}: bias={fields['bias']!r} is not supported; 'none' is")
    rank, alpha = fields.get("r"), fields.get("lora_alpha")
    if type(rank) is not int or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise UserError(f"{where}: r={rank!r}, lora_alpha={alpha!r} are not numbers")
    return LoraConfig(rank, float(alpha), _targets(fields.get("target_modules"), config, where))


def _targets(modules: Any, config: LlamaConfig, where: Path) -> tuple[str, ...]:
    ours = {theirs: name for name, theirs in _modules(config).items()}
    if modules == "all-linear":
        return tuple(ours.values())
    if not isinstance(modules, list) or not modules or set(map(str, modules)) - set(ours):
        raise UserError(f"{where}: target_modules={modules!r}; a list of {', '.join(ours)}")
    return tuple(name for theirs, name in ours.items() if theirs in modules)


def _modules(config: LlamaConfig) -> dict[str, str]:
    """Our name of a linear layer -> PEFT's, such as q -> q_proj."""
    linear = {name: w for name, w in block_weights(config).items() if w.transposed}
    return {name: w.hf_name.removesuffix(".weight").split(".")[-1] for name, w in linear.items()}


def _named(tree: Any, config: LlamaConfig, lora: LoraConfig) -> dict[str, tuple[Any, Weight]]:
    """PEFT's name of every tensor -> (the leaf of one layer, its unstacked weight)."""
    out = {}
    for key, weight in adapter_weights(config, lora)["last"].items():
        stack = tree["layers"][key]
        for i in range(config.num_hidden_layers - 1):
            out[_peft_name(i, weight)] = weight if isinstance(stack, Weight) else stack[i], weight
        out[_peft_name(config.num_hidden_layers - 1, weight)] = tree["last"][key], weight
    return out


def _peft_name(layer: int, weight: Weight) -> str:
    return f"base_model.model.model.layers.{layer}.{weight.hf_name}"


def _theirs(value: np.ndarray, weight: Weight) -> np.ndarray:
    """[inputs..., outputs...] -> [out, in]."""
    return value.reshape(weight.fan_in, -1).T


def _ours(value: np.ndarray, weight: Weight) -> np.ndarray:
    return value.T.reshape(weight.shape)
