"""How many devices share one copy of the weights: the mesh, chosen from sizes and explained.

Candidates and examples never need to talk to each other, weights split over devices do (two
all-reduces a layer, as in Megatron-LM, Shoeybi et al. 2019). So the model axis is as short as
memory allows, and longer only where there are fewer candidates than devices to give them to.

Pure arithmetic: asks no device anything.
"""

from __future__ import annotations

import dataclasses
import math

import jax

from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.weights import Weight, count_params, is_weight, weight_tree
from jaxalign.runtime.sharding import MODEL, partition_spec

_ROOM = 0.25  # of a chip's memory, left for everything that is not a weight
# The population, its candidates and two draws for them: what compiled searches were seen to hold.
_SEARCH_COPIES = 4
_ITEM_BYTES = {"float32": 4, "bfloat16": 2}


@dataclasses.dataclass(frozen=True)
class MeshChoice:
    """Sizes of the mesh axes of `jaxalign.runtime.sharding.make_mesh`, and why these."""

    population: int
    data: int
    model: int
    reason: str

    @property
    def sizes(self) -> dict[str, int]:
        """As `make_mesh` takes them."""
        return {"population": self.population, "data": self.data, "model": self.model}

    def describe(self) -> str:
        """One line to print before a run."""
        return (
            f"mesh population {self.population} x data {self.data} x model {self.model}: "
            f"{self.reason}"
        )


def choose_mesh(
    config: LlamaConfig,
    num_devices: int,
    chip_bytes: int,
    population: int | None,
    *,
    search_dims: int = 0,
    model: int | None = None,
    data: int | None = None,
) -> MeshChoice:
    """The mesh for `num_devices` chips of `chip_bytes` memory each.

    `population`: candidates evaluated together; devices that do not share weights go to the
    population axis. None (fine-tuning, decoding): they go to the data axis.
    `search_dims`: numbers of a candidate; every device holds the whole population of them.
    `model`, `data`: override what would be chosen.
    Raises UserError, with the numbers, for a model axis that the devices or the weights' dimensions
    do not divide by, and where no split makes the weights fit.
    """
    if num_devices < 1 or chip_bytes < 1 or (population is not None and population < 1):
        raise UserError(
            f"{num_devices=}, {chip_bytes=}, {population=}: each must be at least 1 to make a mesh"
        )
    if model is None:
        search_bytes = _SEARCH_COPIES * 4 * (population or 0) * search_dims
        model, reason = _choose_model(config, num_devices, chip_bytes, search_bytes, population)
    else:
        _check_model(config, num_devices, model)
        reason = f"model={model} as asked, {_gib(weight_bytes(config, model))} of weights a device"
    rest = num_devices // model
    data = (1 if population is not None else rest) if data is None else data
    if data < 1 or rest % data:
        raise UserError(
            f"data={data} does not divide the {rest} devices that model={model} leaves of "
            f"{num_devices}"
        )
    members = rest // data
    if population is not None and population % members:
        idle = -population % members
        reason += f"; {population} candidates leave {idle} of {members} shares in the last round"
    return MeshChoice(members, data, model, reason)


def weight_bytes(config: LlamaConfig, model: int = 1) -> int:
    """Bytes of weights on each device, with the model axis of this length."""
    per_number = _ITEM_BYTES[config.param_dtype]
    if model == 1:
        return count_params(config) * per_number
    total = 0
    for weight in _weights(config):
        split = model if MODEL in partition_spec(weight.axes) else 1
        total += math.prod(weight.shape) // split * per_number
    return total


def model_axis_lengths(config: LlamaConfig) -> list[int]:
    """Every length of the model axis that divides all weights split along it, ascending."""
    common = math.gcd(*(size for _, size in _split_dimensions(config)))
    return [n for n in range(1, common + 1) if common % n == 0]


def _choose_model(
    config: LlamaConfig,
    num_devices: int,
    chip_bytes: int,
    search_bytes: int,
    population: int | None,
) -> tuple[int, str]:
    """The shortest model axis that fits, longer where devices would have no candidate."""
    lengths = [n for n in model_axis_lengths(config) if num_devices % n == 0]
    budget = int(chip_bytes * (1 - _ROOM)) - search_bytes
    fitting = [n for n in lengths if weight_bytes(config, n) <= budget]
    if not fitting:
        raise UserError(_too_large(config, num_devices, chip_bytes, search_bytes, lengths))
    model, whole = fitting[0], _gib(weight_bytes(config))
    if model == 1:
        reason = f"{whole} of weights fit whole beside the {_gib(chip_bytes - budget)} kept free"
        reason += f" of {_gib(chip_bytes)}"
    else:
        share, before = _gib(weight_bytes(config, model)), lengths[lengths.index(model) - 1]
        reason = f"{whole} of weights in {model} parts of {share} on {_gib(chip_bytes)}"
        reason += f"; in {before} they would not leave {_gib(chip_bytes - budget)} free"
    shares = num_devices // model
    if population is None or shares <= population or model == fitting[-1]:
        return model, reason
    longer = [n for n in fitting if num_devices // n <= population] or fitting[-1:]
    reason += f"; {population} candidates are fewer than {shares} shares, so "
    return longer[0], reason + f"{longer[0]} devices work on each"


def _check_model(config: LlamaConfig, num_devices: int, model: int) -> None:
    if model < 1 or num_devices % model:
        raise UserError(f"model={model} does not divide the {num_devices} devices")
    for name, size in _split_dimensions(config):
        if size % model:
            lengths = ", ".join(map(str, model_axis_lengths(config)))
            raise UserError(
                f"model={model} does not divide {name}={size}; possible for this model: {lengths}"
            )


def _too_large(
    config: LlamaConfig, num_devices: int, chip_bytes: int, search_bytes: int, lengths: list[int]
) -> str:
    most = lengths[-1]
    limits = ", ".join(f"{name}={size}" for name, size in _split_dimensions(config))
    return (
        f"{_gib(weight_bytes(config))} of weights do not fit: the {num_devices} devices and "
        f"{limits} allow at most {most} parts, {_gib(weight_bytes(config, most))} each, and a "
        f"device's {_gib(chip_bytes)} must keep {_ROOM:.0%} free and hold {_gib(search_bytes)} of "
        "the search; take a smaller population, search fewer dimensions, or chips with more memory"
        f"{', or more of them' if most < model_axis_lengths(config)[-1] else ''}"
    )


def _weights(config: LlamaConfig) -> list[Weight]:
    return jax.tree.leaves(weight_tree(config), is_leaf=is_weight)


def _split_dimensions(config: LlamaConfig) -> list[tuple[str, int]]:
    """Name and size of every dimension that the model axis splits, each once."""
    found: dict[str, int] = {}
    for weight in _weights(config):
        for name, size, axis in zip(
            weight.axes, weight.shape, partition_spec(weight.axes), strict=True
        ):
            if axis == MODEL:
                found[name] = size
    return list(found.items())


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"
