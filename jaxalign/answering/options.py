"""The one way a model answers survey items: exact option log-probabilities for many prompts.

For P prompts x Q items only a handful of next-token logits are wanted. The text before the prompt
is computed once for all prompts; a prompt's keys and values once for all its items; text that
items share once per prompt (`jaxalign.answering.plan`). In the last layer only answer positions are
computed, and of the output head only the rows of option tokens. Prompts that stand after the items'
text are another method with its own layout and tables (`jaxalign.answering.options_suffix`).

Letters: P prompts, B prompts of a chunk, M prompt token, D model width, W common token, T tree
token, A answer node, Y token read there, Q item, O option, S text token, K key-value head, H head
width, L layer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxalign.answering.attention import (
    RowTables,
    plain_attention,
    row_tables,
    sums_in_order,
    tree_attention,
)
from jaxalign.answering.options_suffix import (
    PreparedSuffixItems,
    prepare_suffix_items,
    suffix_stream,
)
from jaxalign.answering.plan import Layout
from jaxalign.answering.plan_suffix import SuffixLayout
from jaxalign.lm.bits import as_bits
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.transformer import KeyValue, Llama, causal_mask, rope_tables, rounded
from jaxalign.lm.weights import Params

if TYPE_CHECKING:
    from jaxalign.answering.kernels.fused import FusedTables

Kernel = str
"""What computes the attention: "xla", or a name in `jaxalign.answering.kernels.KERNELS`."""


@struct.dataclass
class PreparedItems:
    """A model and a survey's items, ready to be scored: all that scoring reads besides the prompts.

    It is an argument of compiled programs, never a constant in them: other items whose layout has
    the same shapes reuse the program.
    """

    params: Params
    before: tuple[KeyValue, KeyValue]  # keys and values of the text before the prompt, per layer
    trunk: jax.Array  # int32 token ids
    tree: jax.Array  # int32 token ids [T]
    positions: jax.Array  # int32 [W + T]
    attention: RowTables | FusedTables  # of all tokens
    answer_attention: RowTables | FusedTables  # of the answer nodes
    answers: jax.Array  # int32 [A], tree index
    scored_AxY: jax.Array  # int32, token ids whose logits are read
    inner: jax.Array  # int32, answer nodes inside an option
    sequences: jax.Array  # int32 [Q, O, spellings, tokens]
    per_token: bool = struct.field(pytree_node=False, default=False)


def prepare_items(
    config: LlamaConfig, params: Params, layout: Layout | SuffixLayout, kernel: Kernel = "xla"
) -> PreparedItems | PreparedSuffixItems:
    """Put a layout's tables on the device and compute what stands before the prompt.

    Args:
        config: the model's shapes.
        params: its weights.
        layout: the plan of the items, from `plan_layout` or `plan_suffix_layout`.
        kernel: what computes the attention; a `SuffixLayout` is always computed by "xla".
    """
    params = as_bits(params)
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
        per_token=layout.per_token,
    )


def attention_tables(
    config: LlamaConfig, layout: Layout, kernel: Kernel, interpret: bool = False
) -> tuple[RowTables | FusedTables, RowTables | FusedTables]:
    """Return which token sees which, for `attend`: of all tokens, and of the answer nodes alone.

    Args:
        config: the model's shapes.
        layout: the plan of the items.
        kernel: what computes the attention.
        interpret: compute a device's kernel on any device, slowly; for tests.
    """
    common = layout.common_length
    if kernel == "xla":
        rows = ((layout.rows, False), (layout.answer_rows, True))
        tables = tuple(row_tables(rows, common, only_tree) for rows, only_tree in rows)
        if not sums_in_order(jnp.dtype(config.dtype)):
            return tables
        before = len(layout.before)
        positions = jnp.concatenate([jnp.arange(before), jnp.asarray(layout.positions)])
        return tuple(each.in_order(positions, before, layout.longest) for each in tables)
    from jaxalign.answering.kernels.fused import fused_tables
    from jaxalign.answering.kernels.spans import all_tokens, answers_only

    heads = config.num_attention_heads
    return tuple(
        fused_tables(spans, common, kernel, heads, interpret)
        for spans in (all_tokens(layout), answers_only(layout))
    )


def attend(
    tables: RowTables | FusedTables, q: jax.Array, k: jax.Array, v: jax.Array, before: KeyValue
) -> jax.Array:
    """Return attention over [before | common | ancestors in the tree] by the tables' own kernel.

    Args:
        tables: from `attention_tables`.
        q: queries [B, W + T, N, H], or [B, A, N, H] where only answer nodes ask.
        k: keys [B, W + T, K, H] of the common tokens and the tree.
        v: values alike.
        before: keys and values [S, K, H] of the text before the prompt.
    """
    if isinstance(tables, RowTables):
        return tree_attention(tables, q, k, v, before)
    from jaxalign.answering.kernels.fused import fused_attention

    return fused_attention(tables, q, k, v, before)


def option_log_probs(
    config: LlamaConfig,
    prepared: PreparedItems | PreparedSuffixItems,
    prompts_PxMxD: jax.Array,
    chunk: int = 8,
) -> jax.Array:
    """Return the log-probabilities of each item's options, normalised over its options.

    Differentiable.

    Args:
        config: the model's shapes.
        prepared: the model and the items, from `prepare_items`.
        prompts_PxMxD: embeddings of P prompts of M tokens; M may be 0.
        chunk: prompts computed at a time, so that memory does not grow with P and a prompt's
            result does not depend on how many others there are.

    Returns:
        float32 [P, Q, O], natural logarithms; -inf for options that an item does not have.
    """
    return in_chunks(lambda part: chunk_log_probs(config, prepared, part), prompts_PxMxD, chunk)


def in_chunks(function: Callable, tree: Any, chunk: int) -> Any:
    """Apply a function to `chunk` rows of the tree's arrays at a time; join the results.

    The last chunk is filled up with zeros. Memory does not grow with the number of rows, and a
    row's bits do not depend on how many others there are.

    Args:
        function: takes a tree of arrays with `chunk` rows, returns a tree of arrays with as many.
        tree: arrays with P rows each.
        chunk: rows computed at a time.

    Returns:
        What the function returns, with P rows.
    """
    P = jax.tree.leaves(tree)[0].shape[0]
    steps = -(-P // chunk)

    def cut(x: jax.Array) -> jax.Array:
        filled = jnp.pad(x, ((0, steps * chunk - P), *((0, 0),) * (x.ndim - 1)))
        return filled.reshape(steps, chunk, *x.shape[1:])

    out = jax.lax.map(function, jax.tree.map(cut, tree))
    return jax.tree.map(lambda x: x.reshape(steps * chunk, *x.shape[2:])[:P], out)


def chunk_log_probs(
    config: LlamaConfig,
    prepared: PreparedItems | PreparedSuffixItems,
    prompts_BxMxD: jax.Array,
    remat: bool = False,
) -> jax.Array:
    """Compute `option_log_probs` of prompts [B, M, D] all at once: float32 [B, Q, O].

    Args:
        config: the model's shapes.
        prepared: the model and the items, from `prepare_items`.
        prompts_BxMxD: embeddings of the prompts.
        remat: recompute each layer in the backward pass instead of keeping its activations.
    """
    x_BxAxD = _answer_stream(config, prepared, prompts_BxMxD, remat)
    model, bound = Llama(config), {"params": prepared.params}
    # Of the output head only the rows of the tokens that are read: [A, Y, D].
    rows_AxYxD = model.apply(bound, prepared.scored_AxY, method=Llama.head_rows)
    precision = "highest" if config.dtype == "float32" else "default"
    logits_BxAxY = jnp.einsum(
        "bad,ayd->bay",
        rounded(x_BxAxD, config.dtype),
        rows_AxYxD.astype(config.dtype),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    # Later tokens of an option are probabilities given the earlier ones, so they need the full
    # normaliser; a first token's cancels between the options.
    if prepared.inner.shape[0]:
        full = model.apply(bound, x_BxAxD[:, prepared.inner], method=Llama.logits)
        normaliser = jax.nn.logsumexp(full, axis=-1)[..., None]
        logits_BxAxY = logits_BxAxY.at[:, prepared.inner].add(-normaliser)
    return options_from_tokens(prepared.sequences, logits_BxAxY, prepared.per_token)


def options_from_tokens(
    sequences: jax.Array, logits_BxAxY: jax.Array, per_token: bool = False
) -> jax.Array:
    """Return option log-probabilities [B, Q, O] from the logits of their tokens.

    A spelling's tokens are added up, then an option's spellings (as probabilities), and options are
    normalised. The first token's own normaliser is the same for all options of an item and cancels;
    not so with `per_token`, where a spelling counts by the mean of its tokens' log-probabilities.
    """
    flat = logits_BxAxY.reshape(logits_BxAxY.shape[0], -1)
    terms = jnp.where(sequences >= 0, flat[:, jnp.maximum(sequences, 0)], 0.0)
    exists = sequences[..., 0] >= 0
    sums = terms.sum(axis=-1)
    if per_token:
        sums = sums / jnp.maximum((sequences >= 0).sum(axis=-1), 1)[None]
    spellings = jnp.where(exists, sums, -jnp.inf)
    return jax.nn.log_softmax(_logsumexp(spellings, exists), axis=-1)


def _logsumexp(values: jax.Array, exists: jax.Array) -> jax.Array:
    """Return logsumexp over the last axis; -inf, with a zero gradient, where nothing exists."""
    any_exists = exists.any(axis=-1)
    safe = jnp.where(any_exists[..., None], values, 0.0)  # all -inf would give NaN gradients
    return jnp.where(any_exists, jax.nn.logsumexp(safe, axis=-1), -jnp.inf)


def _answer_stream(
    config: LlamaConfig,
    prepared: PreparedItems | PreparedSuffixItems,
    prompts_BxMxD: jax.Array,
    remat: bool = False,
) -> jax.Array:
    """Return the normed residual stream at the answer nodes, [B, A, D]."""
    if isinstance(prepared, PreparedSuffixItems):
        return suffix_stream(config, prepared, prompts_BxMxD, remat)
    model, bound = Llama(config, remat=remat), {"params": prepared.params}
    tables = prepared.attention, prepared.answer_attention
    if remat:
        tables = [t.replace(recomputed=True) if isinstance(t, RowTables) else t for t in tables]
    B = prompts_BxMxD.shape[0]
    # Each prompt, then the trunk and the tree, which are the same for all prompts of the chunk.
    tokens = jnp.concatenate([prepared.trunk, prepared.tree])
    embedded = model.apply(bound, tokens, method=Llama.embed)
    shared = jnp.broadcast_to(embedded[None], (B, *embedded.shape))
    x = jnp.concatenate([prompts_BxMxD.astype(jnp.float32), shared], axis=1)
    x, _ = model.apply(
        bound,
        x,
        rope_tables(config, prepared.positions),
        *(jax.tree_util.Partial(attend, each) for each in tables),
        prepared.before,
        prepared.answers + prepared.attention.common,
        method=Llama.blocks,
    )
    return x


def _encode_before(
    config: LlamaConfig, params: Params, tokens_S: jax.Array
) -> tuple[KeyValue, KeyValue]:
    """Return keys and values of the text before the prompt: of the stacked layers, of the last.

    ([L-1, S, K, H] x 2, [S, K, H] x 2); S is 0 where there is no such text.
    """

    @jax.jit
    def encode(params: Params, tokens: jax.Array) -> tuple[KeyValue, KeyValue]:
        model, bound = Llama(config), {"params": params}
        x = model.apply(bound, tokens[None], method=Llama.embed)
        attend = jax.tree_util.Partial(plain_attention, causal_mask(jnp.ones_like(tokens)[None]))
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
    """Return the embeddings [..., D] of token ids, in float32 (the dtype prompts are tuned in)."""
    return Llama(config).apply({"params": params}, jnp.asarray(tokens), method=Llama.embed)
