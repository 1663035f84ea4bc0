"""Prefill and sampling of one batch, as one compiled program.

A sequence's slots in the KV cache:

    soft prompt (M) | prompt | padding up to M + P | new tokens (slot M + P + step)

New tokens share a slot across the batch, so that a step writes one slice; what a sequence sees is
up to a mask, and RoPE counts its own tokens only. The cache is updated in place. The loop ends when
every sequence has stopped.
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
    """Prompts of one padded length. A row of length 0 is padding and gets no reply."""

    prefix_BxMxD: jax.Array  # soft prompts; M may be 0
    tokens_BxP: jax.Array  # int32, padding on the right
    lengths_B: jax.Array  # int32: real prompt tokens
    ids_B: jax.Array  # uint32: what a row's random key is made from, with
    seed: jax.Array  # uint32 scalar

    @property
    def slots(self) -> int:
        """Cache slots before the new tokens."""
        return self.prefix_BxMxD.shape[1] + self.tokens_BxP.shape[1]

    @property
    def starts_B(self) -> jax.Array:
        """int32: soft-prompt and prompt tokens, which is the first new token's position."""
        return self.prefix_BxMxD.shape[1] + self.lengths_B


@struct.dataclass
class _State:
    step: jax.Array  # int32: index of the newest token
    tokens_BxG: jax.Array  # int32: new tokens; meaningless after a stop token
    stopped_B: jax.Array
    cache: Cache
    # Keys and values of the token before the newest, which the next step writes before it reads
    # the cache. Written after reading, the last layer's cache would be copied at every step.
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
    """New tokens, int32 [B, max_new_tokens]; meaningless after a row's first stop token.

    With a mesh, every device gets all of them.
    """
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(batch.seed), batch.ids_B)

    def take(state: _State, logits_BxV: jax.Array) -> _State:
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
    """Logits [B, V] after each prompt's last token, and the state with the prompts in its cache."""
    model, bound = Llama(config), {"params": params}
    embedded = model.apply(bound, batch.tokens_BxP, method=Llama.embed)
    x = jnp.concatenate([batch.prefix_BxMxD.astype(config.dtype), embedded], axis=1)
    rope, attend = rope_tables(config, jnp.arange(batch.slots)), jax.tree_util.Partial(_causal)
    x, prompts = model.apply(bound, x, rope, attend, method=Llama.blocks)
    at_B = jnp.maximum(batch.starts_B - 1, 0)
    x_BxD = jnp.take_along_axis(x, at_B[:, None, None], axis=1)[:, 0]

    def grow(kept: jax.Array) -> jax.Array:  # the newest token needs no slot
        outer = [(0, 0)] * (kept.ndim - 3)
        return jnp.pad(kept, [*outer, (0, new_tokens - 1), (0, 0), (0, 0)])

    state = _State(
        step=jnp.int32(0),
        tokens_BxG=jnp.zeros((x.shape[0], new_tokens), jnp.int32),
        stopped_B=batch.lengths_B == 0,
        cache=jax.tree.map(grow, prompts),
        unwritten=jax.tree.map(lambda kept: kept[..., -1:, :, :], prompts),
    )
    return state, model.apply(bound, x_BxD, method=Llama.logits)


def _forward(
    config: LlamaConfig, params: Params, batch: Batch, state: _State
) -> tuple[_State, jax.Array]:
    """Logits [B, V] after the newest token, and the state with that token's keys and values."""
    model, bound = Llama(config), {"params": params}
    starts_Bx1, slot = batch.starts_B[:, None], batch.slots + state.step

    def write(kept: jax.Array, value: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(kept, value, slot - 1, axis=value.ndim - 3)

    cache = jax.tree.map(write, state.cache, state.unwritten)
    at_1xS = jnp.arange(cache[1][0].shape[1])[None]
    mask_BxS = (at_1xS < starts_Bx1) | ((at_1xS >= batch.slots) & (at_1xS < slot))
    attend = jax.tree_util.Partial(cached_attention, mask_BxS)
    token_Bx1 = jax.lax.dynamic_slice_in_dim(state.tokens_BxG, state.step, 1, axis=1)
    x = model.apply(bound, token_Bx1, method=Llama.embed)
    rope = rope_tables(config, starts_Bx1 + state.step)
    x, unwritten = model.apply(bound, x, rope, attend, cache=cache, method=Llama.blocks)
    logits_BxV = model.apply(bound, x[:, 0], method=Llama.logits)
    return state.replace(cache=cache, unwritten=unwritten), logits_BxV


def _causal(q: jax.Array, k: jax.Array, v: jax.Array, cache: None = None) -> jax.Array:
    """Padding comes after a prompt's own tokens, so that being causal is enough to hide it."""
    with exact_products(q.dtype):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def cached_attention(
    mask_BxS: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, cache: KeyValue
) -> jax.Array:
    """A new token [B, 1, heads, H] sees cache slots where the mask holds, and itself.

    cache: keys and values [B, S, K, H]. They are not joined with the new ones, which would copy
    them; the two parts of the softmax are. Softmax in float32.
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
    return q.shape[-1] ** -0.5 * product("btkgh,bskh->bkgts", q, k)
