"""The material of the pocket model's training text: tokenised questions and turn formats."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence

import numpy as np
from transformers import PreTrainedTokenizerFast

from jaxalign.pocket import phrases, society
from jaxalign.pocket.general import PAIRS, general_question
from jaxalign.pocket.responses import Response
from jaxalign.pocket.rows import MOST_OPTIONS
from jaxalign.pocket.tokenizer import BOS, EOT, HEAD, TAIL
from jaxalign.prompts import Prompts
from jaxalign.surveys.survey import Item, Survey

REQUESTS = (
    'Write a new survey question on the topic "{topic}" as one JSON object.',
    'Here are survey questions on "{topic}". Write another as a JSON object.',
    "Topic: {topic}. Give one new question with its options, as JSON.",
)


@dataclasses.dataclass(frozen=True)
class Question:
    """An item, how it is answered, and its user turn.

    Attributes:
        item: The item.
        response: How its answers follow from a culture.
        shared: First tokens of the user turn, common to all items of its group.
        rest: The other tokens, including the assistant's header.
    """

    item: Item
    response: Response
    shared: tuple[int, ...]
    rest: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What rows are made of.

    Attributes:
        tokenizer: The pocket model's tokenizer.
        prompts: Prompt texts of the package.
        groups: By survey, questions grouped by a shared beginning.
        numbers: Token ids of the option numbers from 1 on.
    """

    tokenizer: PreTrainedTokenizerFast
    prompts: Prompts
    groups: dict[str, tuple[tuple[Question, ...], ...]]
    numbers: tuple[int, ...]

    @functools.cached_property
    def questions(self) -> dict[str, tuple[Question, ...]]:
        """All questions of each survey."""
        return {name: tuple(q for g in groups for q in g) for name, groups in self.groups.items()}


def as_json(item: Item) -> str:
    """Return a question as the JSON object that the model reads and writes."""
    question = f"{item.stem} {item.text}".strip()
    return json.dumps({"question": question, "options": list(item.options)}, ensure_ascii=False)


def question_request(random: np.random.Generator, topic: str, examples: Sequence[Item]) -> str:
    """Draw a user's message that asks for a new question, with examples."""
    request = REQUESTS[random.integers(len(REQUESTS))].format(topic=topic)
    return "\n".join([request, *(as_json(item) for item in examples)])


def texts(prompts: Prompts, seed: int = 0) -> Iterator[str]:
    """Yield the texts that the tokenizer is trained on.

    They hold every question, persona and country, and some descriptions and tasks. Repetitions make
    whole words and headers single tokens.
    """
    random = np.random.default_rng(seed)
    items = [i for i, _ in _pool("values") + _pool("held_out")]
    bank = [i for i, _ in _pool("bank")]
    for item in items * 3 + bank:
        yield prompts.user(item)["content"]
        yield as_json(item)
    yield from phrases.UNAWARE[2:] * 5
    for country in society.countries():
        for _ in range(6):
            yield phrases.named(random, country, prompts)[0]
    for _ in range(300):
        yield phrases.description(random)[0]
        item, _ = general_question(random)
        yield prompts.user(item)["content"]
        yield question_request(random, item.topic, ())
    for word in [w for pair in PAIRS for w in pair]:
        yield f"{word} {word} {word}" * 5
    yield from ["user\n\n", "assistant\n\n", "system\n\n"] * 500  # headers, always two tokens
    yield from (f"{n} {n}" for n in range(101) for _ in range(40))


def _pool(survey: str) -> list[tuple[Item, Response]]:
    """Return the items of "values", "held_out" or "bank" with their responses."""
    if survey == "bank":
        return list(society.question_bank())
    make = society.society_values_module if survey == "values" else society.held_out_survey
    instrument: Survey = make()
    return [(item, society.responses()[item.id]) for item in instrument.items]


def build_corpus(tokenizer: PreTrainedTokenizerFast, prompts: Prompts) -> Corpus:
    """Tokenise all questions."""
    groups = {
        name: _groups(tokenizer, prompts, _pool(name)) for name in ("values", "held_out", "bank")
    }
    numbers = [encode(tokenizer, str(n)) for n in range(1, MOST_OPTIONS + 1)]
    if any(len(n) != 1 for n in numbers):
        raise ValueError(f"tokenizer splits a number below {MOST_OPTIONS + 1}: {numbers}")
    return Corpus(tokenizer, prompts, groups, tuple(n[0] for n in numbers))


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Return the ids of a text, without adding special tokens."""
    return tokenizer.encode(text, add_special_tokens=False)


def _groups(
    tokenizer: PreTrainedTokenizerFast, prompts: Prompts, pool: list[tuple[Item, Response]]
) -> tuple[tuple[Question, ...], ...]:
    """Group items with the same stem and options, and split off their common first tokens."""
    by_beginning: dict[tuple[str, ...], list[tuple[Item, Response]]] = {}
    for item, response in pool:
        key = (item.stem, *item.options) if item.stem else (item.id,)
        by_beginning.setdefault(key, []).append((item, response))
    groups = []
    for members in by_beginning.values():
        turns = [encode(tokenizer, user_turn(prompts, item)) for item, _ in members]
        common = _common_length(turns) if len(turns) > 1 else 0
        groups.append(
            tuple(
                Question(item, response, tuple(turn[:common]), tuple(turn[common:]))
                for (item, response), turn in zip(members, turns, strict=True)
            )
        )
    return tuple(groups)


def _common_length(turns: list[list[int]]) -> int:
    """Return the number of first tokens that all turns have in common."""
    same = [len(set(column)) == 1 for column in zip(*turns, strict=False)]
    return same.index(False) if False in same else len(same)


def user_turn(prompts: Prompts, item: Item) -> str:
    """Return the item as a user turn, followed by the header before the answer."""
    content = prompts.user(item)["content"]
    return f"{HEAD}user{TAIL}\n\n{content}{EOT}{HEAD}assistant{TAIL}\n\n"


def opening(system: str | None, front: bool = False) -> str:
    """Return the text before the first question.

    Args:
        system: The system message; None for none.
        front: Whether it stands before everything, even the begin-of-text token, where PEFT puts a
            soft prompt, instead of in a system turn.
    """
    if system is None:
        return BOS
    return f"{system}{BOS}" if front else f"{BOS}{HEAD}system{TAIL}\n\n{system.strip()}{EOT}"
