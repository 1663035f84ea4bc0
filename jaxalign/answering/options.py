"""The one way a model answers survey items: exact option log-probabilities for many prompts.

For P prompts x Q items only a handful of next-token logits are wanted. The text before the prompt
is computed once for all prompts; a prompt's keys and values once for all its items; text that
items share once per prompt (`jaxalign.answering.plan`). In the last layer only answer positions are
computed, and of the output head only the rows of option tokens. Prompts that stand after the items'
text are another method, with layout and context of their own (`jaxalign.answering.options_suffix`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxalign.answering.attention import RowTables, row_tables, tree_attention
from jaxalign.answering.kernels.fused import FusedKernel, FusedTables, fused_attention, fused_tables
from jaxalign.answering.kernels.spans import all_tokens, answers_only
from jaxalign.answering.options_suffix import (
    PreparedSuffixItems,
    prepare_suffix_items,
    suffix_stream,
)
from jaxalign.answering.plan import Layout
from jaxalign.answering.plan_suffix import SuffixLayout
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.transformer import KeyValue, Llama, causal_mask, masked_attention, rope_tables
from jaxalign.lm.weights import Params

Kernel = Literal["xla"] | FusedKernel
Tables = RowTables | FusedTables


@struct.dataclass
class PreparedItems:
    """What scoring reads besides the prompts: an argument of compiled programs, never a constant.

    Same shapes, same program: other items of the same layout shape do not recompile.
    """

    params: Params
    before: tuple[KeyValue, KeyValue]  # keys and values of the text before the prompt, per layer
    trunk: jax.Array  # int32 token ids
    tree: jax.Array  # int32 token ids [T]
    positions: jax.Array  # int32 [W + T]
    attention: Tables  # of all tokens
    answer_attention: Tables  # of the answer nodes
    answers: jax.Array  # int32 [A], tree index
    scored_AxY: jax.Array
    inner: jax.Array
    sequences: jax.Array  # int32 [Q, O, spellings, tokens]


def prepare_items(
    config: LlamaConfig, params: Params, layout: Layout | SuffixLayout, kernel: Kernel = "xla"
) -> PreparedItems | PreparedSuffixItems:
    """Put a layout's tables on the device and compute what stands before the prompt.

    kernel: of the attention (`jaxalign.answering.kernels`); a SuffixLayout has "xla" alone.
    """
    if isinstance(layout, SuffixLayout):
        return prepare_suffix_items(config, params, layout)
    attention, answer_attention = attention_tables(config, layout, kernel)
    return PreparedItems(
        params=params,
        before=_encode_before(config, params, jnp.asarray(layout.before)),
        trunk=jnp.asarray(layout.trunk),
        tree=jnp.asarray(layout.tree),
        positions=jnp.asarray(layout.positions),
        attention=attention,
        answer_attention=answer_attention,
        answers=jnp.asarray(layout.answers),
        scored_AxY=jnp.asarray(layout.scored_AxY),
        inner=jnp.asarray(layout.inner),
        sequences=jnp.asarray(layout.sequences),
    )


def attention_tables(
    config: LlamaConfig, layout: Layout, kernel: Kernel, interpret: bool = False
) -> tuple[Tables, Tables]:
    """Who sees whom, for `attend`: of all tokens, and of the answer nodes alone."""
    common = layout.common_length
    if kernel == "xla":
        rows = ((layout.rows, False), (layout.answer_rows, True))
        return tuple(row_tables(rows, common, only_tree) for rows, only_tree in rows)
    heads = config.num_attention_heads
    return tuple(
        fused_tables(spans, common, kernel, heads, interpret)
        for spans in (all_tokens(layout), answers_only(layout))
    )


def attend(tables: Tables, q: jax.Array, k: jax.Array, v: jax.Array, before: KeyValue) -> jax.Array:
    """Attention over [before | common | ancestors in the tree] by the tables' own kernel."""
    own = tree_attention if isinstance(tables, RowTables) else fused_attention
    return own(tables, q, k, v, before)


def option_log_probs(
    config: LlamaConfig,
    context: PreparedItems | PreparedSuffixItems,
    prompts_PxMxD: jax.Array,
    chunk: int = 8,
) -> jax.Array:
    """Log-probabilities of each item's options, normalised over its options.

    prompts: embeddings [P, M, D]; `chunk` prompts are computed at a time, so memory does not
    grow with P and a prompt's result does not depend on how many others there are.
    Returns float32 [P, Q, O]; -inf for options an item does not have. Differentiable.
    """
    return in_chunks(lambda some: chunk_log_probs(config, context, some), prompts_PxMxD, chunk)


def in_chunks(function: Callable, tree: Any, chunk: int) -> Any:
    """`function` of `chunk` rows of the tree's arrays at a time, its results laid end to end.

    The last chunk is filled up with zeros. Memory does not grow with the number of rows, and a
    row's bits do not depend on how many others there are.
    """
    P = jax.tree.leaves(tree)[0].shape[0]
    steps = -(-P // chunk)

    def cut(x: jax.Array) -> jax.Array:
        filled = jnp.pad(x, ((0, steps * chunk - P), *((0, 0),) * (x.ndim - 1)))
        return filled.reshape(steps, chunk, *x.shape[1:])

    out = jax.lax.map(function, jax.tree.map(cut, tree))
    return jax.tree.map(lambda x: x.reshape(steps * chunk, *x.shape[2:])[:P], out)


def valid_mass(
    config: LlamaConfig, context: PreparedItems | PreparedSuffixItems, prompts_PxMxD: jax.Array
) -> jax.Array:
    """Probability that the next token begins one of the options, float32 [P, Q] in [0, 1].

    Needs the full output head at every item's last token: for reports, not for the hot loop.
    """
    model, bound = Llama(config), {"params": context.params}
    first_QxS = context.sequences[..., 0].reshape(context.sequences.shape[0], -1)
    nodes_Q = first_QxS[:, 0] // context.scored_AxY.shape[1]
    tokens_QxS = context.scored_AxY.reshape(-1)[jnp.maximum(first_QxS, 0)]
    # One past the vocabulary where there is no spelling: `mode="drop"` then marks nothing.
    tokens_QxS = jnp.where(first_QxS >= 0, tokens_QxS, config.vocab_size)

    def item(x_D: jax.Array, tokens_S: jax.Array) -> jax.Array:
        begins_V = jnp.zeros(config.vocab_size, bool).at[tokens_S].set(True, mode="drop")
        probabilities_V = jax.nn.softmax(model.apply(bound, x_D, method=Llama.logits))
        return jnp.sum(probabilities_V, where=begins_V)

    def prompt(prompt_MxD: jax.Array) -> jax.Array:
        x_AxD = _answer_stream(config, context, prompt_MxD[None])[0]
        return jax.lax.map(lambda q: item(*q), (x_AxD[nodes_Q], tokens_QxS), batch_size=32)

    return jax.lax.map(prompt, prompts_PxMxD)


def chunk_log_probs(
    config: LlamaConfig, context: PreparedItems | PreparedSuffixItems, prompts_BxMxD: jax.Array
) -> jax.Array:
    """`option_log_probs` of prompts [B, M, D] all at once: float32 [B, Q, O]."""
    x_BxAxD = _answer_stream(config, context, prompts_BxMxD)
    model, bound = Llama(config), {"params": context.params}
    rows_AxYxD = model.apply(bound, context.scored_AxY, method=Llama.head_rows)
    precision = "highest" if config.dtype == "float32" else "default"
    logits_BxAxY = jnp.einsum(
        "bad,ayd->bay", x_BxAxD, rows_AxYxD.astype(x_BxAxD.dtype),
        precision=precision, preferred_element_type=jnp.float32,
    )  # fmt: skip
    if context.inner.shape[0]:  # an option of several tokens: its later tokens are normalised
        full = model.apply(bound, x_BxAxD[:, context.inner], method=Llama.logits)
        normaliser = jax.nn.logsumexp(full, axis=-1)[..., None]
        logits_BxAxY = logits_BxAxY.at[:, context.inner].add(-normaliser)
    return _options_from_tokens(context.sequences, logits_BxAxY)


def _options_from_tokens(sequences: jax.Array, logits_BxAxY: jax.Array) -> jax.Array:
    """Add up tokens of a spelling, then spellings of an option; normalise over options.

    The first token's own normaliser is the same for all options of an item and cancels.
    """
    flat = logits_BxAxY.reshape(logits_BxAxY.shape[0], -1)
    parts = jnp.where(sequences >= 0, flat[:, jnp.maximum(sequences, 0)], 0.0)
    there = sequences[..., 0] >= 0
    spellings = jnp.where(there, parts.sum(axis=-1), -jnp.inf)
    return jax.nn.log_softmax(_logsumexp(spellings, there), axis=-1)


def _logsumexp(values: jax.Array, there: jax.Array) -> jax.Array:
    """logsumexp over the last axis; -inf, with a zero gradient, where nothing is there."""
    some = there.any(axis=-1)
    safe = jnp.where(some[..., None], values, 0.0)
    return jnp.where(some, jax.nn.logsumexp(safe, axis=-1), -jnp.inf)


def _answer_stream(
    config: LlamaConfig, context: PreparedItems | PreparedSuffixItems, prompts_BxMxD: jax.Array
) -> jax.Array:
    """Normed residual stream at the answer nodes, [B, A, D]."""
    if isinstance(context, PreparedSuffixItems):
        return suffix_stream(config, context, prompts_BxMxD)
    model, bound = Llama(config), {"params": context.params}
    B = prompts_BxMxD.shape[0]
    tokens = jnp.concatenate([context.trunk, context.tree])
    embedded = model.apply(bound, tokens, method=Llama.embed)
    shared = jnp.broadcast_to(embedded[None], (B, *embedded.shape))
    x = jnp.concatenate([prompts_BxMxD.astype(config.dtype), shared], axis=1)
    x, _ = model.apply(
        bound,
        x,
        rope_tables(config, context.positions),
        jax.tree_util.Partial(attend, context.attention),
        jax.tree_util.Partial(attend, context.answer_attention),
        context.before,
        context.answers + context.attention.common,
        method=Llama.blocks,
    )
    return x


def _encode_before(
    config: LlamaConfig, params: Params, tokens_S: jax.Array
) -> tuple[KeyValue, KeyValue]:
    """Keys and values of the text before the prompt: ([L-1, S, K, H] x 2, [S, K, H] x 2)."""

    @jax.jit
    def encode(params: Params, tokens: jax.Array) -> tuple[KeyValue, KeyValue]:
        model, bound = Llama(config), {"params": params}
        x = model.apply(bound, tokens[None], method=Llama.embed)
        attend = jax.tree_util.Partial(masked_attention, causal_mask(jnp.ones_like(tokens)[None]))
        rope = rope_tables(config, jnp.arange(tokens.shape[0]))
        _, (stacked, last) = model.apply(bound, x, rope, attend, method=Llama.blocks)
        return tuple(t[:, 0] for t in stacked), tuple(t[0] for t in last)

    if tokens_S.shape[0] == 0:
        shape = (0, config.num_key_value_heads, config.head_dim)
        nothing = jnp.zeros(shape, config.dtype)
        stacked = jnp.zeros((config.num_hidden_layers - 1, *shape), config.dtype)
        return (stacked, stacked), (nothing, nothing)
    return encode(params, tokens_S)


def embed_tokens(config: LlamaConfig, params: Params, tokens: Any) -> jax.Array:
    """Embeddings [..., D] of token ids, in float32 (the dtype that prompts are tuned in)."""
    out = Llama(config).apply({"params": params}, jnp.asarray(tokens), method=Llama.embed)
    return out.astype(jnp.float32)
