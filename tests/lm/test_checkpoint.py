"""Hugging Face checkpoints: round trips, every kind of damage, and memory while reading."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxalign.core.errors import UserError
from jaxalign.lm import safetensors_io
from jaxalign.lm.checkpoint import load_checkpoint, save_checkpoint, weights_sha256
from jaxalign.lm.config import LlamaConfig, RopeScaling, config_to_hf, read_config
from jaxalign.lm.quantize import quantize
from jaxalign.lm.transformer import Llama
from jaxalign.lm.weights import (
    Params,
    abstract_params,
    count_params,
    init_params,
    param_shardings,
)
from jaxalign.runtime.sharding import make_mesh
from tests.support.parity_cases import hf_weights

CONFIG = LlamaConfig(
    64,
    32,
    48,
    3,
    8,
    4,
    8,
    dtype="float32",
    param_dtype="float32",
    initializer_range=0.2,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64),
)
TIED = CONFIG.replace(tie_word_embeddings=True)
Q0 = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def params() -> Params:
    return init_params(CONFIG, jax.random.key(0))


def assert_same(ours: Params, theirs: Params) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def write_one_file(folder: Path, weights: dict[str, np.ndarray]) -> Path:
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder / "model.safetensors"


def test_names_and_layout_are_hugging_faces(params: Params, tmp_path: Path) -> None:
    """The names are written out here, so that the table of weights is checked independently."""
    save_checkpoint(tmp_path, params, CONFIG)
    stored = load_file(tmp_path / "model.safetensors")
    last, stack = params["last"], params["layers"]
    expected = {
        "model.embed_tokens.weight": params["embed"],
        "lm_head.weight": params["head"].T,
        "model.norm.weight": params["norm"],
        Q0: stack["q"][0].reshape(32, 64).T,
        "model.layers.1.self_attn.k_proj.weight": stack["k"][1].reshape(32, 32).T,
        "model.layers.2.self_attn.v_proj.weight": last["v"].reshape(32, 32).T,
        "model.layers.2.self_attn.o_proj.weight": last["o"].reshape(64, 32).T,
        "model.layers.0.mlp.gate_proj.weight": stack["gate"][0].T,
        "model.layers.1.mlp.up_proj.weight": stack["up"][1].T,
        "model.layers.2.mlp.down_proj.weight": last["down"].T,
        "model.layers.2.input_layernorm.weight": last["attention_norm"],
        "model.layers.0.post_attention_layernorm.weight": stack["mlp_norm"][0],
    }
    for name, value in expected.items():
        np.testing.assert_array_equal(stored[name], value, err_msg=name)
    assert len(stored) == 3 + 9 * 3
    assert read_config(tmp_path, "float32") == CONFIG


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("shard_bytes", [5e9, 20_000, 1], ids=["one", "some", "many"])
def test_round_trip(config: LlamaConfig, shard_bytes: float, tmp_path: Path) -> None:
    params = init_params(config, jax.random.key(1))
    folder = tmp_path / "new" / "model"
    save_checkpoint(folder, params, config, max_shard_bytes=shard_bytes)
    assert_same(load_checkpoint(folder, read_config(folder, "float32")), params)
    sharded = (folder / "model.safetensors.index.json").is_file()
    assert sharded == (shard_bytes < 5e9)
    assert (folder / "model.safetensors").is_file() != sharded
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_index_lists_every_tensor_and_the_bytes(params: Params, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, params, CONFIG, max_shard_bytes=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * count_params(CONFIG)
    files = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    for file in files:
        tensors = load_file(tmp_path / file)
        assert all(index["weight_map"][name] == file for name in tensors)
        assert sum(t.nbytes for t in tensors.values()) <= 20_000


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_stored_dtypes_are_cast(stored: str, wanted: str, tmp_path: Path) -> None:
    weights = {n: w.astype(stored) for n, w in hf_weights(CONFIG).items()}
    write_one_file(tmp_path, weights)
    loaded = load_checkpoint(tmp_path, CONFIG.replace(param_dtype=wanted))
    assert all(leaf.dtype == jnp.dtype(wanted) for leaf in jax.tree.leaves(loaded))
    expected = weights[Q0].astype(wanted).T.reshape(32, 8, 8)
    np.testing.assert_array_equal(loaded["layers"]["q"][0], expected)


def test_bfloat16_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    config = CONFIG.replace(param_dtype="bfloat16")
    params = init_params(config, jax.random.key(2))
    save_checkpoint(tmp_path, params, config)
    stored = load_file(tmp_path / "model.safetensors")
    assert all(tensor.dtype == ml_dtypes.bfloat16 for tensor in stored.values())
    assert_same(load_checkpoint(tmp_path, config), params)


def test_tolerated_tensors(tmp_path: Path) -> None:
    """A tied checkpoint may store its embedding twice; old ones store the frequencies of RoPE."""
    weights = hf_weights(TIED)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    write_one_file(tmp_path, weights)
    loaded = load_checkpoint(tmp_path, TIED)
    assert jax.tree.structure(loaded) == jax.tree.structure(abstract_params(TIED))


def test_tensors_that_contradict_the_config_are_refused(tmp_path: Path) -> None:
    """A head of its own under tied embeddings; frequencies of heads of another size."""
    weights = hf_weights(TIED)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    weights["lm_head.weight"][63, 31] += 1
    write_one_file(tmp_path, weights)
    with pytest.raises(UserError, match=r"lm_head.weight differs from the embeddings"):
        load_checkpoint(tmp_path, TIED)
    weights = hf_weights(CONFIG)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    write_one_file(tmp_path, weights)
    with pytest.raises(UserError, match=r"inv_freq has shape \(8,\); by the config, heads of 8"):
        load_checkpoint(tmp_path, CONFIG)


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 99\n"
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text(pointer)
    with pytest.raises(UserError, match=r"config.json: a Git LFS pointer; run git lfs pull"):
        read_config(tmp_path)
    with pytest.raises(UserError, match=r"model.safetensors: a Git LFS pointer; run git lfs pull"):
        load_checkpoint(tmp_path, CONFIG)


def _drop(weights: dict) -> None:
    del weights[Q0]


def _add(weights: dict) -> None:
    weights["model.layers.0.self_attn.q_proj.bias"] = np.zeros(64, np.float32)


def _turn(weights: dict) -> None:
    weights[Q0] = np.ascontiguousarray(weights[Q0].T)


def _quantise(weights: dict) -> None:
    weights[Q0] = weights[Q0].astype(np.int8)


def _one_layer_more(weights: dict) -> None:
    weights["model.layers.3.mlp.up_proj.weight"] = np.zeros((48, 32), np.float32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_drop, f"tensor {Q0} missing"),
        (_add, "left-over tensor model.layers.0.self_attn.q_proj.bias"),
        (_turn, f"{Q0} has shape (32, 64); by the config it is (64, 32)"),
        (_quantise, f"{Q0} is stored as I8"),
        (_one_layer_more, "left-over tensor model.layers.3.mlp.up_proj.weight"),
    ],
)
def test_wrong_tensors_name_file_and_tensor(change: Callable, words: str, tmp_path: Path) -> None:
    weights = hf_weights(CONFIG)
    change(weights)
    path = write_one_file(tmp_path, weights)
    with pytest.raises(UserError) as caught:
        load_checkpoint(tmp_path, CONFIG)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("broken", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["stored", "int8"])
def test_a_weight_that_is_not_finite_is_named(dtype, broken, kind, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    weights = {key: array.astype(dtype) for key, array in hf_weights(CONFIG).items()}
    # The largest number of the dtype is a number like any other.
    weights[name].flat[0] = ml_dtypes.finfo(dtype).max if dtype != np.float32 else 1.0
    write_one_file(tmp_path, weights)
    load_checkpoint(tmp_path, CONFIG, weights=kind)
    weights[name].flat[-1] = broken
    write_one_file(tmp_path, weights)
    with pytest.raises(UserError, match=rf"{name}: holds NaN or infinity"):
        load_checkpoint(tmp_path, CONFIG, weights=kind)


def test_untied_model_needs_its_head(tmp_path: Path) -> None:
    write_one_file(tmp_path, hf_weights(TIED))
    with pytest.raises(UserError, match=r"lm_head\.weight missing"):
        load_checkpoint(tmp_path, CONFIG)


@pytest.mark.parametrize(
    ("kept", "words"),
    [(0.9, "cut short, .* ends at byte"), (0.001, "cut short, .*header"), (0.0, "cut short")],
)
def test_truncated_file(kept: float, words: str, tmp_path: Path) -> None:
    path = write_one_file(tmp_path, hf_weights(CONFIG))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    for read in (lambda: load_checkpoint(tmp_path, CONFIG), lambda: weights_sha256(tmp_path)):
        with pytest.raises(UserError, match=words) as caught:
            read()
        assert str(path) in str(caught.value)


def test_truncated_file_names_the_first_tensor_lost(tmp_path: Path) -> None:
    path = write_one_file(tmp_path, {"first": np.zeros(4), "second": np.zeros(4)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="cut short, second ends"):
        load_checkpoint(tmp_path, CONFIG)


@pytest.mark.parametrize("header", [b"{nonsense", b"[1, 2]", b'{"a": 3}', b'{"a": {}}'])
def test_damaged_header(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        load_checkpoint(tmp_path, CONFIG)


def test_overlapping_tensors(tmp_path: Path) -> None:
    """An error of safetensors itself becomes one line, too."""
    fields = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"model.norm.weight": fields, "lm_head.weight": fields}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(4)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        load_checkpoint(tmp_path, CONFIG)


def test_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        load_checkpoint(tmp_path, CONFIG)


def test_sharded_folder_with_a_missing_file(params: Params, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, params, CONFIG, max_shard_bytes=20_000)
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(UserError, match=r"missing; .* says that it holds model\.") as caught:
        load_checkpoint(tmp_path, CONFIG)
    assert str(gone) in str(caught.value)


def test_sharded_folder_with_a_missing_tensor(params: Params, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, params, CONFIG, max_shard_bytes=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    path = tmp_path / index["weight_map"][Q0]
    save_file({n: t for n, t in load_file(path).items() if n != Q0}, path)
    with pytest.raises(UserError) as caught:
        load_checkpoint(tmp_path, CONFIG)
    assert str(caught.value) == f"{path}: tensor {Q0} missing"


def test_tensor_in_two_files(params: Params, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, params, CONFIG, max_shard_bytes=20_000)
    first, second = sorted(tmp_path.glob("*.safetensors"))[:2]
    save_file(load_file(first) | load_file(second), second)
    with pytest.raises(UserError, match="in another file as well"):
        load_checkpoint(tmp_path, CONFIG)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {"a": "../a.safetensors"}}']
)
def test_damaged_index(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=r"index\.json: "):
        load_checkpoint(tmp_path, CONFIG)


def test_weights_are_never_overwritten(params: Params, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    save_checkpoint(tmp_path, params, CONFIG)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"holds model\.safetensors already"):
        save_checkpoint(tmp_path, jax.tree.map(jnp.zeros_like, params), CONFIG)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert (tmp_path / "tokenizer.json").read_text() == "{}"


def test_failed_save_leaves_nothing(params: Params, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"embed is \(65, 32\), by the config \(64, 32\)"):
        save_checkpoint(tmp_path, params | {"embed": jnp.zeros((65, 32))}, CONFIG)
    with pytest.raises(UserError, match="not the tree of weights"):
        save_checkpoint(tmp_path, {k: v for k, v in params.items() if k != "norm"}, CONFIG)
    broken = jnp.zeros((32,))
    broken.delete()
    with pytest.raises(RuntimeError, match="deleted"):
        save_checkpoint(tmp_path, params | {"norm": broken}, CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_hash_is_of_the_weights_and_not_of_the_files(params: Params, tmp_path: Path) -> None:
    one, many, other = (tmp_path / name for name in ("one", "many", "other"))
    save_checkpoint(one, params, CONFIG)
    save_checkpoint(many, params, CONFIG, max_shard_bytes=20_000)
    last = params["last"] | {"k": params["last"]["k"].at[3, 1, 2].add(1e-3)}
    save_checkpoint(other, params | {"last": last}, CONFIG)
    assert weights_sha256(one) == weights_sha256(many) != weights_sha256(other)


def test_hash_of_a_large_tensor_sees_both_ends(tmp_path: Path) -> None:
    hashes = set()
    for at in (None, 0, 999_999):
        tensor = np.zeros(1_000_000, np.float32)
        if at is not None:
            tensor[at] = 1
        save_file({"a": tensor}, tmp_path / "model.safetensors")
        hashes.add(weights_sha256(tmp_path))
    assert len(hashes) == 3


def test_weights_are_hashed_once(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process reads them again only if the file has changed."""
    save_checkpoint(tmp_path, params, CONFIG)
    first, read = weights_sha256(tmp_path), []
    monkeypatch.setattr(safetensors_io, "read_spans", lambda path: read.append(path) or {})
    assert weights_sha256(tmp_path) == first
    assert not read
    file = tmp_path / "model.safetensors"
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    weights_sha256(tmp_path)
    assert read


@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
@pytest.mark.parametrize("devices", [1, 4])
def test_peak_memory_while_reading(stored: str, devices: int, tmp_path: Path) -> None:
    """Anonymous memory peaks at no more than 1.3 x the bytes kept (90 MB in bfloat16)."""
    config = LlamaConfig(16_000, 768, 2304, 4, 8, 4, 96, param_dtype=stored)
    make = jax.jit(lambda: jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), shapes))
    shapes = abstract_params(config)
    save_checkpoint(tmp_path, make(), config, max_shard_bytes=5e7)
    probe = [sys.executable, str(Path(__file__).parents[1] / "support" / "memory_probe.py")]
    out = subprocess.run(
        [*probe, str(tmp_path), str(devices)], capture_output=True, text=True, check=True
    )
    found = json.loads(out.stdout.splitlines()[-1])
    assert found["kept"] >= 2 * count_params(config) > 80e6
    assert found["peak"] <= 1.3 * found["kept"], found["peak"] / found["kept"]


@pytest.mark.parametrize("devices", [1, 4])
def test_peak_memory_while_reading_into_8_bits(devices: int, tmp_path: Path) -> None:
    """Beyond the 8-bit weights, a few MiB: never the model, or a parameter of it, as stored."""
    config = LlamaConfig(512, 1024, 4096, 6, 8, 4, 128)
    shapes = abstract_params(config)
    make = jax.jit(lambda: jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), shapes))
    save_checkpoint(tmp_path, make(), config)
    probe = [sys.executable, str(Path(__file__).parents[1] / "support" / "memory_probe.py")]
    out = subprocess.run(
        [*probe, str(tmp_path), str(devices), "int8"], capture_output=True, text=True, check=True
    )
    found = json.loads(out.stdout.splitlines()[-1])
    assert count_params(config) < found["kept"] < 1.1 * count_params(config)
    assert found["peak"] <= found["kept"] + 20e6, found


@pytest.mark.parametrize(
    "sizes", [{}, {"model": 2}, {"model": 4}, {"data": 2, "model": 4}], ids=str
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_8_bits_are_those_of_quantize(params: Params, tmp_path: Path, dtype, sizes) -> None:
    """Also of the matrices whose inputs are split, whose scales need what other devices hold."""
    save_checkpoint(tmp_path, params, CONFIG)
    config = CONFIG.replace(dtype=dtype, param_dtype=dtype)
    mesh = make_mesh(jax.devices()[: math.prod(sizes.values())], **sizes)
    expected = quantize(config, load_checkpoint(tmp_path, config))
    shardings = param_shardings(config, mesh, "int8")
    found = load_checkpoint(tmp_path, config, shardings, weights="int8")
    assert_same(found, expected)
    abstract = abstract_params(config, "int8", mesh)
    for leaf, shape in zip(jax.tree.leaves(found), jax.tree.leaves(abstract), strict=True):
        assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
        assert leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim)


if importlib.util.find_spec("torch"):

    @pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
    @pytest.mark.parametrize("shard_bytes", [5e9, 20_000], ids=["one", "sharded"])
    def test_transformers_loads_it_with_the_same_logits(
        config: LlamaConfig, shard_bytes: float, tmp_path: Path
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        params = init_params(config, jax.random.key(3))
        save_checkpoint(tmp_path, params, config, max_shard_bytes=shard_bytes)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        tokens = np.arange(100, 124).reshape(2, 12) % 64
        with torch.no_grad():
            expected = theirs(torch.from_numpy(tokens)).logits.numpy()
        ours = jax.jit(Llama(config).apply)({"params": params}, jnp.asarray(tokens))
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())

    def test_we_load_what_transformers_writes(tmp_path: Path) -> None:
        from transformers import LlamaConfig as HFConfig
        from transformers import LlamaForCausalLM

        model = LlamaForCausalLM(HFConfig.from_dict(config_to_hf(TIED)))
        model.save_pretrained(tmp_path, max_shard_size="20KB")
        loaded = load_checkpoint(tmp_path, read_config(tmp_path, "float32"))
        expected = model.model.layers[2].mlp.up_proj.weight.detach().numpy().T
        np.testing.assert_array_equal(loaded["last"]["up"], expected)
