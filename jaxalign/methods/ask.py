"""Ask a model a whole survey under any list of conditions."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence

import jax.numpy as jnp
import numpy as np

from jaxalign.answering.ask import ask_after_messages, ask_under_soft_prompts
from jaxalign.answering.conversations import soft_prompt_layout
from jaxalign.answering.options import prepare_items
from jaxalign.core.errors import UserError
from jaxalign.core.progress import OnProgress, Progress, ignore
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.model import LM
from jaxalign.lm.weights import Params
from jaxalign.methods.base import Condition
from jaxalign.prompts import Prompts, load_prompts
from jaxalign.runtime.sharding import local_view
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.survey import Survey


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
    prompts and adapters; those that need the same weights and the same kind of prompt are computed
    together, and text that they share is computed once.

    Args:
        lm: the model.
        survey: the items to ask.
        conditions: A conditions, with different names.
        prompts: the texts that word questions and personas; default: the package's own.
        on_progress: called with the number of conditions that are answered.

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
    prompts = load_prompts() if prompts is None else prompts
    names = tuple(condition.name for condition in conditions)
    if not names:
        raise UserError("`conditions`: give at least one condition to ask under")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"`conditions`: {repeated[0]!r} is there twice; names must differ")
    most = max(len(item.options) for item in survey.items)
    log_probs_AxQxO = np.empty((len(names), len(survey.items), most), np.float32)
    mass_AxQ = np.empty(log_probs_AxQxO.shape[:2], np.float32)

    def report(done: int) -> None:
        on_progress(Progress("condition", done, len(names), "answers", len(survey.items)))

    done = 0
    report(done)
    for rows in _groups(lm.config, conditions, prompts):
        members = [conditions[row] for row in rows]
        log_probs_AxQxO[rows], mass_AxQ[rows] = _ask_together(lm, survey, members, prompts)
        done += len(rows)
        report(done)
    return Responses(survey, names, log_probs_AxQxO, mass_AxQ)


def _groups(
    config: LlamaConfig, conditions: Sequence[Condition], prompts: Prompts
) -> list[list[int]]:
    """Return the conditions' indices, those that one program can answer side by side."""
    groups: dict[Hashable, list[int]] = {}
    for row, condition in enumerate(conditions):
        kind: Hashable = None
        if (soft := condition.soft_prompt) is not None:
            length, width = np.shape(soft.embeddings_MxD)
            if width != config.hidden_size:
                raise UserError(
                    f"soft prompt of condition {condition.name!r}: its embeddings are {width} wide "
                    f"and the model's {config.hidden_size}; tune it for this model"
                )
            # A layout has one place for the prompt and one text around it.
            kind = (soft.placement, length, json.dumps(condition.lead_in(prompts)))
        groups.setdefault((id(condition.adapter), kind), []).append(row)
    return list(groups.values())


def _ask_together(
    lm: LM, survey: Survey, members: Sequence[Condition], prompts: Prompts
) -> tuple[np.ndarray, np.ndarray]:
    """Return log-probabilities [A, Q, O] and valid mass [A, Q] of conditions of one group."""
    params = adapted_params(lm, members[0])
    soft_prompts = [member.soft_prompt for member in members]
    lead_ins = [member.lead_in(prompts) for member in members]
    if soft_prompts[0] is None:
        for member, lead_in in zip(members, lead_ins, strict=True):
            conversations = [[*lead_in, prompts.user(item)] for item in survey.items]
            longest = max(len(lm.tokenizer.encode_chat(chat)) for chat in conversations)
            check_length(lm.config, member.name, longest)
        return ask_after_messages(lm.config, params, lm.tokenizer, prompts, lead_ins, survey.items)
    prompts_PxMxD = jnp.stack([jnp.asarray(soft.embeddings_MxD) for soft in soft_prompts])
    placement, length = soft_prompts[0].placement, prompts_PxMxD.shape[1]
    layout = soft_prompt_layout(lm.tokenizer, prompts, survey.items, placement, length, lead_ins[0])
    check_length(lm.config, members[0].name, layout.longest)
    return ask_under_soft_prompts(
        lm.config, prepare_items(lm.config, params, layout), prompts_PxMxD
    )


def adapted_params(lm: LM, condition: Condition) -> Params:
    """Return the weights that a condition is asked of, on this process's first device if whole.

    An adapter is laid beside the weights: added into them, it would take a copy of the model, and
    weights in 8 bits would lose it.
    """
    adapted = lm if condition.adapter is None else condition.adapter.attach(lm)
    return local_view(adapted.params)


def check_length(config: LlamaConfig, name: str, tokens: int) -> None:
    """Raise UserError for a conversation that is longer than what the model was trained to read."""
    if tokens > config.max_position_embeddings:
        raise UserError(
            f"condition {name!r}: its longest question has {tokens:,} tokens, but the model has "
            f"max_position_embeddings={config.max_position_embeddings}; show fewer examples or "
            "shorten the prompt"
        )
