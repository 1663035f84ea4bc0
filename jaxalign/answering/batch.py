"""Put many questions to the model after many lead-ins: by exact likelihood, or by sampling.

exact     the probability of each option's number (`jaxalign.answering.options`): no sampling noise.
          Questions
          are cut into blocks of one shape, a block per device at a time, one compiled program.
sampled   replies drawn at a temperature; the first integer of a reply is the answer, several runs
          are averaged. CultureSPA (Xu et al. 2025): temperature 0.6, top-p 0.9, three runs.

With a `folder`, what is answered is kept there in a file named after everything that the answers
depend on, and a killed job goes on where it stood. Neither bits nor files depend on the number of
devices.
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
from jaxalign.answering.options import PreparedItems, RowTables, option_log_probs
from jaxalign.answering.partial import digest, open_partial
from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.lm.weights import Params
from jaxalign.runs.console import Progress
from jaxalign.runtime.sharding import DATA, partition_spec, place_whole, replicated
from jaxalign.surveys.replies import first_integer, position
from jaxalign.surveys.survey import Item

jax.tree_util.register_dataclass(
    Tables, [field.name for field in dataclasses.fields(Tables)], meta_fields=[]
)

# Answers of a sampled run that are no option's position.
UNREADABLE, OUT_OF_RANGE, NOT_YET = -1, -2, -3


@dataclasses.dataclass(frozen=True)
class Answered:
    """What each respondent C (a country, or the unaware model) answers to items Q.

    `distribution_CxQxO` float32 over an item's options, 0 past them; NaN where there is no answer.
    """

    distribution_CxQxO: np.ndarray
    unreadable: int = 0  # replies without an integer
    out_of_range: int = 0  # replies whose first integer no option has

    @functools.cached_property
    def most_likely_CxQ(self) -> np.ndarray:
        """Position of the most likely option, the first of equals; int, -1 without an answer."""
        none = np.isnan(self.distribution_CxQxO).any(axis=-1)
        return np.where(none, -1, np.argmax(np.nan_to_num(self.distribution_CxQxO), axis=-1))


def from_log_probs(log_probs_CxQxO: np.ndarray) -> Answered:
    """Exact answers, from option log-probabilities (-inf past an item's options)."""
    return Answered(np.exp(log_probs_CxQxO, dtype=np.float32))


def from_runs(position_CxQxN: np.ndarray, items: Sequence[Item]) -> Answered:
    """Sampled answers of N runs: the share of readable runs that gave each option."""
    options = np.arange(max(len(item.options) for item in items))
    counts = (position_CxQxN[..., None] == options.reshape(1, 1, 1, -1)).sum(axis=2)
    readable = counts.sum(axis=-1, keepdims=True)
    shares = np.where(readable > 0, counts / np.maximum(readable, 1), np.nan)
    return Answered(
        shares.astype(np.float32),
        int((position_CxQxN == UNREADABLE).sum()),
        int((position_CxQxN == OUT_OF_RANGE).sum()),
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
    quiet: bool = True,
) -> np.ndarray:
    """Log-probabilities of the options, normalised over them: float32 [conversations, O].

    mesh: its data axis takes a block per device, `make_mesh(data=...)`; parameters are used as they
    lie on it, and copied to every device if they lie elsewhere. key: whatever else the answers
    depend on, such as the hash of the weights. folder: keeps answers as they come; None keeps
    none. block_tokens: tokens computed together; more is faster until a device is full. -inf past
    an item's options.
    Raises UserError where the model answers NaN.
    """
    ordered, order = _sorted(conversations)
    blocks = cut(ordered, block_tokens)
    shape = shape_of(plan_block(ordered, some) for some in blocks)
    name = digest("exact", key, config, block_tokens, conversations)
    out = open_partial(folder, f"exact-{name}", (len(ordered), shape.options), np.float32, np.nan)
    left = [some for some in blocks if np.isnan(out[order[some]]).any()]
    done = len(blocks) - len(left)
    with Progress(
        len(blocks), start=done, step="block", unit="answers", quiet=quiet,
        units_per_step=max(1, len(ordered) // len(blocks)),
    ) as bar:  # fmt: skip
        for some, log_probs_QxO in _answer_blocks(config, params, ordered, left, shape, mesh):
            if np.isnan(log_probs_QxO).any():
                raise UserError("the model answers NaN; are its weights finite?")
            out[order[some]] = log_probs_QxO
            done += 1
            bar.update(done)
    return np.array(out)


def answer_sampled(
    reply: Callable[[list[list[int]], list[int]], list[list[int]]],
    tokens: Tokenizer,
    conversations: Conversations,
    items: Sequence[Item],
    *,
    runs: int = 3,
    key: str = "",
    folder: Path | None = None,
    chunk: int = 256,
    quiet: bool = True,
) -> np.ndarray:
    """The option's position in each of `runs` replies: int8 [conversations, runs].

    reply: (prompts, ids) -> reply tokens of each, such as `jaxalign.lm.generate.generate` with
    all but
    prompts and ids filled in; equal ids stand for equal luck, and an id depends on the conversation
    and the run alone. key: whatever else the answers depend on: weights, sampling, seed. items:
    the conversations' questions. A reply without an integer is UNREADABLE, one whose first integer
    no option has OUT_OF_RANGE. Raises UserError for a number of runs below 1.
    """
    if runs < 1:
        raise UserError(f"runs={runs}: ask at least once")
    name = digest("sampled", key, runs, conversations)
    out = open_partial(folder, f"sampled-{name}", (len(conversations), runs), np.int8, NOT_YET)
    left = np.argwhere(np.asarray(out) == NOT_YET)
    done = out.size - len(left)
    with Progress(out.size, start=done, step="reply", unit="replies", quiet=quiet) as bar:
        for start in range(0, len(left), chunk):
            some = left[start : start + chunk]
            prompts = [conversations.tokens(n).tolist() for n, _ in some]
            replies = reply(prompts, [_luck(p, r) for p, (_, r) in zip(prompts, some, strict=True)])
            for (n, run), said in zip(some, replies, strict=True):
                out[n, run] = _read(tokens.decode(said), items[conversations.pairs[n][1]])
            done += len(some)
            bar.update(done)
    return np.array(out)


def _read(text: str, item: Item) -> int:
    number = first_integer(text, item)
    if number is None:
        return UNREADABLE
    at = position(number, item, "codes")
    return OUT_OF_RANGE if at is None else at


def _luck(prompt: Sequence[int], run: int) -> int:
    """A number in [0, 2**31) for a conversation's run."""
    return zlib.crc32(np.array([*prompt, run], "<i4").tobytes()) % 2**31


def _sorted(conversations: Conversations) -> tuple[Conversations, np.ndarray]:
    """Conversations that begin alike next to each other, and where each stood before."""
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
    """(block, log-probabilities [Q, O]) of each block. The next round is planned and under way
    before the last one's results are waited for."""
    devices, before, params = mesh.shape[DATA], (), place_whole(params, replicated(mesh))
    for start in range(0, len(blocks), devices):
        some = blocks[start : start + devices]
        tables = [pad_block(plan_block(conversations, block), shape) for block in some]
        tables += tables[:1] * (devices - len(some))
        stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *tables)
        spread = jax.device_put(stacked, NamedSharding(mesh, partition_spec(("batch",))))
        now = some, _round(config, mesh, params, spread)
        if before:
            yield from _results(*before)
        before = now
    if before:
        yield from _results(*before)


def _results(blocks: Sequence[range], log_probs: jax.Array) -> Iterator[tuple[range, np.ndarray]]:
    for block, log_probs_QxO in zip(blocks, jax.device_get(log_probs), strict=False):
        yield block, log_probs_QxO[: len(block)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _round(config: LlamaConfig, mesh: Mesh, params: Params, tables: Tables) -> jax.Array:
    """A block per device along the data axis: float32 [blocks, Q, O], whole on every device."""
    batch = partition_spec(("batch",))

    def one(params: Params, tables: Tables) -> jax.Array:
        context = _context(config, params, jax.tree.map(lambda x: x[0], tables))
        nothing = jnp.zeros((1, 0, config.hidden_size), config.dtype)
        return option_log_probs(config, context, nothing, chunk=1)

    spread = jax.shard_map(
        one,
        mesh=mesh,
        in_specs=(partition_spec(()), batch),
        out_specs=batch,
        axis_names={DATA},
        check_vma=False,  # the layer scan starts from constants
    )
    return jax.lax.with_sharding_constraint(spread(params, tables), replicated(mesh))


def _context(config: LlamaConfig, params: Params, tables: Tables) -> PreparedItems:
    """What `option_log_probs` reads: nothing before the tree and no prompt."""
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
    """A query sees the keys whose subtree it stands in."""
    query, key = queries_RxL[:, :, None], keys_RxS[:, None, :]
    sees = (key >= 0) & (key <= query) & (query < end[key])
    return RowTables(
        keys_RxS=jnp.maximum(keys_RxS, 0),
        mask_RxLxS=sees,
        common=0,
        queries=queries_RxL.size,
        only_tree=only_tree,
    )
