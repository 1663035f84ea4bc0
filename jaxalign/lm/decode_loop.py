"""The compiled programs of decoding, whatever the number and lengths of prompts.

    prefill   pieces of prompts, packed from any slots, into the cache
    fork      a slot's first positions copied to another slot: a shared beginning, a second sample
    start     the first token of replies, drawn after their prompts
    end       replies that need no more tokens, whatever the model would go on to say
    decode    up to `limit` steps of all slots, or of half or a quarter of them

Their shapes are fixed (`SlotShape`). Slots are spread over the population and data axes of the mesh
by `shard_map`: every device works on its own, and all agree on when a decode segment ends. A model
axis is left to the compiler. The state is donated, so each program updates it in place.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.lm.bits import as_bits
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.constrain import Constraint, Written, advance, begin, mask
from jaxalign.lm.decode_cache import (
    KEY_BLOCK,
    PIECE,
    SHARES,
    Slots,
    fork,
    reply_keys,
    slot_shardings,
    slot_specs,
    slot_structs,
    step_keys,
    write_tokens,
)
from jaxalign.lm.decode_layers import decode_layers, embed, output_logits, prefill_layers
from jaxalign.lm.sampling import Sampling, next_tokens
from jaxalign.lm.weights import Params, program_params
from jaxalign.runtime.sharding import replicated

SEGMENT = 32  # decode steps between two looks of the host, at most


@dataclasses.dataclass(frozen=True)
class SlotShape:
    """Everything that the programs' shapes depend on.

    Attributes:
        config: The model.
        sampling: How tokens are drawn, and how many at most.
        mesh: The devices.
        slots: Slots on each share of the mesh.
        positions: Positions of a slot's cache, a multiple of `KEY_BLOCK`.
        constrained: Whether replies are held to a form (`jaxalign.lm.constrain`).
    """

    config: LlamaConfig
    sampling: Sampling
    mesh: Mesh
    slots: int
    positions: int
    constrained: bool = False

    @property
    def shares(self) -> int:
        """Number of parts of the mesh that have slots of their own."""
        return math.prod(self.mesh.shape[axis] for axis in SHARES)

    @property
    def starts(self) -> int:
        """Number of replies that one call of `start` or `fork` takes on each share."""
        return min(8, self.slots)

    @property
    def decode_rows(self) -> tuple[int, ...]:
        """Numbers of rows of the decode program: all slots; half and a quarter for few replies."""
        halves = (self.slots // 2, self.slots // 4) if self.slots >= 8 else ()
        return (self.slots, *halves)

    @property
    def structs(self) -> Slots:
        """Shapes and dtypes of the state on all devices."""
        new, slots = self.sampling.max_new_tokens, self.slots * self.shares
        return slot_structs(self.config, slots, self.positions, new, self.constrained)


@struct.dataclass
class Report:
    """What the host learns from a decode segment; whole on every device."""

    steps: jax.Array  # int32: steps that ran
    live_B: jax.Array
    step_B: jax.Array
    tokens_BxG: jax.Array


def rounded_positions(tokens: int) -> int:
    """Return the smallest of 128, 256, 384, 512, 768, 1024, 1536 ... that is at least `tokens`."""
    power = max(KEY_BLOCK, 1 << (tokens - 1).bit_length())
    between = power * 3 // 4
    return between if tokens <= between and between % KEY_BLOCK == 0 else power


def empty_slots(shape: SlotShape) -> Slots:
    """Return a state in which every slot is free."""
    return _zeros_program(shape)()


@functools.lru_cache  # a new function for every queue would be compiled for every queue
def _zeros_program(shape: SlotShape) -> Callable[[], Slots]:
    structs = shape.structs
    make = functools.partial(jax.tree.map, lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), structs)
    return jax.jit(make, out_shardings=slot_shardings(structs, shape.mesh))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def prefill_program(
    shape: SlotShape,
    params: Params,
    slots: Slots,
    tokens_RxT: jax.Array,
    slot_R: jax.Array,
    start_R: jax.Array,
    last_R: jax.Array,
    extra_ExD: jax.Array | None = None,
) -> Slots:
    """Write pieces of prompts to the cache.

    Args:
        shape: The shapes.
        params: The weights, as `as_bits` makes them.
        slots: The state.
        tokens_RxT: int32, each share's pieces; beyond a prompt's end anything.
        slot_R: int32, each piece's slot on its share; a slot past the last one is padding.
        start_R: int32, position of each piece's first token.
        last_R: int32, where in the piece the prompt ends, whose stream is kept; -1: not in it.
        extra_ExD: Embeddings beyond the vocabulary.
    """

    def share(
        params: Params,
        slots: Slots,
        pieces: tuple[jax.Array, ...],
        extra_ExD: jax.Array | None,
    ) -> Slots:
        tokens, slot, start, last = pieces
        x = embed(shape.config, params, tokens, extra_ExD)
        cache = slots.keys, slots.values
        x, (keys, values) = prefill_layers(shape.config, params, x, cache, slot, start)
        x_RxD = jnp.take_along_axis(x, jnp.maximum(last, 0)[:, None, None], axis=1)[:, 0]
        target = jnp.where(last >= 0, slot, shape.slots)  # past the end: dropped
        stream = slots.stream_BxD.at[target].set(x_RxD, mode="drop")
        return slots.replace(keys=keys, values=values, stream_BxD=stream)

    pieces = (tokens_RxT, slot_R, start_R, last_R)
    return _placed(shape, _on_shares(shape, share)(params, slots, pieces, extra_ExD))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def fork_program(
    shape: SlotShape,
    slots: Slots,
    source_A: jax.Array,
    target_A: jax.Array,
    tokens_A: jax.Array,
) -> Slots:
    """Copy the first `tokens_A` positions of slots, and their streams, to other slots."""

    def share(_: None, slots: Slots, pairs: tuple[jax.Array, ...], __: None) -> Slots:
        return fork(slots, *pairs)

    pairs = (source_A, target_A, tokens_A)
    return _placed(shape, _on_shares(shape, share)(None, slots, pairs, None))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def start_program(
    shape: SlotShape,
    params: Params,
    slots: Slots,
    slot_A: jax.Array,
    length_A: jax.Array,
    id_A: jax.Array,
    sample_A: jax.Array,
    seed: jax.Array,
    stop_tokens: jax.Array,
    constraint: Constraint | None = None,
) -> Slots:
    """Draw the first token of replies whose prompts are in the cache.

    Args:
        shape: The shapes.
        params: The weights, as `as_bits` makes them.
        slots: The state.
        slot_A: int32, the replies' slots on their share; a slot past the last one is padding.
        length_A: int32, tokens of their prompts.
        id_A: uint32, ids from which their random keys are derived.
        sample_A: int32, numbers of their samples, likewise.
        seed: uint32, likewise.
        stop_tokens: int32 [n], tokens that end a reply.
        constraint: The form that replies are held to, if `shape.constrained`.
    """

    def share(
        params: Params, slots: Slots, replies: tuple[jax.Array, ...], one: tuple[Any, ...]
    ) -> Slots:
        (slot, length, number, sample), (seed, stop, constraint) = replies, one
        random = reply_keys(seed, number, sample)
        stream = jnp.take(slots.stream_BxD, jnp.minimum(slot, shape.slots - 1), axis=0)
        logits = output_logits(shape.config, params, stream)
        first = jnp.zeros_like(length)
        written = None if constraint is None else begin(len(length))
        token, written = _draw(shape, constraint, written, step_keys(random, first), logits)
        live = (shape.sampling.max_new_tokens > 1) & ~_stops(token, stop)

        def put(state: jax.Array, value: jax.Array) -> jax.Array:
            return state.at[slot].set(value, mode="drop")

        return slots.replace(
            write_B=put(slots.write_B, jnp.full_like(length, shape.positions)),
            length_B=put(slots.length_B, length),
            step_B=put(slots.step_B, first + 1),
            live_B=put(slots.live_B, live),
            tokens_BxG=slots.tokens_BxG.at[slot, 0].set(token, mode="drop"),
            random_BxW=put(slots.random_BxW, random),
            written=jax.tree.map(put, slots.written, written),
        )

    replies, one = (slot_A, length_A, id_A, sample_A), (seed, stop_tokens, constraint)
    return _placed(shape, _on_shares(shape, share)(params, slots, replies, one))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def end_program(shape: SlotShape, slots: Slots, ended_B: jax.Array) -> Slots:
    """End the replies of some slots, bool [slots of all shares]."""
    write_B = jnp.where(ended_B, shape.positions, slots.write_B)
    return _placed(shape, slots.replace(live_B=slots.live_B & ~ended_B, write_B=write_B))


@struct.dataclass
class _Rows:
    """The rows that a segment decodes, and its counters."""

    slots: Slots  # caches of all slots; the rest of the rows only
    steps: jax.Array
    free: jax.Array  # slots of all shares that are free
    live: jax.Array  # rows of all shares that go on


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def segment_program(
    shape: SlotShape,
    rows: int,
    params: Params,
    slots: Slots,
    rows_A: jax.Array,
    limit: jax.Array,
    enough: jax.Array,
    stop_tokens: jax.Array,
    constraint: Constraint | None = None,
) -> tuple[Slots, Report]:
    """Decode until `limit` steps have run, `enough` slots are free, or every reply has ended.

    Args:
        shape: The shapes.
        rows: Number of rows on each share, one of `shape.decode_rows`.
        params: The weights, as `as_bits` makes them.
        slots: The state.
        rows_A: int32, on each share the slots that are decoded, all different: every one that is
            live.
        limit: int32 scalar.
        enough: int32 scalar, free slots of all shares together.
        stop_tokens: int32 [n], tokens that end a reply.
        constraint: The form that replies are held to, if `shape.constrained`.
    """

    def share(
        params: Params, slots: Slots, mine: tuple[jax.Array, ...], one: tuple[Any, ...]
    ) -> tuple[Slots, jax.Array]:
        (limit, enough, stop, form), rows_A = one, None if rows == shape.slots else mine[0]
        start = _count(shape, _take_rows(slots, rows_A), jnp.int32(0))

        def goes_on(state: _Rows) -> jax.Array:
            return (state.steps < limit) & (state.live > 0) & (state.free < enough)

        def step(state: _Rows) -> _Rows:
            decoded = _step(shape, params, state.slots, rows_A, stop, form)
            return _count(shape, decoded, state.steps + 1)

        end = jax.lax.while_loop(goes_on, step, start)
        return _put_rows(slots, end.slots, rows_A), end.steps[None]

    run = _on_shares(shape, share, steps=True)
    slots, steps = run(params, slots, (rows_A,), (limit, enough, stop_tokens, constraint))
    report = Report(steps[0], slots.live_B, slots.step_B, slots.tokens_BxG)
    report = jax.lax.with_sharding_constraint(report, replicated(shape.mesh))
    return _placed(shape, slots), report


def _step(
    shape: SlotShape,
    params: Params,
    slots: Slots,
    rows_A: jax.Array | None,
    stop: jax.Array,
    constraint: Constraint | None,
) -> Slots:
    """Write the keys of the tokens before the newest, pass the newest through, and draw."""
    A, G = slots.tokens_BxG.shape
    every = jnp.arange(A)
    at = every if rows_A is None else rows_A
    cache = write_tokens((slots.keys, slots.values), slots.unwritten, at, slots.write_B)

    newest = slots.tokens_BxG[every, jnp.maximum(slots.step_B - 1, 0)]
    longest = jnp.max(jnp.where(slots.live_B, slots.length_B, 0))
    x, new = decode_layers(
        shape.config,
        params,
        embed(shape.config, params, newest),
        cache,
        rows_A,
        slots.length_B,
        longest,
    )
    logits = output_logits(shape.config, params, x)
    # A token's key depends on its reply and its step only.
    random = step_keys(slots.random_BxW, slots.step_B)
    token, written = _draw(shape, constraint, slots.written, random, logits)
    live = slots.live_B
    goes_on = live & ~_stops(token, stop) & (slots.step_B + 1 < G)
    return slots.replace(
        keys=cache[0],
        values=cache[1],
        unwritten=new,
        # A reply that has ended needs no more keys, and its slot may soon be another's.
        write_B=jnp.where(goes_on, slots.length_B, shape.positions),
        length_B=slots.length_B + live,
        step_B=slots.step_B + live,
        live_B=goes_on,
        tokens_BxG=slots.tokens_BxG.at[every, jnp.where(live, slots.step_B, G)].set(
            token, mode="drop"
        ),
        written=written,
    )


def _draw(
    shape: SlotShape,
    constraint: Constraint | None,
    written: Written | None,
    keys_A: jax.Array,
    logits_AxV: jax.Array,
) -> tuple[jax.Array, Written | None]:
    """Draw the next token of each row; where replies are held to a form, one that it allows.

    What is drawn for a row that is not live has no meaning, and no effect.
    """
    if constraint is None:
        return next_tokens(shape.sampling, keys_A, logits_AxV), None
    token_A = next_tokens(shape.sampling, keys_A, mask(constraint, written, logits_AxV))
    return token_A, advance(constraint, written, token_A)


def _count(shape: SlotShape, slots: Slots, steps: jax.Array) -> _Rows:
    live = jax.lax.psum(jnp.sum(slots.live_B, dtype=jnp.int32), SHARES)
    return _Rows(slots, steps, shape.slots * shape.shares - live, live)


def _take_rows(slots: Slots, rows_A: jax.Array | None) -> Slots:
    """Return the state with everything but the caches cut down to the rows."""
    if rows_A is None:
        return slots
    taken = jax.tree.map(lambda x: x[rows_A], slots.replace(keys=None, values=None, unwritten=None))
    unwritten = tuple(x[:, rows_A] for x in slots.unwritten)
    return taken.replace(keys=slots.keys, values=slots.values, unwritten=unwritten)


def _put_rows(slots: Slots, decoded: Slots, rows_A: jax.Array | None) -> Slots:
    """Return the state with decoded rows put back."""
    if rows_A is None:
        return decoded
    none = {"keys": None, "values": None, "unwritten": None}
    put = jax.tree.map(
        lambda all_, rows: all_.at[rows_A].set(rows), slots.replace(**none), decoded.replace(**none)
    )
    unwritten = tuple(
        all_.at[:, rows_A].set(rows)
        for all_, rows in zip(slots.unwritten, decoded.unwritten, strict=True)
    )
    return put.replace(keys=decoded.keys, values=decoded.values, unwritten=unwritten)


def _stops(token_A: jax.Array, stop_tokens: jax.Array) -> jax.Array:
    return jnp.any(token_A[:, None] == stop_tokens[None], axis=-1)


def _on_shares(
    shape: SlotShape, share: Callable[..., Any], steps: bool = False
) -> Callable[..., Any]:
    """Return `share(params, slots, split, whole)` run by every share on its own slots."""
    state, split = slot_specs(shape.structs, model=False), PartitionSpec(SHARES)
    return jax.shard_map(
        share,
        mesh=shape.mesh,
        in_specs=(PartitionSpec(), state, split, PartitionSpec()),
        out_specs=(state, split) if steps else state,
        axis_names=set(SHARES),
        check_vma=False,  # loops start from constants
    )


def _placed(shape: SlotShape, slots: Slots) -> Slots:
    """Keep the state where it lies, so that it can be updated in place."""
    return jax.lax.with_sharding_constraint(slots, slot_shardings(shape.structs, shape.mesh))


def decode_programs(
    config: LlamaConfig,
    sampling: Sampling,
    mesh: Mesh,
    *,
    slots: int,
    positions: int,
    stop_tokens: int = 1,
    extra_rows: int = 0,
    params: Params | None = None,
    constraint: Constraint | None = None,
) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Return every program of a decoding run as {name: (jitted, abstract arguments)}.

    `jitted.lower(*arguments)` needs no arrays, so the programs can be compiled for other devices.

    Args:
        config: The model.
        sampling: As for `generate`.
        mesh: The devices.
        slots: Slots on each share of the mesh.
        positions: Positions of a slot's cache, rounded up to a size that `generate` uses.
        stop_tokens: Number of stop tokens.
        extra_rows: Rows of `extra_embeddings`.
        params: Abstract weights with their shardings, if there are more than the model's own (an
            adapter).
        constraint: The form that replies are held to; only its shape matters.
    """
    shape = SlotShape(
        config, sampling, mesh, slots, rounded_positions(positions), constraint is not None
    )
    whole, split = replicated(mesh), NamedSharding(mesh, PartitionSpec(SHARES))
    of = jax.ShapeDtypeStruct
    params = program_params(config, mesh) if params is None else as_bits(params)
    structs = shape.structs
    state = jax.tree.map(
        lambda leaf, at: of(leaf.shape, leaf.dtype, sharding=at),
        structs,
        slot_shardings(structs, mesh),
    )
    form = jax.tree.map(lambda leaf: of(leaf.shape, leaf.dtype, sharding=whole), constraint)
    stop, scalar = of((stop_tokens,), jnp.int32, sharding=whole), of((), jnp.int32, sharding=whole)

    def per_share(rows: int, *more: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return of((rows * shape.shares, *more), dtype, sharding=split)

    programs: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
    extra = ()
    if extra_rows:
        extra = (of((extra_rows, config.hidden_size), jnp.float32, sharding=whole),)
    for pieces in prefill_sizes(shape):
        each = per_share(pieces)
        arguments = (shape, params, state, per_share(pieces, PIECE), each, each, each, *extra)
        programs[f"prefill {pieces * PIECE} tokens"] = (prefill_program, arguments)
    each = per_share(shape.starts)
    programs["fork"] = (fork_program, (shape, state, each, each, each))
    ids = per_share(shape.starts, dtype=jnp.uint32)
    seed = of((), jnp.uint32, sharding=whole)
    programs["start"] = (
        start_program,
        (shape, params, state, each, each, ids, each, seed, stop, form),
    )
    for rows in shape.decode_rows:
        arguments = (shape, rows, params, state, per_share(rows), scalar, scalar, stop, form)
        programs[f"decode {rows} rows"] = (segment_program, arguments)
    return programs


def prefill_sizes(shape: SlotShape) -> tuple[int, ...]:
    """Return how many pieces a call of the prefill program may take on each share, descending."""
    platform = shape.mesh.devices.flat[0].platform
    # On CPU, products of bfloat16 run a sixth faster with 1,024 tokens than with 512; accelerators
    # are bound by arithmetic from about 200 tokens. The smaller size serves few short prompts.
    most = 1024 // PIECE
    return most, most // (8 if platform == "cpu" else 4)


def choose_slots(config: LlamaConfig, bytes_available: int, positions: int) -> int:
    """Return how many slots fit a device beside its weights, from 1 to 256.

    Args:
        config: The model.
        bytes_available: Memory of the device that nothing else uses.
        positions: Positions of a slot's cache.
    """
    c = config
    number = jnp.dtype(c.dtype).itemsize
    cache = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * number * positions
    # Per slot: its cache, logits with their order and weights for sampling, and a block of keys.
    per_slot = cache + 6 * 4 * c.vocab_size + 64 * c.hidden_size
    # Whatever the slots: a layer's weights copied out of their stack, and a prefill's activations.
    layer = 4 * c.hidden_size * (c.hidden_size + c.intermediate_size)
    prefill = 1024 * 4 * (4 * c.intermediate_size + 8 * c.hidden_size)
    room = 0.9 * bytes_available - layer * jnp.dtype(c.param_dtype).itemsize - prefill
    return int(min(256, max(1, room // per_slot)))
