"""Presets and `config.json` in both spellings: what is read, and that nothing is guessed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.core.errors import UserError
from jaxalign.lm.config import (
    PRESETS,
    LlamaConfig,
    RopeScaling,
    config_from_hf,
    config_to_hf,
    read_config,
)
from jaxalign.lm.transformer import Llama
from jaxalign.lm.weights import abstract_params, count_params, init_params

# Published sizes: Llama 3 8B and 70B (3.1 and 3.3 have the same shapes), 3.2 1B and 3B.
COUNTS = {"8b": 8_030_261_248, "70b": 70_553_706_496, "1b": 1_235_814_400, "3b": 3_212_749_824}

SMALL = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
}
LLAMA3_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# Meta-Llama-3.1-8B-Instruct's config.json, as published (old spelling).
LLAMA_3_1_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {**LLAMA3_ROPE, "rope_type": "llama3"},
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 128256,
}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_has_the_published_size(name: str) -> None:
    assert count_params(PRESETS[name]) == COUNTS[name.split("-")[1]]


@pytest.mark.parametrize("name", PRESETS)
def test_preset_shapes(name: str) -> None:
    """The table of weights, the initialiser and the Flax model agree on shapes, up to 70B.

    Nothing is allocated.
    """
    config = PRESETS[name]
    params = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
    assert params == abstract_params(config)
    tokens = jax.ShapeDtypeStruct((2, 7), jnp.int32)
    declared = jax.eval_shape(Llama(config).init, jax.random.key(0), tokens)
    assert declared == {"params": params}
    logits = jax.eval_shape(Llama(config).apply, {"params": params}, tokens)
    assert (logits.shape, logits.dtype) == ((2, 7, config.vocab_size), jnp.float32)


def test_published_file_is_the_preset() -> None:
    assert config_from_hf(LLAMA_3_1_8B) == PRESETS["llama3.1-8b"]


def test_old_and_new_spelling_are_the_same() -> None:
    old = {**SMALL, "rope_theta": 5e5, "rope_scaling": {**LLAMA3_ROPE, "rope_type": "llama3"}}
    older = {**SMALL, "rope_theta": 5e5, "rope_scaling": {**LLAMA3_ROPE, "type": "llama3"}}
    new = {
        **SMALL,
        "rope_parameters": {**LLAMA3_ROPE, "rope_type": "llama3", "rope_theta": 5e5},
    }
    assert config_from_hf(old) == config_from_hf(new) == config_from_hf(older)
    assert config_from_hf(old).rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192)


def test_unscaled_rope_in_both_spellings() -> None:
    new = {"rope_parameters": {"rope_type": "default", "rope_theta": 7e3}}
    for rope in ({"rope_theta": 7e3}, {"rope_theta": 7e3, "rope_scaling": None}, new):
        config = config_from_hf(SMALL | rope)
        assert (config.rope_theta, config.rope_scaling) == (7e3, None)


def test_silent_fields_mean_what_hugging_face_means() -> None:
    few = {k: v for k, v in SMALL.items() if k not in ("num_key_value_heads", "rms_norm_eps")}
    config = config_from_hf(few)
    assert config.num_key_value_heads == 4
    assert config.head_dim == 8
    assert config.rms_norm_eps == 1e-6
    assert config.rope_theta == 10_000.0
    assert not config.tie_word_embeddings


# SmolLM2-135M-Instruct's config.json on the hub.
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 49152,
}
# Settings of decoding in a full dump of version 4.
DUMP = {
    "early_stopping": False,
    "length_penalty": 1.0,
    "num_return_sequences": 1,
    "typical_p": 1.0,
    "diversity_penalty": 0.0,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "forced_eos_token_id": None,
    "remove_invalid_values": False,
    "suppress_tokens": None,
}


def test_the_hubs_config_of_smollm2() -> None:
    config = config_from_hf(SMOLLM2)
    assert (config.num_hidden_layers, config.hidden_size, config.head_dim) == (30, 576, 64)
    assert (config.num_attention_heads, config.num_key_value_heads) == (9, 3)
    assert (config.rope_theta, config.tie_word_embeddings, config.vocab_size) == (1e5, True, 49152)
    assert count_params(config) == 134_515_008


# Fields that models derived from Llama have on the hub, beside those of `LLAMA_3_1_8B`.
DERIVED = {
    "TinyLlama-1.1B-Chat-v1.0": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "max_position_embeddings": 2048,
        "num_hidden_layers": 22,
        "num_key_value_heads": 4,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "vocab_size": 32000,
        "transformers_version": "4.35.0",
    },
    "Llama-3.2-1B-Instruct": {
        "_name_or_path": "meta-llama/Llama-3.2-1B-Instruct",
        "eos_token_id": [128001, 128008, 128009],
        "head_dim": 64,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "rope_scaling": {**LLAMA3_ROPE, "factor": 32.0, "rope_type": "llama3"},
        "tie_word_embeddings": True,
    },
    "unsloth": {
        "_flash_attn_2_enabled": True,
        "pad_token_id": 128004,
        "unsloth_fixed": True,
        "unsloth_version": "2024.9",
    },
    "saved again by transformers 5": {
        "dtype": "bfloat16",
        "rope_parameters": {**LLAMA3_ROPE, "rope_type": "llama3", "rope_theta": 500000.0},
        "rope_scaling": None,
        "layer_types": ["full_attention"] * 32,
    },
}


@pytest.mark.parametrize("name", DERIVED)
def test_derived_models_of_the_hub(name: str) -> None:
    fields = LLAMA_3_1_8B | DERIVED[name]
    config = config_from_hf(fields)
    for field in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"):
        assert getattr(config, field) == fields[field]
    heads = fields["num_attention_heads"]
    assert config.head_dim == fields.get("head_dim", fields["hidden_size"] // heads)
    tied = {"Llama-3.2-1B-Instruct": PRESETS["llama3.2-1b"], "unsloth": PRESETS["llama3.1-8b"]}
    if name in tied:
        assert config == tied[name]


def test_fields_that_change_nothing_are_read() -> None:
    inert = DUMP | {"layer_types": ["full_attention"] * 2, "use_sliding_window": False}
    assert config_from_hf(SMALL | inert) == config_from_hf(SMALL)


def test_a_rope_base_inside_the_scaling_counts() -> None:
    """As `LlamaConfig` of transformers reads it, and no other base beside it."""
    for rule in ({"rope_type": "default"}, {"rope_type": "llama3", **LLAMA3_ROPE}):
        config = config_from_hf(SMALL | {"rope_scaling": rule | {"rope_theta": 5e5}})
        assert config.rope_theta == 5e5
        same = SMALL | {"rope_scaling": rule | {"rope_theta": 5e5}, "rope_theta": 5e5}
        assert config_from_hf(same) == config


@pytest.mark.parametrize("name", PRESETS)
def test_written_config_reads_back(name: str) -> None:
    fields = json.loads(json.dumps(config_to_hf(PRESETS[name])))
    assert config_from_hf(fields) == PRESETS[name]


@pytest.mark.parametrize("name", ["llama3-8b", "llama3.2-1b"])
def test_transformers_reads_and_writes_our_config(name: str) -> None:
    """A config written by transformers is read: every field that it adds is known."""
    from transformers import LlamaConfig as HFConfig

    theirs = HFConfig.from_dict(config_to_hf(PRESETS[name]))
    assert theirs.head_dim == PRESETS[name].head_dim
    assert config_from_hf(theirs.to_dict()) == PRESETS[name]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "gemma2"),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("attention_dropout", 0.1),
        ("pretraining_tp", 2),
        ("quantization_config", {"bits": 4}),
        ("partial_rotary_factor", 0.5),
        ("sliding_window", 4096),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("rope_interleaved", True),
        ("pruned_heads", {"0": [1]}),
        ("chunk_size_feed_forward", 8),
        ("qk_norm", True),  # a field that nobody has heard of
    ],
)
def test_unhandled_field_raises_with_name_and_value(field: str, value: object) -> None:
    with pytest.raises(UserError) as caught:
        config_from_hf(SMALL | {field: value})
    assert f"{field}={value!r}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type='yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type='linear'"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope_type='dynamic'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_parameters": {"rope_theta": 1e4, "factor": 3.0}}, "3.0"),
        ({"rope_parameters": "abc"}, "'abc': not a table"),
        ({"rope_theta": "abc"}, "rope_theta='abc'"),
        ({"rope_parameters": {**LLAMA3_ROPE, "rope_type": "llama3", "beta": 1}}, "beta"),
        (
            {"rope_parameters": {"rope_theta": 1e4}, "rope_theta": 5e5},
            "rope_theta is 10000.0 in rope_parameters and 500000.0 in config.json",
        ),
        (
            {
                "rope_parameters": {**LLAMA3_ROPE, "rope_type": "llama3"},
                "rope_scaling": {**LLAMA3_ROPE, "type": "llama3", "factor": 32.0},
            },
            "factor is 8.0 in rope_parameters and 32.0 in rope_scaling",
        ),
    ],
)
def test_unhandled_rope_raises(rope: dict, words: str) -> None:
    with pytest.raises(UserError, match="rope") as caught:
        config_from_hf(SMALL | rope)
    assert words in str(caught.value)


@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "num_attention_heads"])
def test_missing_field_raises_with_its_name(field: str) -> None:
    with pytest.raises(UserError, match=f"missing field {field}"):
        config_from_hf({k: v for k, v in SMALL.items() if k != field})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 1}, "num_hidden_layers=1"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3"),
        ({"head_dim": 7}, "head_dim=7"),
        ({"num_attention_heads": 0}, "num_attention_heads=0: must be a whole number"),
        ({"vocab_size": 97.0}, "vocab_size=97.0: must be a whole number"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps='1e-5': must be a number above 0"),
        ({"rope_theta": -1.0}, "rope_theta=-1.0: must be a number above 0"),
    ],
)
def test_impossible_shapes_raise(changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        LlamaConfig(64, 32, 48, 2, 4, 2, 8).replace(**changes)


@pytest.mark.parametrize("value", [0, "4", None])
@pytest.mark.parametrize("field", ["num_attention_heads", "hidden_size"])
def test_fields_of_another_type_raise(field: str, value: object) -> None:
    with pytest.raises(UserError, match=field):
        config_from_hf(SMALL | {field: value})


def test_written_config_is_read_by_transformers_4() -> None:
    """Version 4 reads the old names, and without them would assume a RoPE base of 10,000."""
    fields = config_to_hf(PRESETS["llama3.1-8b"])
    published = {name: LLAMA_3_1_8B[name] for name in ("rope_theta", "rope_scaling", "torch_dtype")}
    assert {name: fields[name] for name in published} == published


def test_read_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(UserError, match=r"config\.json: not JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    assert read_config(tmp_path, "float32") == config_from_hf(SMALL, "float32")


# -- beside transformers, on random files ---------------------------------------------------------

thetas = st.sampled_from([1e4, 5e5, 1e6])
rules = st.sampled_from(
    [
        {},
        {"rope_type": "default"},
        {"type": "default"},
        {"rope_type": "llama3", **LLAMA3_ROPE},
        {"type": "llama3", **LLAMA3_ROPE},
        {"rope_type": "llama3", **LLAMA3_ROPE, "factor": 32.0},
    ]
)


@st.composite
def rope_tables(draw: st.DrawFn) -> dict[str, object] | None:
    """Return a table of the rotary embedding, with or without its base; or none, or null."""
    rule = draw(rules)
    if draw(st.booleans()):
        return rule | {"rope_theta": draw(thetas)}
    return rule or None


@st.composite
def config_files(draw: st.DrawFn) -> dict[str, object]:
    """Return the fields of a config.json, each as some version or program writes it."""
    fields = dict(SMALL)
    heads = draw(st.sampled_from([2, 4]))
    fields["num_attention_heads"] = heads
    fields["num_key_value_heads"] = draw(st.sampled_from([1, 2, heads, None]))
    optional = {
        "head_dim": st.sampled_from([None, 8, 16]),
        "rope_theta": thetas,
        "rope_scaling": rope_tables(),
        "rope_parameters": rope_tables(),
        "tie_word_embeddings": st.booleans(),
        "rms_norm_eps": st.sampled_from([1e-6, 1e-5]),
        "max_position_embeddings": st.sampled_from([64, 8192]),
        "initializer_range": st.sampled_from([0.01, 0.02]),
        "layer_types": st.just(["full_attention"] * 2),
        "attention_bias": st.just(False),
        "pretraining_tp": st.just(1),
        "use_cache": st.booleans(),
    }
    for name, values in optional.items():
        if draw(st.booleans()):
            fields[name] = draw(values)
        elif name in fields and draw(st.booleans()):
            del fields[name]
    return fields


def stated_bases(fields: dict[str, Any]) -> set[float]:
    tables = [fields.get("rope_scaling"), fields.get("rope_parameters")]
    stated = [(fields, "rope_theta"), *((table or {}, "rope_theta") for table in tables)]
    return {holder[name] for holder, name in stated if name in holder}


def stated_rules(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the different rules that a file states, without bases."""
    rules = []
    for name in ("rope_scaling", "rope_parameters"):
        rule = {k: v for k, v in (fields.get(name) or {}).items() if k != "rope_theta"}
        rule["rope_type"] = rule.pop("type", rule.get("rope_type", "default"))
        if fields.get(name) and rule not in rules:
            rules.append(rule)
    return rules


@settings(max_examples=150, deadline=None, derandomize=True)
@given(fields=config_files())
def test_a_config_means_what_transformers_reads_or_is_refused(fields: dict[str, Any]) -> None:
    from transformers import LlamaConfig as HFConfig

    try:
        ours = config_from_hf(fields)
    except UserError:
        # Two statements that differ are refused, whichever of them transformers happens to take.
        assert len(stated_bases(fields)) > 1 or len(stated_rules(fields)) > 1
        return
    theirs = HFConfig.from_dict(json.loads(json.dumps(fields)))
    rope = theirs.rope_parameters
    assert ours.rope_theta == rope["rope_theta"]
    scaling = None if ours.rope_scaling is None else dataclasses.asdict(ours.rope_scaling)
    expected = {name: rope[name] for name in LLAMA3_ROPE} if rope["rope_type"] == "llama3" else None
    assert scaling == expected
    for name in (
        *("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
        *("rms_norm_eps", "tie_word_embeddings", "max_position_embeddings", "initializer_range"),
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
