"""The attention of a block of conversations: who sees whom is only known when the program runs.

Every block has its own tree, and one compiled program answers all of them. On a GPU or TPU a kernel
made for the device takes the place of XLA if it is the fastest there, measured before the first
block; see `jaxalign.answering.kernel_choice`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign.answering.attention import RowTables, sums_in_order
from jaxalign.answering.blocks import ANSWER_ROW, ROW, Shape, Tables
from jaxalign.answering.kernel_choice import kernels_of
from jaxalign.answering.options import attend
from jaxalign.lm.config import LlamaConfig
from jaxalign.runtime.kernel_timing import (
    KernelChoice,
    Outputs,
    compare_kernels,
    fastest_kernel,
    timed,
)
from jaxalign.runtime.platform import target_platform
from jaxalign.runtime.sharding import MODEL

if TYPE_CHECKING:
    from jaxalign.answering.kernels.fused import FusedTables

jax.tree_util.register_dataclass(
    Tables, [field.name for field in dataclasses.fields(Tables)], meta_fields=[]
)


def block_attention(
    config: LlamaConfig, tables: Tables, kernel: str = "xla", interpret: bool = False
) -> tuple[RowTables | FusedTables, RowTables | FusedTables]:
    """Return which token of a block sees which: of all tokens, and of the answer nodes alone.

    Args:
        config: the model's shapes.
        tables: the block's.
        kernel: what computes the attention.
        interpret: compute a device's kernel on any device, slowly; for tests.
    """
    places = jnp.arange(tables.tree.shape[0])
    if kernel != "xla":
        from jaxalign.answering.kernels.fused import run_time_tables

        return tuple(
            run_time_tables(asks, tables.end, kernel, interpret)
            for asks in (places, tables.answers)
        )
    attention = _rows(tables.end, tables.keys, places.reshape(-1, ROW), only_tree=False)
    answer_attention = _rows(
        tables.end, tables.answer_keys, tables.answers.reshape(-1, ANSWER_ROW), only_tree=True
    )
    if not sums_in_order(jnp.dtype(config.dtype)):
        return attention, answer_attention
    # The row of the deepest token has a key for each of its positions.
    longest = tables.keys.shape[1]
    return tuple(
        rows.in_order(tables.positions, 0, longest) for rows in (attention, answer_attention)
    )


def _rows(
    end: jax.Array, keys_RxS: jax.Array, queries_RxL: jax.Array, only_tree: bool
) -> RowTables:
    """Return the attention's rows: a query sees the keys whose subtree it stands in."""
    # A padding key is -1: nobody sees it, and key 0 is gathered in its place.
    query, key = queries_RxL[:, :, None], keys_RxS[:, None, :]
    sees = (key >= 0) & (key <= query) & (query < end[key])
    return RowTables(
        keys_RxS=jnp.maximum(keys_RxS, 0),
        mask_RxLxS=sees,
        common=0,
        queries=queries_RxL.size,
        only_tree=only_tree,
    )


@functools.lru_cache(maxsize=16)
def choose_block_kernel(config: LlamaConfig, mesh: Mesh, shape: Shape) -> KernelChoice:
    """Choose the attention kernel of blocks of a shape on this process's first device.

    The same arguments give the same choice: it is measured once in a process. For described devices
    it is XLA.
    """
    kernels, reason = kernels_of(config, mesh.shape[MODEL], target_platform())
    if len(kernels) == 1:
        return KernelChoice(kernels[0], reason)
    if mesh.devices.flat[0] not in jax.devices():
        return KernelChoice("xla", "no such device is here to measure others on")
    return measured_choice(config, shape, kernels)


def measured_choice(
    config: LlamaConfig, shape: Shape, kernels: tuple[str, ...], interpret: bool = False
) -> KernelChoice:
    """Time the kernels on random numbers under a block's attention and choose the fastest.

    Args:
        config: the model's shapes.
        shape: of the blocks.
        kernels: names of kernels, XLA's first.
        interpret: compute a device's kernel on any device, slowly.
    """
    tables = jax.tree.map(jnp.asarray, example_tables(shape))
    N, K, H = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (1, shape.tokens, heads, H), jnp.dtype(config.dtype))
        for key, heads in zip(keys, (N, K, K), strict=True)
    )
    nothing = jnp.zeros((0, K, H), q.dtype)

    def attempt(kernel: str) -> tuple[Outputs, float]:
        def run(tables: Tables, *qkv: jax.Array) -> jax.Array:
            attention, _ = block_attention(config, tables, kernel, interpret)
            return attend(attention, *qkv, (nothing, nothing))

        return timed(jax.jit(run), tables, q, k, v)

    return fastest_kernel(kernels, compare_kernels(kernels, attempt))


def example_tables(shape: Shape) -> Tables:
    """Return the tables of a block of conversations without common text, as long as they may be.

    Only what attention reads is filled in.
    """
    sizes = dataclasses.asdict(shape.table_shapes())
    tables = Tables(**{name: np.zeros(size, np.int32) for name, size in sizes.items()})
    place = np.arange(shape.tokens)
    each = max(ROW, shape.keys // ROW * ROW)
    tables.end[:] = np.minimum((place // each + 1) * each, shape.tokens)
    tables.positions[:] = place % each
    tables.keys[:] = -1
    for row, keys in enumerate(tables.keys):
        seen = np.arange(row * ROW // each * each, (row + 1) * ROW)
        keys[: len(seen)] = seen
    tables.answer_keys[:] = -1
    return tables
