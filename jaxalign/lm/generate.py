"""Replies of the model to prompts of token ids: batched sampling with a KV cache.

Prompts are grouped by length, rounded up to 16, 24, 32, 48, 64, 96 ... tokens, so that less than a
third of a batch is padding and few programs are compiled (`jaxalign.lm.decode_loop`).

A reply's random key comes from the seed and the sequence's own id, and its padded length from its
own prompt, so in float32 its tokens depend neither on its neighbours nor on their number or order.
(Logits may differ in their last bits between batches of another size: XLA adds up in another
order. In bfloat16 that can turn a near tie.)
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
    soft_prompt: jax.Array | None = None,
    mesh: Mesh | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """New tokens for every prompt, in the prompts' order, without the stop token.

    ids: an integer in [0, 2^32) per prompt, which its randomness follows into whatever batch it
    comes; default its index. soft_prompt: embeddings [M, D] before every prompt, or [n, M, D], one
    for each. mesh: batches are split over its data axis; `params` are used as they lie on it, and
    copied to every device if they lie elsewhere. on_batch: called after each batch with the number
    of replies so far. Raises UserError for a prompt that is empty, holds an unknown token, or with
    `max_new_tokens` exceeds `config.max_position_embeddings`; for shapes and numbers that do not
    fit.
    """
    ids = range(len(prompts)) if ids is None else ids
    prefix_NxMxD = _prefix(config, soft_prompt, len(prompts))
    _check_numbers(len(prompts), ids, seed, batch_size)
    _check_prompts(config, prompts, prefix_NxMxD.shape[1], sampling.max_new_tokens)
    params = params if mesh is None else _on_mesh(params, mesh)
    stop = jnp.asarray(stop_tokens, jnp.int32)
    replies: list[list[int]] = [[] for _ in prompts]
    done = 0
    for members, padded, rows in _batches([len(p) for p in prompts], batch_size, mesh):
        batch = _pack(prompts, ids, seed, prefix_NxMxD, members, (rows, padded))
        batch = batch if mesh is None else jax.device_put(batch, _shardings(batch, mesh))
        tokens_BxG = np.asarray(decode_batch(config, sampling, params, batch, stop, mesh))
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
    prefix_tokens: int = 0,
    stop_tokens: int = 1,
    mesh: Mesh | None = None,
    params: Params | None = None,
) -> tuple[Callable[..., jax.Array], tuple[Any, ...]]:
    """The jitted loop and abstract arguments: `program.lower(*arguments)` needs no arrays.

    prompt_tokens: the padded length; prefix_tokens: of the soft prompt; stop_tokens: how many.
    params: abstract, where there are more than the model's own (an adapter), with their shardings.
    """
    shape = (batch_size, prefix_tokens, config.hidden_size)
    batch = Batch(
        prefix_BxMxD=jax.ShapeDtypeStruct(shape, jnp.dtype(config.dtype)),
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
    """The least of 16, 24, 32, 48, 64, 96 ... that is not below `tokens`."""
    power = max(_SHORTEST, 1 << (tokens - 1).bit_length())
    between = power * 3 // 4
    return between if between > _SHORTEST and tokens <= between else power


def _batches(
    lengths: Sequence[int], batch_size: int, mesh: Mesh | None
) -> Iterator[tuple[list[int], int, int]]:
    """(prompts' indices, padded length, rows) of each batch, the longest prompts first.

    Where fewer than `batch_size` are left, rows are a power of two, so that few programs are
    compiled; and always a multiple of the devices that they are split over.
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
    prefix_NxMxD: jax.Array,
    members: Sequence[int],
    shape: tuple[int, int],
) -> Batch:
    """A batch of `shape` (rows, padded length); `prefix` of one row is everyone's."""
    tokens_BxP = np.zeros(shape, np.int32)
    lengths_B, ids_B, from_B = (np.zeros(shape[0], t) for t in (np.int32, np.uint32, np.int32))
    for b, index in enumerate(members):
        tokens_BxP[b, : len(prompts[index])] = prompts[index]
        lengths_B[b], ids_B[b], from_B[b] = len(prompts[index]), ids[index], index
    prefix_BxMxD = prefix_NxMxD[np.minimum(from_B, prefix_NxMxD.shape[0] - 1)]
    return Batch(prefix_BxMxD, tokens_BxP, lengths_B, ids_B, np.uint32(seed))


def _prefix(config: LlamaConfig, soft_prompt: jax.Array | None, prompts: int) -> jax.Array:
    """[1 or n, M, D] in the activations' dtype; M is 0 without a soft prompt."""
    D = config.hidden_size
    if soft_prompt is None:
        return jnp.zeros((1, 0, D), config.dtype)
    prefix = jnp.asarray(soft_prompt, config.dtype)
    prefix = prefix[None] if prefix.ndim == 2 else prefix
    fits = prefix.ndim == 3 and prefix.shape[0] in (1, prompts) and prefix.shape[2] == D
    if not fits:
        raise UserError(
            f"soft prompt of shape {jnp.shape(soft_prompt)}: must be [M, {D}] for every prompt, or "
            f"[{prompts}, M, {D}], one for each"
        )
    return prefix


def _check_numbers(prompts: int, ids: Sequence[int], seed: int, batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: must be at least 1")
    if len(ids) != prompts:
        raise UserError(f"{len(ids)} ids for {prompts} prompts: one each is needed")
    for name, value in [("seed", seed), *(("id", value) for value in ids)]:
        if not 0 <= value < 2**32:
            raise UserError(f"{name} {value}: must be at least 0 and below 2^32")


def _check_prompts(
    config: LlamaConfig, prompts: Sequence[Sequence[int]], prefix: int, new: int
) -> None:
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise UserError(f"prompt {i} is empty: a reply needs at least one token before it")
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise UserError(f"prompt {i} has a token id outside [0, {config.vocab_size})")
        if prefix + len(prompt) + new > config.max_position_embeddings:
            raise UserError(
                f"prompt {i}: {prefix + len(prompt)} tokens and max_new_tokens={new} exceed "
                f"max_position_embeddings={config.max_position_embeddings}; shorten one of them"
            )


def _until_stop(tokens: list[int], stop_tokens: Sequence[int]) -> list[int]:
    stops = {int(token) for token in stop_tokens}
    return tokens[: next((i for i, token in enumerate(tokens) if token in stops), len(tokens))]


def _shardings(batch: Batch, mesh: Mesh) -> Batch:
    """Rows over the data axis; the seed on every device."""

    def place(leaf: Any) -> jax.sharding.NamedSharding:
        axes = ("batch", None, None)[: leaf.ndim]
        return named_sharding(mesh, axes, leaf.shape)

    return jax.tree.map(place, batch)


def _on_mesh(params: Params, mesh: Mesh) -> Params:
    """Parameters that lie elsewhere than on the mesh's devices are copied to all of them."""
    devices = set(mesh.devices.flat)

    def place(leaf: jax.Array) -> jax.Array:
        there = leaf.sharding.device_set == devices
        return leaf if there else jax.device_put(leaf, replicated(mesh))

    return jax.tree.map(place, params)


def _placed(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
