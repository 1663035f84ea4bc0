"""The loss of answers, for rows of packed examples of one adapter or of several.

Where a target is one token, it is the token's cross-entropy. Where it is a distribution p over some
next tokens, such as the numbers of an item's options, it is the divergence from p of what the model
gives to these tokens among *all* tokens of the vocabulary:

    KL(p || q) = Σ p_o log(p_o / q_o),    q the softmax over the vocabulary

With all of p on one token this is the cross-entropy, so both targets differ in nothing but p. It is
the divergence over the options alone, plus -log of the probability that the reply is an option at
all: normalised over the options, the loss would let that probability go wherever it likes, and with
it whether a reply can be read. At a position that some options alone lead to (behind the 1 of 10),
p sums to their mass M, and the loss is M KL(p / M || q): the divergence of whole numbers, token by
token.

A row is a long sequence of short examples. What a step minimises is the sum over a pass's rows;
with several adapters, the sum of each unit (see `jaxalign.training.packing`), so that the gradient
of a unit's adapter is that of its own examples alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import xlogy

from jaxalign.lm.lanes import KEPT_LANES, KEPT_PLACES, LANES, PLACES, to_lanes, unit_lanes
from jaxalign.lm.lora import LoraConfig, attach
from jaxalign.lm.transformer import Attend, Llama, masked_attention, rope_tables
from jaxalign.lm.weights import Params
from jaxalign.training.attention import attend_in_units, attend_kept_in_units, attend_within
from jaxalign.training.fused import Fused
from jaxalign.training.packing import Batch
from jaxalign.training.shape import Shape

# Positions of a row whose logits exist at once: 128 MiB in float32 at a vocabulary of 128,256.
HEAD_POSITIONS = 256
# With more than one answer token in this many tokens, the last layer is computed for all positions.
_FEW_ANSWERS = 16


def loss_sum(
    model: Llama,
    params: Params,
    batch: Batch,
    window: int,
    examples: int = 0,
    fused: Fused | None = None,
) -> jax.Array:
    """Return the sum of the answer tokens' weighted losses over a batch [B, T], in nats.

    Args:
        model: The model.
        params: Its parameters, perhaps with an adapter beside them.
        batch: Rows of packed examples.
        window: Most tokens of an example.
        examples: Most examples of a row, if attention is computed one by one; 0 for blocks.
        fused: A kernel made for the device, for the attention of all positions; None for XLA.
    """

    def attention(row: Batch, _: None) -> tuple[Attend, Attend]:
        segments_T, at_A = row.segments_BxT, row.at_BxA
        # Of the mask of all queries and keys, the rows of the queries that are kept.
        seen_AxT = segments_T[at_A][:, None] == segments_T[None]
        seen_AxT &= (jnp.arange(len(segments_T))[None] <= at_A[:, None]) & (segments_T > 0)[None]
        return (
            attend_within(segments_T, window, examples, fused),
            jax.tree_util.Partial(masked_attention, seen_AxT[None, None]),
        )

    losses_BxA = _answer_losses(model, params, lambda _: params, attention, batch, None, fused)
    return jnp.sum(losses_BxA)


def unit_loss_sums(
    model: Llama,
    lora: LoraConfig,
    params: Params,
    adapters: Any,
    batch: Batch,
    shape: Shape,
    fused: Fused | None = None,
) -> jax.Array:
    """Return the sum of the weighted losses of each unit, float32 [B, U], in nats.

    Args:
        model: The model.
        lora: Settings of the adapters.
        params: The frozen weights.
        adapters: The adapter of each unit: a tree whose leaves begin with [B, U].
        batch: Rows of packed examples of several adapters, [B, T].
        shape: The sizes of units and of rows.
        fused: A kernel made for the device, for the attention of all positions; None for XLA.
    """
    lanes = jax.vmap(lambda n: unit_lanes(n, shape.unit_length, shape.row_length))(batch.sizes_BxU)
    kept = jax.vmap(lambda n: unit_lanes(n, shape.unit_answers, shape.answers))(batch.answers_BxU)
    beside = {LANES: lanes[0], PLACES: lanes[1]}
    beside_last = dict(beside)
    if _has_few_answers(shape.answers, shape.row_length):
        beside_last |= {KEPT_LANES: kept[0], KEPT_PLACES: kept[1]}
    layers = model.config.num_hidden_layers - 1

    def params_of_row(of_row: Any) -> Params:
        """Put the units' adapters, and where the units are, beside the kernels of each layer."""
        adapters_U, beside, beside_last, _ = of_row
        # Layers are the leading axis of what is stacked: [U, layers, ...] -> [layers, U, ...].
        stacked = jax.tree.map(lambda w: jnp.moveaxis(w, 0, 1), adapters_U["layers"])
        full = attach(params, adapters_U | {"layers": stacked}, lora)
        repeat = lambda x: jnp.broadcast_to(x, (layers, *x.shape))  # noqa: E731
        return full | {
            "layers": full["layers"] | jax.tree.map(repeat, beside),
            "last": full["last"] | beside_last,
        }

    def attention(row: Batch, of_row: Any) -> tuple[Attend, Attend]:
        lanes, kept = of_row[3]
        return (
            attend_in_units(row.segments_BxT, lanes, shape.window, fused),
            attend_kept_in_units(row.segments_BxT, row.at_BxA, lanes, kept),
        )

    of_rows = (adapters, beside, beside_last, (lanes, kept))
    losses_BxA = _answer_losses(model, params, params_of_row, attention, batch, of_rows, fused)
    return jnp.sum(jax.vmap(to_lanes)(losses_BxA, *kept), axis=-1)


def _answer_losses(
    model: Llama,
    params: Params,
    params_of_row: Callable[[Any], Params],
    attention: Callable[[Batch, Any], tuple[Attend, Attend]],
    batch: Batch,
    of_rows: Any,
    fused: Fused | None,
) -> jax.Array:
    """Return the weighted loss of each answer token, float32 [B, A], in nats.

    Args:
        model: The model.
        params: The parameters outside the layers, the same for all rows.
        params_of_row: Returns a row's parameters from its part of `of_rows`.
        attention: Returns a row's attention, of all positions and of those before answer tokens.
        batch: Rows of packed examples.
        of_rows: What differs between the rows besides; leaves begin with [B].
        fused: The kernel that a row's attention uses.
    """

    def answers_of(row: Batch, of_row: Any) -> jax.Array:
        tokens_T, at_A = row.tokens_BxT, row.at_BxA
        bound = {"params": params_of_row(of_row)}
        # Positions and segments are those of each example, so examples do not see each other.
        x = model.apply(bound, tokens_T[None], method=Llama.embed)
        rope = rope_tables(model.config, row.positions_BxT)
        attend, attend_last = attention(row, of_row)
        if not _has_few_answers(len(at_A), len(tokens_T)):
            # Long answers: the last layer is like the others, with its attention in blocks.
            x, _ = model.apply(bound, x, rope, attend, method=Llama.blocks)
            return x[0, at_A]
        # In the last layer, only the positions before answer tokens are computed.
        x, _ = model.apply(bound, x, rope, attend, attend_last, keep=at_A, method=Llama.blocks)
        return x[0]

    spread = None if fused is None else fused.rows
    x_BxAxD = jax.vmap(answers_of, spmd_axis_name=spread)(batch, of_rows)
    targets = batch.targets_BxA
    if batch.option_tokens_BxAxO is not None:
        targets = batch.option_tokens_BxAxO, batch.option_masses_BxAxO
    return _head_losses(model, params, x_BxAxD, targets) * batch.weight_BxA


def _has_few_answers(answers: int, row_length: int) -> bool:
    return _FEW_ANSWERS * answers <= row_length


def _head_losses(
    model: Llama, params: Params, x_BxAxD: jax.Array, targets: jax.Array | tuple[jax.Array, ...]
) -> jax.Array:
    """Return the losses [B, A] of targets, `HEAD_POSITIONS` of a row at a time.

    The logits of all answers would take more memory than everything else where answers are long.
    Those of a chunk are computed again in the backward pass.

    Args:
        model: The model.
        params: Its parameters outside the layers.
        x_BxAxD: The stream before each answer token.
        targets: Token ids [B, A]; or token ids and their probabilities, [B, A, O] each.
    """

    def losses(x: jax.Array, targets: jax.Array | tuple[jax.Array, ...]) -> jax.Array:
        logits = model.apply({"params": params}, x, method=Llama.logits)
        if isinstance(targets, tuple):
            return option_divergence(logits, *targets)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets)

    B, A = x_BxAxD.shape[:2]
    if A <= HEAD_POSITIONS:
        return losses(x_BxAxD, targets)
    chunks = math.ceil(A / HEAD_POSITIONS)
    size = math.ceil(A / chunks)

    # [B, A, ...] -> [chunks, B, size, ...], padded at the end.
    def in_chunks(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, [(0, 0), (0, chunks * size - A), *[(0, 0)] * (x.ndim - 2)])
        return padded.reshape(B, chunks, size, *x.shape[2:]).swapaxes(0, 1)

    chunked = jax.tree.map(in_chunks, (x_BxAxD, targets))
    found = jax.lax.map(lambda chunk: jax.checkpoint(losses)(*chunk), chunked)
    return found.swapaxes(0, 1).reshape(B, -1)[:, :A]


def option_divergence(
    logits_xV: jax.Array, tokens_xO: jax.Array, masses_xO: jax.Array
) -> jax.Array:
    """Return the divergence from some tokens' probabilities of what the model gives them.

    Args:
        logits_xV: Logits of the next token, float32 [..., V].
        tokens_xO: Different token ids [..., O].
        masses_xO: Their probabilities; tokens with 0 count for nothing.

    Returns:
        float32 [...], M KL(p / M || q) in nats, where M is the sum of the masses p and q the
        model's probabilities among all tokens.
    """
    log_q_xO = jnp.take_along_axis(logits_xV, tokens_xO, axis=-1)
    log_q_xO = log_q_xO - jax.nn.logsumexp(logits_xV, axis=-1, keepdims=True)
    total = jnp.sum(masses_xO, axis=-1)
    entropy = xlogy(total, total) - jnp.sum(xlogy(masses_xO, masses_xO), axis=-1)
    return -jnp.sum(masses_xO * log_q_xO, axis=-1) - entropy
