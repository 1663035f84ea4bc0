"""Which layers a PEFT LoRA config adapts, each with its rank and scale, by PEFT's own rules.

PEFT finds layers by name: `target_modules` is a list of names or of ends of names, a regular
expression, or "all-linear"; `exclude_modules` and `layers_to_transform` take some of them away
again, and `rank_pattern` and `alpha_pattern` give some of them another rank or alpha. All of that
is settled here. Settings under which PEFT computes something else than W x + scale * B A x are
refused by name.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.patterns import check_pattern
from jaxalign.lm.weights import block_weights, outer_weights

# Settings that change what is computed. Each must be absent or false.
_UNSUPPORTED = (
    "use_dora",
    "layer_replication",
    "target_parameters",
    "lora_bias",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
)
# Settings that are read here, and those that change nothing once the weights are trained.
_READ = {
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "init_lora_weights",
}
_HARMLESS = {
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "peft_version",
    "inference_mode",
    "lora_dropout",
    "bias",  # a bias that was trained is a tensor in the file, and refused there
    "fan_in_fan_out",  # PEFT sets it aside for linear layers
    "megatron_config",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "qalora_group_size",
    "ensure_weight_tying",
    "runtime_config",
    "merge_weights",
}
# Values of `init_lora_weights` that leave the base weights unchanged when PEFT loads an adapter.
_INITIALISATIONS = (True, False, None, "gaussian", "orthogonal", "eva")

_SHOWN = 80  # characters of a value in a message
_HIGHEST = 2**31  # of ranks and scales

_log = logging.getLogger("jaxalign")


class Adapted(NamedTuple):
    """The low-rank update of one linear layer: scale * B A."""

    rank: int
    scale: float


def adapted_layers(
    fields: Mapping[str, Any], config: LlamaConfig, where: Path
) -> dict[tuple[int, str], Adapted]:
    """Return the linear layers that a LoRA config adapts.

    Args:
        fields: The fields of `adapter_config.json`.
        config: The model that the adapter belongs to.
        where: The file, for messages.

    Returns:
        Rank and scale of each, by its layer's index and our name of the linear layer, such as
        (3, "q").

    Raises:
        UserError: If a setting changes what is computed in a way that is not computed here, if the
            config adapts something else than the layers' linear maps, or nothing of this model.
    """
    _check_settings(fields, where)
    linear = _linear_layers(config)
    other = _other_modules(config)
    try:
        _check_modules_to_save(fields, [*linear, *other], where)
        if found := [name for name in other if _is_target(fields, name, linear)]:
            raise UserError(
                f"{where}: target_modules adapts {found[0]}; only the linear maps of the layers "
                "can have an adapter here"
            )
        adapted = {
            place: _rank_and_scale(fields, name, where)
            for name, place in linear.items()
            if _is_target(fields, name, linear)
        }
    except re.error as error:  # a pattern that is valid only by itself
        raise UserError(f"{where}: {error.pattern!r} is not a regular expression") from None
    if not adapted:
        shown = f"target_modules={fields.get('target_modules')!r}"
        raise UserError(f"{where}: {shown} names no layer of this model ({next(iter(linear))} ...)")
    return adapted


def _check_settings(fields: Mapping[str, Any], where: Path) -> None:
    for name in _UNSUPPORTED:
        if fields.get(name):
            raise UserError(f"{where}: {name}={fields[name]!r} is not supported")
    if (start := fields.get("init_lora_weights", True)) not in _INITIALISATIONS:
        raise UserError(
            f"{where}: init_lora_weights={start!r} is not supported: it may change the base "
            "weights; let PEFT convert the adapter (path_initial_model_for_weight_conversion)"
        )
    modules = fields.get("target_modules")
    if not modules or not isinstance(modules, str | list):
        raise UserError(f"{where}: target_modules={modules!r}: must be a text or a list of texts")
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(fields.get(name) or {}, dict):
            raise UserError(f"{where}: {name}={fields[name]!r}: must be an object")
    for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
        if not _are_texts(fields.get(name) or []):
            raise UserError(f"{where}: {name}={fields[name]!r}: must be a text or a list of texts")
    layers = fields.get("layers_to_transform")
    listed = layers if isinstance(layers, list) else [] if layers is None else [layers]
    if wrong := [layer for layer in listed if type(layer) is not int]:
        raise UserError(f"{where}: layers_to_transform: {wrong[0]!r} is not the number of a layer")
    _check_patterns(fields, where)
    known = {*_UNSUPPORTED, *_READ, *_HARMLESS}
    if unknown := sorted(name for name in fields if name not in known and fields[name]):
        listed = ", ".join(f"{name}={fields[name]!r}" for name in unknown)
        _log.info(f"{where}: passed over {listed}, which this version does not know")


def _are_texts(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(part, str) for part in value)
    )


def _check_patterns(fields: Mapping[str, Any], where: Path) -> None:
    """Refuse regular expressions that are none, or that may take for ever."""
    patterns = [*(fields.get("rank_pattern") or ()), *(fields.get("alpha_pattern") or ())]
    for name in ("target_modules", "exclude_modules"):  # lists hold names
        patterns += [fields[name]] if isinstance(fields.get(name), str) else []
    given = fields.get("layers_pattern") or []
    patterns += [given] if isinstance(given, str) else given
    for pattern in patterns:
        try:
            check_pattern(pattern)
        except ValueError as error:
            raise UserError(f"{where}: {pattern[:_SHOWN]!r} {error}") from None


def _linear_layers(config: LlamaConfig) -> dict[str, tuple[int, str]]:
    """Return (layer, our name) of each linear map by its Hugging Face name, in PEFT's order."""
    block = {name: w.hf_name.removesuffix(".weight") for name, w in _linear(config).items()}
    return {
        f"model.layers.{layer}.{theirs}": (layer, ours)
        for layer in range(config.num_hidden_layers)
        for ours, theirs in block.items()
    }


def _linear(config: LlamaConfig) -> dict[str, Any]:
    return {name: w for name, w in block_weights(config).items() if w.transposed}


def _other_modules(config: LlamaConfig) -> list[str]:
    """Return the Hugging Face names of the modules with weights that can have no adapter here."""
    names = {w.hf_name.removesuffix(".weight") for w in outer_weights(config).values()}
    norms = [w.hf_name.removesuffix(".weight") for w in _norms(config)]
    for layer in range(config.num_hidden_layers):
        names |= {f"model.layers.{layer}.{norm}" for norm in norms}
    return sorted({*names, "lm_head"})  # a module also where it shares the embeddings


def _norms(config: LlamaConfig) -> list[Any]:
    vectors = [w for w in block_weights(config).values() if w.fan_in is None]
    return [w for w in vectors if w.hf_name.endswith(".weight")]  # a bias is part of its module


def _check_modules_to_save(fields: Mapping[str, Any], modules: list[str], where: Path) -> None:
    """Refuse whole copies of modules of this model; those of a classifier do not matter."""
    for copied in fields.get("modules_to_save") or ():
        if any(name.endswith(copied) or f".{copied}." in f".{name}." for name in modules):
            raise UserError(
                f"{where}: modules_to_save={fields['modules_to_save']!r}: {copied} was trained as "
                "a whole, which an adapter cannot hold here; merge it into the model with PEFT"
            )


def _is_target(fields: Mapping[str, Any], name: str, linear: Mapping[str, Any]) -> bool:
    """Whether PEFT puts an adapter on the module of this name."""
    excluded, targets = fields.get("exclude_modules"), fields["target_modules"]
    if excluded and _named_by(excluded, name):
        return False
    if isinstance(targets, str):
        if targets.lower() == "all-linear":  # the output layer is left out
            return name in linear
        return _named_by(targets, name)
    return _named_by(targets, name) and _in_layers(fields, name)


def _named_by(names: str | list[str], name: str) -> bool:
    """Whether a regular expression fits a whole name, or a list has the name or an end of it."""
    if isinstance(names, str):
        return re.fullmatch(names, name) is not None
    return any(name == n or name.endswith(f".{n}") for n in names)


def _in_layers(fields: Mapping[str, Any], name: str) -> bool:
    """Whether `layers_to_transform` has the module's layer; without it, all layers count."""
    layers, patterns = fields.get("layers_to_transform"), fields.get("layers_pattern")
    if layers is None or layers == []:
        return True
    patterns = [patterns] if isinstance(patterns, str) and patterns else patterns
    # Without a pattern for the list's name, the first number in the module's name counts.
    searched = [rf"(?:^|.*?\.){p}\.(\d+)\." for p in patterns] if patterns else []
    for pattern in searched or [r".*?\.[^.]*\.(\d+)\."]:
        if found := re.match(pattern, name):
            return int(found[1]) in (layers if isinstance(layers, list) else [layers])
    return False


def _rank_and_scale(fields: Mapping[str, Any], name: str, where: Path) -> Adapted:
    rank = _by_pattern(fields.get("rank_pattern"), name, fields.get("r"))
    alpha = _by_pattern(fields.get("alpha_pattern"), name, fields.get("lora_alpha"))
    numbers = type(rank) is int and type(alpha) in (int, float) and abs(alpha) < _HIGHEST
    if not numbers or not 1 <= rank < _HIGHEST:
        raise UserError(
            f"{where}: r={repr(rank)[:_SHOWN]}, lora_alpha={repr(alpha)[:_SHOWN]} of {name} are "
            "not a rank and a number"
        )
    return Adapted(rank, alpha / (math.sqrt(rank) if fields.get("use_rslora") else rank))


def _by_pattern(patterns: Mapping[str, Any] | None, name: str, otherwise: Any) -> Any:
    """Return the value of the first pattern that fits the name or an end of it."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return otherwise
