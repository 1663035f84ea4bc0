"""The two forward passes of decoding over the slots' caches: pieces of prompts, and single tokens.

Keys are read from the cache in blocks of `KEY_BLOCK` positions, as many as the longest sequence
needs, with a running softmax (Milakov and Gimelshein 2018; Dao et al. 2022). Blocks that a sequence
does not see change nothing in it, to the bit: their weights are 0 and the running maximum stays. So
neither the size of the cache nor a neighbour's length enters a sequence's result.

Layers are scanned here rather than by `Llama.blocks`, because a prompt's keys are written to the
cache inside its layer, before the layer reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.lm.bits import as_bits, from_bits
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.decode_cache import KEY_BLOCK, Cache, write_pieces
from jaxalign.lm.transformer import Block, Llama, product, rms_norm, rope_tables, rounded
from jaxalign.lm.weights import Params
from jaxalign.runtime.platform import target_platform

_UNSEEN = float(np.finfo(np.float32).min)
_PART = 1 << 20  # numbers of the output head that are read as bfloat16 at a time


def prefill_layers(
    config: LlamaConfig,
    params: Params,
    x_RxTxD: jax.Array,
    cache: Cache,
    slot_R: jax.Array,
    start_R: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Run pieces of prompts through all layers and write their keys and values to the cache.

    Args:
        config: The model.
        params: Its weights, as `as_bits` makes them.
        x_RxTxD: Embeddings of the pieces' tokens.
        cache: Keys and values of all slots.
        slot_R: int32, each piece's slot; the earlier pieces of its prompt must be in this call or
            in the cache. A slot past the last one marks a padding piece.
        start_R: int32, position of each piece's first token.

    Returns:
        The normed stream [R, T, D], and the cache.
    """
    T = x_RxTxD.shape[1]
    rope = rope_tables(config, start_R[:, None] + jnp.arange(T)[None])

    def layer(carry: tuple[jax.Array, Cache], w_and_layer: Any) -> tuple[Any, None]:
        (x, cache), (weights, number) = carry, w_and_layer
        written: list[Cache] = []

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, cache: Cache) -> jax.Array:
            # Written before it is read: a piece sees those before it, in this call too.
            new = write_pieces(cache, as_bits((k, v)), number, slot_R, start_R)
            written.append(new)
            return _attend_pieces(q, new, number, slot_R, start_R)

        x, _ = Block(config).apply({"params": weights}, x, rope, attend, cache)
        return (x, written[0]), None

    x, cache = _scan(config, layer, (x_RxTxD, cache), params)[0]
    return rms_norm(x, params["norm"], config.rms_norm_eps), cache


def decode_layers(
    config: LlamaConfig,
    params: Params,
    x_AxD: jax.Array,
    cache: Cache,
    rows_A: jax.Array | None,
    length_A: jax.Array,
    longest: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Run one new token of each of A slots through all layers, reading the cache only.

    Args:
        config: The model.
        params: Its weights, as `as_bits` makes them.
        x_AxD: Embeddings of the tokens.
        cache: Keys and values of all slots.
        rows_A: int32, the slots; None: all of them, in order.
        length_A: int32, the tokens' positions, which are also how many positions they see.
        longest: int32, the largest length that counts.

    Returns:
        The normed stream [A, D], and keys and values of the tokens, [L, A, K, H] each, as stored.
    """
    rope = rope_tables(config, length_A[:, None])
    blocks = (longest + KEY_BLOCK - 1) // KEY_BLOCK

    def layer(x: jax.Array, w_and_layer: Any) -> tuple[jax.Array, Cache]:
        weights, number = w_and_layer

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, cache: Cache) -> jax.Array:
            return _attend_token(q, k, v, cache, number, rows_A, length_A, blocks)

        x, new = Block(config).apply({"params": weights}, x, rope, attend, cache)
        return x, as_bits(tuple(value[:, 0] for value in new))

    x, new = _scan(config, layer, x_AxD[:, None], params)
    x = rms_norm(x, params["norm"], config.rms_norm_eps)
    return x[:, 0], new


def embed(
    config: LlamaConfig, params: Params, tokens: jax.Array, extra_ExD: jax.Array | None = None
) -> jax.Array:
    """Return the embeddings [..., D] of token ids, those beyond the vocabulary from `extra_ExD`."""

    def known(tokens: jax.Array) -> jax.Array:
        return Llama(config).apply({"params": params}, tokens, method=Llama.embed)

    if extra_ExD is None:
        return known(tokens)
    is_extra = tokens >= config.vocab_size
    # Both tables are read at every position, with index 0 where the other one counts.
    extra = jnp.take(extra_ExD, jnp.where(is_extra, tokens - config.vocab_size, 0), axis=0)
    embedded = known(jnp.where(is_extra, 0, tokens))
    return jnp.where(is_extra[..., None], extra.astype(embedded.dtype), embedded)


def output_logits(config: LlamaConfig, params: Params, stream_AxD: jax.Array) -> jax.Array:
    """Return float32 logits [A, V]."""
    name, axis, equation = "head", 1, "nd,dv->nv"
    if config.tie_word_embeddings:
        name, axis, equation = "embed", 0, "nd,vd->nv"
    table, V = params[name], config.vocab_size
    # On CPU, bits are read as bfloat16 a part of the vocabulary at a time, in the nearest caches.
    part = math.gcd(V, 1 << int(math.log2(max(1, _PART // config.hidden_size))))
    if table.dtype != jnp.uint16 or part < 64:
        return Llama(config).apply({"params": params}, stream_AxD, method=Llama.logits)
    x = rounded(stream_AxD, config.dtype)

    def multiply(i: jax.Array, logits_AxV: jax.Array) -> jax.Array:
        rows = jax.lax.dynamic_slice_in_dim(table, i * part, part, axis)
        return jax.lax.dynamic_update_slice_in_dim(
            logits_AxV, product(equation, x, rows), i * part, axis=1
        )

    return jax.lax.fori_loop(0, V // part, multiply, jnp.zeros((len(x), V), jnp.float32))


def _scan(config: LlamaConfig, layer: Callable[..., Any], carry: Any, params: Params) -> Any:
    """Run `layer` over the stacked layers and then the last one; outputs get a leading axis L."""
    L = config.num_hidden_layers
    carry, stacked = jax.lax.scan(layer, carry, (params["layers"], jnp.arange(L - 1)))
    carry, last = layer(carry, (params["last"], jnp.int32(L - 1)))
    return carry, jax.tree.map(
        lambda first, end: jnp.concatenate([first, end[None]]), stacked, last
    )


def _attend_pieces(
    q_RxTxNxH: jax.Array, cache: Cache, layer: jax.Array, slot_R: jax.Array, start_R: jax.Array
) -> jax.Array:
    """Attend from every token of the pieces to its slot's cache up to itself."""
    R, T, N, H = q_RxTxNxH.shape
    J, B, K = cache[0].shape[1:4]
    # Query heads that share a key head become rows of one product with that head's keys.
    q = q_RxTxNxH.reshape(R, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(R, K, -1, H)
    slot_R = jnp.minimum(slot_R, B - 1)  # padding pieces read any slot

    def piece(q_KxMxH: jax.Array, slot: jax.Array, start: jax.Array) -> jax.Array:
        at_M = start + jnp.arange(q_KxMxH.shape[1]) % T

        def block(j: jax.Array, running: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            def read(kept: jax.Array) -> jax.Array:
                size = (1, 1, 1, *kept.shape[3:])
                return from_bits(
                    jax.lax.dynamic_slice(kept, (layer, j, slot, 0, 0, 0), size)[0, 0, 0]
                )

            k, v = map(read, cache)
            seen_MxC = _positions(j)[None] <= at_M[:, None]
            return _attend_block(
                "kmh,khc->kmc", "kmc,kch->kmh", q_KxMxH, k, v, seen_MxC[None], running
            )

        most = jnp.full(q_KxMxH.shape[:2], _UNSEEN, jnp.float32)
        nothing = jnp.zeros_like(most), jnp.zeros(q_KxMxH.shape, jnp.float32)
        blocks = jnp.minimum((start + T + KEY_BLOCK - 1) // KEY_BLOCK, J)
        _, total, out = jax.lax.fori_loop(0, blocks, block, (most, *nothing))
        return rounded(out / total[..., None], q_KxMxH.dtype)

    # On CPU one piece at a time, whose arrays stay in its caches and which reads no more blocks
    # than it needs; elsewhere all at once, in few large operations.
    if target_platform() == "cpu":
        out = jax.lax.map(lambda arguments: piece(*arguments), (q, slot_R, start_R))
    else:
        out = jax.vmap(piece)(q, slot_R, start_R)
    return out.reshape(R, K, N // K, T, H).transpose(0, 3, 1, 2, 4).reshape(R, T, N, H)


def _attend_token(
    q_Ax1xNxH: jax.Array,
    k_Ax1xKxH: jax.Array,
    v_Ax1xKxH: jax.Array,
    cache: Cache,
    layer: jax.Array,
    rows_A: jax.Array | None,
    length_A: jax.Array,
    blocks: jax.Array,
) -> jax.Array:
    """Attend from one token of each slot to the slot's cache, and to itself."""
    A, _, N, H = q_Ax1xNxH.shape
    K = cache[0].shape[3]
    # On CPU in float32: with few rows, a block of bfloat16 is widened faster than it is multiplied.
    dtype = jnp.float32 if target_platform() == "cpu" else q_Ax1xNxH.dtype
    q = q_Ax1xNxH.reshape(A, K, N // K, H).astype(dtype)

    def block(j: jax.Array, running: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        def read(kept: jax.Array) -> jax.Array:
            size = (1, 1, *kept.shape[2:])
            here = jax.lax.dynamic_slice(kept, (layer, j, 0, 0, 0, 0), size)[0, 0]
            return _values(here if rows_A is None else here[rows_A], dtype)

        seen = _positions(j)[None] < length_A[:, None]
        k, v = map(read, cache)
        return _attend_block(
            "akgh,akhc->akgc", "akgc,akch->akgh", q, k, v, seen[:, None, None], running
        )

    # The running softmax starts with the token itself: its score, weight 1, its value.
    own = H**-0.5 * product("akgh,akh->akg", q, k_Ax1xKxH[:, 0])
    value = jnp.broadcast_to(v_Ax1xKxH[:, 0, :, None], q.shape).astype(jnp.float32)
    start = (own, jnp.ones_like(own), value)
    _, total, out = jax.lax.fori_loop(0, blocks, block, start)
    return rounded(out / total[..., None], q_Ax1xNxH.dtype).reshape(A, 1, N, H)


def _values(kept: jax.Array, dtype: Any) -> jax.Array:
    """Return a block of the cache in the dtype of products."""
    if kept.dtype != jnp.uint16 or dtype != jnp.float32:
        return from_bits(kept).astype(dtype)
    # A bfloat16 is the upper half of a float32. XLA on CPU vectorises a shift, but no conversion.
    return jax.lax.bitcast_convert_type(kept.astype(jnp.uint32) << 16, jnp.float32)


def _positions(block: jax.Array) -> jax.Array:
    return block * KEY_BLOCK + jnp.arange(KEY_BLOCK)


def _attend_block(
    scores: str,
    sums: str,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    seen: jax.Array,
    running: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Add one block of keys to a running softmax (largest score, sum of weights, weighted sum)."""
    most, total, out = running
    score = q.shape[-1] ** -0.5 * product(scores, q, k)
    score = jnp.where(seen, score, _UNSEEN)
    larger = jnp.maximum(most, score.max(axis=-1))
    # Earlier sums are relative to the earlier maximum.
    weight, shrink = jnp.exp(score - larger[..., None]), jnp.exp(most - larger)
    total = total * shrink + weight.sum(axis=-1)
    out = out * shrink[..., None] + product(sums, rounded(weight, q.dtype), v)
    return larger, total, out
