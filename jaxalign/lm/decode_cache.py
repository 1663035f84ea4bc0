"""The state of a decoding run on the devices: a fixed number of slots, each with a KV cache.

A slot holds one reply while it is written. Keys and values of all slots are two arrays, in blocks
of C = `KEY_BLOCK` positions:

    keys    [L layers, J blocks, B slots, K key heads, H, C]
    values  [L layers, J blocks, B slots, K key heads, C, H]

Attention reads one block of all slots at a time, which is contiguous in memory; and in both
products with it the axis that is not summed over comes last, so that neither is transposed first.
One scatter writes a token's keys of all layers. Position p of a slot, in block p // C, holds token
p of the sequence, prompt and reply alike; what lies beyond a slot's length is left over from its
last reply and is masked.

A prompt's rows stay in a slot until another prompt takes it. A later prompt that begins alike
copies them (`fork`) instead of computing them again.

On CPU a bfloat16 cache is kept as bits, because it enters loops (`jaxalign.lm.bits`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.lm.bits import as_bits
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.constrain import Written
from jaxalign.runtime.sharding import DATA, MODEL, POPULATION

SHARES = (POPULATION, DATA)  # mesh axes that slots are spread over
PIECE = 32  # tokens of a prompt that are prefilled as one row; prompts are shared by whole pieces
KEY_BLOCK = 128  # positions of the cache that are attended at a time

Cache = tuple[jax.Array, jax.Array]  # keys and values of all slots

_KEY_IMPL = "threefry2x32"
_SAMPLE = 1 << 31  # what is folded into a key for sample 0, 1, ...; steps stay below


@struct.dataclass
class Slots:
    """All slots; B is the number on one device inside a program, and of all devices outside."""

    keys: jax.Array  # [L, J, B, K, H, C]
    values: jax.Array  # [L, J, B, K, C, H]
    # Keys and values of the token before the newest one, which the next step writes before it
    # reads the cache. Written after reading, XLA would copy the cache in every step.
    unwritten: tuple[jax.Array, jax.Array]  # [L, B, K, H] x 2
    write_B: jax.Array  # int32: the position they belong to; J x C: there are none
    length_B: jax.Array  # int32: position of the newest token, which has not passed through yet
    step_B: jax.Array  # int32: number of tokens of the reply so far
    live_B: jax.Array  # bool: whether the reply goes on
    tokens_BxG: jax.Array  # int32: the reply
    stream_BxD: jax.Array  # the normed stream at the prompt's last token
    random_BxW: jax.Array  # uint32: the reply's random key
    written: Written | None = None  # where replies stand in the form that they are held to


def slot_structs(
    config: LlamaConfig, slots: int, positions: int, new_tokens: int, constrained: bool = False
) -> Slots:
    """Return shapes and dtypes of the state of `slots` slots."""
    c, dtype = config, stored_dtype(config)
    L, K, H = c.num_hidden_layers, c.num_key_value_heads, c.head_dim
    of = jax.ShapeDtypeStruct
    blocks = (L, positions // KEY_BLOCK, slots, K)
    token = of((L, slots, K, H), dtype)
    count = of((slots,), jnp.int32)
    return Slots(
        keys=of((*blocks, H, KEY_BLOCK), dtype),
        values=of((*blocks, KEY_BLOCK, H), dtype),
        unwritten=(token, token),
        write_B=count,
        length_B=count,
        step_B=count,
        live_B=of((slots,), jnp.bool_),
        tokens_BxG=of((slots, new_tokens), jnp.int32),
        stream_BxD=of((slots, c.hidden_size), jnp.float32),
        random_BxW=of((slots, 2), jnp.uint32),
        written=Written(count, count) if constrained else None,
    )


def slot_specs(slots: Slots, model: bool) -> Slots:
    """Return the mesh axes of every array: slots over the shares, key heads over `model`."""
    by_slot = jax.tree.map(lambda leaf: PartitionSpec(SHARES), slots)
    heads = [MODEL] if model else []
    cache = PartitionSpec(None, None, SHARES, *heads)
    token = PartitionSpec(None, SHARES, *heads)
    return by_slot.replace(keys=cache, values=cache, unwritten=(token, token))


def slot_shardings(slots: Slots, mesh: Mesh) -> Slots:
    """Return where every array lies on a mesh."""
    specs = slot_specs(slots, model=mesh.shape[MODEL] > 1)
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: type(x) is PartitionSpec
    )


def write_tokens(
    cache: Cache, new: tuple[jax.Array, jax.Array], slot_A: jax.Array, position_A: jax.Array
) -> Cache:
    """Write keys and values of one token in all layers, [L, A, K, H] each, for each of A slots.

    A position past the end writes nothing. The cache is updated in place.
    """
    at_Ax3 = jnp.stack([position_A // KEY_BLOCK, slot_A, position_A % KEY_BLOCK], axis=-1)
    keys, values = (jnp.moveaxis(new_LxAxKxH, 1, 0) for new_LxAxKxH in new)
    return (
        _write(cache[0], keys, at_Ax3, (1, 2, 5), inserted=(1, 2, 5)),
        _write(cache[1], values, at_Ax3, (1, 2, 4), inserted=(1, 2, 4)),
    )


def write_pieces(
    cache: Cache,
    new: tuple[jax.Array, jax.Array],
    layer: jax.Array,
    slot_R: jax.Array,
    start_R: jax.Array,
) -> Cache:
    """Write keys and values of T consecutive tokens, [R, T, K, H] each, for each of R pieces.

    They lie in one block. A slot that does not exist writes nothing. The cache is updated in place.
    """
    layer_R, block_R = jnp.broadcast_to(layer, slot_R.shape), start_R // KEY_BLOCK
    at_Rx4 = jnp.stack([layer_R, block_R, slot_R, start_R % KEY_BLOCK], axis=-1)
    keys_RxKxHxT, values_RxKxTxH = new[0].transpose(0, 2, 3, 1), new[1].swapaxes(1, 2)
    return (
        _write(cache[0], keys_RxKxHxT, at_Rx4, (0, 1, 2, 5), inserted=(0, 1, 2)),
        _write(cache[1], values_RxKxTxH, at_Rx4, (0, 1, 2, 4), inserted=(0, 1, 2)),
    )


def _write(
    kept: jax.Array,
    new: jax.Array,
    index_NxI: jax.Array,
    axes: tuple[int, ...],
    inserted: tuple[int, ...],
) -> jax.Array:
    """Write `new[n]` to where `index_NxI[n]` says.

    Args:
        kept: Keys or values of all slots.
        new: The updates [N, ...], with all axes of `kept` but `inserted`.
        index_NxI: int32, where each update begins along each of `axes`.
        axes: Axes of `kept`.
        inserted: Axes of `kept` along which an update is one wide.
    """
    return jax.lax.scatter(
        kept,
        index_NxI,
        new,
        jax.lax.ScatterDimensionNumbers(
            update_window_dims=tuple(range(1, new.ndim)),
            inserted_window_dims=inserted,
            scatter_dims_to_operand_dims=axes,
        ),
        unique_indices=True,
        mode=jax.lax.GatherScatterMode.FILL_OR_DROP,
    )


def fork(slots: Slots, source_A: jax.Array, target_A: jax.Array, tokens_A: jax.Array) -> Slots:
    """Copy the first tokens of some slots' caches to others, one pair after the other.

    Args:
        slots: The state.
        source_A: int32, the slots that are copied.
        target_A: int32, the slots that are overwritten.
        tokens_A: int32, how many positions to copy, rounded up to whole blocks of the cache; 0 for
            a pair that is padding.
    """

    def pair(a: jax.Array, slots: Slots) -> Slots:
        source, target = source_A[a], target_A[a]

        def block(j: jax.Array, cache: Cache) -> Cache:
            return tuple(_copy_block(kept, source, target, j) for kept in cache)

        blocks = (tokens_A[a] + KEY_BLOCK - 1) // KEY_BLOCK
        keys, values = jax.lax.fori_loop(0, blocks, block, (slots.keys, slots.values))
        stream_D = jnp.where(blocks > 0, slots.stream_BxD[source], slots.stream_BxD[target])
        stream = slots.stream_BxD.at[target].set(stream_D)
        return slots.replace(keys=keys, values=values, stream_BxD=stream)

    return jax.lax.fori_loop(0, source_A.shape[0], pair, slots)


def _copy_block(
    cache: jax.Array, source: jax.Array, target: jax.Array, block: jax.Array
) -> jax.Array:
    L, _, _, *rest = cache.shape
    copied = jax.lax.dynamic_slice(cache, (0, block, source, 0, 0, 0), (L, 1, 1, *rest))
    return jax.lax.dynamic_update_slice(cache, copied, (0, block, target, 0, 0, 0))


def reply_keys(seed: jax.Array, ids_A: jax.Array, samples_A: jax.Array) -> jax.Array:
    """Return the random keys of replies, uint32 [A, W], from seed, id and number of the sample."""

    def one(number: jax.Array, sample: jax.Array) -> jax.Array:
        first = jax.random.fold_in(jax.random.key(seed, impl=_KEY_IMPL), number)
        later = jax.random.fold_in(first, jnp.uint32(_SAMPLE) + sample.astype(jnp.uint32))
        return jnp.where(sample == 0, jax.random.key_data(first), jax.random.key_data(later))

    return jax.vmap(one)(ids_A, samples_A)


def step_keys(random_AxW: jax.Array, step_A: jax.Array) -> jax.Array:
    """Return the random key of one step of each reply."""
    return jax.vmap(jax.random.fold_in)(
        jax.random.wrap_key_data(random_AxW, impl=_KEY_IMPL), step_A
    )


def stored_dtype(config: LlamaConfig) -> Any:
    """Return the dtype of the cache."""
    return as_bits(jax.ShapeDtypeStruct((), jnp.dtype(config.dtype))).dtype
