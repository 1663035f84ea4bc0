"""Adapters and soft prompts on disk, in the folder layout of PEFT (Hugging Face's adapter library).

An adapter folder holds `adapter_config.json`, `adapter_model.safetensors` and a README with lines
that use them. Both kinds that this package trains are read and written: LoRA adapters, and soft
prompts ("prompt tuning"). A soft prompt can also be kept in one safetensors file of our own, which
has room for what it was tuned for.

Files are written atomically. The config is removed first and written last, so a folder that has a
config is complete.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes  # noqa: F401 (lets safetensors hand out bfloat16 as numpy)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxalign.core.errors import UserError
from jaxalign.core.files import check_path, write_atomically, write_text
from jaxalign.core.json_text import parse_json
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.lora import AdapterWeights, LoraConfig, adapter_weights, weight_pair
from jaxalign.lm.peft_card import lora_card, prompt_card
from jaxalign.lm.peft_config import Adapted, adapted_layers
from jaxalign.lm.safetensors_io import check_not_pointer
from jaxalign.lm.weights import Weight, block_weights

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
_FLOATS = ("F32", "F16", "BF16")

_METADATA = "jaxalign_soft_prompt"  # metadata key of our own files; its value is one JSON object
_TENSOR, _PEFT_TENSOR = "prompt", "prompt_embeddings"

Array = np.ndarray | jax.Array


# LoRA adapters


def save_lora(
    folder: Path,
    adapter: AdapterWeights,
    config: LlamaConfig,
    lora: LoraConfig,
    base_model: str,
) -> None:
    """Write an adapter as float32, for `PeftModel.from_pretrained`.

    Args:
        folder: Folder to write to; made if missing.
        adapter: The weights, on this host.
        config: The model that they belong to.
        lora: Their settings.
        base_model: Name or path of the model, for the records of PEFT.
    """
    tensors = {
        name: np.ascontiguousarray(_to_peft(np.asarray(value, np.float32), weight))
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
    _write_folder(folder, fields, tensors, lora_card(base_model, lora.rank))


def load_lora(folder: Path, config: LlamaConfig) -> tuple[LoraConfig, AdapterWeights]:
    """Read an adapter that PEFT or `save_lora` wrote.

    Adapters here have one rank, one scale and the same linear maps in every layer. Where PEFT's
    differ from layer to layer, the result computes the same: lower ranks are filled up with zeros,
    maps without an adapter get one that is zero, and each scale is multiplied into B. So is the
    scale of rank-stabilised LoRA, alpha / sqrt(rank).

    Returns:
        Its settings, and its weights in float32.

    Raises:
        UserError: If a file is missing or truncated (the message names it), if the adapter was made
            for another model, or if it uses a variant of LoRA that is not computed here.
    """
    fields, where = _read_config(folder, "LORA"), folder / CONFIG
    adapted = adapted_layers(fields, config, where)
    block = block_weights(config)
    targets = tuple(name for name in _modules(config) if any(name == n for _, n in adapted))
    names = {
        _peft_name(layer, half): (half, rank)
        for (layer, name), (rank, _) in adapted.items()
        for half in weight_pair(name, block[name], rank).values()
    }
    tensors, _ = _read_tensors(folder / WEIGHTS, set(names), f"this model's LoRA {targets}")
    # A wrong shape means another model, or another rank than the config states.
    for name, (weight, rank) in names.items():
        if tensors[name].shape != weight.hf_shape:
            raise UserError(
                f"{folder / WEIGHTS}: {name} is {list(tensors[name].shape)}, for this model and "
                f"rank {rank} it is {list(weight.hf_shape)}"
            )
        if not np.isfinite(tensors[name].astype(np.float32)).all():
            raise UserError(f"{folder / WEIGHTS}: {name} holds numbers that are not finite")
    lora = _common_settings(fields, adapted, targets)
    loaded: AdapterWeights = {"layers": {}, "last": {}}
    for name in targets:
        for key, whole in weight_pair(name, block[name], lora.rank).items():
            # All layers but the last are stacked.
            *stack, last = (
                _one_layer(tensors, adapted.get((layer, name)), layer, whole, lora)
                for layer in range(config.num_hidden_layers)
            )
            loaded["layers"][key] = np.stack(stack) if stack else np.zeros((0, *whole.shape))
            loaded["last"][key] = last
    return lora, jax.tree.map(lambda x: jax.numpy.asarray(x, np.float32), loaded)


def _common_settings(
    fields: Mapping[str, Any],
    adapted: Mapping[tuple[int, str], Adapted],
    targets: tuple[str, ...],
) -> LoraConfig:
    """Return one rank and scale for all layers: the highest rank; 1 where the scales differ."""
    rank = max(layer.rank for layer in adapted.values())
    scales = {layer.scale for layer in adapted.values()}
    if len(scales) > 1:
        return LoraConfig(rank, float(rank), targets)
    (scale,), alpha = scales, fields.get("lora_alpha")
    # The file's own number, if it is the numerator of the scale.
    stated = isinstance(alpha, int | float) and alpha / rank == scale
    return LoraConfig(rank, float(alpha) if stated else scale * rank, targets)


def _one_layer(
    tensors: Mapping[str, np.ndarray],
    layer: Adapted | None,
    index: int,
    whole: Weight,
    lora: LoraConfig,
) -> np.ndarray:
    """Return A or B of one layer in the rank of all; zeros where the layer has no adapter."""
    is_b = whole.hf_name.endswith("lora_B.weight")
    filled = np.zeros(whole.hf_shape, np.float32)  # A [rank, in], B [out, rank]
    if layer is not None:
        value = tensors[_peft_name(index, whole)].astype(np.float32)
        if is_b and layer.scale != lora.scale:
            value = value * np.float32(layer.scale / lora.scale)
        filled[: value.shape[0], : value.shape[1]] = value
    return _from_peft(filled, whole)


def _modules(config: LlamaConfig) -> dict[str, str]:
    """Return PEFT's name of each linear layer by ours, such as q_proj for q."""
    linear = {name: w for name, w in block_weights(config).items() if w.transposed}
    return {name: w.hf_name.removesuffix(".weight").split(".")[-1] for name, w in linear.items()}


def _named(tree: Any, config: LlamaConfig, lora: LoraConfig) -> dict[str, tuple[Any, Weight]]:
    """Return (the leaf of one layer, its unstacked weight) by PEFT's name of the tensor."""
    named = {}
    for key, weight in adapter_weights(config, lora)["last"].items():
        stack = tree["layers"][key]
        for i in range(config.num_hidden_layers - 1):
            named[_peft_name(i, weight)] = weight if isinstance(stack, Weight) else stack[i], weight
        named[_peft_name(config.num_hidden_layers - 1, weight)] = tree["last"][key], weight
    return named


def _peft_name(layer: int, weight: Weight) -> str:
    return f"base_model.model.model.layers.{layer}.{weight.hf_name}"


def _to_peft(value: np.ndarray, weight: Weight) -> np.ndarray:
    """Turn [inputs..., outputs...] into [out, in]."""
    return value.reshape(weight.fan_in, -1).T


def _from_peft(value: np.ndarray, weight: Weight) -> np.ndarray:
    """Turn [out, in] into [inputs..., outputs...]."""
    return value.T.reshape(weight.shape)


# Soft prompts


def save_prompt(path: Path, prompt_MxD: Array, metadata: Mapping[str, Any]) -> None:
    """Write a soft prompt as float32 into a safetensors file of our own.

    Args:
        path: File to write.
        prompt_MxD: Embeddings of the prompt's M tokens.
        metadata: What JSON can hold: country, placement, hash of the model ...
    """
    prompt = _checked_prompt(np.asarray(prompt_MxD), path, None)
    header = {_METADATA: json.dumps(dict(metadata), sort_keys=True)}
    write_atomically(path, save({_TENSOR: prompt}, metadata=header))


def load_prompt(path: Path, hidden_size: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
    """Read a soft prompt that `save_prompt` wrote.

    Args:
        path: The file.
        hidden_size: Width of the model that it must fit; None: any.

    Returns:
        The prompt, float32 [M, D], and its metadata.

    Raises:
        UserError: If the file is missing, truncated, not a soft prompt of this package, or made for
            a model of another width.
    """
    prompt, header = _read_prompt(path, _TENSOR, hidden_size)
    metadata = _json_object(header.get(_METADATA, ""), path, "not a soft prompt saved by jaxalign")
    return prompt, metadata


def save_prompt_tuning(
    folder: Path, prompt_MxD: Array, base_model: str, hidden_size: int, placement: str = "front"
) -> None:
    """Write a soft prompt for `PeftModel.from_pretrained`.

    PEFT puts a prompt before everything else. A prompt that was tuned for another place would
    silently give other logits there, so it is refused.

    Args:
        folder: Folder to write to; made if missing.
        prompt_MxD: Embeddings of the prompt's M tokens.
        base_model: Name or path of the model, for the records of PEFT.
        hidden_size: Width D of the model.
        placement: Where the prompt was tuned to stand; "front" alone can be written.

    Raises:
        UserError: If the placement is another one, or the prompt is not [M, hidden_size].
    """
    if placement != "front":
        raise UserError(
            f"{folder}: a prompt with placement {placement} cannot be saved for PEFT, which puts "
            "prompts before everything; tune with placement front, or keep the safetensors file"
        )
    prompt = _checked_prompt(np.asarray(prompt_MxD), folder, hidden_size)
    fields = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "num_virtual_tokens": prompt.shape[0],
        "token_dim": prompt.shape[1],
        "num_transformer_submodules": 1,  # a decoder alone; PEFT counts 2 for encoder-decoders
        "prompt_tuning_init": "RANDOM",  # so that PEFT asks for no tokenizer; it loads the weights
        "inference_mode": True,
    }
    card = prompt_card(base_model, prompt.shape[0])
    _write_folder(folder, fields, {_PEFT_TENSOR: prompt}, card)


def load_prompt_tuning(
    folder: Path, hidden_size: int | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Read a soft prompt that PEFT or `save_prompt_tuning` wrote.

    Args:
        folder: The adapter folder.
        hidden_size: Width of the model that it must fit; None: any.

    Returns:
        The prompt, float32 [M, D], and the fields of its config.

    Raises:
        UserError: If a file is missing, truncated or of another adapter type (the message names
            it), or if weights, config and `hidden_size` disagree.
    """
    fields = _read_config(folder, "PROMPT_TUNING")
    if fields.get("num_transformer_submodules") not in (None, 1):
        submodules = fields["num_transformer_submodules"]
        raise UserError(
            f"{folder / CONFIG}: num_transformer_submodules={submodules!r}: "
            "the prompt of an encoder-decoder, not of a Llama"
        )
    prompt, _ = _read_prompt(folder / WEIGHTS, _PEFT_TENSOR, hidden_size)
    stated = (fields.get("num_virtual_tokens"), fields.get("token_dim"))
    if stated != prompt.shape:
        raise UserError(f"{folder / WEIGHTS}: prompt {prompt.shape}, but {CONFIG} says {stated}")
    return prompt, fields


def _read_prompt(
    path: Path, tensor: str, hidden_size: int | None
) -> tuple[np.ndarray, dict[str, str]]:
    """Return one prompt tensor as float32, and the file's metadata."""
    tensors, header = _read_tensors(path, {tensor}, "a soft prompt")
    return _checked_prompt(tensors[tensor], path, hidden_size), header


def _checked_prompt(prompt: np.ndarray, path: Path, hidden_size: int | None) -> np.ndarray:
    """Return `prompt` as contiguous float32 [M, D]; UserError if it cannot be a prompt."""
    if prompt.ndim != 2 or 0 in prompt.shape:
        raise UserError(f"{path}: a prompt is [tokens, width], this is {list(prompt.shape)}")
    if hidden_size is not None and prompt.shape[1] != hidden_size:
        raise UserError(
            f"{path}: the prompt is {prompt.shape[1]} wide, the model {hidden_size}: "
            "it was made for another model"
        )
    prompt = np.ascontiguousarray(prompt, dtype=np.float32)
    if not np.isfinite(prompt).all():
        raise UserError(f"{path}: the prompt has {np.sum(~np.isfinite(prompt))} non-finite numbers")
    # The model divides by the root of a mean square; an infinite one would leave zeros, unseen.
    squares_M = np.square(prompt, dtype=np.float64).sum(-1)
    if squares_M.max() > np.finfo(np.float32).max:
        raise UserError(
            f"{path}: the prompt's token {int(squares_M.argmax()) + 1} has numbers up to "
            f"{np.abs(prompt[squares_M.argmax()]).max():.1e}, whose squares overflow in the model; "
            "its training went wrong"
        )
    return prompt


# The folder


def _write_folder(
    folder: Path, fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray], card: str
) -> None:
    """Write weights, README and config; a folder with a config is complete at any time."""
    (folder / CONFIG).unlink(missing_ok=True)
    write_text(folder / CARD, card)
    write_atomically(folder / WEIGHTS, save(dict(tensors), metadata={"format": "pt"}))
    write_text(folder / CONFIG, json.dumps(fields, indent=2, sort_keys=True) + "\n")


def _read_config(folder: Path, peft_type: str) -> dict[str, Any]:
    """Return the fields of a PEFT config; UserError if missing or of another adapter type."""
    path = folder / CONFIG
    check_path(path, "adapter")
    try:
        fields = _json_object(path.read_text(encoding="utf-8"), path, "not a PEFT config")
    except (OSError, UnicodeDecodeError):
        inside = sorted(folder.glob(f"*/{CONFIG}")) if folder.is_dir() else []
        hint = f", such as {inside[0].parent}" if inside else ""
        raise UserError(
            f"{path}: cannot be read; give the folder of a PEFT adapter{hint}"
        ) from None
    if fields.get("peft_type") != peft_type:
        raise UserError(f"{path}: peft_type={fields.get('peft_type')!r}, not {peft_type!r}")
    return fields


def _read_tensors(
    path: Path, names: set[str], kind: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the tensors of a safetensors file that must hold exactly `names`, and its metadata.

    Raises UserError naming the file if it is missing or truncated, if it holds other tensors than
    `kind` does, or if a tensor has another dtype than F32, F16 or BF16.
    """
    check_path(path, "adapter")
    if not path.is_file():
        if (pickled := path.with_suffix(".bin")).is_file():
            raise UserError(
                f"{pickled}: a pickle, which can run any code when it is read; save the adapter "
                "as safetensors, as PEFT does by default"
            )
        raise UserError(f"{path}: no such file")
    check_not_pointer(path)
    try:
        with safe_open(path, framework="numpy") as file:
            present = set(file.keys())
            if present != names:
                raise UserError(f"{path}: not {kind}: {_difference(present, names)}")
            for name in sorted(names):
                dtype = file.get_slice(name).get_dtype()
                if dtype not in _FLOATS:
                    raise UserError(f"{path}: {name} is {dtype}; F32, F16 or BF16 is expected")
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"{path}: truncated or not safetensors ({line})") from None


def _difference(present: set[str], names: set[str]) -> str:
    """Say which tensors are too many and which are missing, at most three of each."""
    extra, missing = sorted(present - names), sorted(names - present)
    texts = [f"holds {', '.join(extra[:3])}"] if extra else []
    texts += [f"lacks {', '.join(missing[:3])}"] if missing else []
    return " and ".join(texts)


def _json_object(text: str, path: Path, complaint: str) -> dict[str, Any]:
    """Return the JSON object in `text`; UserError with the complaint if there is none."""
    check_not_pointer(path)
    try:
        fields = parse_json(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise UserError(f"{path}: {complaint}")
    return fields
