"""Which mesh is chosen, what it says, and what it refuses."""

from __future__ import annotations

import math

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.core.errors import UserError
from jaxalign.lm.config import PRESETS, LlamaConfig
from jaxalign.lm.mesh import (
    MeshChoice,
    choose_mesh,
    device_mesh,
    model_axis_lengths,
    weight_bytes,
)
from jaxalign.lm.weights import abstract_params, param_shardings
from jaxalign.runtime.sharding import make_mesh

GIB = 2**30
SMALL = LlamaConfig(64, 32, 48, 3, 8, 4, 8, dtype="float32", param_dtype="float32")
V5E, V5P, V6E, H200 = 16 * GIB, 95 * GIB, 32 * GIB, 139 * GIB


@pytest.mark.parametrize(
    ("model", "devices", "chip_bytes", "population", "sizes"),
    [
        ("llama3-8b", 256, V5E, 4096, (128, 1, 2)),  # 15 GiB do not fit whole on 16
        ("llama3-8b", 64, V5P, 4096, (64, 1, 1)),
        ("llama3-8b", 256, V6E, 4096, (256, 1, 1)),
        ("llama3-70b", 128, V5P, 4096, (64, 1, 2)),
        ("llama3-70b", 8, H200, 256, (4, 1, 2)),
        ("llama3-8b", 1, H200, 256, (1, 1, 1)),
        ("llama3-8b", 256, V5E, None, (1, 128, 2)),  # examples rather than candidates
        ("llama3-8b", 256, V5E, 64, (64, 1, 4)),  # too few candidates for 128 shares
        ("llama3-8b", 256, V5E, 8, (32, 1, 8)),  # and 8 is all that the key-value heads allow
    ],
)
def test_what_is_chosen(model, devices, chip_bytes, population, sizes) -> None:
    choice = choose_mesh(PRESETS[model], devices, chip_bytes, population)
    assert (choice.population, choice.data, choice.model) == sizes


def test_8_bits_are_counted_as_such() -> None:
    """8B takes 15 GiB in bfloat16, which no chip of 15.75 GiB holds, and 8.5 GiB in int8."""
    eight, chip = PRESETS["llama3-8b"], int(15.75 * GIB)
    assert choose_mesh(eight, 4, chip, 64).model == 2
    small = choose_mesh(eight, 4, chip, 64, weights="int8")
    assert small.model == 1
    assert "8.5 GiB of int8 weights fit whole" in small.reason
    with pytest.raises(UserError, match=r"15.0 GiB of weights do not fit"):
        choose_mesh(eight, 1, chip, 64)
    assert choose_mesh(eight, 1, chip, 64, weights="int8").model == 1
    for model in (1, 2, 4):
        mesh = make_mesh(jax.devices()[:model], model=model)
        shapes = jax.tree.leaves(abstract_params(SMALL, "int8", mesh))
        held = (math.prod(s.sharding.shard_shape(s.shape)) * s.dtype.itemsize for s in shapes)
        assert sum(held) == weight_bytes(SMALL, model, "int8")


def test_reason_has_the_numbers() -> None:
    choice = choose_mesh(PRESETS["llama3-8b"], 256, V5E, 4096)
    assert "15.0 GiB of weights in 2 parts of 7.5 GiB on 16.0 GiB" in choice.reason
    assert choice.describe().startswith("mesh population 128 x data 1 x model 2: ")
    assert "64 candidates are fewer than 128 shares" in (
        choose_mesh(PRESETS["llama3-8b"], 256, V5E, 64).reason
    )
    uneven = choose_mesh(PRESETS["llama3-8b"], 256, V5E, 1000)
    assert "1000 candidates leave 24 of 128 shares in the last round" in uneven.reason


def test_override() -> None:
    eight = PRESETS["llama3-8b"]
    choice = choose_mesh(eight, 256, V5E, 4096, model_parallel=8, data_parallel=2)
    assert choice == MeshChoice(16, 2, 8, choice.reason)
    assert "model=8 as asked, 1.9 GiB of weights a device" in choice.reason
    assert choose_mesh(eight, 8, V5E, None, model_parallel=1).sizes == {
        "population": 1,
        "data": 8,
        "model": 1,
    }


@pytest.mark.parametrize(
    ("model", "devices", "chip_bytes", "options", "words"),
    [
        ("llama3-70b", 256, V5E, {}, r"131\.4 GiB of weights do not fit.*kv_heads=8.* 16\.4 GiB"),
        ("llama3-70b", 1, H200, {}, r"the 1 devices .*or more of them"),
        (
            "llama3-8b",
            48,
            V5E,
            {"model_parallel": 3},
            "`model_parallel` 3 does not divide mlp=14336; possible.* 8$",
        ),
        ("llama3-8b", 256, V5E, {"model_parallel": 16}, "` 16 does not divide kv_heads=8"),
        ("llama3-8b", 48, V5E, {"model_parallel": 5}, "` 5 does not divide the 48 devices"),
        (
            "llama3-8b",
            48,
            V5E,
            {"data_parallel": 5},
            "`data_parallel` 5 does not divide the 24 devices that a model axis of 2",
        ),
        ("llama3-8b", 48, V5E, {"model_parallel": 0}, "`model_parallel` 0"),
        ("llama3-8b", 0, V5E, {}, "num_devices=0"),
    ],
)
def test_what_is_refused(model, devices, chip_bytes, options, words) -> None:
    with pytest.raises(UserError, match=words):
        choose_mesh(PRESETS[model], devices, chip_bytes, 4096, **options)


def test_bytes_are_those_of_the_shardings(devices) -> None:
    """Bytes by the table of weights equal those that JAX would put on a device."""
    for model in model_axis_lengths(SMALL):
        shardings = param_shardings(SMALL, make_mesh(devices, model=model))
        shards = jax.tree.map(
            lambda x, s: x.dtype.itemsize * math.prod(s.shard_shape(x.shape)),
            abstract_params(SMALL),
            shardings,
        )
        assert weight_bytes(SMALL, model) == sum(map(int, jax.tree.leaves(shards)))


@given(
    devices=st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16, 48, 256]),
    chip_gib=st.integers(1, 200),
    population=st.none() | st.integers(1, 5000),
    name=st.sampled_from(sorted(PRESETS)),
)
def test_a_choice_uses_every_device_and_fits(devices, chip_gib, population, name) -> None:
    config, chip_bytes = PRESETS[name], chip_gib * GIB
    try:
        choice = choose_mesh(config, devices, chip_bytes, population)
    except UserError:
        lengths = [n for n in model_axis_lengths(config) if devices % n == 0]
        assert weight_bytes(config, lengths[-1]) > 0.75 * chip_bytes
        return
    assert choice.population * choice.data * choice.model == devices
    assert weight_bytes(config, choice.model) <= 0.75 * chip_bytes
    assert choice.data == 1 if population is not None else choice.population == 1


def test_the_search_takes_its_share():
    """The compiler refused 70B in two parts at 96.95 of 95.74 GiB, because several copies of a
    population of 4096 x 131,072 numbers are held beside the weights."""
    llama, chip = PRESETS["llama3-70b"], int(95.74 * 2**30)
    assert choose_mesh(llama, 128, chip, 4096).model == 2
    assert choose_mesh(llama, 128, chip, 4096, search_dims=131_072).model == 4
    assert choose_mesh(PRESETS["llama3-8b"], 256, V5E, 4096, search_dims=65_536).model == 2
    # Eighteen searches beside each other are shared out: more chips, less on each.
    many = {"population": 18 * 1024, "search_dims": 65_536, "searches": 18}
    with pytest.raises(UserError, match="GiB of the search"):
        choose_mesh(PRESETS["llama3-8b"], 1, V5E, **many)
    assert choose_mesh(PRESETS["llama3-8b"], 16, V5E, **many).model == 2
    with pytest.raises(UserError, match="GiB of the search"):
        choose_mesh(llama, 1, chip, 4096, search_dims=131_072)


def test_the_mesh_of_the_devices_here(devices):
    mesh, choice = device_mesh(
        PRESETS["llama3-8b"].replace(num_hidden_layers=2), 16, model_parallel=2
    )
    assert dict(mesh.shape) == choice.sizes == {"population": 4, "data": 1, "model": 2}
    assert set(mesh.devices.flat) == set(devices)
