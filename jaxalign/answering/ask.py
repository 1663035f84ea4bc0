"""Ask a model all items of a survey: after messages, or under soft prompts.

The two functions here run one compiled program each and return plain arrays.
`jaxalign.methods.ask.ask` is built on them and takes a whole list of conditions.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.answering.conversations import conversation_layout
from jaxalign.answering.options import (
    PreparedItems,
    PreparedSuffixItems,
    option_log_probs,
    prepare_items,
    valid_mass,
)
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.lm.weights import Params
from jaxalign.prompts import Message, Prompts
from jaxalign.surveys.survey import Item


def ask_after_messages(
    config: LlamaConfig,
    params: Params,
    tokenizer: Tokenizer,
    prompts: Prompts,
    lead_ins: Sequence[Sequence[Message]],
    items: Sequence[Item],
) -> tuple[np.ndarray, np.ndarray]:
    """Ask every item after each of the lead-ins, all in one prefix tree and one compiled program.

    Args:
        config: the model's shapes.
        params: its weights.
        tokenizer: its tokenizer and chat template.
        prompts: the texts that word a question.
        lead_ins: P lists of messages; each stands before the question. An empty list asks the
            question alone.
        items: the Q items.

    Returns:
        Log-probabilities of the options, float32 [P, Q, O], -inf past an item's options; and the
        probability that the reply begins with an option at all, float32 [P, Q].
    """
    conversations = [[*lead_in, prompts.user(item)] for lead_in in lead_ins for item in items]
    layout = conversation_layout(tokenizer, conversations, [*items] * len(lead_ins))
    prepared = prepare_items(config, params, layout)
    no_prompt = jnp.zeros((1, 0, config.hidden_size), config.dtype)

    @jax.jit
    def run(prepared: PreparedItems) -> tuple[jax.Array, jax.Array]:
        log_probs = option_log_probs(config, prepared, no_prompt, chunk=1)[0]
        return log_probs, valid_mass(config, prepared, no_prompt)[0]

    # All conversations are one prompt's items to the program: [P * Q, O] and [P * Q].
    log_probs, mass = jax.device_get(run(prepared))
    shape = len(lead_ins), len(items)
    return log_probs.reshape(*shape, -1), mass.reshape(shape)


def ask_under_soft_prompts(
    config: LlamaConfig,
    prepared: PreparedItems | PreparedSuffixItems,
    prompts_PxMxD: jax.Array,
) -> tuple[np.ndarray, np.ndarray]:
    """Ask prepared items under each of P soft prompts, one prompt at a time.

    Args:
        config: the model's shapes.
        prepared: the items, from `prepare_items`.
        prompts_PxMxD: embeddings of the prompts.

    Returns:
        Log-probabilities of the options, float32 [P, Q, O], -inf past an item's options; and the
        probability that the reply begins with an option at all, float32 [P, Q].
    """
    log_probs = jax.jit(option_log_probs, static_argnums=(0, 3))(config, prepared, prompts_PxMxD, 1)
    mass = jax.jit(valid_mass, static_argnums=0)(config, prepared, prompts_PxMxD)
    return jax.device_get((log_probs, mass))
