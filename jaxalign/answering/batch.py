"""Ask a model many questions after many lead-ins: by exact likelihood, or by sampling replies.

exact     the probability of each option's number (`jaxalign.answering.options`): no sampling noise.
          Questions are cut into blocks of one shape, one block per device at a time, all by one
          compiled program.
sampled   replies drawn at a temperature; the first integer of a reply is the answer, and several
          replies are averaged. CultureSPA (Xu et al. 2025) uses temperature 0.6, top-p 0.9 and
          three replies.

With a `folder`, answers are kept there in a file that is named after everything they depend on, and
a job that was killed continues where it stopped. Neither bits nor files depend on the number of
devices.

Letters: C respondent, Q item, O option, N sampled reply; in tables, as in
`jaxalign.answering.blocks`, R row, L query of a row, S key.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxalign.answering.attention import RowTables
from jaxalign.answering.blocks import (
    ANSWER_ROW,
    ROW,
    Conversations,
    Shape,
    Tables,
    cut,
    pad_block,
    plan_block,
    shape_of,
)
from jaxalign.answering.options import PreparedItems, option_log_probs
from jaxalign.answering.partial import digest, open_partial
from jaxalign.core.errors import UserError
from jaxalign.core.progress import OnProgress, Progress, ignore
from jaxalign.lm.bits import as_bits
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.lm.weights import Params
from jaxalign.runtime.sharding import DATA, partition_spec, place_whole, replicated
from jaxalign.surveys.replies import first_integer, position
from jaxalign.surveys.responses import NO_REPLY, OUT_OF_RANGE, UNREADABLE
from jaxalign.surveys.survey import Item

jax.tree_util.register_dataclass(
    Tables, [field.name for field in dataclasses.fields(Tables)], meta_fields=[]
)


def answer_exact(
    config: LlamaConfig,
    params: Params,
    conversations: Conversations,
    mesh: Mesh,
    *,
    key: str = "",
    folder: Path | None = None,
    block_tokens: int = 4096,
    on_progress: OnProgress = ignore,
) -> np.ndarray:
    """Return the log-probabilities of each conversation's options, normalised over them.

    Args:
        config: the model's shapes.
        params: its weights. They are used where they lie on the mesh, and copied to every device
            if they lie elsewhere.
        conversations: what is asked.
        mesh: its data axis takes one block per device, `make_mesh(data=...)`.
        key: text that stands for whatever else the answers depend on, such as the weights' hash.
        folder: directory that keeps the answers; None keeps none.
        block_tokens: tokens computed together; more is faster until a device is full.
        on_progress: called with the number of blocks that are answered.

    Returns:
        float32 [conversations, O], natural logarithms; -inf past an item's options.

    Raises:
        UserError: if the model answers NaN, or a file in `folder` cannot be continued.
    """
    # Plan twice, first for the shape that holds every block and then block by block, so that the
    # tables of a long job are never all in memory.
    ordered, order = _sorted(conversations)
    blocks = cut(ordered, block_tokens)
    shape = shape_of(plan_block(ordered, members) for members in blocks)
    name = digest("exact", key, config, block_tokens, conversations)
    out = open_partial(folder, f"exact-{name}", (len(ordered), shape.options), np.float32, np.nan)
    # A block of which any answer is missing is computed again as a whole.
    missing = [members for members in blocks if np.isnan(out[order[members]]).any()]
    answers_per_block = max(1, len(ordered) // len(blocks))

    def report(done: int) -> None:
        on_progress(Progress("block", done, len(blocks), "answers", answers_per_block))

    done = len(blocks) - len(missing)
    report(done)
    answered = _answer_blocks(config, params, ordered, missing, shape, mesh)
    for members, log_probs_QxO in answered:
        if np.isnan(log_probs_QxO).any():
            raise UserError("the model answers NaN; are its weights finite?")
        out[order[members]] = log_probs_QxO
        done += 1
        report(done)
    return np.array(out)


def answer_sampled(
    sample: Callable[[list[list[int]], list[int]], list[list[int]]],
    tokenizer: Tokenizer,
    conversations: Conversations,
    items: Sequence[Item],
    *,
    runs: int = 3,
    key: str = "",
    folder: Path | None = None,
    chunk: int = 256,
    on_progress: OnProgress = ignore,
) -> np.ndarray:
    """Return which option each of several sampled replies names, int8 [conversations, runs].

    Args:
        sample: (prompts, ids) -> reply tokens of each prompt, such as
            `jaxalign.lm.generate.generate` with all its other arguments filled in. Equal ids stand
            for equal random keys; an id depends on the conversation and the run alone.
        tokenizer: turns replies into text.
        conversations: what is asked.
        items: the conversations' questions.
        runs: replies per conversation.
        key: text that stands for whatever else the answers depend on: weights, sampling, seed.
        folder: directory that keeps the answers; None keeps none.
        chunk: replies sampled between two writes to the folder.
        on_progress: called with the number of replies.

    Returns:
        Positions of options, counted from 0; UNREADABLE for a reply without an integer,
        OUT_OF_RANGE for one whose first integer belongs to no option.

    Raises:
        UserError: if `runs` is below 1, or a file in `folder` cannot be continued.
    """
    if runs < 1:
        raise UserError(f"runs={runs}: ask at least once")
    name = digest("sampled", key, runs, conversations)
    out = open_partial(folder, f"sampled-{name}", (len(conversations), runs), np.int8, NO_REPLY)
    missing = np.argwhere(np.asarray(out) == NO_REPLY)  # rows of (conversation, run)
    done = out.size - len(missing)
    on_progress(Progress("reply", done, out.size, "replies"))
    for start in range(0, len(missing), chunk):
        members = missing[start : start + chunk]
        prompts = [conversations.tokens(n).tolist() for n, _ in members]
        ids = [_sample_id(p, run) for p, (_, run) in zip(prompts, members, strict=True)]
        for (n, run), reply in zip(members, sample(prompts, ids), strict=True):
            text = tokenizer.decode(reply)
            out[n, run] = _option_named(text, items[conversations.pairs[n][1]])
        done += len(members)
        on_progress(Progress("reply", done, out.size, "replies"))
    return np.array(out)


def _option_named(text: str, item: Item) -> int:
    """Return the position of the option that a reply names, UNREADABLE or OUT_OF_RANGE."""
    number = first_integer(text, item)
    if number is None:
        return UNREADABLE
    at = position(number, item, "codes")
    return OUT_OF_RANGE if at is None else at


def _sample_id(prompt: Sequence[int], run: int) -> int:
    """Return a number in [0, 2**31) that stands for a conversation's run."""
    return zlib.crc32(np.array([*prompt, run], "<i4").tobytes()) % 2**31


def _sorted(conversations: Conversations) -> tuple[Conversations, np.ndarray]:
    """Return the conversations with those that begin alike side by side, and their old places."""
    # By lead-in, then by the question's tokens: the order in which a prefix tree shares the most.
    questions = [question.tolist() for question in conversations.questions]
    rank = np.empty(len(questions), int)
    rank[sorted(range(len(questions)), key=questions.__getitem__)] = np.arange(len(questions))
    pairs = conversations.pairs
    order = sorted(range(len(pairs)), key=lambda n: (pairs[n][0], rank[pairs[n][1]]))
    ordered = dataclasses.replace(conversations, pairs=[pairs[n] for n in order])
    return ordered, np.array(order, int)


def _answer_blocks(
    config: LlamaConfig,
    params: Params,
    conversations: Conversations,
    blocks: Sequence[range],
    shape: Shape,
    mesh: Mesh,
) -> Iterator[tuple[range, np.ndarray]]:
    """Yield (block, log-probabilities [Q, O]) of each block, one block per device at a time.

    The next round is planned and under way before the results of the last one are waited for.
    """
    devices, params = mesh.shape[DATA], as_bits(place_whole(params, replicated(mesh)))
    under_way = ()
    for start in range(0, len(blocks), devices):
        members = blocks[start : start + devices]
        tables = [pad_block(plan_block(conversations, block), shape) for block in members]
        tables += tables[:1] * (devices - len(members))  # devices without a block repeat one
        stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *tables)
        spread = jax.device_put(stacked, NamedSharding(mesh, partition_spec(("batch",))))
        this_round = members, _round(config, mesh, params, spread)  # returns before it is done
        if under_way:
            yield from _results(*under_way)
        under_way = this_round
    if under_way:
        yield from _results(*under_way)


def _results(blocks: Sequence[range], log_probs: jax.Array) -> Iterator[tuple[range, np.ndarray]]:
    for block, log_probs_QxO in zip(blocks, jax.device_get(log_probs), strict=False):
        yield block, log_probs_QxO[: len(block)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _round(config: LlamaConfig, mesh: Mesh, params: Params, tables: Tables) -> jax.Array:
    """Answer one block per device of the data axis: float32 [blocks, Q, O], on every device."""
    batch = partition_spec(("batch",))

    def one(params: Params, tables: Tables) -> jax.Array:
        prepared = _prepared(config, params, jax.tree.map(lambda x: x[0], tables))
        no_prompt = jnp.zeros((1, 0, config.hidden_size), config.dtype)
        return option_log_probs(config, prepared, no_prompt, chunk=1)

    spread = jax.shard_map(
        one,
        mesh=mesh,
        in_specs=(partition_spec(()), batch),
        out_specs=batch,
        axis_names={DATA},
        check_vma=False,  # the layer scan starts from constants
    )
    return jax.lax.with_sharding_constraint(spread(params, tables), replicated(mesh))


def _prepared(config: LlamaConfig, params: Params, tables: Tables) -> PreparedItems:
    """Return what `option_log_probs` reads: nothing before the tree and no prompt."""
    shape = (0, config.num_key_value_heads, config.head_dim)
    last = jnp.zeros(shape, config.dtype)
    stacked = jnp.zeros((config.num_hidden_layers - 1, *shape), config.dtype)
    every = jnp.arange(tables.tree.shape[0])
    return PreparedItems(
        params=params,
        before=((stacked, stacked), (last, last)),
        trunk=jnp.zeros(0, jnp.int32),
        tree=tables.tree,
        positions=tables.positions,
        attention=_rows(tables.end, tables.keys, every.reshape(-1, ROW), only_tree=False),
        answer_attention=_rows(
            tables.end, tables.answer_keys, tables.answers.reshape(-1, ANSWER_ROW), only_tree=True
        ),
        answers=tables.answers,
        scored_AxY=tables.scored,
        inner=tables.inner,
        sequences=tables.sequences,
    )


def _rows(
    end: jax.Array, keys_RxS: jax.Array, queries_RxL: jax.Array, only_tree: bool
) -> RowTables:
    """Return the attention's rows: a query sees the keys whose subtree it stands in."""
    # A padding key is -1: nobody sees it, and key 0 is gathered in its place.
    query, key = queries_RxL[:, :, None], keys_RxS[:, None, :]
    sees = (key >= 0) & (key <= query) & (query < end[key])
    return RowTables(
        keys_RxS=jnp.maximum(keys_RxS, 0),
        mask_RxLxS=sees,
        common=0,
        queries=queries_RxL.size,
        only_tree=only_tree,
    )
