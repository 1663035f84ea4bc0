"""A model's reply in words, under any condition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxalign.answering.conversations import split_at_soft_prompt
from jaxalign.lm import generate as decoding
from jaxalign.lm.model import LM
from jaxalign.lm.sampling import Sampling
from jaxalign.methods.ask import adapted_params
from jaxalign.methods.base import Condition
from jaxalign.methods.conditions import Plain
from jaxalign.prompts import Message, Prompts, load_prompts


def generate(
    lm: LM,
    text_or_messages: str | Sequence[Message],
    *,
    condition: Condition | None = None,
    prompts: Prompts | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """Return the model's reply to a message or a conversation, under a condition.

    Args:
        lm: the model.
        text_or_messages: what the user says; or a whole conversation as a list of messages
            {"role": ..., "content": ...} that ends with the user's.
        condition: a persona, examples, a tuned soft prompt or an adapter; default: none of them.
        prompts: the texts that word personas and examples; default: the package's own.
        max_new_tokens: tokens after which the reply is cut off.
        temperature: 0 takes the most likely token every time; higher values draw more freely.
        top_p: draw from the fewest most likely tokens whose probabilities add up to this.
        seed: decides what is drawn; the same seed gives the same reply.

    Returns:
        The reply's text, without the token that ends it.

    Raises:
        UserError: if the conversation and the reply do not fit into the model's positions, or a
            number is out of range.

    >>> import jaxalign as ja
    >>> lm = ja.pocket_model()
    >>> reply = ja.generate(lm, "Is family important in your life?", max_new_tokens=8)
    >>> isinstance(reply, str)
    True
    """
    condition = Plain() if condition is None else condition
    messages = text_or_messages
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    prompts = load_prompts(model_folder=lm.folder) if prompts is None else prompts
    lead_in = condition.lead_in(prompts)
    conversation = [*lead_in, *messages]
    params, soft = adapted_params(lm, condition), condition.soft_prompt
    if soft is None:
        tokens, extra_MxD = lm.tokenizer.encode_chat(conversation), None
    else:
        # Ids past the vocabulary stand for the soft prompt's tokens, rows of `extra_embeddings`.
        before, after = split_at_soft_prompt(lm.tokenizer, conversation, soft.placement)
        extra_MxD = np.asarray(soft.embeddings_MxD)
        virtual = range(lm.config.vocab_size, lm.config.vocab_size + len(extra_MxD))
        tokens = [*before, *virtual, *after]
    sampling = Sampling(max_new_tokens, temperature, top_p)
    [reply] = decoding.generate(
        lm.config,
        params,
        [tokens],
        sampling,
        lm.tokenizer.stop_ids,
        seed=seed,
        batch_size=1,
        mesh=lm.mesh,
        extra_embeddings=extra_MxD,
    )
    return lm.tokenizer.decode(reply)
