"""Generate replies to prompts of token ids, in batches, with a KV cache.

Prompts are grouped by length, rounded up to 16, 24, 32, 48, 64, 96 ... tokens, so that less than a
third of a batch is padding and only a few programs are compiled (`jaxalign.lm.decode_loop`).

A reply's random key comes from the seed and the prompt's own id, and its padded length from its own
prompt. In float32 its tokens therefore depend neither on the other prompts of its batch nor on
their number or order. (The last bits of logits may differ between batch sizes, because XLA sums in
another order. In bfloat16 that can decide between two nearly equal logits.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.decode_loop import Batch, decode_batch
from jaxalign.lm.sampling import Sampling
from jaxalign.lm.weights import Params, abstract_params, param_shardings
from jaxalign.runtime.sharding import named_sharding, partition_spec, replicated

__all__ = ["Sampling", "decode_program", "generate", "padded_length"]

_SHORTEST = 16  # prompts are padded to at least this many tokens


def generate(
    config: LlamaConfig,
    params: Params,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_tokens: Sequence[int],
    seed: int = 0,
    ids: Sequence[int] | None = None,
    batch_size: int = 64,
    mesh: Mesh | None = None,
    extra_embeddings: jax.Array | np.ndarray | None = None,
    on_batch: Callable[[int], None] | None = None,
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
        ids: One integer in [0, 2^32) per prompt, from which its random key is derived whatever
            batch it is in; default: its index.
        batch_size: Prompts per batch, at most.
        mesh: Devices whose data axis batches are split over. `params` are used as they lie on it,
            and copied to every device if they lie elsewhere.
        extra_embeddings: float [E, D], embeddings that are in no vocabulary, such as tuned soft
            prompts. A prompt may hold them anywhere, and each prompt its own rows.
        on_batch: Called after each batch with the number of replies that are done.

    Returns:
        The new tokens of each prompt, in the order of the prompts, without the stop token.

    Raises:
        UserError: If a prompt is empty, holds an unknown id, or with `max_new_tokens` exceeds
            `config.max_position_embeddings`; if a shape or number does not fit.
    """
    ids = range(len(prompts)) if ids is None else ids
    extra_ExD = _check_extra(config, extra_embeddings)
    _check_numbers(len(prompts), ids, seed, batch_size)
    known_ids = config.vocab_size + (0 if extra_ExD is None else len(extra_ExD))
    _check_prompts(config, prompts, known_ids, sampling.max_new_tokens)
    # The weights are moved once, not for every batch.
    params = params if mesh is None else _on_mesh(params, mesh)
    stop = jnp.asarray(stop_tokens, jnp.int32)
    replies: list[list[int]] = [[] for _ in prompts]
    done = 0
    for members, padded, rows in _batches([len(p) for p in prompts], batch_size, mesh):
        batch = _pack(prompts, ids, seed, extra_ExD, members, (rows, padded))
        batch = batch if mesh is None else jax.device_put(batch, _shardings(batch, mesh))
        tokens_BxG = np.asarray(decode_batch(config, sampling, params, batch, stop, mesh))
        # Rows beyond the members are padding, hence `strict=False`.
        for index, tokens in zip(members, tokens_BxG.tolist(), strict=False):
            replies[index] = _until_stop(tokens, stop_tokens)
        done += len(members)
        if on_batch is not None:
            on_batch(done)
    return replies


def decode_program(
    config: LlamaConfig,
    sampling: Sampling,
    batch_size: int,
    prompt_tokens: int,
    stop_tokens: int = 1,
    mesh: Mesh | None = None,
    params: Params | None = None,
) -> tuple[Callable[..., jax.Array], tuple[Any, ...]]:
    """Return the jitted decoding loop and abstract arguments for it.

    `program.lower(*arguments)` needs no arrays, so the program can be compiled for other devices.

    Args:
        config: The model.
        sampling: As for `generate`.
        batch_size: Rows of the batch.
        prompt_tokens: Padded length of the prompts.
        stop_tokens: Number of stop tokens.
        mesh: Devices, as for `generate`.
        params: Abstract weights with their shardings, if there are more than the model's own (an
            adapter).
    """
    batch = Batch(
        tokens_BxP=jax.ShapeDtypeStruct((batch_size, prompt_tokens), jnp.int32),
        lengths_B=jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        ids_B=jax.ShapeDtypeStruct((batch_size,), jnp.uint32),
        seed=jax.ShapeDtypeStruct((), jnp.uint32),
    )
    stop = jax.ShapeDtypeStruct((stop_tokens,), jnp.int32)
    if mesh is not None:
        batch = jax.tree.map(_placed, batch, _shardings(batch, mesh))
        stop = _placed(stop, replicated(mesh))
    if params is None:
        params = abstract_params(config)
        if mesh is not None:
            params = jax.tree.map(_placed, params, param_shardings(config, mesh))
    return decode_batch, (config, sampling, params, batch, stop, mesh)


def padded_length(tokens: int) -> int:
    """Return the smallest of 16, 24, 32, 48, 64, 96 ... that is at least `tokens`."""
    power = max(_SHORTEST, 1 << (tokens - 1).bit_length())
    between = power * 3 // 4
    return between if between > _SHORTEST and tokens <= between else power


def _batches(
    lengths: Sequence[int], batch_size: int, mesh: Mesh | None
) -> Iterator[tuple[list[int], int, int]]:
    """Yield (indices of prompts, padded length, rows) for each batch, the longest prompts first.

    If fewer than `batch_size` prompts are left, the number of rows is a power of two, so that few
    programs are compiled. It is always a multiple of the devices that rows are split over.
    """
    devices = 1 if mesh is None else mesh.shape[partition_spec(("batch",))[0]]
    groups: dict[int, list[int]] = {}
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        groups.setdefault(padded_length(lengths[index]), []).append(index)
    for padded, group in groups.items():
        for start in range(0, len(group), batch_size):
            members = group[start : start + batch_size]
            rows = min(batch_size, 1 << (len(members) - 1).bit_length())
            yield members, padded, -(-rows // devices) * devices


def _pack(
    prompts: Sequence[Sequence[int]],
    ids: Sequence[int],
    seed: int,
    extra_ExD: np.ndarray | None,
    members: Sequence[int],
    shape: tuple[int, int],
) -> Batch:
    """Return a batch of `shape` (rows, padded length) with the prompts `members`."""
    tokens_BxP = np.zeros(shape, np.int32)
    lengths_B, ids_B = np.zeros(shape[0], np.int32), np.zeros(shape[0], np.uint32)
    for b, index in enumerate(members):
        tokens_BxP[b, : len(prompts[index])] = prompts[index]
        lengths_B[b], ids_B[b] = len(prompts[index]), ids[index]
    return Batch(tokens_BxP, lengths_B, ids_B, np.uint32(seed), extra_ExD)


def _check_extra(config: LlamaConfig, extra: jax.Array | np.ndarray | None) -> np.ndarray | None:
    """Return the extra embeddings in the dtype of activations; UserError unless [E, D]."""
    if extra is None:
        return None
    if np.ndim(extra) != 2 or np.shape(extra)[1] != config.hidden_size:
        raise UserError(
            f"`extra_embeddings` of shape {np.shape(extra)}: must be [E, {config.hidden_size}], "
            "one row for each id beyond the vocabulary"
        )
    return np.asarray(extra).astype(config.dtype)


def _check_numbers(prompts: int, ids: Sequence[int], seed: int, batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"`batch_size` {batch_size}: must be at least 1")
    if len(ids) != prompts:
        raise UserError(f"`ids` has {len(ids)} entries for {prompts} prompts: give one for each")
    for name, value in [("seed", seed), *(("ids", value) for value in ids)]:
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


def _until_stop(tokens: list[int], stop_tokens: Sequence[int]) -> list[int]:
    """Return the tokens before the first stop token."""
    stops = {int(token) for token in stop_tokens}
    return tokens[: next((i for i, token in enumerate(tokens) if token in stops), len(tokens))]


def _shardings(batch: Batch, mesh: Mesh) -> Batch:
    """Return where a batch lies: rows over the data axis, the rest on every device."""
    shardings = jax.tree.map(
        lambda leaf: named_sharding(mesh, ("batch", None)[: leaf.ndim], leaf.shape),
        batch.replace(extra_ExD=None),
    )
    return shardings.replace(extra_ExD=None if batch.extra_ExD is None else replicated(mesh))


def _on_mesh(params: Params, mesh: Mesh) -> Params:
    """Copy parameters that are not on the mesh's devices to all of them."""
    devices = set(mesh.devices.flat)

    def place(leaf: jax.Array) -> jax.Array:
        there = leaf.sharding.device_set == devices
        return leaf if there else jax.device_put(leaf, replicated(mesh))

    return jax.tree.map(place, params)


def _placed(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
