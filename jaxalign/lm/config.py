"""Shapes and constants of a model, from a preset or from a Hugging Face `config.json`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from jaxalign.core.errors import UserError
from jaxalign.core.json_text import parse_json, reason
from jaxalign.lm.families import FAMILIES, find_family
from jaxalign.lm.safetensors_io import check_not_pointer

DType = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """The `llama3` rule: long wavelengths are stretched by `factor`, short ones stay as they are.

    Source: Llama 3.1's `rope_scaling` with `rope_type: llama3`.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            if not _is_positive(value := getattr(self, name)):
                raise UserError(f"rope_scaling: {name}={value!r}: must be a number above 0")
        if self.factor < 1:
            raise UserError(f"rope_scaling: factor={self.factor!r}: must be at least 1")
        if self.high_freq_factor <= self.low_freq_factor:
            raise UserError(
                f"rope_scaling: high_freq_factor={self.high_freq_factor!r}: must be above "
                f"low_freq_factor={self.low_freq_factor!r}"
            )
        length = self.original_max_position_embeddings
        if type(length) is not int or length < 1:
            raise UserError(
                f"rope_scaling: original_max_position_embeddings={length!r}: must be a whole "
                "number of at least 1"
            )


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The shapes and constants of a decoder, named as in Hugging Face's `config.json`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    dtype: DType = "bfloat16"  # that products read; everything else is float32
    param_dtype: DType = "bfloat16"  # of stored weights
    family: str = "llama"  # name in `jaxalign.lm.families`
    # Tokens that a query sees. Windows are not computed: no sequence may be longer than one.
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (type(value) is not int or value < 1):
                raise UserError(f"{field.name}={value!r}: must be a whole number of at least 1")
            if field.type == "float" and not _is_positive(value):
                raise UserError(f"{field.name}={value!r}: must be a number above 0")
        if self.num_hidden_layers < 2:
            raise UserError(
                f"num_hidden_layers={self.num_hidden_layers}: at least 2 are needed "
                "(the last layer is kept apart from the stacked ones)"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim={self.head_dim} is odd: RoPE turns pairs of dimensions")
        if self.sliding_window is not None and self.max_position_embeddings > self.sliding_window:
            raise UserError(
                f"max_position_embeddings={self.max_position_embeddings} is more than "
                f"sliding_window={self.sliding_window}, and windows are not computed"
            )

    def replace(self, **changes: Any) -> LlamaConfig:
        """Return a config with some fields changed."""
        return dataclasses.replace(self, **changes)


def _short(value: object) -> str:
    """Return a value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _is_positive(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


_Built = TypeVar("_Built")
_SHOWN = 80  # characters of a value in a message
_SCALING_3_1 = RopeScaling(8.0, 1.0, 4.0, 8192)
_SCALING_3_2 = RopeScaling(32.0, 1.0, 4.0, 8192)
_8B = LlamaConfig(128_256, 4096, 14_336, 32, 32, 8, 128)
_70B = LlamaConfig(128_256, 8192, 28_672, 80, 64, 8, 128)
_LONG = {"rope_scaling": _SCALING_3_1, "max_position_embeddings": 131_072}
_SMALL = _LONG | {"rope_scaling": _SCALING_3_2, "tie_word_embeddings": True}

PRESETS: dict[str, LlamaConfig] = {
    "llama3-8b": _8B,
    "llama3-70b": _70B,
    "llama3.1-8b": _8B.replace(**_LONG),
    "llama3.1-70b": _70B.replace(**_LONG),
    "llama3.2-1b": LlamaConfig(128_256, 2048, 8192, 16, 32, 8, 64, **_SMALL),
    "llama3.2-3b": LlamaConfig(128_256, 3072, 8192, 28, 24, 8, 128, **_SMALL),
    "llama3.3-70b": _70B.replace(**_LONG),
}

# Fields that do not change what this package computes.
_IGNORED_TEXT = """
_attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
_flash_attn_2_enabled _name_or_path architectures attn_implementation auto_map
base_model_name_or_path dtype finetuning_task id2label
ignore_keys_at_rope_validation is_composition is_encoder_decoder is_llama_config jaxalign label2id
model_name name_or_path neftune_noise_alpha num_labels output_attentions output_hidden_states
problem_type return_dict task_specific_params tf_legacy_loss tokenizer_class torch_dtype torchscript
transformers.js_config transformers_version unsloth_fixed unsloth_version use_bfloat16 use_cache
"""
# Settings of decoding, which full dumps contain. `generation_config.json` is where they belong.
_GENERATION_TEXT = """
assistant_confidence_threshold bad_words_ids begin_suppress_tokens bos_token_id cache_config
cache_implementation constraints decoder_start_token_id diversity_penalty do_sample early_stopping
encoder_no_repeat_ngram_size encoder_repetition_penalty eos_token_id epsilon_cutoff eta_cutoff
exponential_decay_length_penalty force_words_ids forced_bos_token_id forced_eos_token_id
forced_decoder_ids guidance_scale length_penalty low_memory max_length max_new_tokens max_time
min_length min_new_tokens min_p no_repeat_ngram_size num_assistant_tokens
num_assistant_tokens_schedule num_beam_groups num_beams num_return_sequences output_logits
output_scores pad_token_id penalty_alpha prefix prompt_lookup_num_tokens remove_invalid_values
renormalize_logits repetition_penalty return_dict_in_generate sep_token_id sequence_bias
stop_strings suppress_tokens temperature token_healing top_h top_k top_p typical_p
watermarking_config
"""
_IGNORED = frozenset(_IGNORED_TEXT.split() + _GENERATION_TEXT.split())
_MODEL = {"head_dim", "num_key_value_heads", "family", "sliding_window"}
_DERIVED = {"rope_theta", "rope_scaling", "dtype", "param_dtype"} | _MODEL
_COPIED = {f.name for f in dataclasses.fields(LlamaConfig)} - _DERIVED


def config_from_hf(fields: dict[str, Any], dtype: DType = "bfloat16") -> LlamaConfig:
    """Build a config from the fields of a Hugging Face `config.json`.

    All spellings are read: the older one has `rope_theta` and `rope_scaling` at the top, the one
    of transformers 5 has both inside `rope_parameters`, and some files have the base inside
    `rope_scaling`.

    Args:
        fields: The JSON object.
        dtype: Dtype of weights and activations.

    Raises:
        UserError: If a field is unknown, missing, or has a value that is not implemented; the
            message has its name and value.
    """
    family = find_family(fields.get("model_type", "llama"))
    # Hugging Face's defaults for fields that are missing; the caller's fields are not changed.
    fields = {**family.defaults, **fields}
    rope = _rope_fields(fields)
    kept: dict[str, Any] = {}
    # Every field is copied, checked or known to be irrelevant; nothing is guessed.
    for name, value in fields.items():
        if name in _COPIED:
            kept[name] = value
        elif name == "model_type" or family.handles(name, value):
            continue
        elif name not in _IGNORED | {"num_key_value_heads", "head_dim"}:
            shown = repr(name)[1:-1][:_SHOWN]  # without quotation marks
            raise UserError(
                f"config.json: unknown field {shown}={_short(value)}; refusing to guess"
            )
    needed = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    )
    if missing := [n for n in needed if n not in kept]:
        raise UserError(f"config.json: missing field {missing[0]}")
    # Without `head_dim`, heads split the width evenly. Wrong types are reported by the config.
    heads, width = kept["num_attention_heads"], kept["hidden_size"]
    whole = type(heads) is type(width) is int and heads > 0
    return _named_by_file(LlamaConfig)(
        **(kept | family.settings(fields)),
        num_key_value_heads=fields.get("num_key_value_heads") or heads,
        head_dim=fields.get("head_dim") or (width // heads if whole else 1),
        rope_theta=rope[0],
        rope_scaling=rope[1],
        dtype=dtype,
        param_dtype=dtype,
        family=family.model_type,
    )


def _named_by_file(kind: Callable[..., _Built]) -> Callable[..., _Built]:
    """Return a function that builds what `kind` does, whose errors begin with the file's name."""

    def build(**values: Any) -> _Built:
        try:
            return kind(**values)
        except UserError as error:
            raise UserError(f"config.json: {error}") from None

    return build


def _rope_fields(fields: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """Remove the RoPE fields from `fields`, in any spelling, and return them.

    The base may stand at the top, in `rope_parameters` (transformers 5) or in `rope_scaling`
    (version 4); Hugging Face's own code reads all three.

    Raises:
        UserError: If two of them disagree, or the rule is not handled.
    """
    tables = {name: fields.pop(name, None) or {} for name in ("rope_parameters", "rope_scaling")}
    tables["config.json"] = {}
    if (top := fields.pop("rope_theta", None)) is not None:
        tables["config.json"] = {"rope_theta": top}
    merged: dict[str, tuple[str, Any]] = {}  # by field: where it stands, and its value
    for place, table in tables.items():
        if not isinstance(table, dict):
            raise UserError(f"config.json: {place}={table!r}: not a table")
        for name, value in table.items():
            name = "rope_type" if name == "type" else name
            before, known = merged.setdefault(name, (place, value))
            if known != value:
                raise UserError(
                    f"config.json: {name} is {known!r} in {before} and {value!r} in {place}"
                )
    rule = {name: value for name, (_, value) in merged.items() if value is not None}
    theta = rule.pop("rope_theta", 10_000.0)  # Hugging Face's default
    kind = rule.pop("rope_type", "default")
    if rule.get("partial_rotary_factor") == 1.0:
        del rule["partial_rotary_factor"]
    if kind == "default":
        if rule:
            raise UserError(f"config.json: rope_parameters {rule!r} are not handled")
        return theta, None
    if kind != "llama3":
        raise UserError(f"config.json: rope_type={kind!r} is not handled (default and llama3 are)")
    names = {f.name for f in dataclasses.fields(RopeScaling)}
    if set(rule) != names:
        raise UserError(
            f"config.json: llama3 rope scaling needs {sorted(names)}, found {sorted(rule)}"
        )
    return theta, _named_by_file(RopeScaling)(**rule)


def config_to_hf(config: LlamaConfig) -> dict[str, Any]:
    """Return the fields of a `config.json` that transformers reads back as the same model.

    Version 5 reads `rope_parameters` and `dtype`; version 4 reads `rope_theta`, `rope_scaling` and
    `torch_dtype`.
    """
    scaling = config.rope_scaling and {"rope_type": "llama3", **vars(config.rope_scaling)}
    rope = {"rope_theta": config.rope_theta, **(scaling or {"rope_type": "default"})}
    family = FAMILIES[config.family]
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "hidden_act": "silu",
        **family.fields(config),
        "attention_dropout": 0.0,
        **{name: getattr(config, name) for name in sorted(_COPIED)},
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "rope_parameters": rope,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "dtype": config.param_dtype,
        "torch_dtype": config.param_dtype,
    }


def read_config(folder: Path, dtype: DType = "bfloat16") -> LlamaConfig:
    """Read the config of a model folder; UserError if there is none or it is not JSON."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: no config.json there; give the folder of a Hugging Face model")
    check_not_pointer(path)
    try:
        fields = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({reason(error)})") from None
    if not isinstance(fields, dict):
        raise UserError(f"{path}: not a JSON object")
    try:
        return config_from_hf(fields, dtype)
    except UserError as error:
        raise UserError(f"{folder}/{error}") from None
