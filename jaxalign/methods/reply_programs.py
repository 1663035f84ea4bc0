"""Every program that writing replies executes, from shapes alone, whoever asks for the replies.

Asking by sampled replies and writing questions decode through one queue
(`jaxalign.lm.generate.stream`). What is listed here has the sizes that the queue will choose, so
that a run compiles and checks its programs before it loads or writes anything.
"""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.constrain import Constraint
from jaxalign.lm.generate import Sampling, decode_programs, slots_of
from jaxalign.lm.lora import LoraConfig, abstract_adapter
from jaxalign.lm.mesh import weight_bytes
from jaxalign.lm.model import ModelFiles
from jaxalign.lm.weights import Params, WeightFormat, program_params
from jaxalign.runtime.programs import Program
from jaxalign.runtime.sharding import MODEL, replicated

_REMEDY = "lower `batch_size`, or split the weights over more devices (`model_parallel`)"


def reply_programs(
    files: ModelFiles,
    mesh: Mesh,
    sampling: Sampling,
    *,
    replies: int,
    prompt_tokens: int,
    batch_size: int | None,
    available: int | None,
    stage: str,
    what: str = "",
    weights: WeightFormat = "stored",
    lora: LoraConfig | None = None,
    extra_rows: int = 0,
    constraint: Constraint | None = None,
) -> list[Program]:
    """Return the programs that write replies, in the order in which a reply meets them.

    Args:
        files: The model's config and tokenizer.
        mesh: The devices, which may be only described.
        sampling: How tokens are drawn, and how many at most.
        replies: Number of replies.
        prompt_tokens: Tokens of the longest prompt.
        batch_size: Replies written at a time on all devices, at most; None: follows the memory.
        available: Bytes that programs may use on a device; None or 0 if that is not known.
        stage: The stage of the run in which replies are written.
        what: What they reply to, which is added to the programs' names.
        weights: How the model's weights are stored.
        lora: The adapter beside the weights, if there is one.
        extra_rows: Rows of the embeddings that are given besides the model's own.
        constraint: The form that replies are held to.
    """
    config = files.config
    held = weight_bytes(config, mesh.shape[MODEL], weights)
    positions = prompt_tokens + sampling.max_new_tokens
    free = available - held if available else 0
    programs = decode_programs(
        config,
        sampling,
        mesh,
        slots=slots_of(config, mesh, replies, batch_size, positions, free),
        positions=positions,
        stop_tokens=len(files.tokenizer.stop_ids),
        extra_rows=extra_rows,
        params=_params(config, mesh, weights, lora),
        constraint=constraint,
    )
    return [
        Program.of(
            f"{name}, {what}" if what else name,
            stage,
            jitted,
            arguments,
            # The weights stay where they are while the caches are copied.
            beside_bytes=held if name == "fork" else 0,
            remedy=_REMEDY,
            unit="batch",
            loop_trips=sampling.max_new_tokens - 1,
        )
        for name, (jitted, arguments) in programs.items()
    ]


def _params(
    config: LlamaConfig, mesh: Mesh, weights: WeightFormat, lora: LoraConfig | None
) -> Params:
    """Return a model's parameters in shapes, with those of an adapter beside them if it has one."""
    params = program_params(config, mesh, weights)
    if lora is None:
        return params
    whole = replicated(mesh)
    beside = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
        abstract_adapter(config, lora),
    )
    return params | {group: params[group] | beside[group] for group in beside}
