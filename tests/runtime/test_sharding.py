"""The mesh, the table of axes, and a model that is split over simulated devices."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxalign.core.errors import UserError
from jaxalign.lm.checkpoint import load_checkpoint, save_checkpoint
from jaxalign.lm.config import PRESETS, LlamaConfig
from jaxalign.lm.transformer import Llama
from jaxalign.lm.weights import abstract_params, init_params, param_shardings
from jaxalign.runtime.sharding import (
    PHYSICAL,
    make_mesh,
    named_sharding,
    partition_spec,
    replicated,
)

CONFIG = LlamaConfig(64, 32, 48, 3, 8, 4, 8, dtype="float32", param_dtype="float32")


def test_mesh_is_auto_and_uses_what_is_left_for_the_population(devices) -> None:
    mesh = make_mesh(model=2)
    assert dict(mesh.shape) == {"population": 4, "data": 1, "model": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert dict(make_mesh(devices[:1]).shape) == {"population": 1, "data": 1, "model": 1}


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"population": 3}, "needs 3 devices, but there are 8"),
        ({"model": 3}, "needs 6 devices, but there are 8"),
        ({"data": 4, "model": 4}, "needs 16 devices, but there are 8"),
        ({"model": 0}, "model=0"),
    ],
)
def test_mesh_that_does_not_fit_the_devices(devices, sizes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_mesh(devices, **sizes)


def test_table() -> None:
    assert partition_spec(("members", None, "embed")) == PartitionSpec("population", None, None)
    assert partition_spec(("batch", "vocab")) == PartitionSpec("data", "model")
    with pytest.raises(TypeError):
        PHYSICAL["embed"] = "model"


def test_collision_and_unknown_axis_are_refused() -> None:
    with pytest.raises(UserError, match="'model' more than once"):
        partition_spec(("heads", "mlp"))
    with pytest.raises(UserError, match="unknown logical axis 'head'"):
        partition_spec(("head",))


def test_shapes_that_do_not_divide_are_refused_with_the_numbers(devices) -> None:
    mesh = make_mesh(devices, model=8)
    with pytest.raises(UserError, match=r"kv_heads=4 of shape \(32, 4, 8\).* 8 devices"):
        named_sharding(mesh, ("embed", "kv_heads", "head_dim"), (32, 4, 8))
    with pytest.raises(UserError, match="2 logical axes"):
        named_sharding(mesh, ("embed", "mlp"), (32,))
    with pytest.raises(UserError, match="kv_heads=4"):
        param_shardings(CONFIG, mesh)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_splits_over_eight(devices, name: str) -> None:
    """A device's share of every large weight is an eighth."""
    mesh = make_mesh(devices, model=8)
    shardings = param_shardings(PRESETS[name], mesh)

    def check(weight: jax.ShapeDtypeStruct, sharding: jax.sharding.NamedSharding) -> None:
        share = np.prod(sharding.shard_shape(weight.shape))
        is_norm = weight.shape[-1] == PRESETS[name].hidden_size and len(weight.shape) < 3
        assert share * 8 == np.prod(weight.shape) or (is_norm and share == np.prod(weight.shape))

    jax.tree.map(check, abstract_params(PRESETS[name]), shardings)


@pytest.mark.long
def test_model_sharded_forward_equals_unsharded(devices) -> None:
    """Heads, feed-forward and vocabulary over 4 devices, examples over 2."""
    params = init_params(CONFIG.replace(initializer_range=0.3), jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (4, 10), 0, CONFIG.vocab_size)
    forward = jax.jit(Llama(CONFIG).apply)
    expected = np.asarray(forward({"params": params}, tokens))
    mesh = make_mesh(devices, data=2, model=4)
    sharded = jax.device_put(params, param_shardings(CONFIG, mesh))
    placed = jax.device_put(tokens, named_sharding(mesh, ("batch", "tokens"), tokens.shape))
    out = forward({"params": sharded}, placed)
    assert len(out.sharding.device_set) == 8
    np.testing.assert_allclose(out, expected, atol=1e-5 * np.abs(expected).max())


def test_load_straight_into_shards(devices, tmp_path: Path) -> None:
    """Each device holds its quarter and no more, and the whole is what was saved."""
    params = init_params(CONFIG, jax.random.key(0))
    save_checkpoint(tmp_path, params, CONFIG, max_shard_bytes=30_000)
    mesh = make_mesh(devices, population=2, model=4)
    loaded = load_checkpoint(tmp_path, CONFIG, param_shardings(CONFIG, mesh))
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    q = loaded["layers"]["q"]  # [L-1, D, N, H]
    assert {shard.data.shape for shard in q.addressable_shards} == {(2, 32, 2, 8)}
    for leaf in (loaded["embed"], loaded["head"], loaded["last"]["down"], loaded["layers"]["k"]):
        assert len(leaf.addressable_shards) == 8
        assert all(shard.data.size * 4 == leaf.size for shard in leaf.addressable_shards)
    assert loaded["norm"].sharding.is_fully_replicated


def test_replicated(devices) -> None:
    x = jax.device_put(jnp.arange(6.0), replicated(make_mesh(devices)))
    assert [shard.data.shape for shard in x.addressable_shards] == [(6,)] * 8
