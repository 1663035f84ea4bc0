"""Conversations of one's own, as JSON lines, as examples to train on.

Every line is {"messages": [{"role": "user", "content": "..."}, ..., {"role": "assistant",
"content": "..."}]}, as the trainers of Hugging Face read them; the last message is the answer.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from jaxalign.core.errors import UserError
from jaxalign.lm.tokenizer import Message, Tokenizer
from jaxalign.training.packing import Example
from jaxalign.training.split import held_out_questions

_ROLES = ("system", "user", "assistant", "tool", "ipython")


@dataclasses.dataclass(frozen=True)
class Conversation:
    """`question` is the message that the last one answers."""

    question: str
    example: Example


def read_conversations(
    path: Path, tokens: Tokenizer, longest: int
) -> tuple[list[Conversation], int]:
    """The conversations of a file, and how many were of more than `longest` tokens.

    Raises UserError with the line's number for one that is not a conversation.
    """
    if not path.is_file():
        raise UserError(f"--data {path}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"--data {path}: not UTF-8 ({error.reason} at byte {error.start})"
        ) from None
    found = []
    # Not splitlines: JSON may hold other line separators, as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"--data {path}, line {number}"
        messages = _messages(line, where)
        try:
            found.append(Conversation(messages[-2]["content"], to_example(tokens, messages)))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    kept = [c for c in found if len(c.example.tokens) <= longest]
    left_out = len(found) - len(kept)
    if not kept:
        raise UserError(
            f"--data {path}: no conversation of at most {longest} tokens, and {left_out} longer"
        )
    return kept, left_out


def _messages(line: str, where: str) -> list[Message]:
    try:
        messages = json.loads(line)["messages"]
        fields = [(m["role"], m["content"]) for m in messages]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f'{where}: not {{"messages": [...]}} ({error!r})') from None
    if not all(isinstance(value, str) for field in fields for value in field):
        raise UserError(f"{where}: role and content must be text")
    if unknown := [role for role, _ in fields if role not in _ROLES]:
        raise UserError(f"{where}: role {unknown[0]!r}; one of {', '.join(_ROLES)}")
    if len(fields) < 2 or fields[-1][0] != "assistant" or not fields[-1][1].strip():
        raise UserError(f"{where}: a conversation ends with what the assistant replies")
    return [{"role": role, "content": content} for role, content in fields]


def to_example(tokens: Tokenizer, messages: Sequence[Message]) -> Example:
    """The conversation, its last reply being the answer.

    Prompt and reply are tokenised apart, as they are when the model replies. Raises UserError for a
    chat template that writes the beginning of a conversation otherwise once it has been replied to.
    """
    asked = tokens.render(messages[:-1])
    whole = tokens.render(messages, add_generation_prompt=False)
    if not whole.startswith(asked):
        raise UserError(
            f"{tokens.folder}: the chat template writes a prompt otherwise once it has a reply, so "
            "where the reply begins cannot be told"
        )
    prompt = tokens.encode(asked)
    return Example((*prompt, *tokens.encode(whole[len(asked) :])), len(prompt))


def hold_out(
    conversations: Sequence[Conversation], share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """(examples to train on, examples held out), in the order given: `share` of the questions with
    all that was answered to them; none for 0. UserError where a side would be empty."""
    apart = held_out_questions((c.question for c in conversations), share, seed) if share else ()
    sides: tuple[list[Example], list[Example]] = ([], [])
    for conversation in conversations:
        sides[conversation.question in apart].append(conversation.example)
    return sides
