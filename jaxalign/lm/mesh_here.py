"""The mesh over the devices that are here, chosen by the memory that they have."""

from __future__ import annotations

import sys

import jax
from jax.sharding import Mesh

from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.mesh import MeshChoice, choose_mesh
from jaxalign.runtime.hosts import agreed
from jaxalign.runtime.memory import available_bytes
from jaxalign.runtime.sharding import make_mesh


def mesh_here(
    config: LlamaConfig,
    population: int | None,
    *,
    search_dims: int = 0,
    model: int | None = None,
    data: int | None = None,
) -> tuple[Mesh, MeshChoice]:
    """`choose_mesh` for all devices of all processes, and the mesh itself.

    Print the choice's `describe()`. Raises UserError as `choose_mesh` does.
    """
    memory = agreed(available_bytes(jax.local_devices()[0]) or sys.maxsize)
    choice = choose_mesh(
        config, jax.device_count(), memory, population,
        search_dims=search_dims, model=model, data=data,
    )  # fmt: skip
    return make_mesh(**choice.sizes), choice
