"""Which entries' searches each device holds, so that no device holds them all.

The candidates of all entries lie in one row, C x E of them, and every device evaluates one stretch
of it. It holds the searches whose candidates its stretch touches, whole, and asks and tells them
itself. Two devices may touch the same entry; both then run it, from the same random draws and the
same fitness, to the same bits. So nothing about the searches ever passes between devices but the
fitness, and a device holds about C / devices + 1 entries:

    C = 3 entries, E = 4 members, 2 devices       row  0 1 2 3 | 4 5 6 7 | 8 9 10 11
                                                       ---------- device 0 holds entries 0 and 1
                                                  device 1 holds entries 1 and 2 ----------

Letters: C entry, E member, N device along the population axis, K entry that a device holds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxalign.runtime.sharding import POPULATION, partition_spec, replicated


@dataclass(frozen=True)
class Shares:
    """How C entries of E members each are shared out among N devices.

    >>> Shares(entries=3, population=4, devices=2).entry_NxK.tolist()
    [[0, 1], [1, 2]]
    >>> Shares(entries=18, population=16, devices=4).held
    5
    """

    entries: int
    population: int
    devices: int

    @property
    def rows(self) -> int:
        """Number of candidates that a device evaluates; the last devices may have fewer."""
        return -(-self.entries * self.population // self.devices)

    @property
    def held(self) -> int:
        """K, the number of entries that a device has room for."""
        return int(self.count_N.max())

    @functools.cached_property
    def first_N(self) -> np.ndarray:
        """First entry that each device holds, int32 [N]."""
        first_N = np.arange(self.devices) * self.rows // self.population
        return np.minimum(first_N, self.entries - 1).astype(np.int32)

    @functools.cached_property
    def count_N(self) -> np.ndarray:
        """Number of entries that each device holds, int32 [N]; 0 if no candidate is left for it."""
        total = self.entries * self.population
        begin_N = np.arange(self.devices) * self.rows
        last_N = (np.minimum(begin_N + self.rows, total) - 1) // self.population
        return np.where(begin_N < total, last_N - self.first_N + 1, 0).astype(np.int32)

    @functools.cached_property
    def entry_NxK(self) -> np.ndarray:
        """The entry in each place of each device, int32; places past its count repeat the last."""
        entry_NxK = self.first_N[:, None] + np.arange(self.held, dtype=np.int32)[None]
        return np.minimum(entry_NxK, self.entries - 1)

    @functools.cached_property
    def place_C(self) -> np.ndarray:
        """The first place that holds each entry, int32 [C], counted over all devices."""
        entry_C = np.arange(self.entries)
        device_C = entry_C * self.population // self.rows
        return (device_C * self.held + entry_C - self.first_N[device_C]).astype(np.int32)

    @property
    def in_order(self) -> bool:
        """Whether the devices' places are just the entries in their order, each held once."""
        return self.devices * self.held == self.entries


def entry_sharding(mesh: Mesh, shares: Shares, x: jax.ShapeDtypeStruct) -> NamedSharding:
    """Return how an array with one row per entry is spread: evenly, where that is possible.

    Args:
        mesh: The devices.
        shares: Which entries they hold.
        x: The array's shape; a scalar is whole everywhere.
    """
    if x.ndim and shares.in_order:
        return NamedSharding(mesh, partition_spec(("members",)))
    # Entries need not divide among the devices; the coordinates of their vectors mostly do.
    if x.ndim > 1 and x.shape[-1] % mesh.shape[POPULATION] == 0:
        return NamedSharding(mesh, partition_spec((None,) * (x.ndim - 1) + ("members",)))
    return replicated(mesh)


def abstract(tree: Any, sharding_of: Callable[[Any], NamedSharding]) -> Any:
    """Return a tree of arrays or shapes as `jax.ShapeDtypeStruct`s with the shardings given."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding_of(x)), tree
    )


def rows_of(tree: Any, row_R: np.ndarray, between: Any, shardings: Any) -> Any:
    """Return some rows of every array of a tree that is split over devices by rows or columns.

    Args:
        tree: Arrays with a leading axis, and scalars, which stay as they are.
        row_R: The rows, int32.
        between: Shardings of the tree in which rows are whole, so that taking some of them is work
            for each device alone; a row is never gathered on one device where it is split.
        shardings: Shardings of the result.
    """

    def rows(tree):
        tree = jax.lax.with_sharding_constraint(tree, between)
        tree = jax.tree.map(lambda x: x[row_R] if x.ndim else x, tree)
        return jax.lax.with_sharding_constraint(tree, between)

    return jax.jit(rows, out_shardings=shardings)(tree)


def manual_axes(mesh: Mesh) -> frozenset[str]:
    """Return the mesh axes that `shard_map` splits by hand: the population axis.

    All axes where no other splits anything, because a kernel written for the device is refused as
    long as the compiler may still split its program.
    """
    alone = mesh.shape[POPULATION] == mesh.size
    return frozenset(mesh.axis_names if alone else (POPULATION,))


def alike_on_other_axes(mesh: Mesh, manual: frozenset[str]) -> Callable[[Any], Any]:
    """Return a function that keeps arrays whole along the axes that the compiler may split.

    Left free, it might also split asking and telling along the model axis, at the cost of
    exchanges and of bits that depend on the split.
    """
    if len(manual) == len(mesh.axis_names):
        return lambda tree: tree
    return functools.partial(jax.lax.with_sharding_constraint, shardings=partition_spec(()))
