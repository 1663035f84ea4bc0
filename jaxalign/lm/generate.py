"""Generate replies to prompts of token ids, through one queue for a fixed number of slots.

Each slot has a KV cache of its own and writes one reply at a time; a finished reply makes room for
the next prompt (`jaxalign.lm.decode_queue`). The compiled programs depend on the number of slots
and the size of their caches, not on the number of prompts or their lengths
(`jaxalign.lm.decode_loop`).

A reply's random key comes from the seed, its prompt's id, the number of the sample and the step. In
float32 its tokens therefore depend neither on the other prompts nor on their number or order, and
not on slots or devices. (The last bits of logits may differ between numbers of slots, because XLA
sums in another order. In bfloat16 that can decide between two nearly equal logits.)
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.constrain import Constraint
from jaxalign.lm.decode_cache import SHARES
from jaxalign.lm.decode_loop import (
    SEGMENT,
    SlotShape,
    choose_slots,
    decode_programs,
    rounded_positions,
)
from jaxalign.lm.decode_queue import DecodeQueue
from jaxalign.lm.sampling import Sampling
from jaxalign.lm.weights import Params
from jaxalign.runtime.hosts import agreed
from jaxalign.runtime.memory import available_bytes
from jaxalign.runtime.platform import target_platform
from jaxalign.runtime.sharding import make_mesh, place_whole, replicated

__all__ = [
    "Sampling",
    "choose_slots",
    "decode_programs",
    "drain",
    "generate",
    "open_queue",
    "slots_of",
    "stream",
]

_MOST_SLOTS = {"cpu": 64}  # on each share of a mesh, where memory decides; 256 elsewhere
_FEW_STEPS = 4  # decode steps between two looks at replies that someone watches

_log = logging.getLogger("jaxalign")


def generate(
    config: LlamaConfig,
    params: Params,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_tokens: Sequence[int],
    seed: int = 0,
    ids: Sequence[int] | np.ndarray | None = None,
    batch_size: int | None = 64,
    mesh: Mesh | None = None,
    extra_embeddings: jax.Array | np.ndarray | None = None,
    on_batch: Callable[[int], None] | None = None,
    samples: int = 1,
    positions: int = 0,
    on_tokens: Callable[[Mapping[int, Sequence[int]]], None] | None = None,
    constraint: Constraint | None = None,
) -> list[list[int]]:
    """Generate new tokens for every prompt.

    Args:
        config: The model.
        params: Its weights, with adapters or 8-bit kernels if there are any.
        prompts: Token ids of each prompt, at least one. With `extra_embeddings`, the id
            `config.vocab_size + i` stands for row i of that table.
        sampling: How tokens are drawn, and how many at most.
        stop_tokens: Token ids that end a reply.
        seed: In [0, 2^32).
        ids: One integer in [0, 2^32) per prompt, from which its random keys are derived; default:
            its index. Or [prompts, samples], one for each reply.
        batch_size: Replies written at a time on all devices, at most; fewer if memory is short.
            None: as many as suit the memory (`slots_of`).
        mesh: Devices whose population and data axes replies are spread over. `params` are used as
            they lie on it, and copied to every device if they lie elsewhere.
        extra_embeddings: float [E, D], embeddings that are in no vocabulary, such as tuned soft
            prompts. A prompt may hold them anywhere, and each prompt its own rows.
        on_batch: Called with the number of replies that are done, whenever it has grown.
        samples: Replies to each prompt, which is computed once for all of them.
        positions: Tokens of a prompt and its reply for which caches are made, if that is more than
            these prompts need: calls with the same value share their programs.
        on_tokens: Called every few steps with the tokens so far of each reply that is being
            written or was just finished, by its index in the result.
        constraint: A form that replies are held to (`jaxalign.lm.constrain`).

    Returns:
        The new tokens of each reply without the stop token, in the order of the prompts; those to
        one prompt side by side.

    Raises:
        UserError: If a prompt is empty, holds an unknown id, or with `max_new_tokens` exceeds
            `config.max_position_embeddings`; if a shape or number does not fit.
    """
    if samples < 1:
        raise UserError(f"`samples` {samples}: must be at least 1")
    ids = np.arange(len(prompts)) if ids is None else ids
    extra_ExD = _check_extra(config, extra_embeddings)
    _check_numbers(len(prompts), ids, samples, seed, batch_size)
    known_ids = config.vocab_size + (0 if extra_ExD is None else len(extra_ExD))
    _check_prompts(config, prompts, known_ids, sampling.max_new_tokens)
    if len(prompts) == 0:
        return []
    longest = max(map(len, prompts)) + sampling.max_new_tokens
    queue = open_queue(
        config,
        params,
        sampling,
        stop_tokens,
        seed,
        replies=len(prompts) * samples,
        batch_size=batch_size,
        positions=max(longest, positions),
        mesh=mesh,
        extra_ExD=extra_ExD,
        constraint=constraint,
    )
    # With an id for each reply there is no number of a sample to tell them apart.
    by_reply = np.ndim(ids) == 2
    for i, prompt in enumerate(prompts):
        for sample in range(samples):
            number = ids[i][sample] if by_reply else ids[i]
            queue.add((i, sample), prompt, int(number), 0 if by_reply else sample)
    replies: list[list[int]] = [[] for _ in range(len(prompts) * samples)]
    while len(queue):
        finished = queue.step(SEGMENT if on_tokens is None else _FEW_STEPS)
        for (i, sample), tokens in finished:
            replies[i * samples + sample] = tokens
        if on_tokens is not None:
            now = {i * samples + sample: tokens for (i, sample), tokens in finished}
            now |= {i * samples + n: tokens for (i, n), tokens in queue.written().items()}
            on_tokens(now)
        if finished and on_batch is not None:
            on_batch(queue.counts.replies)
    _log.debug("%s", queue.counts)
    return replies


def stream(
    config: LlamaConfig,
    params: Params,
    requests: Iterable[tuple[Hashable, Sequence[int], int]],
    sampling: Sampling,
    stop_tokens: Sequence[int],
    seed: int = 0,
    *,
    replies: int,
    positions: int,
    batch_size: int | None = 64,
    mesh: Mesh | None = None,
    extra_embeddings: jax.Array | np.ndarray | None = None,
    is_complete: Callable[[Hashable, Sequence[int]], bool] | None = None,
) -> Iterator[tuple[Hashable, list[int]]]:
    """Generate replies to any number of prompts, and yield each as soon as it is finished.

    Args:
        config: The model.
        params: Its weights.
        requests: (name, token ids, id) of each reply; read as slots become free. Replies to one
            prompt, and prompts that begin alike, should follow each other: what they share is then
            computed once.
        sampling: How tokens are drawn, and how many at most.
        stop_tokens: Token ids that end a reply.
        seed: In [0, 2^32).
        replies: Number of requests.
        positions: Largest number of tokens of a prompt and its reply.
        batch_size: Replies written at a time on all devices, at most; fewer if memory is short.
            None: as many as suit the memory (`slots_of`).
        mesh: Devices, as for `generate`.
        extra_embeddings: Embeddings beyond the vocabulary, as for `generate`.
        is_complete: (name, tokens so far) -> whether a reply needs no more tokens, as for `drain`.

    Yields:
        (name, new tokens without the stop token), in the order in which they are finished. In
        float32 the tokens are those of `generate` for the same prompt, seed and id.

    Raises:
        UserError: If `positions` exceeds `config.max_position_embeddings`.
    """
    if positions > config.max_position_embeddings:
        raise UserError(
            f"a prompt and its reply may have {positions} tokens, more than "
            f"max_position_embeddings={config.max_position_embeddings}; shorten one of them"
        )
    queue = open_queue(
        config,
        params,
        sampling,
        stop_tokens,
        seed,
        replies=replies,
        batch_size=batch_size,
        positions=positions,
        mesh=mesh,
        extra_ExD=_check_extra(config, extra_embeddings),
    )
    yield from drain(queue, requests, is_complete)
    _log.debug("%s", queue.counts)


def drain(
    queue: DecodeQueue,
    requests: Iterable[tuple[Hashable, Sequence[int], int]],
    is_complete: Callable[[Hashable, Sequence[int]], bool] | None = None,
) -> Iterator[tuple[Hashable, list[int]]]:
    """Generate replies through a queue that is empty, and yield each as soon as it is finished.

    Args:
        queue: The queue (`open_queue`).
        requests: What `DecodeQueue.add` takes, of each reply; read as slots become free.
        is_complete: (name, tokens so far) -> whether a reply needs no more tokens. It is asked
            after every step: a look of the host costs less than a token that nobody reads.

    Yields:
        (name, new tokens without the stop token), in the order in which they are finished.
    """
    left = iter(requests)
    while True:  # until nothing waits and nothing is written
        # Enough wait to fill every slot; not all of them, whose tokens would have to be held.
        for request in itertools.islice(left, max(0, 4 * queue.slots - len(queue))):
            queue.add(*request)
        if not len(queue):
            break
        if is_complete is None:
            yield from queue.receive()
            continue
        # Finished replies first: only those that go on are looked at.
        yield from queue.step(1)
        written = queue.written().items()
        yield from queue.end({name for name, tokens in written if is_complete(name, tokens)})


def open_queue(
    config: LlamaConfig,
    params: Params,
    sampling: Sampling,
    stop_tokens: Sequence[int],
    seed: int,
    *,
    replies: int,
    batch_size: int | None,
    positions: int,
    mesh: Mesh | None = None,
    extra_ExD: np.ndarray | None = None,
    constraint: Constraint | None = None,
) -> DecodeQueue:
    """Return an empty queue for prompts that may come at any time.

    Args:
        config: The model.
        params: Its weights.
        sampling: How tokens are drawn, and how many at most.
        stop_tokens: Token ids that end a reply.
        seed: In [0, 2^32).
        replies: About how many replies there will be; a quarter of `batch_size` slots or fewer do
            for few of them.
        batch_size: Replies written at a time on all devices, at most; fewer if memory is short.
            None: as many as suit the memory (`slots_of`).
        positions: Largest number of tokens of a prompt and its reply.
        mesh: Devices, as for `generate`.
        extra_ExD: Embeddings beyond the vocabulary, in the dtype of activations.
        constraint: A form that replies are held to.
    """
    if mesh is None:
        mesh = make_mesh(jax.local_devices()[:1], population=1)
    params = place_whole(params, replicated(mesh))
    free = agreed(available_bytes(mesh.local_devices[0]) or 0)
    if free:
        free -= sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(params))
    slots = slots_of(config, mesh, replies, batch_size, positions, free)
    if batch_size is None or slots < slots_of(config, mesh, replies, batch_size, positions):
        _log.debug("%d replies at a time on each share of the mesh, chosen by memory", slots)
    shape = SlotShape(
        config, sampling, mesh, slots, rounded_positions(positions), constraint is not None
    )
    return DecodeQueue(shape, params, stop_tokens, seed, extra_ExD, constraint)


def slots_of(
    config: LlamaConfig,
    mesh: Mesh,
    replies: int,
    batch_size: int | None,
    positions: int,
    free_bytes: int = 0,
) -> int:
    """Return the number of slots on each share of the mesh.

    Args:
        config: The model.
        mesh: The devices, which may be only described.
        replies: About how many replies there will be.
        batch_size: Replies written at a time on all shares, at most. None: on each share the power
            of two whose caches take at most a quarter of the free memory, but no more than
            64 on a CPU and 256 elsewhere.
        positions: Largest number of tokens of a prompt and its reply.
        free_bytes: Memory of a device that its weights leave; 0 if it is not known.
    """
    shares, positions = math.prod(mesh.shape[axis] for axis in SHARES), rounded_positions(positions)
    if batch_size is None:
        most = _MOST_SLOTS.get(target_platform(), 256)
        if free_bytes:
            most = min(most, choose_slots(config, free_bytes // 4, positions))
        batch_size = shares * (1 << int(math.log2(most)))
    # Two sizes, so that few programs are compiled: all slots, or a quarter of them.
    size = batch_size if replies > batch_size // 4 else max(1, batch_size // 4)
    slots = -(-size // shares)
    return min(slots, choose_slots(config, free_bytes, positions)) if free_bytes else slots


def _check_extra(config: LlamaConfig, extra: jax.Array | np.ndarray | None) -> np.ndarray | None:
    """Return the extra embeddings in float32; UserError unless [E, D]."""
    if extra is None:
        return None
    if np.ndim(extra) != 2 or np.shape(extra)[1] != config.hidden_size:
        raise UserError(
            f"`extra_embeddings` of shape {np.shape(extra)}: must be [E, {config.hidden_size}], "
            "one row for each id beyond the vocabulary"
        )
    return np.asarray(extra).astype(np.float32)


def _check_numbers(
    prompts: int, ids: Sequence[int] | np.ndarray, samples: int, seed: int, batch_size: int | None
) -> None:
    if batch_size is not None and batch_size < 1:
        raise UserError(f"`batch_size` {batch_size}: must be at least 1")
    if np.shape(ids) not in ((prompts,), (prompts, samples)):
        raise UserError(
            f"`ids` of shape {np.shape(ids)} has no entry for each of {prompts} prompts, or of "
            f"their {samples} replies"
        )
    for name, value in [("seed", seed), *(("ids", value) for value in np.ravel(ids))]:
        if not 0 <= value < 2**32:
            raise UserError(f"`{name}` {value}: must be at least 0 and below 2^32")


def _check_prompts(
    config: LlamaConfig, prompts: Sequence[Sequence[int]], known_ids: int, new: int
) -> None:
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise UserError(f"prompt {i} is empty: a reply needs at least one token before it")
        if min(prompt) < 0 or max(prompt) >= known_ids:
            raise UserError(f"prompt {i} has a token id outside [0, {known_ids})")
        if len(prompt) + new > config.max_position_embeddings:
            raise UserError(
                f"prompt {i}: {len(prompt)} tokens and `max_new_tokens` {new} exceed "
                f"max_position_embeddings={config.max_position_embeddings}; shorten one of them"
            )
