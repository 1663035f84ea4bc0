"""Fine-tune a model on conversations, as one call, and take the result off the mesh."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxalign.core.errors import UserError
from jaxalign.core.progress import OnProgress, ignore
from jaxalign.lm.lora import Adapter, LoraConfig, merge
from jaxalign.lm.model import LM
from jaxalign.lm.tokenizer import Message
from jaxalign.lm.weights import weight_format
from jaxalign.runs.checkpoints import Checkpoints
from jaxalign.runtime.sharding import replicated
from jaxalign.training.conversations import to_conversation
from jaxalign.training.defaults import resolve_training
from jaxalign.training.packing import Example
from jaxalign.training.step import TrainConfig, Trained
from jaxalign.training.trainer import HeldOutLoss, Trainer, fit

__all__ = ["fine_tune", "merged_model", "trained_adapters", "trained_model"]

JOINT = "joint"  # name of the adapter where there is one only

Conversations = Sequence[Sequence[Message]]

_log = logging.getLogger("jaxalign")


def fine_tune(
    lm: LM,
    conversations: Conversations | Mapping[str, Conversations],
    *,
    train: TrainConfig | None = None,
    lora: LoraConfig | None = None,
    held_out: Conversations | Mapping[str, Conversations] | None = None,
    checkpoints: str | Path | None = None,
    save_every: int = 100,
    log: Callable[[dict[str, Any]], None] = lambda row: None,
    on_progress: OnProgress = ignore,
) -> Adapter | dict[str, Adapter] | LM:
    """Fine-tune a model on the last reply of conversations.

    Args:
        lm: The model; its weights stay as they are.
        conversations: Lists of messages, {"role": "user", "content": "..."}, each ending with the
            assistant's reply. Or several such lists by name: one adapter is trained for each, side
            by side in one program.
        train: How to train (batch, epochs, learning rate, seed ...); default: those that
            follow the model (`jaxalign.training.defaults`).
        lora: Rank, scale and layers of the adapters; default: `LoraConfig()`.
        held_out: Conversations that are not trained on, whose loss is measured before training and
            ten times on the way; by name if `conversations` are.
        checkpoints: Folder for checkpoints. If it holds some, training continues from the last.
        save_every: Steps between checkpoints.
        log: Called with a row for every step, {"step": 1, name: {"loss", "gradient_norm",
            "learning_rate", "answers"[, "held_out_loss"]}}; the name of a single adapter is
            "joint".
        on_progress: Called with the progress in steps.

    Returns:
        The adapter, or the adapters by name. With `train.method` "full", the tuned model.

    Raises:
        UserError: If there is nothing to train on, if something is not a conversation or is too
            long for the model, if the compiled step does not fit in memory, or if a loss is not
            finite.

    Example:
        >>> import jaxalign as ja
        >>> lm = ja.pocket_model()
        >>> talk = [{"role": "user", "content": "1 or 2?"}, {"role": "assistant", "content": "2"}]
        >>> settings = ja.training.TrainConfig(epochs=3, learning_rate=1e-2)
        >>> rows = []
        >>> adapter = ja.fine_tune(lm, [talk], train=settings, log=rows.append)
        >>> adapter.config.rank
        8
        >>> bool(rows[-1]["joint"]["loss"] < rows[0]["joint"]["loss"])
        True
    """
    train, notes = resolve_training(train or TrainConfig(), lm.files)
    lora = lora or LoraConfig()
    for note in notes:
        _log.info(note)
    weights = weight_format(lm.params)
    if train.method == "full" and weights == "int8":
        raise UserError(
            "`method` full cannot train weights in 8 bits; use lora, or load them whole"
        )
    several = isinstance(conversations, Mapping)
    examples = _examples(lm, conversations, "conversations")
    folder = None if checkpoints is None else Path(checkpoints)
    trainer = Trainer(
        lm.config,
        train,
        lora,
        examples,
        lm.mesh,
        checkpoints=folder,
        weights=weights,
    )
    _log.debug(trainer.describe())
    held_out_loss = None
    if held_out is not None:
        held_out_loss = HeldOutLoss(trainer, _examples(lm, held_out, "held_out"))
    run = functools.partial(
        fit,
        trainer,
        lm.params,
        save_every=save_every,
        log=log,
        held_out=held_out_loss,
        on_progress=on_progress,
    )
    if checkpoints is None:
        found = run()
    else:
        with Checkpoints(checkpoints) as saved:
            found = run(saved)
    if train.method == "full":
        return trained_model(trainer, found, lm)
    trained = trained_adapters(trainer, found, lm.name)
    return trained if several else trained[JOINT]


def trained_adapters(
    trainer: Trainer, trained: Mapping[str, Trained], base_model: str
) -> dict[str, Adapter]:
    """Return the trained adapters by name: whole on every device, or on the host if they were.

    Every process must call this.

    Args:
        trainer: What has trained them.
        trained: What `fit` returned.
        base_model: Name of the model, for the records of PEFT.
    """
    gather = jax.jit(lambda x: x, out_shardings=replicated(trainer.mesh))
    whole = {
        name: gather(weights) if len(trainer.groups) == 1 else weights
        for name, weights in trained.items()
    }
    return {
        name: Adapter(weights, trainer.lora, trainer.config, base_model)
        for name, weights in whole.items()
    }


def trained_model(trainer: Trainer, trained: Mapping[str, Trained], lm: LM) -> LM:
    """Return the model that method "full" has trained, whole on every device.

    Its weights have the dtype of `lm`'s. Every process must call this.
    """
    # The state holds float32; the base model's dtype is what is used and written.
    (weights,) = trained.values()
    dtype = jax.numpy.dtype(trainer.config.param_dtype)
    to_dtype = jax.jit(
        lambda tree: jax.tree.map(lambda w: w.astype(dtype), tree),
        out_shardings=replicated(trainer.mesh),
    )
    return dataclasses.replace(lm, params=to_dtype(weights))


def merged_model(lm: LM, adapter: Adapter) -> LM:
    """Return the model with the adapter added into its weights, whole on every device.

    A model that is too large for one device can be merged on a single host instead
    (`Adapter.merge`). Every process must call this.
    """
    merged = jax.jit(
        lambda params, weights: merge(params, weights, adapter.config),
        out_shardings=replicated(lm.mesh),
    )
    return dataclasses.replace(lm, params=merged(lm.params, adapter.weights))


def _examples(
    lm: LM, conversations: Conversations | Mapping[str, Conversations], parameter: str
) -> dict[str, list[Example]]:
    """Tokenise conversations; UserError if one is longer than the model can read."""
    if not isinstance(conversations, Mapping):
        conversations = {JOINT: conversations}
    longest = lm.config.max_position_embeddings
    examples: dict[str, list[Example]] = {}
    for name, group in conversations.items():
        examples[name] = []
        for i, messages in enumerate(group):
            where = f"`{parameter}`, {name} {i}"
            example = to_conversation(lm.tokenizer, messages, where).example
            if len(example.tokens) > longest:
                raise UserError(
                    f"{where}: {len(example.tokens)} tokens, but the model reads at most "
                    f"{longest}; leave it out or shorten it"
                )
            examples[name].append(example)
    return examples
