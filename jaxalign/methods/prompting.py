"""What a tuned prompt is compared with: the same model asked plainly, in character, by example.

naive: the item alone under the model's chat template. persona: a system line naming the country.
icl: the persona line, then k items of another survey with the country's majority answers.
Source: the Naive and ICL baselines of Masoud et al. 2025; their ICL text is not published, so ours
are files (`jaxalign/prompts`) kept in every run.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.answering.conversations import conversation_layout
from jaxalign.answering.options import option_log_probs, prepare_items, valid_mass
from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.lm.weights import Params
from jaxalign.prompts import Message, Prompts, icl_messages
from jaxalign.surveys.hofstede import country_name
from jaxalign.surveys.survey import Item, Survey

BASELINES = ("naive", "persona", "icl")


def icl_examples(
    survey: Survey, countries: Sequence[str], count: int, seed: int
) -> tuple[Item, ...]:
    """`count` items that all countries answered, drawn by the seed, topics taking turns.

    Raises UserError where there are fewer.
    """
    answered = [
        item
        for item in survey.items
        if all(item.id in survey.distributions.get(country, {}) for country in countries)
    ]
    if len(answered) < count:
        raise UserError(
            f"--icl-examples {count}: survey {survey.name!r} has {len(answered)} items that "
            f"{', '.join(countries)} answered; ask for fewer, or give another --held-out"
        )
    shuffled = [answered[i] for i in np.random.default_rng(seed).permutation(len(answered))]
    seen: dict[str, int] = {}
    turns = [seen.setdefault(item.topic, 0) for item in shuffled]
    for i, item in enumerate(shuffled):
        turns[i], seen[item.topic] = seen[item.topic], seen[item.topic] + 1
    order = sorted(range(len(shuffled)), key=turns.__getitem__)  # stable: the draw within a turn
    return tuple(shuffled[i] for i in order[:count])


def lead_in(
    baseline: str, prompts: Prompts, country: str, survey: Survey, examples: Sequence[Item]
) -> list[Message]:
    """What stands before the question: nothing, the persona line, or that and the examples."""
    if baseline == "naive":
        return []
    persona = prompts.system(country_name(country))
    if baseline == "persona":
        return [persona]
    answers = survey.majority(country)
    return [persona, *icl_messages(prompts, [(item, answers[item.id]) for item in examples])]


def ask(
    config: LlamaConfig,
    params: Params,
    tokens: Tokenizer,
    prompts: Prompts,
    lead_ins: Sequence[Sequence[Message]],
    items: Sequence[Item],
) -> tuple[np.ndarray, np.ndarray]:
    """Ask every item after every lead-in, all in one prefix tree and one compiled program.

    Returns option log-probabilities float32 [lead-ins, Q, O] (-inf past an item's options) and
    the probability that the reply begins with an option at all, float32 [lead-ins, Q].
    """
    conversations = [[*lead, prompts.user(item)] for lead in lead_ins for item in items]
    layout = conversation_layout(tokens, conversations, [*items] * len(lead_ins))
    context = prepare_items(config, params, layout)
    nothing = jnp.zeros((1, 0, config.hidden_size), config.dtype)

    @jax.jit
    def run(context):
        log_probs = option_log_probs(config, context, nothing, chunk=1)[0]
        return log_probs, valid_mass(config, context, nothing)[0]

    log_probs, mass = jax.device_get(run(context))
    shape = len(lead_ins), len(items)
    return log_probs.reshape(*shape, -1), mass.reshape(shape)
