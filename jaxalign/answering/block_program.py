"""The compiled program that answers blocks of conversations: one block per device at a time.

One forward pass gives both results: the log-probabilities of the options, and the probability that
a reply begins with an option at all. The output head is applied at answer nodes alone, a few
megabytes of logits at a time.

Letters: B block, D model width, E row of the embeddings given, A answer node, Y token read there,
V vocabulary, Q conversation, O option.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from jaxalign.answering.block_attention import block_attention, choose_block_kernel
from jaxalign.answering.blocks import Shape, Tables
from jaxalign.answering.options import attend, in_chunks, options_from_tokens
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.lora import LoraConfig, abstract_adapter
from jaxalign.lm.transformer import Llama, rope_tables
from jaxalign.lm.weights import Params, WeightFormat, program_params
from jaxalign.runtime.sharding import DATA, POPULATION, partition_spec, replicated

_LOGITS_BYTES = 32 * 2**20  # of the float32 logits that exist at a time


def block_devices(mesh: Mesh) -> int:
    """Return how many blocks the devices of a mesh compute at a time."""
    return mesh.shape[POPULATION] * mesh.shape[DATA]


def block_sharding(mesh: Mesh) -> NamedSharding:
    """Return how tables of one block per device lie on the mesh."""
    return NamedSharding(mesh, partition_spec(("blocks",)))


@functools.partial(jax.jit, static_argnums=(0, 1, 5, 6))
def answer_blocks(
    config: LlamaConfig,
    mesh: Mesh,
    params: Params,
    tables: Tables,
    extra_ExD: jax.Array,
    per_token: bool = False,
    kernel: str = "xla",
) -> tuple[jax.Array, jax.Array]:
    """Answer one block on each device of the axes population and data.

    Args:
        config: the model's shapes.
        mesh: the devices.
        params: the weights on the mesh, with adapters or scales beside them or without.
        tables: of one block per device, stacked.
        extra_ExD: embeddings of the ids beyond the vocabulary; E may be 0.
        per_token: whether an option counts by the mean log-probability of its tokens.
        kernel: what computes the attention (`choose_block_kernel`).

    Returns:
        On every device: log-probabilities of the options, float32 [B, Q, O], normalised over an
        item's options; and the probability that a reply begins with one, float32 [B, Q].
    """
    blocks, whole = partition_spec(("blocks",)), partition_spec(())

    def one(params: Params, tables: Tables, extra_ExD: jax.Array) -> tuple[jax.Array, jax.Array]:
        tables = jax.tree.map(lambda x: x[0], tables)
        answers = _answer_block(config, params, tables, extra_ExD, per_token, kernel)
        return jax.tree.map(lambda x: x[None], answers)

    spread = jax.shard_map(
        one,
        mesh=mesh,
        in_specs=(whole, blocks, whole),
        out_specs=blocks,
        # A kernel cannot be split over the model axis, not even over one device.
        axis_names={POPULATION, DATA} if kernel == "xla" else set(mesh.axis_names),
        check_vma=False,  # the layer scan starts from constants
    )
    return jax.lax.with_sharding_constraint(spread(params, tables, extra_ExD), replicated(mesh))


def answer_program(
    config: LlamaConfig,
    mesh: Mesh,
    shape: Shape,
    *,
    extra_rows: int = 0,
    lora: LoraConfig | None = None,
    weights: WeightFormat = "stored",
    per_token: bool = False,
    kernel: str | None = None,
) -> tuple[jax.stages.Wrapped, tuple]:
    """Return the program that answers blocks of a shape, and its arguments as shapes alone.

    Args:
        config: the model's shapes.
        mesh: the devices, which may be described ones.
        shape: of the blocks, from `plan_blocks`.
        extra_rows: E, rows of the embeddings that are given besides the model's own.
        lora: the adapter beside the weights, if there is one.
        weights: how the model's weights are stored.
        per_token: whether an option counts by the mean log-probability of its tokens.
        kernel: what computes the attention; default: what these devices would choose.

    Returns:
        The jitted function and all of its arguments: `jitted.lower(*arguments)` allocates nothing.
    """
    whole = replicated(mesh)
    params = program_params(config, mesh, weights)
    if lora is not None:
        beside = abstract_adapter(config, lora)
        params = params | {group: params[group] | beside[group] for group in beside}
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or whole), params
    )
    blocks, spread = block_devices(mesh), block_sharding(mesh)
    tables = Tables(
        *(
            jax.ShapeDtypeStruct((blocks, *size), jnp.int32, sharding=spread)
            for size in dataclasses.astuple(shape.table_shapes())
        )
    )
    extra = jax.ShapeDtypeStruct((extra_rows, config.hidden_size), jnp.float32, sharding=whole)
    kernel = kernel or choose_block_kernel(config, mesh, shape).kernel
    return answer_blocks, (config, mesh, params, tables, extra, per_token, kernel)


def _answer_block(
    config: LlamaConfig,
    params: Params,
    tables: Tables,
    extra_ExD: jax.Array,
    per_token: bool,
    kernel: str,
) -> tuple[jax.Array, jax.Array]:
    """Answer one block: log-probabilities [Q, O] and valid mass [Q]."""
    model, bound = Llama(config), {"params": params}
    attention, answer_attention = block_attention(config, tables, kernel)
    x, _ = model.apply(
        bound,
        _embed(config, params, tables.tree, extra_ExD)[None],
        rope_tables(config, tables.positions),
        jax.tree_util.Partial(attend, attention),
        jax.tree_util.Partial(attend, answer_attention),
        _nothing_before(config),
        tables.answers,
        method=Llama.blocks,
    )

    # Of the whole vocabulary's log-probabilities only those of the tokens that are read are kept.
    def read(piece: tuple[jax.Array, jax.Array]) -> jax.Array:
        x_AxD, scored_AxY = piece
        logits_AxV = model.apply(bound, x_AxD, method=Llama.logits)
        normaliser_A = jax.nn.logsumexp(logits_AxV, axis=-1)
        logits_AxY = jnp.take_along_axis(logits_AxV, jnp.maximum(scored_AxY, 0), axis=-1)
        return logits_AxY - normaliser_A[:, None]

    rows = _rows_at_a_time(config, tables.answers.shape[0])
    log_probs_AxY = in_chunks(read, (x[0], tables.scored), rows)
    log_probs_QxO = options_from_tokens(tables.sequences, log_probs_AxY[None], per_token)[0]
    # A reply begins with an option if its first token begins one of the spellings.
    begins_QxY = jnp.where(tables.scored >= 0, jnp.exp(log_probs_AxY), 0.0)[tables.ends]
    return log_probs_QxO, begins_QxY.sum(axis=-1)


def _rows_at_a_time(config: LlamaConfig, answers: int) -> int:
    """Return at how many answer nodes the output head is applied together."""
    fitting = max(8, _LOGITS_BYTES // (4 * config.vocab_size))
    return min(1 << int(math.log2(fitting)), answers)


def _embed(
    config: LlamaConfig, params: Params, tokens_T: jax.Array, extra_ExD: jax.Array
) -> jax.Array:
    """Return the embeddings [T, D] of ids, of which those beyond the vocabulary are given."""
    V, E = config.vocab_size, extra_ExD.shape[0]
    own = jnp.minimum(tokens_T, V - 1)
    x_TxD = Llama(config).apply({"params": params}, own, method=Llama.embed)
    if E == 0:
        return x_TxD
    given_TxD = jnp.take(extra_ExD, jnp.clip(tokens_T - V, 0, E - 1), axis=0).astype(x_TxD.dtype)
    return jnp.where((tokens_T >= V)[:, None], given_TxD, x_TxD)


def _nothing_before(config: LlamaConfig) -> tuple:
    """Return the keys and values of no text before the tree, of the stacked layers and the last."""
    shape = (0, config.num_key_value_heads, config.head_dim)
    last = jnp.zeros(shape, config.dtype)
    stacked = jnp.zeros((config.num_hidden_layers - 1, *shape), config.dtype)
    return (stacked, stacked), (last, last)
