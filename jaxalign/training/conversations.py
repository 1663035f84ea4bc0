"""Conversations as examples to train on, and which of them are held out.

A conversation is a list of messages, {"role": "user", "content": "..."}, of which the last is the
assistant's reply. A file holds one per line as {"messages": [...]}, as the trainers of Hugging Face
read them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxalign.core.errors import UserError
from jaxalign.core.json_text import parse_json
from jaxalign.lm.tokenizer import Message, Tokenizer
from jaxalign.training.packing import Example

_ROLES = ("system", "user", "assistant", "tool", "ipython")


@dataclasses.dataclass(frozen=True)
class Conversation:
    """An example, and the message that its answer replies to."""

    question: str
    example: Example


def read_conversations(
    path: Path, tokenizer: Tokenizer, longest: int
) -> tuple[list[Conversation], int]:
    """Read a file of conversations.

    Args:
        path: File of JSON lines.
        tokenizer: Tokenizer of the model to be trained.
        longest: Number of tokens; longer conversations are left out.

    Returns:
        The conversations, and the number of those left out.

    Raises:
        UserError: If a line is not a conversation (the message has its number), or all are too
            long.
    """
    if not path.is_file():
        raise UserError(f"`data` {path}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"`data` {path}: not UTF-8 ({error.reason} at byte {error.start})"
        ) from None
    conversations = []
    # Not splitlines: a JSON text may contain other line separators unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"`data` {path}, line {number}"
        conversations.append(to_conversation(tokenizer, _parse(line, where), where))
    kept = [c for c in conversations if len(c.example.tokens) <= longest]
    left_out = len(conversations) - len(kept)
    if not kept:
        raise UserError(
            f"`data` {path}: no conversation of at most {longest} tokens, and {left_out} longer"
        )
    return kept, left_out


def _parse(line: str, where: str) -> Any:
    """Return the messages of a line of JSON."""
    try:
        return parse_json(line)["messages"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f'{where}: not {{"messages": [...]}} ({error!r})') from None


def to_conversation(tokenizer: Tokenizer, messages: Any, where: str) -> Conversation:
    """Check messages from outside and tokenise them.

    Args:
        tokenizer: Tokenizer of the model to be trained.
        messages: What should be a list of messages that ends with the assistant's reply.
        where: What error messages call it, such as a file and a line.

    Raises:
        UserError: If it is not a conversation.
    """
    try:
        fields = [(m["role"], m["content"]) for m in messages]
    except (KeyError, TypeError) as error:
        raise UserError(f'{where}: not {{"messages": [...]}} ({error!r})') from None
    if not all(isinstance(value, str) for field in fields for value in field):
        raise UserError(f"{where}: role and content must be text")
    if unknown := [role for role, _ in fields if role not in _ROLES]:
        raise UserError(f"{where}: role {unknown[0]!r}; one of {', '.join(_ROLES)}")
    if len(fields) < 2 or fields[-1][0] != "assistant" or not fields[-1][1].strip():
        raise UserError(f"{where}: a conversation must end with a reply of the assistant")
    checked = [{"role": role, "content": content} for role, content in fields]
    try:
        return Conversation(checked[-2]["content"], to_example(tokenizer, checked))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def to_example(tokenizer: Tokenizer, messages: Sequence[Message]) -> Example:
    """Tokenise a conversation whose last message is the answer.

    The answer is the reply and the end of the turn as the chat template writes them. It is
    tokenised behind the prompt; where the two would merge, by itself, as it is when the model
    replies.

    Raises:
        UserError: If the chat template writes a prompt differently once it has been replied to, so
            that the answer cannot be told from the prompt.
    """
    prompt_text, answer_text = tokenizer.split_reply(messages)
    prompt, whole = tokenizer.encode(prompt_text), tokenizer.encode(prompt_text + answer_text)
    answer = whole[len(prompt) :]
    if whole[: len(prompt)] != prompt:
        answer = tokenizer.encode(answer_text)
    return Example((*prompt, *answer), len(prompt))


def hold_out(
    conversations: Sequence[Conversation], share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Split conversations by their questions, so that no question is on both sides.

    Args:
        conversations: What to split.
        share: Share of the distinct questions to hold out; 0 holds out none.
        seed: Seed of the choice.

    Returns:
        Examples to train on and examples held out, each in the order given.

    Raises:
        UserError: If one side would be empty.
    """
    held_out: Iterable[str] = ()
    if share:
        held_out = held_out_questions((c.question for c in conversations), share, seed)
    sides: tuple[list[Example], list[Example]] = ([], [])
    for conversation in conversations:
        sides[conversation.question in held_out].append(conversation.example)
    return sides


def held_out_questions(questions: Iterable[str], share: float, seed: int) -> frozenset[str]:
    """Choose a fraction `share` of the distinct questions at random.

    The choice depends only on the seed and the texts of the questions, not on their order.

    Raises:
        UserError: If the share rounds to none or to all of the questions.
    """
    distinct = set(questions)
    count = round(share * len(distinct))
    if not 0 < count < len(distinct):
        raise UserError(
            f"share {share} of {len(distinct)} different questions holds out {count}; both sides "
            "need one"
        )

    def random_order(text: str) -> bytes:
        return hashlib.sha256(f"hold out {seed}\n{text}".encode()).digest()

    return frozenset(sorted(distinct, key=random_order)[:count])
