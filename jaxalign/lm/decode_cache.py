"""The state of a decoding run on the devices: a fixed number of slots, each with a KV cache.

A slot holds one reply while it is written. Keys and values of all slots are two arrays

    [L layers, B slots, K key heads, S positions, H]

so that a head's keys are contiguous in memory and one scatter writes a token's keys of all layers.
Position p of a slot holds token p of the sequence, prompt and reply alike; what lies beyond a
slot's length is left over from its last reply and is masked.

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

_KEY_IMPL = "threefry2x32"
_SAMPLE = 1 << 31  # what is folded into a key for sample 0, 1, ...; steps stay below


@struct.dataclass
class Slots:
    """All slots; B is the number on one device inside a program, and of all devices outside."""

    keys: jax.Array  # [L, B, K, S, H]
    values: jax.Array
    # Keys and values of the token before the newest one, which the next step writes before it
    # reads the cache. Written after reading, XLA would copy the cache in every step.
    unwritten: tuple[jax.Array, jax.Array]  # [L, B, K, H] x 2
    write_B: jax.Array  # int32: the position they belong to; S: there are none
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
    cache = of((L, slots, K, positions, H), dtype)
    token = of((L, slots, K, H), dtype)
    count = of((slots,), jnp.int32)
    return Slots(
        keys=cache,
        values=cache,
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
    cache = PartitionSpec(None, SHARES, *([MODEL] if model else []))
    return by_slot.replace(keys=cache, values=cache, unwritten=(cache, cache))


def slot_shardings(slots: Slots, mesh: Mesh) -> Slots:
    """Return where every array lies on a mesh."""
    specs = slot_specs(slots, model=mesh.shape[MODEL] > 1)
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: type(x) is PartitionSpec
    )


def write_tokens(
    cache: jax.Array, new_LxAxKxH: jax.Array, slot_A: jax.Array, position_A: jax.Array
) -> jax.Array:
    """Write one token's keys (or values) of all layers for each of A slots, in place.

    A position past the end writes nothing.
    """
    return jax.lax.scatter(
        cache,
        jnp.stack([slot_A, position_A], axis=-1),
        jnp.moveaxis(new_LxAxKxH, 1, 0),
        jax.lax.ScatterDimensionNumbers(
            update_window_dims=(1, 2, 3),
            inserted_window_dims=(1, 3),
            scatter_dims_to_operand_dims=(1, 3),
        ),
        unique_indices=True,
        mode=jax.lax.GatherScatterMode.FILL_OR_DROP,
    )


def write_pieces(
    cache: jax.Array,
    new_RxTxKxH: jax.Array,
    layer: jax.Array,
    slot_R: jax.Array,
    start_R: jax.Array,
) -> jax.Array:
    """Write T consecutive tokens of one layer for each of R pieces, in place.

    A slot that does not exist writes nothing.
    """
    return jax.lax.scatter(
        cache,
        jnp.stack([jnp.broadcast_to(layer, slot_R.shape), slot_R, start_R], axis=-1),
        jnp.swapaxes(new_RxTxKxH, 1, 2),
        jax.lax.ScatterDimensionNumbers(
            update_window_dims=(1, 2, 3),
            inserted_window_dims=(0, 1),
            scatter_dims_to_operand_dims=(0, 1, 3),
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

        def block(j: jax.Array, caches: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            return tuple(_copy_block(cache, source, target, j * KEY_BLOCK) for cache in caches)

        blocks = (tokens_A[a] + KEY_BLOCK - 1) // KEY_BLOCK
        keys, values = jax.lax.fori_loop(0, blocks, block, (slots.keys, slots.values))
        stream_D = jnp.where(blocks > 0, slots.stream_BxD[source], slots.stream_BxD[target])
        stream = slots.stream_BxD.at[target].set(stream_D)
        return slots.replace(keys=keys, values=values, stream_BxD=stream)

    return jax.lax.fori_loop(0, source_A.shape[0], pair, slots)


def _copy_block(
    cache: jax.Array, source: jax.Array, target: jax.Array, start: jax.Array
) -> jax.Array:
    L, _, K, _, H = cache.shape
    block = jax.lax.dynamic_slice(cache, (0, source, 0, start, 0), (L, 1, K, KEY_BLOCK, H))
    return jax.lax.dynamic_update_slice(cache, block, (0, target, 0, start, 0))


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
