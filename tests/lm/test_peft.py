"""LoRA folders as PEFT writes them: which layers, which ranks and scales, and the same logits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jaxalign.core.errors import UserError
from jaxalign.lm.checkpoint import load_checkpoint
from jaxalign.lm.config import config_to_hf
from jaxalign.lm.lora import LoraConfig, merge
from jaxalign.lm.peft import load_lora
from jaxalign.lm.peft_config import Adapted, adapted_layers
from jaxalign.lm.transformer import Llama
from jaxalign.lm.weights import block_weights
from tests.support.parity_cases import BASE, CASES, hf_weights

TOKENS_BxT = CASES[1].inputs()[0]
WHERE = Path("adapter_config.json")
PATHS = {
    name: w.hf_name.removesuffix(".weight") for name, w in block_weights(BASE).items() if w.fan_in
}
FIELDS = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}


def write(folder: Path, fields: dict[str, Any], ranks: dict[tuple[int, str], int]) -> Path:
    """Write a folder as PEFT does, with random matrices of these ranks."""
    random, tensors = np.random.default_rng(0), {}
    for (layer, name), rank in ranks.items():
        stem = f"base_model.model.model.layers.{layer}.{PATHS[name]}"
        out, inputs = block_weights(BASE)[name].hf_shape
        for half, shape in (("A", (rank, inputs)), ("B", (out, rank))):
            tensors[f"{stem}.lora_{half}.weight"] = random.normal(0, 0.3, shape).astype("float32")
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def updates(folder: Path) -> dict[tuple[int, str], np.ndarray]:
    """Return scale * B A of each layer as loaded, [out, in]; those that are zero left out."""
    lora, weights = load_lora(folder, BASE)
    found = {}
    for name in lora.targets:
        for layer in range(BASE.num_hidden_layers):
            last = layer == BASE.num_hidden_layers - 1
            a, b = (
                weights["last"][f"{name}_{half}"]
                if last
                else weights["layers"][f"{name}_{half}"][layer]
                for half in "ab"
            )
            a, b = np.reshape(a, (-1, lora.rank)), np.reshape(b, (lora.rank, -1))
            found[layer, name] = lora.scale * (np.asarray(a) @ np.asarray(b)).T
    return {place: update for place, update in found.items() if update.any()}


CHANGES = {
    "rank-stabilised": ({"use_rslora": True}, {}),
    "a pattern": ({"target_modules": r".*\.(self_attn\.q|mlp\.down)_proj"}, {}),
    "with paths": ({"target_modules": ["self_attn.q_proj", "mlp.down_proj"]}, {}),
    "one rank of its own": (
        {"rank_pattern": {"q_proj": 2}, "use_rslora": True},
        {(i, "q"): 2 for i in range(3)},
    ),
    "by layer": (
        {"rank_pattern": {r"layers\.1\.mlp.down_proj": 7}, "alpha_pattern": {"0.*q_proj": 1.5}},
        {(1, "down"): 7},
    ),
    "every alpha": ({"alpha_pattern": {".*": 3}}, {}),
    "harmless": (
        {
            "bias": "all",
            "lora_dropout": 0.1,
            "fan_in_fan_out": True,
            "modules_to_save": ["classifier", "score"],
            "megatron_core": "megatron.core",
            "qalora_group_size": 16,
            "loftq_config": {},
            "peft_version": "9.9",
        },
        {},
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_ranks_and_scales(tmp_path, name):
    changes, own_ranks = CHANGES[name]
    ranks = {(i, n): own_ranks.get((i, n), 4) for i in range(3) for n in ("q", "down")}
    fields = FIELDS | changes
    found = updates(write(tmp_path / "a", fields, ranks))
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert set(found) == set(ranks)
    for (layer, module), rank in ranks.items():
        stem = f"base_model.model.model.layers.{layer}.{PATHS[module]}"
        a, b = (tensors[f"{stem}.lora_{half}.weight"] for half in "AB")
        alpha = 3 if name == "every alpha" else 6
        if name == "by layer" and (layer, module) == (0, "q"):
            alpha = 1.5
        scale = alpha / (np.sqrt(rank) if fields.get("use_rslora") else rank)
        np.testing.assert_allclose(found[layer, module], scale * b @ a, rtol=1e-4, atol=1e-6)


def test_equal_layers_keep_their_numbers(tmp_path):
    """Nothing is filled up or scaled where nothing has to be."""
    ranks = {(i, n): 4 for i in range(3) for n in ("q", "down")}
    lora, weights = load_lora(write(tmp_path / "a", FIELDS, ranks), BASE)
    assert lora == LoraConfig(4, 6.0, ("q", "down"))
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    stem = f"base_model.model.model.layers.2.{PATHS['down']}"
    expected = tensors[f"{stem}.lora_B.weight"].T
    np.testing.assert_array_equal(np.asarray(weights["last"]["down_b"]), expected)
    stable, same = load_lora(write(tmp_path / "b", FIELDS | {"use_rslora": True}, ranks), BASE)
    assert stable.scale == pytest.approx(6 / 4**0.5, rel=1e-15)
    jax.tree.map(np.testing.assert_array_equal, same, weights)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"layers_to_transform": 1}, {(1, "q"), (1, "down")}),
        ({"layers_to_transform": [0, 2], "layers_pattern": "layers"}, {(0, "q"), (0, "down")}),
        ({"layers_to_transform": [1], "layers_pattern": "blocks"}, None),
        ({"exclude_modules": ["mlp.down_proj"]}, {(0, "q"), (1, "q")}),
        ({"exclude_modules": r".*\.[1-9]\..*"}, {(0, "q"), (0, "down")}),
        ({"target_modules": "all-linear"}, {(i, n) for i in (0, 1) for n in PATHS}),
        ({"target_modules": r"model\.layers\.1\..*[qk]_proj"}, {(1, "q"), (1, "k")}),
        ({"target_modules": ["model.layers.0.mlp.up_proj", "c_attn"]}, {(0, "up")}),
        ({"target_modules": ["proj"]}, None),  # the end of a name, but not of a part of it
    ],
)
def test_layers(changes, expected):
    config = BASE.replace(num_hidden_layers=2)
    if expected is None:
        with pytest.raises(UserError, match="names no layer of this model"):
            adapted_layers(FIELDS | changes, config, WHERE)
        return
    found = adapted_layers(FIELDS | changes, config, WHERE)
    assert found == dict.fromkeys(expected, Adapted(4, 1.5))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_dora": True}, "use_dora=True is not supported"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"use_qalora": True}, "use_qalora=True"),
        ({"trainable_token_indices": [3]}, r"trainable_token_indices=\[3\]"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"modules_to_save": ["lm_head"]}, "lm_head was trained as a whole"),
        ({"modules_to_save": ["embed_tokens", "score"]}, "embed_tokens was trained as a whole"),
        ({"modules_to_save": ["mlp"]}, "mlp was trained as a whole"),
        ({"target_modules": ["q_proj", "lm_head"]}, "adapts lm_head"),
        ({"target_modules": ".*norm"}, "adapts model.layers.0.input_layernorm"),
        ({"target_modules": None}, "target_modules=None"),
        ({"target_modules": "(q_proj"}, r"\(q_proj' is not a regular expression"),
        ({"rank_pattern": {"q_proj": "8"}}, "r='8'"),
        ({"rank_pattern": {"q_proj": True}}, "r=True"),
        ({"rank_pattern": {"down_proj": 0}}, "layers.0.mlp.down_proj are not a rank"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern=.* must be an object"),
        ({"alpha_pattern": {"q_proj": float("nan")}}, "lora_alpha=nan"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused_by_name(changes, says):
    with pytest.raises(UserError, match=says) as caught:
        adapted_layers(FIELDS | changes, BASE, WHERE)
    assert str(WHERE) in str(caught.value)


def test_an_unknown_setting_is_passed_over_with_a_note(caplog):
    with caplog.at_level("INFO", "jaxalign"):
        adapted_layers(FIELDS | {"new_setting": 3, "newer": False}, BASE, WHERE)
    assert "passed over new_setting=3, which" in caplog.text


def test_a_bias_that_was_trained_is_refused(tmp_path):
    """PEFT's `bias` alone changes nothing in a Llama, which has none."""
    ranks = {(i, "q"): 4 for i in range(3)}
    folder = write(tmp_path / "a", FIELDS | {"target_modules": ["q_proj"]}, ranks)
    path = folder / "adapter_model.safetensors"
    more = {"base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias": np.ones(48, "f4")}
    save_file(load_file(path) | more, path)
    with pytest.raises(UserError, match=r"holds .*q_proj\.base_layer\.bias"):
        load_lora(folder, BASE)


def test_pickles_pointers_and_folders_of_adapters(tmp_path):
    folder = tmp_path / "run" / "adapter"
    folder.parent.mkdir()
    write(folder, FIELDS, {(i, n): 4 for i in range(3) for n in ("q", "down")})
    with pytest.raises(UserError, match=re.escape(f"such as {folder}")):
        load_lora(folder.parent, BASE)
    weights = folder / "adapter_model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match="a Git LFS pointer; run git lfs pull"):
        load_lora(folder, BASE)
    weights.unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04never read")
    with pytest.raises(UserError, match=r"adapter_model\.bin: a pickle"):
        load_lora(folder, BASE)
    config = folder / "adapter_config.json"
    config.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match="a Git LFS pointer; run git lfs pull"):
        load_lora(folder, BASE)


# Against PEFT itself


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """The model of `parity_cases`, in Hugging Face layout."""
    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(json.dumps(config_to_hf(BASE)))
    save_file(hf_weights(BASE), path / "model.safetensors", metadata={"format": "pt"})
    return path


MODULES = [path.split(".")[-1] for path in PATHS.values()]
LISTS = st.lists(st.sampled_from([*MODULES, *PATHS.values()]), min_size=1, max_size=4, unique=True)
KEYS = st.sampled_from(
    [
        "q_proj",
        "mlp.up_proj",
        r"layers\.1\..*",
        r".*\.0\..*",
        "down_proj",
        "model.layers.2.mlp.gate_proj",
    ]
)


@st.composite
def peft_settings(draw) -> dict[str, Any]:
    """Settings of `peft.LoraConfig` that PEFT itself takes."""
    chosen = {
        "r": draw(st.integers(1, 6)),
        "lora_alpha": draw(st.integers(1, 12)),
        "use_rslora": draw(st.booleans()),
        "rank_pattern": draw(st.dictionaries(KEYS, st.integers(1, 6), max_size=2)),
        "alpha_pattern": draw(st.dictionaries(KEYS, st.integers(1, 12), max_size=2)),
    }
    kind = draw(st.sampled_from(["list", "list of some layers", "pattern", "all-linear"]))
    if kind.startswith("list"):
        chosen["target_modules"] = draw(LISTS)
    if kind == "list of some layers":
        layers = draw(st.lists(st.integers(0, 2), min_size=1, max_size=2, unique=True))
        chosen["layers_to_transform"] = layers if len(layers) > 1 else layers[0]
        chosen["layers_pattern"] = draw(st.sampled_from([None, "layers", ["blocks", "layers"]]))
    if kind == "pattern":
        patterns = [r".*\.[12]\..*(q|up)_proj", r"model\.layers\.\d\.self_attn\.[kvo]_proj"]
        chosen["target_modules"] = draw(st.sampled_from([*patterns, ".*down.*"]))
    if kind == "all-linear":
        chosen["target_modules"] = kind
        chosen["exclude_modules"] = draw(st.sampled_from([None, ["v_proj"], r".*\.1\..*"]))
    return chosen


@pytest.mark.reference
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(chosen=peft_settings())
def test_whatever_peft_writes_gives_its_logits(base, tmp_path_factory, chosen):
    import peft
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    try:
        # Both matrices are away from zero.
        adapted = peft.get_peft_model(model, peft.LoraConfig(**chosen, init_lora_weights=False))
    except ValueError:  # everything is excluded
        assume(False)
    adapted.save_pretrained(folder)
    again = transformers.LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    try:
        loaded = peft.PeftModel.from_pretrained(again, folder).eval()
    except RuntimeError:  # PEFT cannot read what it wrote, where patterns overlap
        assume(False)
    tokens = torch.from_numpy(TOKENS_BxT).long()
    with torch.no_grad():
        rounded = loaded(input_ids=tokens).logits.numpy()
        expected = loaded.double()(input_ids=tokens).logits.numpy()
    lora, weights = load_lora(folder, BASE)
    params = merge(load_checkpoint(base, BASE), weights, lora)
    found = np.asarray(_logits(params, TOKENS_BxT))
    # Random adapters of a large scale amplify rounding, PEFT's own as much as ours. So what PEFT
    # loses in float32 is the measure; an adapter that is misread is wrong by 1e-2 and more.
    lost = np.abs(rounded - expected).max()
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max() + 16 * lost


@jax.jit
def _logits(params, tokens_BxT):
    return Llama(BASE).apply({"params": params}, tokens_BxT)
