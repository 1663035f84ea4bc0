"""Choose the device mesh: how many devices share one copy of the weights, and why.

Candidates and examples are independent of each other, but devices that share weights must
communicate (two all-reduces per layer, as in Megatron-LM, Shoeybi et al. 2019). The model axis is
therefore as short as memory allows, and longer only where there are fewer candidates than devices.

`choose_mesh` is pure arithmetic and asks no device; `device_mesh` applies it to the devices of this
machine.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.weights import Weight, WeightFormat, is_weight, weight_tree
from jaxalign.runtime.hosts import agreed
from jaxalign.runtime.memory import available_bytes
from jaxalign.runtime.sharding import MODEL, make_mesh, partition_spec

ROOM = 0.25  # share of a chip's memory that is kept free for everything but weights
# Copies that compiled searches hold: of the searches on a device, their members and candidates; of
# its stretch of candidates, one to evaluate; of the one search that is asked, two sets of draws.
_HELD_COPIES, _STRETCH_COPIES, _ASKED_COPIES = 2, 1, 2
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclasses.dataclass(frozen=True)
class MeshChoice:
    """Sizes of the mesh axes of `jaxalign.runtime.sharding.make_mesh`, and the reason for them."""

    population: int
    data: int
    model: int
    reason: str

    @property
    def sizes(self) -> dict[str, int]:
        """Return the sizes as the arguments of `make_mesh`."""
        return {"population": self.population, "data": self.data, "model": self.model}

    def describe(self) -> str:
        """Return one line that says which mesh was chosen and why."""
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
    searches: int = 1,
    model_parallel: int | None = None,
    data_parallel: int | None = None,
    weights: WeightFormat = "stored",
) -> MeshChoice:
    """Choose the mesh for `num_devices` chips of `chip_bytes` memory each.

    Args:
        config: The model.
        num_devices: Number of devices.
        chip_bytes: Memory of each device, in bytes.
        population: Number of candidates that are evaluated together; devices that do not share
            weights go to the population axis. None (fine-tuning, decoding): they go to the data
            axis.
        search_dims: Number of values in a candidate.
        searches: Number of searches that the candidates belong to, in equal parts; a device holds
            those whose candidates it evaluates.
        model_parallel: Length of the model axis; default: chosen here.
        data_parallel: Length of the data axis; default: 1 with a population, else all that the
            model axis leaves.
        weights: Storage of the linear layers, as in `load_model`: int8 takes half of bfloat16.

    Returns:
        The sizes of the mesh axes and the reason for them.

    Raises:
        UserError: With the numbers, if an axis does not divide the devices or the dimensions of the
            weights, or if the weights fit in no split.
    """
    if num_devices < 1 or chip_bytes < 1 or (population is not None and population < 1):
        raise UserError(
            f"{num_devices=}, {chip_bytes=}, {population=}: each must be at least 1 to make a mesh"
        )
    if model_parallel is None:

        def search_bytes(model: int) -> int:
            members = num_devices // model // (data_parallel or 1)
            return _search_bytes(population or 0, searches, search_dims, max(1, members))

        model, reason = _choose_model(
            config, num_devices, chip_bytes, search_bytes, population, weights
        )
    else:
        _check_model(config, num_devices, model_parallel)
        model = model_parallel
        share = _gib(weight_bytes(config, model, weights))
        reason = f"model={model} as asked, {share} of {_kind(weights)} a device"
    # What the model axis leaves goes to candidates or to examples.
    rest = num_devices // model
    data = data_parallel
    if data is None:
        data = 1 if population is not None else rest
    if data < 1 or rest % data:
        raise UserError(
            f"`data_parallel` {data} does not divide the {rest} devices that a model axis of "
            f"{model} leaves of {num_devices}"
        )
    members = rest // data
    if population is not None and population % members:
        idle = -population % members
        reason += f"; {population} candidates leave {idle} of {members} shares in the last round"
    return MeshChoice(members, data, model, reason)


def device_mesh(
    config: LlamaConfig,
    population: int | None,
    *,
    search_dims: int = 0,
    searches: int = 1,
    model_parallel: int | None = None,
    data_parallel: int | None = None,
    weights: WeightFormat = "stored",
) -> tuple[Mesh, MeshChoice]:
    """Make the mesh that `choose_mesh` chooses for all devices of all processes.

    Takes the arguments of `choose_mesh`, and raises UserError as it does. The memory of a device is
    what the first local device of process 0 reports.

    Returns:
        The mesh, and the choice, whose `describe()` is worth showing.
    """
    memory = agreed(available_bytes(jax.local_devices()[0]) or sys.maxsize)
    choice = choose_mesh(
        config,
        jax.device_count(),
        memory,
        population,
        search_dims=search_dims,
        searches=searches,
        model_parallel=model_parallel,
        data_parallel=data_parallel,
        weights=weights,
    )
    return make_mesh(**choice.sizes), choice


def weight_bytes(config: LlamaConfig, model: int = 1, weights: WeightFormat = "stored") -> int:
    """Return the bytes of weights on each device.

    Args:
        config: The model.
        model: Length of the model axis.
        weights: Storage of the linear layers, as in `load_model`.
    """
    total = 0
    for weight in _weights(config, weights):
        split = model if MODEL in partition_spec(weight.axes) else 1
        total += math.prod(weight.shape) // split * _ITEM_BYTES[weight.dtype or config.param_dtype]
    return total


def model_axis_lengths(config: LlamaConfig) -> list[int]:
    """Return every length of the model axis that divides all weights split along it, ascending."""
    # An axis length must divide heads, key-value heads, feed-forward and vocabulary alike.
    common = math.gcd(*(size for _, size in _split_dimensions(config)))
    return [n for n in range(1, common + 1) if common % n == 0]


def _choose_model(
    config: LlamaConfig,
    num_devices: int,
    chip_bytes: int,
    search_bytes: Callable[[int], int],
    population: int | None,
    weights: WeightFormat,
) -> tuple[int, str]:
    """Return the shortest model axis that fits (longer if devices would be idle), and why."""
    # Weights are read-only, so a copy on each device costs no communication: the shortest axis
    # on which they fit beside the search is the fastest.
    lengths = [n for n in model_axis_lengths(config) if num_devices % n == 0]

    def kept_free(model: int) -> int:
        return chip_bytes - int(chip_bytes * (1 - ROOM)) + search_bytes(model)

    fitting = [n for n in lengths if weight_bytes(config, n, weights) + kept_free(n) <= chip_bytes]
    if not fitting:
        least = min(search_bytes(n) for n in lengths)
        raise UserError(_too_large(config, num_devices, chip_bytes, least, lengths, weights))
    model, whole = fitting[0], f"{_gib(weight_bytes(config, 1, weights))} of {_kind(weights)}"
    if model == 1:
        reason = f"{whole} fit whole beside the {_gib(kept_free(1))} kept free"
        reason += f" of {_gib(chip_bytes)}"
    else:
        share, before = (
            _gib(weight_bytes(config, model, weights)),
            lengths[lengths.index(model) - 1],
        )
        reason = f"{whole} in {model} parts of {share} on {_gib(chip_bytes)}"
        reason += f"; in {before} they would not leave {_gib(kept_free(before))} free"
    shares = num_devices // model
    if population is None or shares <= population or model == fitting[-1]:
        return model, reason
    # Too few candidates for all devices: more devices work on each.
    longer = [n for n in fitting if num_devices // n <= population] or fitting[-1:]
    reason += f"; {population} candidates are fewer than {shares} shares, so "
    return longer[0], reason + f"{longer[0]} devices work on each"


def _search_bytes(candidates: int, searches: int, dims: int, members: int) -> int:
    """Return the bytes that a device of `members` needs for searches, as `optim.shares` has them.

    Args:
        candidates: Candidates of all searches.
        searches: Number of searches.
        dims: Values of a candidate, float32.
        members: Devices along the population axis.
    """
    each, stretch = -(-candidates // searches), -(-candidates // members)
    # A stretch may begin and end within a search.
    held = min(searches, -(-stretch // max(1, each)) + 1)
    vectors = _HELD_COPIES * held * each + _STRETCH_COPIES * stretch + _ASKED_COPIES * each
    return 4 * dims * vectors


def _check_model(config: LlamaConfig, num_devices: int, model: int) -> None:
    if model < 1 or num_devices % model:
        raise UserError(f"`model_parallel` {model} does not divide the {num_devices} devices")
    for name, size in _split_dimensions(config):
        if size % model:
            lengths = ", ".join(map(str, model_axis_lengths(config)))
            raise UserError(
                f"`model_parallel` {model} does not divide {name}={size}; possible for this model: "
                f"{lengths}"
            )


def _too_large(
    config: LlamaConfig,
    num_devices: int,
    chip_bytes: int,
    search_bytes: int,
    lengths: list[int],
    weights: WeightFormat,
) -> str:
    most = lengths[-1]
    limits = ", ".join(f"{name}={size}" for name, size in _split_dimensions(config))
    return (
        f"{_gib(weight_bytes(config, 1, weights))} of {_kind(weights)} do not fit: the "
        f"{num_devices} devices and {limits} allow at most {most} parts, "
        f"{_gib(weight_bytes(config, most, weights))} each, and a "
        f"device's {_gib(chip_bytes)} must keep {ROOM:.0%} free and hold {_gib(search_bytes)} of "
        "the search; take a smaller population, search fewer dimensions, or chips with more memory"
        f"{', or more of them' if most < model_axis_lengths(config)[-1] else ''}"
    )


def _weights(config: LlamaConfig, weights: WeightFormat = "stored") -> list[Weight]:
    return jax.tree.leaves(weight_tree(config, weights), is_leaf=is_weight)


def _kind(weights: WeightFormat) -> str:
    return "weights" if weights == "stored" else f"{weights} weights"


def _split_dimensions(config: LlamaConfig) -> list[tuple[str, int]]:
    """Return name and size of every dimension that the model axis splits, each once."""
    sizes: dict[str, int] = {}
    for weight in _weights(config):
        for name, size, axis in zip(
            weight.axes, weight.shape, partition_spec(weight.axes), strict=True
        ):
            if axis == MODEL:
                sizes[name] = size
    return list(sizes.items())


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"
