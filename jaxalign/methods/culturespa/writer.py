"""The model as a writer of questions (`methods.culturespa.questions`), and whether it has room."""

from __future__ import annotations

from collections.abc import Callable

from jax.sharding import Mesh

from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.generate import Sampling, generate, padded_length
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.lm.weights import Params
from jaxalign.methods.culturespa.questions import Writer, render
from jaxalign.methods.culturespa.topics import make_topics
from jaxalign.prompts import Message
from jaxalign.surveys.survey import Survey


def make_writer(
    llama: LlamaConfig,
    params: Params,
    tokens: Tokenizer,
    sampling: Sampling,
    seed: int,
    batch_size: int,
    mesh: Mesh | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Writer:
    """Replies of the model; None to a conversation that it has no room for. on_batch: called with
    the number of replies since the last ones were saved."""
    room = llama.max_position_embeddings - sampling.max_new_tokens

    def write(conversations: list[list[Message]], ids: list[int]) -> list[str | None]:
        prompts = [tokens.encode_chat(messages) for messages in conversations]
        asked = _in_full_batches(prompts, room, batch_size)
        different = len(set(asked))
        replies = generate(
            llama, params, [prompts[i] for i in asked], sampling, tokens.stop_ids, seed,
            [ids[i] for i in asked], batch_size, mesh=mesh,
            on_batch=on_batch and (lambda done: on_batch(min(done, different))),
        )  # fmt: skip
        said = dict(zip(asked, map(tokens.decode, replies), strict=True))
        return [said.get(i) for i in range(len(prompts))]

    return write


def _in_full_batches(prompts: list[list[int]], room: int, batch: int) -> list[int]:
    """Indices of the prompts that fit; those of a padded length repeated until they fill whole
    batches. A reply does not depend on its neighbours, and every number of rows would be another
    program to compile."""
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        if len(prompt) <= room:
            by_length.setdefault(padded_length(len(prompt)), []).append(i)
    return [i for some in by_length.values() for i in [*some, *some[:1] * (-len(some) % batch)]]


def check_room(
    survey: Survey,
    prompt: str,
    examples: int,
    llama: LlamaConfig,
    tokens: Tokenizer,
    sampling: Sampling,
    advice: str,
) -> None:
    """UserError, which ends with `advice`, where not even a first request with so many examples
    fits the model."""
    room = llama.max_position_embeddings - sampling.max_new_tokens
    for topic in make_topics(survey):
        content = render(prompt, topic.name, topic.seeds[:examples])
        length = len(tokens.encode_chat([{"role": "user", "content": content}]))
        if length > room:
            raise UserError(
                f"a request on {topic.name!r} has {length} tokens and its reply up to "
                f"{sampling.max_new_tokens}, but the model sees {llama.max_position_embeddings}; "
                f"{advice}"
            )
