"""Soft prompts: starts, search spaces, files, and the same logits in PEFT."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig, config_to_hf
from jaxalign.lm.transformer import Llama
from jaxalign.lm.weights import abstract_params, block_weights, is_weight, weight_tree
from jaxalign.methods.soft_prompt import space as sp

KEY = jax.random.key(7)
V, D = 200, 12
decode = jax.jit(sp.decode)
populate = jax.jit(sp.initial_population, static_argnums=2)
EMBED = 0.3 * jax.random.normal(jax.random.key(1), (V, D)) + 0.1


def config(**fields) -> sp.SoftPromptConfig:
    return sp.SoftPromptConfig(**{"length": 4, **fields})


def space(**fields) -> sp.Space:
    c = config(**fields)
    return sp.make_space(c, sp.initial_prompt(c, EMBED, [3, 5, 8], KEY), EMBED)


# --- configuration ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"length": 0}, "length=0"),
        ({"spread": 0.0}, "spread=0.0"),
        ({"spread": float("nan")}, "spread=nan"),
        ({"projection_dims": 0}, "projection_dims=0"),
        ({"projection": "principal", "projection_dims": 7}, "projection_dims=7"),
        ({"projection_seed": -1}, "projection_seed=-1"),
        ({"vocabulary_top": 0}, "vocabulary_top=0"),
        ({"text": "From {Country}."}, "{Country}"),
        ({"text": " "}, "text is empty"),
    ],
)
def test_impossible_settings_are_refused(fields, says):
    with pytest.raises(UserError, match=says) as caught:
        config(**fields)
    assert "\n" not in str(caught.value)


def test_every_option_is_explained(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(sp.SoftPromptConfig, args=["--help"])
    lines = " ".join(capsys.readouterr().out.split())
    for words in (
        "embedding vectors added",
        "as PEFT does",
        "Black-Box Tuning",
        "root mean square",
    ):
        assert words in lines
    assert tyro.cli(sp.SoftPromptConfig, args=[]) == sp.SoftPromptConfig()


def test_country_fills_the_text():
    assert sp.prompt_text(config(text="In {country}: {country}"), "China") == "In China: China"


# --- starts ----------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 9), ids=st.lists(st.integers(0, V - 1), min_size=1, max_size=9))
def test_text_is_cut_or_repeated(length, ids):
    prompt = sp.initial_prompt(config(length=length), EMBED, ids, KEY)
    assert prompt.dtype == jnp.float32
    expected = (ids * length)[:length]
    np.testing.assert_array_equal(prompt, np.asarray(EMBED)[expected])


@pytest.mark.parametrize("ids", [[], [0, V], [-1]])
def test_text_of_another_tokenizer_is_refused(ids):
    with pytest.raises(UserError, match="initial text"):
        sp.initial_prompt(config(), EMBED, ids, KEY)


def test_vocabulary_start_takes_distinct_low_rows():
    c = config(initialisation="vocabulary", length=10, vocabulary_top=10)
    prompt = sp.initial_prompt(c, EMBED, [], KEY)
    rows = [int(np.flatnonzero((np.asarray(EMBED) == p).all(1))[0]) for p in np.asarray(prompt)]
    assert sorted(rows) == list(range(10))
    longer = sp.initial_prompt(config(initialisation="vocabulary", length=V + 1), EMBED, [], KEY)
    assert longer.shape == (V + 1, D)


def test_gaussian_start_has_the_tables_moments():
    table = EMBED * jnp.linspace(0.5, 2, D)[None] + jnp.linspace(-1, 1, D)[None]
    c = config(initialisation="gaussian", length=4000)
    prompt = np.asarray(sp.initial_prompt(c, table.astype(jnp.bfloat16), [], KEY))
    assert prompt.dtype == np.float32
    np.testing.assert_allclose(prompt.mean(0), table.mean(0), atol=0.05)
    np.testing.assert_allclose(prompt.std(0), table.std(0), rtol=0.05)


@pytest.mark.parametrize("initialisation", ["vocabulary", "gaussian"])
def test_start_depends_on_its_own_country_only(initialisation):
    c = config(initialisation=initialisation)
    draws = {
        code: np.asarray(sp.initial_prompt(c, EMBED, [], sp.country_key(KEY, code)))
        for code in ("USA", "CHN")
    }
    alone = sp.initial_prompt(c, EMBED, [], sp.country_key(jax.random.key(7), "CHN"))
    np.testing.assert_array_equal(draws["CHN"], alone)
    assert not np.array_equal(draws["USA"], draws["CHN"])


# --- spaces ----------------------------------------------------------------------------------


def test_full_space_is_start_plus_scaled_z():
    s = space()
    assert s.dims == 4 * D
    z = jax.random.normal(KEY, (3, 5, s.dims))
    prompts = decode(s, z)
    assert prompts.shape == (3, 5, 4, D)
    assert prompts.dtype == jnp.float32
    rms = float(jnp.sqrt(jnp.mean(EMBED**2)))
    np.testing.assert_allclose(
        prompts, s.start[None, None] + 0.5 * rms * z.reshape(3, 5, 4, D), atol=1e-6
    )
    np.testing.assert_array_equal(sp.decode(s, jnp.zeros(s.dims)), s.start)


def subspace(dims):
    """Settings of the full space, or of a random projection to `dims`."""
    return {} if dims is None else {"projection": "random", "projection_dims": dims}


@pytest.mark.parametrize("dims", [None, 5, 30])
def test_unit_variance_displaces_by_scale(dims):
    c = config(**subspace(dims), length=16, spread=0.7)
    start = sp.initial_prompt(c, EMBED, [1, 2], KEY)
    s = sp.make_space(c, start, EMBED)
    np.testing.assert_allclose(s.scale, 0.7 * np.sqrt(np.mean(np.asarray(EMBED) ** 2)), rtol=1e-5)
    z = populate(s, KEY, 401)[1:]
    moved = (np.asarray(decode(s, z)) - np.asarray(start)) / float(s.scale)
    assert abs(np.sqrt(np.mean(moved**2)) - 1) < 0.12
    assert abs(moved.mean()) < 0.02


FROZEN_PROJECTION = [0.4098871, -0.3700106, 0.2602081, 0.1304727]


def test_projection_comes_from_its_seed():
    random = {"projection": "random", "projection_dims": 6}
    a, b, c = space(**random), space(**random), space(**random, projection_seed=1)
    np.testing.assert_array_equal(a.matrix, b.matrix)
    assert not np.array_equal(a.matrix, c.matrix)
    # Frozen: another generator would silently turn saved search vectors into other prompts.
    np.testing.assert_allclose(np.asarray(a.matrix)[[0, 5], 0, :2].ravel(), FROZEN_PROJECTION, 1e-5)
    z = jnp.arange(6.0)
    by_hand = a.start + a.scale * jnp.einsum("z,zmd->md", z, a.matrix, precision="highest")
    np.testing.assert_allclose(decode(a, z), by_hand, atol=1e-5)


def test_principal_directions_are_the_tables():
    """Against numpy's singular values of the centred table; unit variance moves by `scale`."""
    k = 2
    s = space(projection="principal", projection_dims=4 * k)
    centred = np.asarray(EMBED, np.float64) - np.asarray(EMBED, np.float64).mean(0)
    _, deviations, directions = np.linalg.svd(centred / np.sqrt(len(centred)), full_matrices=False)
    expected = deviations[:k, None] * directions[:k] * np.sqrt(D) / np.linalg.norm(deviations[:k])
    for m in range(4):
        for i in range(k):
            row = np.asarray(s.matrix[m * k + i])
            sign = np.sign(row[m] @ expected[i])
            np.testing.assert_allclose(row[m], sign * expected[i], atol=1e-4)
            assert not np.delete(row, m, axis=0).any(), "a direction moves one token only"
            assert row[m][np.abs(row[m]).argmax()] > 0
    np.testing.assert_allclose(np.sum(np.square(s.matrix)) / (4 * D), 1, rtol=1e-4)


def test_projection_refuses_what_it_cannot_do():
    with pytest.raises(UserError, match="projection_dims=48"):
        space(projection="random", projection_dims=48)
    for s in (space(), space(projection="random", projection_dims=6)):
        with pytest.raises(UserError, match=f"5 numbers .* {s.dims}"):
            sp.decode(s, jnp.zeros(5))


@pytest.mark.parametrize("dims", [None, 20])
def test_members_devices_and_countries_do_not_change_a_bit(dims, devices):
    c = config(**subspace(dims), length=16)
    starts_C = [sp.initial_prompt(c, EMBED, ids, KEY) for ids in ([1], [2, 3], [4])]
    spaces = [sp.make_space(c, start, EMBED) for start in starts_C]
    together = sp.make_space(c, jnp.stack(starts_C), EMBED)
    z_CxExZ = jax.random.normal(KEY, (3, 32, together.dims))
    prompts = np.asarray(decode(together, z_CxExZ))
    for i, alone in enumerate(spaces):
        np.testing.assert_array_equal(decode(alone, z_CxExZ[i]), prompts[i])
        np.testing.assert_array_equal(decode(alone, z_CxExZ[i, 5]), prompts[i, 5])
        np.testing.assert_array_equal(decode(alone, z_CxExZ[i, 4:8]), prompts[i, 4:8])
    mesh = jax.make_mesh((8,), ("members",), axis_types=(AxisType.Auto,), devices=devices)
    sharded = jax.device_put(z_CxExZ, NamedSharding(mesh, PartitionSpec(None, "members")))
    np.testing.assert_array_equal(decode(together, sharded), prompts)
    axes = sp.Space(0, None, None)
    vmapped = jax.jit(jax.vmap(sp.decode, (axes, 0)))
    np.testing.assert_array_equal(vmapped(together, z_CxExZ), prompts)


def test_first_population():
    s = space(projection="random", projection_dims=6)
    z_ExZ = np.asarray(populate(s, KEY, 500))
    assert z_ExZ.shape == (500, 6)
    assert z_ExZ.dtype == np.float32
    np.testing.assert_array_equal(sp.decode(s, z_ExZ[0]), s.start)
    assert abs(z_ExZ[1:].std() - 1) < 0.05
    np.testing.assert_array_equal(sp.initial_population(s, KEY, 5), z_ExZ[:5])
    other = sp.initial_population(s, sp.country_key(KEY, "IND"), 5)
    assert not np.array_equal(other[1:], z_ExZ[1:5])
    with pytest.raises(UserError, match="population=0"):
        sp.initial_population(s, KEY, 0)


# --- files -----------------------------------------------------------------------------------

PROMPT = np.arange(3 * D, dtype=np.float32).reshape(3, D) / 7
METADATA = {"country": "SAU", "seed": 3, "placement": "system", "text": "é", "model": "ab12"}


def test_prompt_round_trip(tmp_path):
    path = tmp_path / "new" / "SAU.safetensors"
    sp.save_prompt(path, jnp.asarray(PROMPT), METADATA)
    sp.save_prompt(path, PROMPT, METADATA)  # replaces
    prompt, metadata = sp.load_prompt(path, D)
    np.testing.assert_array_equal(prompt, PROMPT)
    assert prompt.dtype == np.float32
    assert metadata == METADATA
    assert os.listdir(path.parent) == [path.name]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "USA.safetensors"
    sp.save_prompt(path, PROMPT, METADATA)

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        sp.save_prompt(path, PROMPT + 1, METADATA)
    np.testing.assert_array_equal(sp.load_prompt(path)[0], PROMPT)
    assert os.listdir(tmp_path) == [path.name]


def damaged_prompts(folder: Path) -> dict[str, Path]:
    """Name of the damage -> a file that has it."""
    good = folder / "good"
    sp.save_prompt(good, PROMPT, METADATA)
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
    }
    for name, (contents, metadata) in tensors.items():
        files[name] = folder / name
        save_file(contents, files[name], metadata=metadata)
    return files | {"absent": folder / "absent"}


def test_damaged_prompts_are_named_on_one_line(tmp_path):
    for damage, path in damaged_prompts(tmp_path).items():
        with pytest.raises(UserError) as caught:
            sp.load_prompt(path)
        assert str(path) in str(caught.value), damage
        assert "\n" not in str(caught.value), damage
    with pytest.raises(UserError, match="12 wide, the model 4096"):
        sp.load_prompt(tmp_path / "good", 4096)
    with pytest.raises(UserError, match="non-finite"):
        sp.save_prompt(tmp_path / "nan", PROMPT * np.nan, {})
    assert not (tmp_path / "nan").exists()


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(0, 10_000))
def test_no_truncation_is_read(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "prompt"
    sp.save_prompt(path, PROMPT, METADATA)
    whole = path.read_bytes()
    path.write_bytes(whole[: cut % len(whole)])
    with pytest.raises(UserError, match="prompt"):
        sp.load_prompt(path)


# --- PEFT ------------------------------------------------------------------------------------


def test_peft_layout(tmp_path):
    """The file names, tensor name and fields that PEFT 0.21 itself writes and needs."""
    folder = tmp_path / "USA"
    sp.save_peft(folder, PROMPT, "some/model", D)
    assert sorted(os.listdir(folder)) == ["adapter_config.json", "adapter_model.safetensors"]
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
    prompt, fields = sp.load_peft(folder, D)
    np.testing.assert_array_equal(prompt, PROMPT)
    assert fields["base_model_name_or_path"] == "some/model"


def test_only_the_front_goes_to_peft(tmp_path):
    with pytest.raises(UserError, match="placement system"):
        sp.save_peft(tmp_path / "new", PROMPT, "some/model", D, placement="system")
    with pytest.raises(UserError, match="12 wide, the model 64"):
        sp.save_peft(tmp_path / "new", PROMPT, "some/model", 64)
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
    sp.save_peft(tmp_path, PROMPT, "some/model", D)
    path = tmp_path / "adapter_config.json"
    fields = json.loads(path.read_text())
    path.unlink()
    if changes is not None:
        path.write_text(changes if isinstance(changes, str) else json.dumps(fields | changes))
    with pytest.raises(UserError, match=says):
        sp.load_peft(tmp_path)


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
    sp.save_peft(tmp_path / "p", TINY_PROMPT, "tiny", TINY.hidden_size)
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
    prompt, fields = sp.load_peft(tmp_path / "p", TINY.hidden_size)
    np.testing.assert_array_equal(prompt, expected)
    assert fields["num_virtual_tokens"] == len(expected)
