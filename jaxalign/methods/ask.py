"""Ask a model a whole survey under any list of conditions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxalign.answering.batch import answer_exact
from jaxalign.answering.blocks import Conversations
from jaxalign.answering.encode import LeadIn, SoftLeadIn, encode
from jaxalign.core.errors import UserError
from jaxalign.core.progress import OnProgress, Progress, ignore
from jaxalign.lm.model import LM, ModelFiles
from jaxalign.lm.weights import Params
from jaxalign.methods.base import Condition
from jaxalign.prompts import Prompts, load_prompts
from jaxalign.runtime.sharding import local_view
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.survey import Item, Survey


def ask(
    lm: LM,
    survey: Survey,
    conditions: Sequence[Condition],
    *,
    prompts: Prompts | None = None,
    on_progress: OnProgress = ignore,
) -> Responses:
    """Ask every item of a survey under every condition, by the exact probability of each option.

    Nothing is sampled: an option's probability is that of its number as the model's reply, in every
    way the tokenizer writes it. Conditions may mix plain questions, personas, examples, soft
    prompts and adapters; those that need the same weights are computed together, in blocks of one
    shape, and text that neighbours share is computed once.

    Args:
        lm: the model.
        survey: the items to ask.
        conditions: A conditions, with different names.
        prompts: the texts that word questions and personas; default: the package's own.
        on_progress: called with the number of answers, before the first and after each block.

    Returns:
        The responses: `log_probs` float32 [A, Q, O], natural logarithms normalised over an item's
        options, and `valid_mass` float32 [A, Q], the probability that a reply begins with an option
        at all.

    Raises:
        UserError: if two conditions have the same name, a soft prompt is made for another model, or
            a question is longer than the model can read.

    >>> import jaxalign as ja
    >>> lm = ja.pocket_model()
    >>> answers = ja.ask(lm, ja.surveys.vsm(), [ja.Plain(), ja.Persona("CHN")])
    >>> answers.conditions
    ('naive', 'persona CHN')
    >>> answers.log_probs.shape, answers.valid_mass.shape
    ((2, 24, 5), (2, 24))
    """
    prompts = load_prompts(model_folder=lm.folder) if prompts is None else prompts
    names = tuple(condition.name for condition in conditions)
    if not names:
        raise UserError("`conditions`: give at least one condition to ask under")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"`conditions`: {repeated[0]!r} is there twice; names must differ")
    groups: dict[int, list[int]] = {}  # rows of the conditions with the same adapter
    for row, condition in enumerate(conditions):
        groups.setdefault(id(condition.adapter), []).append(row)
    # All are encoded and checked before the first is asked.
    encoded = [
        encode_conditions(lm.files, prompts, [conditions[row] for row in rows], survey.items)
        for rows in groups.values()
    ]
    Q, most = len(survey.items), max(len(item.options) for item in survey.items)
    log_probs_AxQxO = np.empty((len(names), Q, most), np.float32)
    mass_AxQ = np.empty((len(names), Q), np.float32)
    done = 0
    for rows, (conversations, extra_ExD) in zip(groups.values(), encoded, strict=True):

        def report(event: Progress, before: int = done, rows: list[int] = rows) -> None:
            now = before + len(rows) * Q * event.done // event.total
            on_progress(Progress("answer", now, len(names) * Q, "answers"))

        adapter = conditions[rows[0]].adapter
        adapted = lm if adapter is None else adapter.attach(lm)
        answers = answer_exact(
            lm.config,
            adapted.params,
            conversations,
            lm.mesh,
            extra_ExD=extra_ExD,
            on_progress=report,
        )
        log_probs_AxQxO[rows] = answers.log_probs_NxO.reshape(len(rows), Q, most)
        mass_AxQ[rows] = answers.valid_mass_N.reshape(len(rows), Q)
        done += len(rows) * Q
    return Responses(survey, names, log_probs_AxQxO, mass_AxQ)


def encode_conditions(
    files: ModelFiles, prompts: Prompts, conditions: Sequence[Condition], items: Sequence[Item]
) -> tuple[Conversations, np.ndarray]:
    """Return every item under every condition as token ids, condition by condition.

    Args:
        files: the model's config and tokenizer.
        prompts: the texts that word questions and personas.
        conditions: the conditions. Their adapters are left to the caller.
        items: the items.

    Returns:
        The conversations, and the embeddings of all soft prompts, float32 [E, D].

    Raises:
        UserError: if a soft prompt is made for another model, or a question is longer than the
            model can read.
    """
    config = files.config
    lead_ins: list[LeadIn] = []
    soft_prompts = [np.zeros((0, config.hidden_size), np.float32)]
    rows = 0
    for condition in conditions:
        messages, soft = condition.lead_in(prompts), condition.soft_prompt
        if soft is None:
            lead_ins.append(messages)
            continue
        length, width = np.shape(soft.embeddings_MxD)
        if width != config.hidden_size:
            raise UserError(
                f"soft prompt of condition {condition.name!r}: its embeddings are {width} wide "
                f"and the model's {config.hidden_size}; tune it for this model"
            )
        # Ids beyond the vocabulary stand for rows of the embeddings.
        first = config.vocab_size + rows
        lead_ins.append(SoftLeadIn(range(first, first + length), soft.placement, messages))
        soft_prompts.append(np.asarray(soft.embeddings_MxD, np.float32))
        rows += length
    conversations = encode(files.tokenizer, prompts, lead_ins, items)
    longest_A = conversations.read_lengths_N.reshape(len(conditions), -1).max(axis=1)
    for condition, tokens in zip(conditions, longest_A.tolist(), strict=True):
        if tokens > config.max_position_embeddings:
            raise UserError(
                f"condition {condition.name!r}: its longest question has {tokens:,} tokens, but "
                f"the model has max_position_embeddings={config.max_position_embeddings}; show "
                "fewer examples or shorten the prompt"
            )
    return conversations, np.concatenate(soft_prompts)


def adapted_params(lm: LM, condition: Condition) -> Params:
    """Return the weights that a condition is asked of, on this process's first device if whole.

    An adapter is laid beside the weights: added into them, it would take a copy of the model, and
    weights in 8 bits would lose it.
    """
    adapted = lm if condition.adapter is None else condition.adapter.attach(lm)
    return local_view(adapted.params)
