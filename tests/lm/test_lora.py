"""LoRA: no change at first, merged equals attached, logits and files equal those of PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.core.errors import UserError
from jaxalign.lm.checkpoint import load_checkpoint
from jaxalign.lm.config import config_to_hf
from jaxalign.lm.lora import (
    Adapter,
    LoraConfig,
    abstract_adapter,
    adapter_weights,
    attach,
    init_adapter,
    merge,
)
from jaxalign.lm.model import LM, ModelFiles
from jaxalign.lm.peft import load_lora, save_lora
from jaxalign.lm.quantize import quantize
from jaxalign.lm.transformer import AXES, Llama
from jaxalign.lm.weights import init_params, param_shardings
from jaxalign.runtime.sharding import make_mesh, named_sharding
from tests.support.parity_cases import BASE, CASES, hf_weights

CASE = CASES[1]
TOKENS_BxT = CASE.inputs()[0]
SETTINGS = [LoraConfig(), LoraConfig(3, 5.0, ("q", "v", "o", "down"))]
# What PEFT 0.21.2 with torch 2.13.0 gave for `test_peft_gives_the_same_logits`, all linear layers.
FROZEN = [[-0.598137, 3.350403, 1.505298, -2.132713], [-0.105838, -1.986367, 1.456453, 1.08741]]


def adapter_of(lora: LoraConfig) -> dict:
    """An adapter with both matrices away from zero, from a formula without random numbers."""
    leaves, tree = jax.tree.flatten(abstract_adapter(BASE, lora))
    wave = lambda x, i: 0.3 * np.sin(1.9 * np.arange(x.size) ** 1.05 + i)  # noqa: E731
    return tree.unflatten(
        [jnp.asarray(wave(x, i), x.dtype).reshape(x.shape) for i, x in enumerate(leaves)]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The model of `parity_cases`, in Hugging Face layout."""
    from safetensors.numpy import save_file

    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(json.dumps(config_to_hf(BASE)))
    save_file(hf_weights(BASE), path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def params(folder):
    return load_checkpoint(folder, BASE)


def logits(params) -> np.ndarray:
    return np.asarray(jax.jit(Llama(BASE).apply)({"params": params}, TOKENS_BxT))


def largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, relative to the largest logit."""
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.long
@pytest.mark.parametrize("lora", SETTINGS)
def test_a_new_adapter_changes_nothing(params, lora):
    adapter = init_adapter(BASE, lora, jax.random.key(0))
    np.testing.assert_array_equal(logits(attach(params, adapter, lora)), logits(params))


@pytest.mark.long
def test_a_new_adapter_starts_as_pefts_does():
    """A uniform in +-1/sqrt(inputs) (Kaiming's bound with a = sqrt 5), B zero."""
    adapter = init_adapter(BASE, LoraConfig(rank=64), jax.random.key(1))
    a = np.asarray(adapter["layers"]["down_a"])
    bound = BASE.intermediate_size**-0.5
    assert np.abs(a).max() <= bound
    assert a.std() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert not any(np.any(x) for n, x in adapter["last"].items() if n.endswith("_b"))


@pytest.mark.parametrize("lora", SETTINGS)
def test_merged_equals_unmerged(params, lora):
    adapter = adapter_of(lora)
    beside = logits(attach(params, adapter, lora))
    assert largest_difference(logits(merge(params, adapter, lora)), beside) < 1e-5
    assert largest_difference(logits(params), beside) > 0.05


@pytest.mark.long
def test_gradients_reach_the_adapter_alone(params):
    """They follow from those of the merged weights: dL/dB = scale * A^T dL/dW."""
    lora, adapter = SETTINGS[0], adapter_of(SETTINGS[0])
    loss = lambda p: jnp.mean(jnp.square(Llama(BASE).apply({"params": p}, TOKENS_BxT)))  # noqa: E731
    found = jax.grad(lambda a: loss(attach(params, a, lora)))(adapter)
    dense = jax.grad(loss)(merge(params, adapter, lora))
    expected = lora.scale * np.einsum(
        "dr,df->rf", np.asarray(adapter["last"]["up_a"]), np.asarray(dense["last"]["up"])
    )
    np.testing.assert_allclose(found["last"]["up_b"], expected, rtol=1e-3, atol=1e-5)


def test_sharded_adapter_gives_the_same_logits(params, devices):
    config, lora = BASE, SETTINGS[0]
    mesh = make_mesh(devices[:4], population=1, data=2, model=2)
    adapter = adapter_of(lora)
    place = lambda x, weight: jax.device_put(x, named_sharding(mesh, weight.axes, weight.shape))  # noqa: E731
    placed = jax.tree.map(place, adapter, adapter_weights(config, lora))
    spread = jax.device_put(params, param_shardings(config, mesh))
    assert placed["last"]["q_b"].sharding.shard_shape((8, 6, 8)) == (8, 3, 8)
    alone = logits(attach(params, adapter, lora))
    assert largest_difference(logits(attach(spread, placed, lora)), alone) < 1e-5


@pytest.mark.parametrize("lora", SETTINGS)
def test_saved_and_loaded(tmp_path, lora):
    adapter = adapter_of(lora)
    save_lora(tmp_path, adapter, BASE, lora, "some/model")
    found, loaded = load_lora(tmp_path, BASE)
    assert found == lora
    jax.tree.map(np.testing.assert_array_equal, loaded, adapter)


@pytest.mark.parametrize("lora", SETTINGS)
def test_an_adapter_is_a_value(folder, params, tmp_path, lora):
    """Its methods are the functions, on whole models."""
    lm = LM(ModelFiles(folder, BASE, None), params, make_mesh(jax.devices()[:1]))
    adapter = Adapter(adapter_of(lora), lora, BASE, "some/model")
    adapter.save_peft(str(tmp_path / "new" / "adapter"))
    again = Adapter.load(str(tmp_path / "new" / "adapter"), lm)
    assert (again.config, again.model, again.base_model) == (lora, BASE, str(folder))
    jax.tree.map(np.testing.assert_array_equal, again.weights, adapter.weights)
    expected = logits(attach(params, adapter.weights, lora))
    np.testing.assert_array_equal(logits(again.attach(lm).params), expected)
    merged = logits(merge(params, adapter.weights, lora))
    np.testing.assert_array_equal(logits(again.merge(lm).params), merged)
    assert again.attach(lm).files is lm.files


@pytest.mark.reference
@pytest.mark.parametrize("lora", SETTINGS)
def test_peft_gives_the_same_logits(folder, params, tmp_path, lora):
    adapter = adapter_of(lora)
    save_lora(tmp_path, adapter, BASE, lora, str(folder))
    expected = peft_logits(folder, tmp_path)
    assert largest_difference(logits(attach(params, adapter, lora)), expected) < 1e-5


def test_frozen_peft_logits(params):
    """The numbers that torch gave. A change means that the adapter is applied differently."""
    lora = SETTINGS[0]
    found = logits(attach(params, adapter_of(lora), lora))[:, -1, :4]
    np.testing.assert_allclose(found, FROZEN, rtol=2e-4, atol=2e-4)


@pytest.mark.reference
def test_what_peft_writes_is_read(folder, params, tmp_path):
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    settings = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False
    )
    adapted = peft.get_peft_model(model, settings).eval()
    adapted.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = adapted(input_ids=torch.from_numpy(TOKENS_BxT).long()).logits.numpy()
    lora, adapter = load_lora(tmp_path, BASE)
    assert lora == LoraConfig(4, 8.0, ("q", "down"))
    assert largest_difference(logits(attach(params, adapter, lora)), expected) < 1e-5


def peft_logits(folder: Path, adapter: Path) -> np.ndarray:
    import peft
    import torch
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        return adapted(input_ids=torch.from_numpy(TOKENS_BxT).long()).logits.numpy()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"use_dora": True}, "use_dora=True is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not supported"),
        ({"alora_invocation_tokens": [5]}, r"alora_invocation_tokens=\[5\] is not supported"),
        ({"r": "8"}, "r='8'"),
        ({"r": 0}, "r=0"),
        ({"r": 7}, "for this model and rank 7 it is"),
        ({"lora_alpha": None}, "lora_alpha=None"),
        ({"target_modules": ["embed_tokens"]}, "target_modules"),
        ({"target_modules": ["q_proj"]}, "holds"),
        ("{", "not a PEFT config"),
    ],
)
def test_damaged_folders(tmp_path, changes, says):
    save_lora(tmp_path, adapter_of(SETTINGS[0]), BASE, SETTINGS[0], "some/model")
    path = tmp_path / "adapter_config.json"
    fields = json.loads(path.read_text())
    path.write_text(changes if isinstance(changes, str) else json.dumps(fields | changes))
    with pytest.raises(UserError, match=says):
        load_lora(tmp_path, BASE)


def test_another_models_adapter_is_refused(tmp_path):
    save_lora(tmp_path, adapter_of(SETTINGS[0]), BASE, SETTINGS[0], "some/model")
    with pytest.raises(UserError, match="lacks"):
        load_lora(tmp_path, BASE.replace(num_hidden_layers=4))
    with pytest.raises(UserError, match="for this model and rank 8 it is"):
        load_lora(tmp_path, BASE.replace(intermediate_size=96))


def test_unknown_targets_are_refused():
    with pytest.raises(UserError, match="targets"):
        LoraConfig(targets=("q_proj",))


@pytest.mark.long
def test_int8_kernels(params):
    """Each weight is within half a step of its scale; the model uses the rounded weights."""
    small, rounded = quantize(BASE, params), dict(params)
    for part, name in [(p, n) for p in ("layers", "last") for n in AXES]:
        kernel = np.asarray(params[part][name])
        inputs = kernel.ndim - np.asarray(small[part][f"{name}_scale"]).ndim
        first = 1 if part == "layers" else 0
        scale = np.expand_dims(small[part][f"{name}_scale"], tuple(range(first, first + inputs)))
        assert small[part][name].dtype == np.int8
        rounded[part] = rounded[part] | {name: jnp.asarray(small[part][name] * scale)}
        assert (np.abs(rounded[part][name] - kernel) <= scale * 0.5001).all()
    assert small["layers"]["o_scale"].shape == (2, 48)
    assert largest_difference(logits(small), logits(rounded)) < 1e-5
    assert largest_difference(logits(small), logits(params)) > 1e-3
    lora, adapter = SETTINGS[0], adapter_of(SETTINGS[0])
    beside = logits(attach(rounded, adapter, lora))
    assert largest_difference(logits(attach(small, adapter, lora)), beside) < 1e-5


def test_int8_kernels_are_not_merged_into(params):
    lora = SETTINGS[0]
    with pytest.raises(ValueError, match="merge before quantize"):
        merge(quantize(BASE, params), adapter_of(lora), lora)


@pytest.mark.long
def test_int8_of_a_kernel_with_a_zero_output():
    params = init_params(BASE, jax.random.key(0))
    params["last"]["q"] = params["last"]["q"].at[:, 0, 0].set(0)
    small = quantize(BASE, params)
    assert np.isfinite(logits(small)).all()
    assert not np.any(small["last"]["q"][:, 0, 0])
