"""Answering where the soft prompt stands after the item's text (`jaxalign.answering.plan_suffix`).

The items' keys and values are computed once for all candidates and kept for every layer; a
candidate computes its prompt and the tail, once per item.

Letters: B prompts of a chunk, M prompt token, N token of a tail, Q item, S token of an item's text,
U = M + N token of an item's block, R block that asks, T query of it, A answer node, N query head
(in attention), K key-value head, G query heads per key-value head, H head width, D model width.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxalign.answering.attention import (
    UNSEEN,
    mix,
    plain_attention,
    scaled_scores,
    softmax_by_reciprocals,
)
from jaxalign.answering.plan_suffix import SuffixLayout
from jaxalign.lm.bits import as_bits, from_bits
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.transformer import KeyValue, Llama, causal_mask, rope_tables, rounded
from jaxalign.lm.weights import Params


@struct.dataclass
class Blocks:
    """Who sees what: queries of block r see the text of item `item_R[r]` and part of its block."""

    item_R: jax.Array  # int32, the item that a block belongs to
    seen_RxS: jax.Array  # bool, tokens of the item's text that are not padding
    mask_RxTxU: jax.Array  # bool, query t sees token u of the item's block
    recomputed: bool = struct.field(pytree_node=False, default=False)  # as in `RowTables`


@struct.dataclass
class PreparedSuffixItems:
    """All that scoring reads besides the prompts, like `options.PreparedItems`."""

    params: Params
    texts: tuple[KeyValue, KeyValue]  # keys and values [Q, S, K, H] of every item's text, per layer
    tails_QxN: jax.Array  # int32 token ids
    positions_QxU: jax.Array  # int32 RoPE positions
    blocks: Blocks  # of all tokens
    answer_blocks: Blocks  # one query each
    answers: jax.Array  # int32 [A], index into the Q * U block tokens
    scored_AxY: jax.Array
    inner: jax.Array
    sequences: jax.Array
    per_token: bool = struct.field(pytree_node=False, default=False)


def prepare_suffix_items(
    config: LlamaConfig, params: Params, layout: SuffixLayout
) -> PreparedSuffixItems:
    """Put a layout's tables on the device and compute the keys and values of every item's text."""
    Q, U = layout.positions_QxT.shape
    S = layout.texts_QxS.shape[1]
    seen_QxS = np.arange(S)[None] < layout.lengths_Q[:, None]
    item_A, at_A = np.divmod(layout.answers, U)
    return PreparedSuffixItems(
        params=params,
        texts=_encode_texts(config, params, jnp.asarray(layout.texts_QxS), jnp.asarray(seen_QxS)),
        tails_QxN=jnp.asarray(layout.tails_QxN),
        positions_QxU=jnp.asarray(layout.positions_QxT),
        blocks=_blocks(np.arange(Q), seen_QxS, layout.mask_QxTxT),
        answer_blocks=_blocks(item_A, seen_QxS, layout.mask_QxTxT[item_A, at_A][:, None]),
        answers=jnp.asarray(layout.answers),
        scored_AxY=jnp.asarray(layout.scored_AxY),
        inner=jnp.asarray(layout.inner),
        sequences=jnp.asarray(layout.sequences),
        per_token=layout.per_token,
    )


def _blocks(item_R: np.ndarray, seen_QxS: np.ndarray, mask_RxTxU: np.ndarray) -> Blocks:
    item_R = item_R.astype(np.int32)
    return Blocks(jnp.asarray(item_R), jnp.asarray(seen_QxS[item_R]), jnp.asarray(mask_RxTxU))


@functools.partial(jax.jit, static_argnums=0)
def _encode_texts(
    config: LlamaConfig, params: Params, texts_QxS: jax.Array, seen_QxS: jax.Array
) -> tuple[KeyValue, KeyValue]:
    model, bound = Llama(config), {"params": params}
    x = model.apply(bound, texts_QxS, method=Llama.embed)
    attend = jax.tree_util.Partial(plain_attention, causal_mask(seen_QxS.astype(jnp.int32)))
    rope = rope_tables(config, jnp.arange(texts_QxS.shape[1]))
    _, keys_and_values = model.apply(bound, x, rope, attend, method=Llama.blocks)
    return as_bits(keys_and_values)  # the largest arrays of a program besides the weights


def suffix_stream(
    config: LlamaConfig,
    prepared: PreparedSuffixItems,
    prompts_BxMxD: jax.Array,
    remat: bool = False,
) -> jax.Array:
    """Return the normed residual stream at the answer nodes, [B, A, D]."""
    model, bound = Llama(config, remat=remat), {"params": prepared.params}
    B, M, D = prompts_BxMxD.shape
    Q, U = prepared.positions_QxU.shape
    tails_QxNxD = model.apply(bound, prepared.tails_QxN, method=Llama.embed)
    # Every item gets a copy of the prompt, followed by its own tail.
    prompts = jnp.broadcast_to(prompts_BxMxD.astype(jnp.float32)[:, None], (B, Q, M, D))
    tails = jnp.broadcast_to(tails_QxNxD[None], (B, *tails_QxNxD.shape))
    x, _ = model.apply(
        bound,
        jnp.concatenate([prompts, tails], axis=2).reshape(B, Q * U, D),
        rope_tables(config, prepared.positions_QxU.reshape(-1)),
        jax.tree_util.Partial(block_attention, prepared.blocks.replace(recomputed=remat)),
        jax.tree_util.Partial(block_attention, prepared.answer_blocks.replace(recomputed=remat)),
        prepared.texts,
        prepared.answers,
        method=Llama.blocks,
    )
    return x


def block_attention(
    blocks: Blocks, q: jax.Array, k: jax.Array, v: jax.Array, texts: KeyValue
) -> jax.Array:
    """Return attention over [text of the block's item | the item's block]; softmax in float32.

    Args:
        blocks: which query sees what.
        q: queries [B, R * T, N, H].
        k: keys [B, Q * U, K, H] of the items' blocks.
        v: values alike.
        texts: keys and values [Q, S, K, H] of the items' texts, the same for the batch.
    """
    texts = from_bits(texts)
    B, _, N, H = q.shape
    Q, K = texts[0].shape[0], k.shape[2]
    R, T, U = blocks.mask_RxTxU.shape
    q = q.reshape(B, R, T, K, N // K, H)
    k, v = (t.reshape(B, Q, U, K, H)[:, blocks.item_R] for t in (k, v))
    text_k, text_v = (t[blocks.item_R] for t in texts)
    # Scores of the text's keys and of the block's own, under one softmax.
    to_text = scaled_scores("brtkgh,rskh->bkgrts", q, text_k)
    to_text = jnp.where(blocks.seen_RxS[None, None, None, :, None], to_text, UNSEEN)
    own = scaled_scores("brtkgh,brukh->bkgrtu", q, k)
    own = jnp.where(blocks.mask_RxTxU[None, None, None], own, UNSEEN)
    softmax = softmax_by_reciprocals if blocks.recomputed else jax.nn.softmax
    weights = softmax(jnp.concatenate([to_text, own], axis=-1))
    weights = rounded(weights, q.dtype)
    to_text, own = jnp.split(weights, [to_text.shape[-1]], axis=-1)
    out = mix("bkgrts,rskh->brtkgh", to_text, text_v) + mix("bkgrtu,brukh->brtkgh", own, v)
    return rounded(out.reshape(B, R * T, N, H), q.dtype)
