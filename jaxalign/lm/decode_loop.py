"""Decode one batch: prefill the KV cache and sample tokens, as one compiled program.

A sequence's slots in the KV cache:

    prompt | padding up to P | new tokens (slot P + step)

All sequences of a batch write their new token to the same slot, so that a step writes one slice. A
mask decides what each sequence sees, and RoPE counts a sequence's own tokens only. The cache is
updated in place. The loop ends when every sequence has stopped.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.sampling import Sampling, next_tokens
from jaxalign.lm.transformer import KeyValue, Llama, exact_products, product, rope_tables
from jaxalign.lm.weights import Params
from jaxalign.runtime.sharding import replicated

Cache = tuple[KeyValue, KeyValue]  # ([L-1, B, S, K, H] x 2, last layer's [B, S, K, H] x 2)
_UNSEEN = float(np.finfo(np.float32).min)


@struct.dataclass
class Batch:
    """Prompts padded to one length. A row of length 0 is padding and gets no reply.

    The token id `vocab_size + i` stands for row i of `extra_ExD`; without that table, the program
    has no trace of it.
    """

    tokens_BxP: jax.Array  # int32, padding on the right
    lengths_B: jax.Array  # int32: number of tokens of each prompt
    ids_B: jax.Array  # uint32: a row's random key is made from this id and the seed
    seed: jax.Array  # uint32 scalar
    extra_ExD: jax.Array | None = None  # embeddings beyond the vocabulary (soft prompts)

    @property
    def slots(self) -> int:
        """Number of cache slots before the new tokens."""
        return self.tokens_BxP.shape[1]


@struct.dataclass
class _State:
    step: jax.Array  # int32: index of the newest token
    tokens_BxG: jax.Array  # int32: new tokens; meaningless after a stop token
    stopped_B: jax.Array
    cache: Cache
    # Keys and values of the token before the newest, which the next step writes before it reads
    # the cache. If they were written after reading, XLA would copy the last layer's cache in every
    # step instead of updating it in place.
    unwritten: Cache


@functools.partial(jax.jit, static_argnames=("config", "sampling", "mesh"))
def decode_batch(
    config: LlamaConfig,
    sampling: Sampling,
    params: Params,
    batch: Batch,
    stop_tokens: jax.Array,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Return the new tokens of a batch, int32 [B, max_new_tokens].

    They are meaningless after a row's first stop token. With a mesh, every device gets all of them.
    """
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(batch.seed), batch.ids_B)

    def take(state: _State, logits_BxV: jax.Array) -> _State:
        # A token's key depends on its sequence and its step only, not on the batch.
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, state.step)
        token_B = next_tokens(sampling, keys, logits_BxV)
        stops_B = jnp.any(token_B[:, None] == stop_tokens[None], axis=-1)
        tokens = state.tokens_BxG.at[:, state.step].set(token_B)
        return state.replace(tokens_BxG=tokens, stopped_B=state.stopped_B | stops_B)

    def step(state: _State) -> _State:
        state, logits_BxV = _forward(config, params, batch, state)
        return take(state.replace(step=state.step + 1), logits_BxV)

    def unfinished(state: _State) -> jax.Array:
        return (state.step + 1 < sampling.max_new_tokens) & ~jnp.all(state.stopped_B)

    start, logits_BxV = _prefill(config, params, batch, sampling.max_new_tokens)
    tokens = jax.lax.while_loop(unfinished, step, take(start, logits_BxV)).tokens_BxG
    return tokens if mesh is None else jax.lax.with_sharding_constraint(tokens, replicated(mesh))


def _prefill(
    config: LlamaConfig, params: Params, batch: Batch, new_tokens: int
) -> tuple[_State, jax.Array]:
    """Return the state with the prompts in its cache, and logits [B, V] after their last tokens."""
    model, bound = Llama(config), {"params": params}
    x = _embed(model, params, batch)
    rope, attend = rope_tables(config, jnp.arange(batch.slots)), jax.tree_util.Partial(_causal)
    x, prompts = model.apply(bound, x, rope, attend, method=Llama.blocks)
    # Only the stream at each prompt's last token goes through the output head.
    at_B = jnp.maximum(batch.lengths_B - 1, 0)
    x_BxD = jnp.take_along_axis(x, at_B[:, None, None], axis=1)[:, 0]

    def grow(kept: jax.Array) -> jax.Array:  # the newest token needs no slot
        outer = [(0, 0)] * (kept.ndim - 3)
        return jnp.pad(kept, [*outer, (0, new_tokens - 1), (0, 0), (0, 0)])

    state = _State(
        step=jnp.int32(0),
        tokens_BxG=jnp.zeros((x.shape[0], new_tokens), jnp.int32),
        stopped_B=batch.lengths_B == 0,
        cache=jax.tree.map(grow, prompts),
        # The first step writes the prompt's last slot once more.
        unwritten=jax.tree.map(lambda kept: kept[..., -1:, :, :], prompts),
    )
    return state, model.apply(bound, x_BxD, method=Llama.logits)


def _embed(model: Llama, params: Params, batch: Batch) -> jax.Array:
    """Return the embeddings [B, P, D] of the prompts, extra ones included."""
    tokens, extra_ExD = batch.tokens_BxP, batch.extra_ExD
    embed = functools.partial(model.apply, {"params": params}, method=Llama.embed)
    if extra_ExD is None:
        return embed(tokens)
    vocab_size = model.config.vocab_size
    is_extra = tokens >= vocab_size
    # Both tables are read at every position, with index 0 where the other one counts.
    known = embed(jnp.where(is_extra, 0, tokens))
    extra = jnp.take(extra_ExD, jnp.where(is_extra, tokens - vocab_size, 0), axis=0)
    return jnp.where(is_extra[:, :, None], extra.astype(known.dtype), known)


def _forward(
    config: LlamaConfig, params: Params, batch: Batch, state: _State
) -> tuple[_State, jax.Array]:
    """Return the state with the newest token's keys and values, and logits [B, V] after it."""
    model, bound = Llama(config), {"params": params}
    lengths_Bx1, slot = batch.lengths_B[:, None], batch.slots + state.step

    def write(kept: jax.Array, value: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(kept, value, slot - 1, axis=value.ndim - 3)

    cache = jax.tree.map(write, state.cache, state.unwritten)
    # A sequence sees its own prompt and the new tokens so far, but not the padding between them.
    at_1xS = jnp.arange(cache[1][0].shape[1])[None]
    mask_BxS = (at_1xS < lengths_Bx1) | ((at_1xS >= batch.slots) & (at_1xS < slot))
    attend = jax.tree_util.Partial(cached_attention, mask_BxS)
    token_Bx1 = jax.lax.dynamic_slice_in_dim(state.tokens_BxG, state.step, 1, axis=1)
    x = model.apply(bound, token_Bx1, method=Llama.embed)
    rope = rope_tables(config, lengths_Bx1 + state.step)
    x, unwritten = model.apply(bound, x, rope, attend, cache=cache, method=Llama.blocks)
    logits_BxV = model.apply(bound, x[:, 0], method=Llama.logits)
    return state.replace(cache=cache, unwritten=unwritten), logits_BxV


def _causal(q: jax.Array, k: jax.Array, v: jax.Array, cache: None = None) -> jax.Array:
    """Attend causally, which is enough to hide padding, because it comes after the prompt."""
    with exact_products(q.dtype):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def cached_attention(
    mask_BxS: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, cache: KeyValue
) -> jax.Array:
    """Attend from a new token to the cache slots where the mask holds, and to itself.

    The cached keys and values are not concatenated with the new ones, which would copy the cache;
    only the scores of the two are. Softmax in float32.

    Args:
        mask_BxS: bool, the slots that each sequence sees.
        q: Query of the new token, [B, 1, N, H].
        k, v: Its key and value, [B, 1, K, H].
        cache: Keys and values so far, [B, S, K, H] each.

    Returns:
        [B, 1, N, H], in the dtype of `q`.
    """
    B, T, N, H = q.shape
    K, S = k.shape[2], mask_BxS.shape[1]
    q = q.reshape(B, T, K, N // K, H)
    seen = jnp.where(mask_BxS[:, None, None, None], _scores(q, cache[0]), _UNSEEN)
    both = jnp.concatenate([seen, _scores(q, k)], axis=-1)
    weights = jax.nn.softmax(both, axis=-1).astype(q.dtype)
    out = product("bkgts,bskh->btkgh", weights[..., :S], cache[1])
    out += product("bkgts,bskh->btkgh", weights[..., S:], v)
    return out.reshape(B, T, N, H).astype(q.dtype)


def _scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """Return scaled products of queries [B, T, K, G, H] and keys [B, S, K, H], [B, K, G, T, S]."""
    return q.shape[-1] ** -0.5 * product("btkgh,bskh->bkgts", q, k)
