"""Families of models: what their `config.json` says, and parity with transformers and PEFT.

The parity table is `test_parity`: every family against the full model, LoRA, soft prompts and
decoding.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.core.errors import UserError
from jaxalign.lm.checkpoint import load_checkpoint, save_checkpoint
from jaxalign.lm.config import config_from_hf, config_to_hf
from jaxalign.lm.families import FAMILIES
from jaxalign.lm.generate import generate
from jaxalign.lm.lora import attach
from jaxalign.lm.peft import load_lora, save_lora
from jaxalign.lm.quantize import quantize
from jaxalign.lm.sampling import Sampling
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.lm.transformer import Llama
from jaxalign.lm.weights import count_params, init_params, param_shardings, weight_tree
from jaxalign.runtime.sharding import make_mesh
from tests.support.decode_cases import NEW_TOKENS, STOP, peft_model, transformers_replies
from tests.support.family_cases import (
    MODELS,
    decode_case,
    logits_case,
    write_model,
    write_speaking_model,
)
from tests.support.parity_cases import Case, hf_weights, transformers_logits, transformers_model

TOLERANCE = 1e-5  # of the largest logit
COMMON = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
}
QWEN = COMMON | {"bos_token_id": 151643, "eos_token_id": 151645, "use_sliding_window": False}
# What the hub's config.json files say, and how many parameters the models are said to have.
PUBLISHED = {
    "Mistral-7B-v0.1": (
        7_241_732_096,
        {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
            "vocab_size": 32000,
        }
        | COMMON,
    ),
    "Qwen2.5-0.5B-Instruct": (
        494_032_768,
        {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "max_position_embeddings": 32768,
            "max_window_layers": 21,
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "vocab_size": 151936,
        }
        | QWEN,
    ),
    "Qwen2.5-7B-Instruct": (
        7_615_616_512,
        {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "max_position_embeddings": 32768,
            "max_window_layers": 28,
            "num_attention_heads": 28,
            "num_hidden_layers": 28,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 131072,
            "tie_word_embeddings": False,
            "vocab_size": 152064,
        }
        | QWEN,
    ),
    "Qwen3-0.6B": (
        596_049_920,
        {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "model_type": "qwen3",
            "head_dim": 128,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "max_position_embeddings": 40960,
            "max_window_layers": 28,
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "vocab_size": 151936,
        }
        | QWEN,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_size(name: str) -> None:
    parameters, fields = PUBLISHED[name]
    config = config_from_hf(fields)
    assert count_params(config) == parameters
    assert config_from_hf(json.loads(json.dumps(config_to_hf(config)))) == config


def test_a_window_is_the_longest_sequence() -> None:
    _, fields = PUBLISHED["Mistral-7B-v0.1"]
    config = config_from_hf(fields)
    assert (config.max_position_embeddings, config.sliding_window) == (4096, 4096)
    whole = config_from_hf(fields | {"sliding_window": None})
    assert (whole.max_position_embeddings, whole.sliding_window) == (32768, None)
    with pytest.raises(UserError, match="windows are not computed"):
        config.replace(max_position_embeddings=4097)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("Mistral-7B-v0.1", {"sliding_window": "all"}, "sliding_window='all'"),
        ("Mistral-7B-v0.1", {"layer_types": ["chunked_attention"]}, "chunked_attention"),
        ("Mistral-7B-v0.1", {"attention_bias": True}, "attention_bias=True"),
        ("Qwen2.5-7B-Instruct", {"use_sliding_window": True}, "use_sliding_window=True"),
        ("Qwen2.5-7B-Instruct", {"use_mrope": True}, "use_mrope=True"),
        ("Qwen2.5-7B-Instruct", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn'"),
        ("Qwen3-0.6B", {"attention_bias": True}, "attention_bias=True"),
        ("Qwen3-0.6B", {"layer_types": ["sliding_attention"]}, "only full_attention is"),
        ("Qwen3-0.6B", {"num_experts": 128}, "num_experts=128"),
    ],
)
def test_what_is_not_handled_is_refused_by_name(name: str, changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=r"config\.json") as caught:
        config_from_hf(PUBLISHED[name][1] | changes)
    assert words in str(caught.value)


def test_another_family_is_refused_with_the_list_of_those_that_are_handled() -> None:
    with pytest.raises(UserError, match=r"'gemma2' is not.*llama, mistral, qwen2, qwen3"):
        config_from_hf({"model_type": "gemma2", "vocab_size": 256_000})


@pytest.mark.parametrize("family", MODELS)
def test_transformers_and_we_agree_on_config_and_defaults(family: str) -> None:
    """Every field that transformers writes is known; what a file leaves out means the same."""
    from transformers import AutoConfig

    config = MODELS[family]
    theirs = AutoConfig.for_model(**config_to_hf(config))
    assert theirs.architectures == [FAMILIES[family].architecture]
    assert config_from_hf(theirs.to_dict(), "float32") == config
    few = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    shapes = {name: getattr(config, name) for name in few} | {"num_attention_heads": 32}
    shapes |= {"hidden_size": 64, "model_type": family}
    silent = AutoConfig.for_model(**shapes)
    assert config_from_hf(silent.to_dict()) == config_from_hf(shapes)


@pytest.mark.parametrize("family", MODELS)
def test_the_transformer_declares_the_weights_of_the_table(family: str) -> None:
    config = MODELS[family]
    params = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((2, 7), jnp.int32)
    assert jax.eval_shape(Llama(config).init, jax.random.key(0), tokens) == {"params": params}


def test_biases_begin_at_zero_and_norms_at_one() -> None:
    biased, normed = (
        init_params(MODELS[name], jax.random.key(0))["last"] for name in ("qwen2", "qwen3")
    )
    assert biased["q_bias"].shape == (6, 8)
    assert not any(np.any(biased[f"{name}_bias"]) for name in "qkv")
    assert np.all(normed["k_norm"] == 1)


# The chat template

THINKS = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant"
    "{% if enable_thinking is defined and not enable_thinking %}[no thought]{% endif %}{% endif %}"
)


@pytest.mark.parametrize(("family", "words"), [("qwen3", "[no thought]"), ("qwen2", "")])
def test_a_model_that_may_think_is_asked_for_its_reply(
    family: str, words: str, tmp_path: Path
) -> None:
    """The template is told so, and that is part of the tokenizer's hash."""
    write_speaking_model(tmp_path, family, weights=False)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["chat_template"] = THINKS
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.render([{"role": "user", "content": "?"}]).endswith(f"assistant{words}")
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(MODELS["llama"])))
    assert (Tokenizer.load(tmp_path).sha256 == tokenizer.sha256) is (not words)


# Files


@pytest.mark.parametrize("family", MODELS)
def test_written_read_in_shares_and_in_8_bits(family: str, tmp_path: Path, devices) -> None:
    """What is written has the tensors that were read; 8 bits are those of `quantize`."""
    config = MODELS[family].replace(num_key_value_heads=2)
    write_model(tmp_path / "a", config)
    params = load_checkpoint(tmp_path / "a", config)
    save_checkpoint(tmp_path / "b", params, config)
    same = (tmp_path / "a" / "model.safetensors", tmp_path / "b" / "model.safetensors")
    assert _tensors(same[0]) == _tensors(same[1])
    mesh = make_mesh(devices[:2], population=1, model=2)
    split = load_checkpoint(tmp_path / "a", config, param_shardings(config, mesh))
    jax.tree.map(np.testing.assert_array_equal, split, params)
    eight = load_checkpoint(tmp_path / "a", config, weights="int8")
    jax.tree.map(np.testing.assert_array_equal, eight, quantize(config, params))
    assert jax.tree.structure(eight) == jax.tree.structure(
        jax.tree.map(lambda w: 0, weight_tree(config, "int8"), is_leaf=lambda w: hasattr(w, "axes"))
    )


def _tensors(path: Path) -> dict[str, bytes]:
    from safetensors.numpy import load_file

    return {name: value.tobytes() for name, value in load_file(path).items()}


# Against transformers and PEFT


def off(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, relative to the largest logit."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def forward(config, params, inputs, *more) -> np.ndarray:
    return np.asarray(jax.jit(Llama(config).apply)({"params": params}, inputs, *more))


def full_model(family: str, folder: Path) -> None:
    """Logits of padded rows; and transformers reads the folder that we write."""
    import torch
    from transformers import AutoModelForCausalLM

    case = logits_case(family)
    write_model(folder / "theirs", case.config)
    params = load_checkpoint(folder / "theirs", case.config)
    tokens, positions, mask = case.inputs()
    ours, real = forward(case.config, params, tokens, positions, mask), mask.astype(bool)
    assert off(ours[real], transformers_logits(case)[real]) <= TOLERANCE
    save_checkpoint(folder / "ours", params, case.config)
    again = AutoModelForCausalLM.from_pretrained(folder / "ours", dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = again(input_ids=torch.from_numpy(tokens[:1]).long()).logits.numpy()
    assert off(forward(case.config, params, tokens[:1]), theirs) <= TOLERANCE


def lora(family: str, folder: Path) -> None:
    """An adapter that PEFT wrote gives its logits, and PEFT reads the one that we write."""
    import peft
    import torch

    case, config = decode_case(family), MODELS[family]
    write_model(folder / "model", config)
    base = load_checkpoint(folder / "model", config)
    adapted = peft_model(case, folder / "adapter")
    settings, weights = load_lora(folder / "adapter", config)
    ours = forward(config, attach(base, weights, settings), logits_case(family).inputs()[0])
    tokens = torch.from_numpy(logits_case(family).inputs()[0]).long()
    with torch.no_grad():
        assert off(ours, adapted(input_ids=tokens).logits.numpy()) <= TOLERANCE
    assert off(forward(config, base, logits_case(family).inputs()[0]), ours) > 0.05
    save_lora(folder / "again", weights, config, settings, str(folder / "model"))
    plain = transformers_model(config, hf_weights(config), "float32")
    again = peft.PeftModel.from_pretrained(plain, folder / "again").eval()
    with torch.no_grad():
        assert off(ours, again(input_ids=tokens).logits.numpy()) <= TOLERANCE


def soft_prompt(family: str, folder: Path) -> None:
    """Embeddings before the tokens give the logits that they give in transformers."""
    import torch

    case, config = decode_case(family), MODELS[family]
    write_model(folder, config)
    params, soft = load_checkpoint(folder, config), case.soft_prompt()
    tokens = logits_case(family).inputs()[0][:1]
    x = np.concatenate([soft[None], np.asarray(params["embed"])[tokens]], axis=1)
    model = transformers_model(config, hf_weights(config), "float32")
    with torch.no_grad():
        theirs = model(inputs_embeds=torch.from_numpy(x)).logits.numpy()
    ours = forward(config, params, x)
    assert off(ours, theirs) <= TOLERANCE
    assert off(forward(config, params, tokens), ours[:, len(soft) :]) > 0.05


def decoding(family: str, folder: Path) -> None:
    """Greedy replies with an adapter behind a soft prompt, token for token."""
    case, config = decode_case(family), MODELS[family]
    write_model(folder / "model", config)
    theirs, _ = transformers_replies(case, folder / "adapter")
    assert min(map(len, theirs)) < NEW_TOKENS <= max(map(len, theirs))
    settings, weights = load_lora(folder / "adapter", config)
    params = attach(load_checkpoint(folder / "model", config), weights, settings)
    soft_ids = [config.vocab_size + i for i in range(case.soft_tokens)]
    prompts = [soft_ids + prompt for prompt in case.prompts()]
    greedy = Sampling(max_new_tokens=NEW_TOKENS, temperature=0.0)
    replies = generate(config, params, prompts, greedy, STOP, extra_embeddings=case.soft_prompt())
    assert replies == theirs


@pytest.mark.reference
@pytest.mark.parametrize(
    "what", [full_model, lora, soft_prompt, decoding], ids=lambda check: check.__name__
)
@pytest.mark.parametrize("family", MODELS)
def test_parity(family: str, what, tmp_path: Path) -> None:
    what(family, tmp_path)


def test_every_family_is_in_the_parity_table() -> None:
    assert tuple(MODELS) == FAMILIES.names()


@pytest.mark.reference
def test_a_sequence_as_long_as_the_window_is_seen_whole(tmp_path: Path) -> None:
    """And one that is a token longer is not, so nothing longer may be asked."""
    config = MODELS["mistral"].replace(sliding_window=11, max_position_embeddings=11)
    case = Case("window", config)
    write_model(tmp_path, config)
    ours = forward(config, load_checkpoint(tmp_path, config), case.inputs()[0])
    theirs = transformers_logits(case)
    assert off(ours[:, :11], theirs[:, :11]) <= TOLERANCE
    assert off(ours[:, 11:], theirs[:, 11:]) > 1e-3
