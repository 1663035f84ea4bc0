"""Ask a model many questions after many lead-ins, by exact likelihood.

The answer is the probability of each option's number (`jaxalign.answering.options`): no sampling
noise. Questions are cut into blocks of one shape, one block per device at a time, all by one
compiled program. `jaxalign.answering.sampled` draws replies instead.

With a `folder`, answers are kept there in a file that is named after everything they depend on, and
a job that was killed continues where it stopped. Neither bits nor files depend on the number of
devices.

Letters: C respondent, Q item, O option; in tables, as in
`jaxalign.answering.blocks`, R row, L query of a row, S key.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from jaxalign.answering import block_program
from jaxalign.answering.block_attention import choose_block_kernel
from jaxalign.answering.block_plan import BlockPlan, plan_blocks
from jaxalign.answering.block_program import block_devices, block_sharding
from jaxalign.answering.blocks import Conversations
from jaxalign.answering.kernel_choice import kernels_of
from jaxalign.answering.options import Kernel
from jaxalign.answering.partial import digest, open_partial
from jaxalign.core.errors import UserError
from jaxalign.core.progress import OnProgress, Progress, ignore
from jaxalign.lm.bits import as_bits
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.weights import Params
from jaxalign.runtime.hosts import agreed_choice
from jaxalign.runtime.memory import busy_chunk
from jaxalign.runtime.platform import target_platform
from jaxalign.runtime.sharding import MODEL, place_whole, replicated

_log = logging.getLogger("jaxalign")


@dataclasses.dataclass(frozen=True)
class ExactAnswers:
    """What a model answers to conversations, by exact likelihood.

    Attributes:
        log_probs_NxO: float32 natural logarithms, normalised over an item's options; -inf past
            them.
        valid_mass_N: float32, the probability that the reply begins with an option at all.
    """

    log_probs_NxO: np.ndarray
    valid_mass_N: np.ndarray


def default_block_tokens(platform: str) -> int:
    """Return how many tokens are computed together by default.

    On a CPU the search's measured number; elsewhere as many as a model of 8B computes in about
    1 GiB of temporaries.
    """
    return busy_chunk(1, platform) if platform == "cpu" else 4096


def answer_exact(
    config: LlamaConfig,
    params: Params,
    conversations: Conversations,
    mesh: Mesh,
    *,
    extra_ExD: np.ndarray | jax.Array | None = None,
    key: str = "",
    folder: Path | None = None,
    block_tokens: int | None = None,
    plan: BlockPlan | None = None,
    per_token: bool = False,
    on_progress: OnProgress = ignore,
    task: str = "block",
) -> ExactAnswers:
    """Return the log-probabilities of each conversation's options, and the mass on them.

    In float32 the bits depend neither on the number of devices nor on the order of the
    conversations nor on where a killed run continued; they may depend on `block_tokens` and on
    which conversations are asked together.

    Args:
        config: the model's shapes.
        params: its weights, with an adapter beside them or without. They are used where they lie on
            the mesh, and copied to every device if they lie elsewhere.
        conversations: what is asked.
        mesh: each device of its axes population and data computes a block of its own.
        extra_ExD: float32 embeddings of the ids beyond the vocabulary: row i is `vocab_size + i`.
        key: text that stands for whatever else the answers depend on, such as the weights' hash.
        folder: directory that keeps the answers; None keeps none.
        block_tokens: tokens computed together; default: `default_block_tokens`.
        plan: the conversations cut into blocks, if that has been done; `block_tokens` is then not
            used. Jobs of one shape (`with_one_shape`) share a compiled program.
        per_token: whether an option counts by the mean log-probability of its tokens, and not by
            their sum.
        on_progress: called with the number of blocks that are answered.
        task: what the progress calls a step.

    Raises:
        UserError: if the model answers NaN, or a file in `folder` cannot be continued.
    """
    if extra_ExD is None:
        extra_ExD = np.zeros((0, config.hidden_size), np.float32)
    extra_ExD = np.asarray(extra_ExD, np.float32)
    cut_as: object = plan and plan.shape
    if plan is None:
        cut_as = block_tokens or default_block_tokens(mesh.devices.flat[0].platform)
        plan = plan_blocks(conversations, cut_as)
        _log.debug(plan.describe())
    # One row of the file per conversation, in the given order: its options, then the mass on them.
    reading = ("per token",) if per_token else ()
    name = digest("exact", key, config, cut_as, conversations, extra_ExD, *reading)
    width = plan.shape.options + 1
    kernel, name = _kernel_and_file(config, mesh, plan, folder, f"exact-{name}")
    out = open_partial(folder, name, len(conversations), width, np.float32)
    # A block of which any answer is missing is computed again as a whole.
    lacking = out.missing[plan.order_N]
    missing = np.flatnonzero(np.logical_or.reduceat(lacking, plan.starts_B[:-1]))
    answers_per_block = max(1, len(conversations) // len(plan))

    def report(done: int) -> None:
        on_progress(Progress(task, done, len(plan), "answers", answers_per_block))

    done = len(plan) - len(missing)
    report(done)
    blocks = _answer_blocks(config, params, extra_ExD, plan, missing, mesh, per_token, kernel)
    for members, answers_QxO1 in blocks:
        if np.isnan(answers_QxO1).any():
            raise UserError("the model answers NaN; are its weights finite?")
        out.put(members, answers_QxO1)
        done += 1
        report(done)
    return ExactAnswers(out.values[:, :-1], out.values[:, -1])


def _kernel_and_file(
    config: LlamaConfig, mesh: Mesh, plan: BlockPlan, folder: Path | None, name: str
) -> tuple[Kernel, str]:
    """Return the attention kernel and the name of the answers' file.

    Kernels round differently, so each has a file of its own, and a job that is resumed continues
    with its kernel, whichever is the fastest now.
    """
    kernels, _ = kernels_of(config, mesh.shape[MODEL], target_platform())
    if len(kernels) == 1:
        return kernels[0], name
    choice = choose_block_kernel(config, mesh, plan.shape)
    _log.debug(f"exact answers: {choice.describe()}")
    names = {kernel: name if kernel == "xla" else f"{name}-{kernel}" for kernel in kernels}
    started = [k for k in kernels if folder and (Path(folder) / f"{names[k]}.npy").exists()]
    kernel = agreed_choice(kernels, started[0] if started else choice.kernel)
    return kernel, names[kernel]


def _answer_blocks(
    config: LlamaConfig,
    params: Params,
    extra_ExD: np.ndarray,
    plan: BlockPlan,
    blocks: np.ndarray,
    mesh: Mesh,
    per_token: bool,
    kernel: Kernel,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (conversations, answers [Q, O + 1]) of each block, one block per device at a time.

    The next round is planned and under way before the results of the last one are waited for.
    """
    devices, whole = block_devices(mesh), replicated(mesh)
    if len(blocks):
        params, extra_ExD = as_bits(place_whole(params, whole)), place_whole(extra_ExD, whole)
    under_way = ()
    for start in range(0, len(blocks), devices):
        members = blocks[start : start + devices].tolist()
        tables = [plan.tables(block) for block in members]
        tables += tables[:1] * (devices - len(members))  # devices without a block repeat one
        stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *tables)
        spread = jax.device_put(stacked, block_sharding(mesh))
        # Returns before it is done.
        answers = block_program.answer_blocks(
            config, mesh, params, spread, extra_ExD, per_token, kernel
        )
        if under_way:
            yield from _results(plan, *under_way)
        under_way = members, answers
    if under_way:
        yield from _results(plan, *under_way)


def _results(
    plan: BlockPlan, blocks: Sequence[int], answers: tuple[jax.Array, jax.Array]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    log_probs_BxQxO, mass_BxQ = jax.device_get(answers)
    both = np.concatenate([log_probs_BxQxO, mass_BxQ[..., None]], axis=-1)
    for block, answers_QxO1 in zip(blocks, both, strict=False):
        members = plan.members(block)
        yield members, answers_QxO1[: len(members)]
