"""Where arrays live: the device mesh, and the one table from logical axes to mesh axes.

The rest of the package speaks of logical axes ("members", "heads", "vocab"); only this file knows
which mesh axis each of them is split over. Candidates are spread over the mesh axis `population`,
examples over `data`, and a model that is too large for one device over `model` (heads, feed-forward
and vocabulary, as in Megatron-LM, Shoeybi et al. 2019).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxalign.core.errors import UserError

POPULATION, DATA, MODEL = "population", "data", "model"
MESH_AXES = (POPULATION, DATA, MODEL)

# Logical axis -> mesh axis, or several; None: never split.
PHYSICAL = MappingProxyType(
    {
        "members": POPULATION,
        "batch": DATA,
        "blocks": (POPULATION, DATA),  # work that any device can do that has the weights
        "heads": MODEL,
        "kv_heads": MODEL,
        "mlp": MODEL,
        "vocab": MODEL,
        "embed": None,
        "head_dim": None,
        "layers": None,
        "countries": None,
        "questions": None,
        "options": None,
        "tokens": None,
        "rank": None,
    }
)

LogicalAxes = Sequence[str | None]


def make_mesh(
    devices: Sequence[jax.Device] | None = None,
    population: int | None = None,
    data: int = 1,
    model: int = 1,
) -> Mesh:
    """Make a mesh with the axes population, data and model.

    Its axis types are Auto, because evosax raises on JAX's newer default.

    Args:
        devices: The devices; default: all, of all processes.
        population: Length of the population axis; default: the devices divided by `data * model`.
        data: Length of the data axis.
        model: Number of devices that share one copy of the weights.

    Raises:
        UserError: The three lengths multiply to another number than there are devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if min(data, model) < 1 or (population is not None and population < 1):
        raise UserError(f"mesh sizes must be at least 1: {population=}, {data=}, {model=}")
    # At least one, so that too few devices are refused below with the numbers.
    if population is None:
        population = max(1, len(devices) // (data * model))
    shape = (population, data, model)
    if math.prod(shape) != len(devices):
        raise UserError(
            f"mesh population={population} x data={data} x model={model} needs "
            f"{math.prod(shape)} devices, but there are {len(devices)}"
        )
    axis_types = (AxisType.Auto,) * len(shape)
    # Not jax.make_mesh: it refuses to split an axis of a three-dimensional torus.
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, MESH_AXES, axis_types=axis_types)


def partition_spec(axes: LogicalAxes) -> PartitionSpec:
    """Return the mesh axis of each logical axis, for `shard_map` and `with_sharding_constraint`.

    Args:
        axes: Logical axes in the order of an array's dimensions. None stands for a dimension
            without a name, which is never split.

    Raises:
        UserError: A logical axis is not in the table, or two of them use the same mesh axis.
    """
    for axis in axes:
        if axis is not None and axis not in PHYSICAL:
            raise UserError(f"unknown logical axis {axis!r}; known are {', '.join(PHYSICAL)}")
    physical = [None if axis is None else PHYSICAL[axis] for axis in axes]
    used = [axis for split in physical for axis in _mesh_axes(split)]
    # An array cannot be split twice over the same devices.
    for axis in used:
        if used.count(axis) > 1:
            raise UserError(f"logical axes {tuple(axes)} use mesh axis {axis!r} more than once")
    return PartitionSpec(*physical)


def _mesh_axes(split: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the mesh axes that one dimension is split over."""
    return (split,) if isinstance(split, str) else split or ()


def named_sharding(mesh: Mesh, axes: LogicalAxes, shape: Sequence[int]) -> NamedSharding:
    """Return how an array with these logical axes is laid out on the mesh.

    Args:
        mesh: The mesh of `make_mesh`.
        axes: One logical axis per dimension, as in `partition_spec`.
        shape: Shape of the array.

    Raises:
        UserError: As `partition_spec` does; if `axes` and `shape` differ in length; and if the
            length of a mesh axis does not divide the dimension that is split over it.
    """
    spec = partition_spec(axes)
    if len(axes) != len(shape):
        raise UserError(f"{len(axes)} logical axes {tuple(axes)} for shape {tuple(shape)}")
    for name, size, split in zip(axes, shape, spec, strict=True):
        devices = math.prod(mesh.shape[axis] for axis in _mesh_axes(split))
        if size % devices:
            raise UserError(
                f"{name}={size} of shape {tuple(shape)} is not divisible by the "
                f"{devices} devices along mesh axis {split!r}"
            )
    return NamedSharding(mesh, spec)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding in which every device of the mesh holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Copy arrays of the host to the devices of a sharding. Every process passes the same values.

    Args:
        tree: A tree of numpy arrays or numbers.
        sharding: How each of them is laid out.
    """

    def put(x: Any) -> jax.Array:
        # One process can copy to all of its devices; of several, each fills its own devices.
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree)


def place_whole(tree: Any, sharding: NamedSharding) -> Any:
    """Copy the arrays of a tree to all devices of a sharding, each whole.

    Arrays that are split over these devices already stay so. Every process must pass the same
    values.
    """

    def put(x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and x.sharding.device_set == sharding.device_set:
            # An array from elsewhere is described as whole on this mesh, without a copy, so that
            # a program is compiled from it as from its shape alone.
            here = getattr(x.sharding, "mesh", None) == sharding.mesh
            return x if here or not x.is_fully_replicated else jax.device_put(x, sharding)
        return place(x, sharding)

    return jax.tree.map(put, tree)


def local_view(tree: Any) -> Any:
    """Return arrays that every device holds whole as arrays of one device, without a copy.

    For small work that each process does for itself: once, on its first device, instead of on every
    device. A tree in which an array is split over devices is returned unchanged.
    """
    leaves, structure = jax.tree.flatten(tree)
    if not all(x.is_fully_replicated for x in leaves):
        return tree
    return structure.unflatten([x.addressable_shards[0].data for x in leaves])
