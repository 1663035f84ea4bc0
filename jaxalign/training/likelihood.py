"""Log-likelihoods of given answers, and whether the model would have written them itself.

Examples of any lengths are packed into rows, as in training, so a few program shapes serve every
call and little is padding. Logits exist for a few hundred answer tokens at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxalign.core.errors import UserError
from jaxalign.core.progress import OnProgress, Progress, ignore
from jaxalign.lm.bits import as_bits
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.decode_layers import embed, output_logits
from jaxalign.lm.transformer import Llama, rope_tables
from jaxalign.lm.weights import Params
from jaxalign.runtime.sharding import DATA, POPULATION, make_mesh, partition_spec, place, replicated
from jaxalign.training.attention import attend_within
from jaxalign.training.fused import Fused
from jaxalign.training.kernel_choice import choose_kernel
from jaxalign.training.packing import Batch, Example, Examples, fill, pack

_SHORTEST_ROW = 1024  # tokens, unless all examples together have fewer
_HEAD_POSITIONS = 256  # answer tokens of a pass whose logits exist at once


class Likelihoods(NamedTuple):
    """What a model makes of given answers."""

    log_probs: np.ndarray  # float64 [N]: natural logarithm of the answer's probability
    greedy: np.ndarray  # bool [N]: whether each token is the most likely one after those before it


def answer_likelihoods(
    config: LlamaConfig,
    params: Params,
    examples: Examples | Iterable[Example],
    *,
    mesh: Mesh | None = None,
    extra_embeddings: np.ndarray | None = None,
    tokens_per_pass: int = 8192,
    on_progress: OnProgress = ignore,
) -> Likelihoods:
    """Return how likely the answer of each example is, given its prompt.

    Args:
        config: The model.
        params: Its weights, with adapters or 8-bit kernels if there are any.
        examples: Token ids of prompts and answers. With `extra_embeddings`, the id
            `config.vocab_size + i` in a prompt stands for row i of that table.
        mesh: Devices whose population and data axes rows are spread over; `params` lie on it.
        extra_embeddings: float [E, D], embeddings that are in no vocabulary, such as soft prompts.
        tokens_per_pass: Tokens computed at a time on all devices, at least a row on each.
        on_progress: Called after every pass.

    Raises:
        UserError: If an example is longer than `config.max_position_embeddings`, whose last answer
            token needs no position; or if an id is unknown.
    """
    examples = Examples.of(examples)
    if not len(examples):
        return Likelihoods(np.zeros(0), np.zeros(0, bool))
    longest = int(examples.lengths.max())
    if longest > config.max_position_embeddings + 1:
        raise UserError(
            f"an example has {longest} tokens, the model "
            f"max_position_embeddings={config.max_position_embeddings}; shorten it"
        )
    extra = None if extra_embeddings is None else np.asarray(extra_embeddings, np.float32)
    known = config.vocab_size + (0 if extra is None else len(extra))
    if (largest := int(examples.pool.max())) >= known or examples.pool.min() < 0:
        raise UserError(f"token id {largest}: the model knows {known} ids")
    mesh = make_mesh(jax.local_devices()[:1]) if mesh is None else mesh
    shares = mesh.shape[POPULATION] * mesh.shape[DATA]
    length = _rounded(max(longest, min(_SHORTEST_ROW, int(examples.lengths.sum()))))
    packed = pack(examples.lengths, length)
    answers = _rounded(max(int(examples.answers[row].sum()) for row in packed))
    # Row, window and examples of a row: like all sizes of a program, from a few.
    sizes = length, min(_rounded(longest), length), _rounded(max(map(len, packed)))
    kernel = choose_kernel(config, mesh, *sizes).kernel
    count = shares * max(1, min(tokens_per_pass // length, len(packed)) // shares)
    log_probs, greedy = np.zeros(len(examples)), np.zeros(len(examples), bool)
    for start in range(0, len(packed), count):
        rows = [np.array(row) for row in packed[start : start + count]]
        batch = fill([[(examples, row)] for row in rows], count, length, answers)
        spread = NamedSharding(mesh, partition_spec(("blocks", None)))
        found = _score(
            config,
            sizes[1],
            sizes[2] if kernel == "cudnn" else 0,
            kernel,
            mesh,
            as_bits(params),
            place(batch, spread),
            extra,
        )
        # What is left over of the last pass is padding.
        for row, token_log_probs_A, token_greedy_A in zip(rows, *map(np.asarray, found)):  # noqa: B905
            # A row's answer tokens stand one example after the other.
            ends = np.cumsum(examples.answers[row])
            starts = ends - examples.answers[row]
            log_probs[row] = np.add.reduceat(token_log_probs_A[: ends[-1]].astype(float), starts)
            greedy[row] = np.logical_and.reduceat(token_greedy_A[: ends[-1]], starts)
        done = min(start + count, len(packed))
        on_progress(Progress("scored rows", done, len(packed)))
    return Likelihoods(log_probs, greedy)


def _rounded(size: int) -> int:
    """Round up to one of few sizes: powers of two, beyond 1,024 multiples of 512."""
    return max(16, 1 << (size - 1).bit_length()) if size <= 1024 else -(-size // 512) * 512


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _score(
    config: LlamaConfig,
    window: int,
    examples: int,
    kernel: str,
    mesh: Mesh,
    params: Params,
    batch: Batch,
    extra_ExD: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Return log-probability and rank of answer tokens: float32 [B, A], and bool [B, A].

    Args:
        config: The model.
        window: Most tokens of an example.
        examples: Most examples of a row, for cuDNN; 0 for other kernels.
        kernel: What computes the attention.
        mesh: The devices.
        params: The weights.
        batch: The rows.
        extra_ExD: Embeddings of the ids beyond the vocabulary.
    """
    fused = Fused.of(kernel, mesh, (POPULATION, DATA))

    def stream(row: Batch) -> jax.Array:
        x = embed(config, params, row.tokens_BxT[None], extra_ExD)
        rope = rope_tables(config, row.positions_BxT)
        attend = attend_within(row.segments_BxT, window, examples, fused)
        x, _ = Llama(config).apply({"params": params}, x, rope, attend, method=Llama.blocks)
        return x[0, row.at_BxA]

    def head(tokens: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x_PxD, target_P = tokens
        logits_PxV = output_logits(config, params, x_PxD)
        chosen_P = jnp.take_along_axis(logits_PxV, target_P[:, None], axis=-1)[:, 0]
        log_prob_P = chosen_P - jax.nn.logsumexp(logits_PxV, axis=-1)
        return log_prob_P, jnp.argmax(logits_PxV, axis=-1) == target_P

    spread = None if fused is None else fused.rows
    x_BxAxD = jax.vmap(stream, spmd_axis_name=spread)(batch)
    B, A = batch.targets_BxA.shape
    # A few positions of every row at a time, so that every device has some.
    each = max(1, min(A, _HEAD_POSITIONS // B))
    parts = -(-A // each)
    pad = [(0, 0), (0, parts * each - A)]
    x = jnp.pad(x_BxAxD, [*pad, (0, 0)]).reshape(B, parts, each, -1).swapaxes(0, 1)
    targets = jnp.pad(batch.targets_BxA, pad).reshape(B, parts, each).swapaxes(0, 1)
    flat = x.reshape(parts, B * each, -1), targets.reshape(parts, B * each)
    found = jax.lax.map(head, flat)
    log_probs, greedy = (y.reshape(parts, B, each).swapaxes(0, 1).reshape(B, -1) for y in found)
    whole = replicated(mesh)
    return tuple(jax.lax.with_sharding_constraint(y[:, :A], whole) for y in (log_probs, greedy))
