"""Soft prompts on disk: our own file, and folders that PEFT reads and gives equal logits with."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig, config_to_hf
from jaxalign.lm.peft import (
    load_prompt,
    load_prompt_tuning,
    save_prompt,
    save_prompt_tuning,
)
from jaxalign.lm.transformer import Llama, rms_norm
from jaxalign.lm.weights import abstract_params, block_weights, is_weight, weight_tree

D = 12

# --- files -----------------------------------------------------------------------------------

PROMPT = np.arange(3 * D, dtype=np.float32).reshape(3, D) / 7
METADATA = {"country": "SAU", "seed": 3, "placement": "system", "text": "é", "model": "ab12"}


def test_prompt_round_trip(tmp_path):
    path = tmp_path / "new" / "SAU.safetensors"
    save_prompt(path, jnp.asarray(PROMPT), METADATA)
    save_prompt(path, PROMPT, METADATA)  # replaces
    prompt, metadata = load_prompt(path, D)
    np.testing.assert_array_equal(prompt, PROMPT)
    assert prompt.dtype == np.float32
    assert metadata == METADATA
    assert os.listdir(path.parent) == [path.name]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "USA.safetensors"
    save_prompt(path, PROMPT, METADATA)

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_prompt(path, PROMPT + 1, METADATA)
    np.testing.assert_array_equal(load_prompt(path)[0], PROMPT)
    assert os.listdir(tmp_path) == [path.name]


def damaged_prompts(folder: Path) -> dict[str, Path]:
    """Name of the damage -> a file that has it."""
    good = folder / "good"
    save_prompt(good, PROMPT, METADATA)
    files = {name: folder / name for name in ("truncated", "empty", "text", "folder")}
    files["truncated"].write_bytes(good.read_bytes()[:-5])
    files["empty"].write_bytes(b"")
    files["text"].write_text("not a prompt at all, only words\n")
    files["folder"].mkdir()
    ours = {"jaxalign_soft_prompt": "{}"}
    tensors = {
        "foreign": ({"prompt": PROMPT}, None),
        "not-json": ({"prompt": PROMPT}, {"jaxalign_soft_prompt": "[1"}),
        "other-tensor": ({"weight": PROMPT}, ours),
        "two-tensors": ({"prompt": PROMPT, "extra": PROMPT}, ours),
        "three-axes": ({"prompt": PROMPT[None]}, ours),
        "no-tokens": ({"prompt": PROMPT[:0]}, ours),
        "integers": ({"prompt": PROMPT.astype(np.int32)}, ours),
        "not-finite": ({"prompt": PROMPT * np.float32(np.nan)}, ours),
        "squares-overflow": ({"prompt": np.full_like(PROMPT, 1e20)}, ours),
    }
    for name, (contents, metadata) in tensors.items():
        files[name] = folder / name
        save_file(contents, files[name], metadata=metadata)
    return files | {"absent": folder / "absent"}


def test_damaged_prompts_are_named_on_one_line(tmp_path):
    for damage, path in damaged_prompts(tmp_path).items():
        with pytest.raises(UserError) as caught:
            load_prompt(path)
        assert str(path) in str(caught.value), damage
        assert "\n" not in str(caught.value), damage
    with pytest.raises(UserError, match="12 wide, the model 4096"):
        load_prompt(tmp_path / "good", 4096)
    with pytest.raises(UserError, match="non-finite"):
        save_prompt(tmp_path / "nan", PROMPT * np.nan, {})
    assert not (tmp_path / "nan").exists()


def test_the_largest_prompt_is_the_one_whose_squares_the_model_can_add(tmp_path):
    """Beyond it `rms_norm` divides by infinity, and every token reads as zeros."""
    largest = np.sqrt(np.finfo(np.float32).max / D)
    scale = jnp.ones(D)
    for factor, taken in ((0.9, True), (1.1, False)):
        prompt = np.full((3, D), factor * largest, np.float32)
        assert bool(rms_norm(jnp.asarray(prompt), scale, 1e-5).any()) == taken
        if taken:
            save_prompt(tmp_path / "large", prompt, METADATA)
            np.testing.assert_array_equal(load_prompt(tmp_path / "large")[0], prompt)
        else:
            with pytest.raises(UserError, match=r"the prompt's token 1 .* squares overflow"):
                save_prompt(tmp_path / "too large", prompt, METADATA)


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(0, 10_000))
def test_no_truncation_is_read(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "prompt"
    save_prompt(path, PROMPT, METADATA)
    whole = path.read_bytes()
    path.write_bytes(whole[: cut % len(whole)])
    with pytest.raises(UserError, match="prompt"):
        load_prompt(path)


# --- PEFT ------------------------------------------------------------------------------------


def test_peft_layout(tmp_path):
    """The file names, tensor name and fields that PEFT 0.21 itself writes and needs."""
    folder = tmp_path / "USA"
    save_prompt_tuning(folder, PROMPT, "some/model", D)
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert sorted(os.listdir(folder)) == names
    assert json.loads((folder / "adapter_config.json").read_text()) == {
        "base_model_name_or_path": "some/model",
        "inference_mode": True,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": 3,
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "RANDOM",
        "task_type": "CAUSAL_LM",
        "token_dim": D,
    }
    with safe_open(folder / "adapter_model.safetensors", "numpy") as file:
        assert list(file.keys()) == ["prompt_embeddings"]
        assert file.metadata() == {"format": "pt"}
        np.testing.assert_array_equal(file.get_tensor("prompt_embeddings"), PROMPT)
    prompt, fields = load_prompt_tuning(folder, D)
    np.testing.assert_array_equal(prompt, PROMPT)
    assert fields["base_model_name_or_path"] == "some/model"


def test_only_the_front_goes_to_peft(tmp_path):
    with pytest.raises(UserError, match="placement system"):
        save_prompt_tuning(tmp_path / "new", PROMPT, "some/model", D, placement="system")
    with pytest.raises(UserError, match="12 wide, the model 64"):
        save_prompt_tuning(tmp_path / "new", PROMPT, "some/model", 64)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "LORA"}, "peft_type='LORA'"),
        ({"num_transformer_submodules": 2}, "encoder-decoder"),
        ({"num_virtual_tokens": 4}, "adapter_model.safetensors: prompt"),
        ({"token_dim": None}, "adapter_model.safetensors: prompt"),
        ("[]", "adapter_config.json: not a PEFT config"),
        ("{", "adapter_config.json: not a PEFT config"),
        (None, "adapter_config.json: cannot be read"),
    ],
)
def test_damaged_peft_folders(tmp_path, changes, says):
    save_prompt_tuning(tmp_path, PROMPT, "some/model", D)
    path = tmp_path / "adapter_config.json"
    fields = json.loads(path.read_text())
    path.unlink()
    if changes is not None:
        path.write_text(changes if isinstance(changes, str) else json.dumps(fields | changes))
    with pytest.raises(UserError, match=says):
        load_prompt_tuning(tmp_path)


TINY = LlamaConfig(40, 16, 24, 2, 4, 2, 4, dtype="float32", param_dtype="float32")
TOKENS_BxT = np.array([[1, 5, 9, 2, 30], [7, 7, 0, 39, 11]])
TINY_PROMPT = (0.9 * np.sin(1.7 * np.arange(3 * 16) ** 1.1)).astype(np.float32).reshape(3, 16)


def tiny_params() -> dict:
    """Weights by a formula, so that frozen logits hang on no random generator."""
    leaves, tree = jax.tree.flatten(abstract_params(TINY))
    return tree.unflatten(
        [
            jnp.asarray(0.5 * np.sin(1.3 * np.arange(x.size) ** 1.07 + i), x.dtype).reshape(x.shape)
            for i, x in enumerate(leaves)
        ]
    )


def our_logits(prompt_MxD: np.ndarray) -> np.ndarray:
    """Logits [B, V] of the last token, the prompt before everything."""
    params = tiny_params()
    prompt_BxMxD = np.broadcast_to(prompt_MxD, (2, *prompt_MxD.shape))
    inputs = np.concatenate([prompt_BxMxD, np.asarray(params["embed"])[TOKENS_BxT]], axis=1)
    return np.asarray(jax.jit(Llama(TINY).apply)({"params": params}, inputs))[:, -1]


def hugging_face_weights() -> dict[str, np.ndarray]:
    """`tiny_params` under Hugging Face's names and shapes."""
    params, last = tiny_params(), TINY.num_hidden_layers - 1
    outer = {k: v for k, v in weight_tree(TINY).items() if is_weight(v)}
    found = {w.hf_name: _theirs(w, params[name]) for name, w in outer.items()}
    for name, w in block_weights(TINY).items():
        layers = [*params["layers"][name], params["last"][name]]
        for i in range(last + 1):
            found[f"model.layers.{i}.{w.hf_name}"] = _theirs(w, layers[i])
    return found


def _theirs(weight, ours) -> np.ndarray:
    ours = np.array(ours)
    return ours.reshape(weight.fan_in, -1).T.copy() if weight.transposed else ours


def frozen_logits(folder: Path) -> np.ndarray:
    """What `peft_logits` gave with torch 2.13.0, peft 0.21.2, transformers 5.23.0: first eight."""
    return np.array(FROZEN_LOGITS)


def peft_logits(folder: Path) -> np.ndarray:
    """Logits [B, V] of the last token from PEFT, which loads the folder itself."""
    import peft
    import torch
    import transformers

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config_to_hf(TINY)))
    weights = {k: torch.from_numpy(v) for k, v in hugging_face_weights().items()}
    model.load_state_dict(weights, strict=True)
    adapted = peft.PeftModel.from_pretrained(model.float().eval(), folder)
    with torch.no_grad():
        return adapted(input_ids=torch.from_numpy(TOKENS_BxT)).logits[:, -1].numpy()


def written_by_peft(folder: Path) -> np.ndarray:
    """PEFT saves a prompt of its own into `folder`; the prompt [M, D] comes back."""
    import peft
    import transformers

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config_to_hf(TINY)))
    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    adapted = peft.get_peft_model(model, settings)
    adapted.save_pretrained(folder)
    return adapted.prompt_encoder["default"].embedding.weight.detach().numpy()


def written_as_peft_does(folder: Path) -> np.ndarray:
    """The same files by hand, with the fields PEFT 0.21.2 was seen to write."""
    fields = {
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "modules_to_save": None,
        "num_attention_heads": 4,
        "num_layers": 2,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": 3,
        "peft_type": "PROMPT_TUNING",
        "peft_version": "0.21.2",
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "revision": None,
        "task_type": "CAUSAL_LM",
        "token_dim": 16,
        "tokenizer_kwargs": None,
        "tokenizer_name_or_path": None,
    }
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    weights = {"prompt_embeddings": TINY_PROMPT}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return TINY_PROMPT


FROZEN_LOGITS = [
    [0.1168072, 0.4214208, -0.6520394, 0.4316362, 0.3233711, -0.7981533, 0.3301728, 0.4328208],
    [-0.2742238, -0.4177707, 0.7498043, -0.4853566, -0.3013301, 0.7996987, -0.4167997, -0.3260346],
]


@pytest.mark.parametrize(
    "reference", [frozen_logits, pytest.param(peft_logits, marks=pytest.mark.reference)]
)
def test_peft_gives_the_same_logits(tmp_path, reference):
    save_prompt_tuning(tmp_path / "p", TINY_PROMPT, "tiny", TINY.hidden_size)
    theirs = reference(tmp_path / "p")
    ours = our_logits(TINY_PROMPT)[:, : theirs.shape[1]]
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    without = our_logits(TINY_PROMPT[:1])[:, : theirs.shape[1]]
    assert np.abs(without - theirs).max() > 0.05 * np.abs(theirs).max()  # the prompt matters


@pytest.mark.parametrize(
    "write", [written_as_peft_does, pytest.param(written_by_peft, marks=pytest.mark.reference)]
)
def test_what_peft_writes_is_read(tmp_path, write):
    expected = write(tmp_path / "p")
    prompt, fields = load_prompt_tuning(tmp_path / "p", TINY.hidden_size)
    np.testing.assert_array_equal(prompt, expected)
    assert fields["num_virtual_tokens"] == len(expected)
