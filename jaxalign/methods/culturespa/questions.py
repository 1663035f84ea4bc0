"""A model writes new survey questions, topic by topic, after examples: step 1 of CultureSPA.

Every request shows five examples of its topic: seeds alone until the topic has two questions of the
model's own, then three seeds and two of those. A reply that is no question (`parsing`) is counted
and asked for anew. All topics advance together, in rounds:

    round    every unfinished topic sends up to `per_round` requests, all in one batch; before a
             topic has two questions, no more than it lacks of two
    request  number n of a topic draws its examples by (seed, topic, n) from the seeds and the
             questions that the topic had when the round began

so a reply depends on nothing but seed, topic, number and earlier replies of its topic, and the set
is the same whatever the batch size and however often the run was killed. Replies are kept as JSON
lines; a run that finds some there does not ask for them again.

Method: Xu et al. 2025 (CultureSPA, NAACL), section on generating questions. There each topic is
asked one request at a time, so examples there are a little newer. Knows neither model nor
tokenizer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jaxalign.core import templates
from jaxalign.core.errors import UserError
from jaxalign.methods.culturespa.filters import bare_numbers
from jaxalign.methods.culturespa.parsing import (
    Refusal,
    Written,
    as_text,
    number,
    parse_question,
)
from jaxalign.methods.culturespa.topics import (
    MOST_REQUESTS,
    Topic,
    TopicCount,
    Writing,
    make_topics,
)
from jaxalign.prompts import Message
from jaxalign.runs import MetricsFile
from jaxalign.surveys.survey import Item, Survey

# Conversations and a number below 2^32 for each, which its randomness must follow -> the replies.
# None where a conversation was too long to be asked.
Writer = Callable[[list[list[Message]], list[int]], Sequence[str | bytes | None]]

_TOO_LONG = Refusal("request too long for the model")


@dataclasses.dataclass(frozen=True)
class QuestionSet:
    """Questions by topic, in the order written, before any filter."""

    written: tuple[Written, ...]
    topics: tuple[TopicCount, ...]
    notes: tuple[str, ...]


def write_questions(
    survey: Survey,
    write: Writer,
    prompt: str,
    writing: Writing,
    replies: Path,
    save_every: int = 256,
    on_save: Callable[[int, Mapping[str, str]], None] | None = None,
) -> QuestionSet:
    """Ask for `writing.per_topic` questions on every topic of `survey`, whose items are the seeds.

    prompt: a jinja2 source (`load_prompt`). replies: file of JSON lines, one a request; those that
    it holds are not asked for again. save_every: so many conversations are handed to `write` at a
    time at most, after which their replies are kept and `on_save` is called with the number of
    questions so far; the set does not depend on it. A topic that uses up its requests ends short,
    which is said in `notes`. Raises UserError for a survey without topics, and where `replies`
    holds replies to other requests.
    """
    topics = make_topics(survey)
    file = MetricsFile(replies, "request")
    file.rewind(sys.maxsize)  # a kill may have torn the last line
    saved = _saved(file)
    while asked := _round(topics, prompt, writing):
        fresh = [request for request in asked if request.key not in saved]
        for request in asked:
            if request.key in saved:
                _refuse_other(saved[request.key], request, replies)
        for start in range(0, len(fresh), save_every):
            saved |= _ask(write, fresh[start : start + save_every], file)
            if on_save is not None:
                on_save(*_progress(saved))
        for request in asked:
            request.topic.take(_read(saved[request.key]["reply"]))
    return QuestionSet(
        written=tuple(q for topic in topics for q in number(topic.accepted)),
        topics=tuple(
            TopicCount(t.name, t.requests, len(t.accepted), dict(t.refused.most_common()))
            for t in topics
        ),
        notes=tuple(
            f"{t.name}: {len(t.accepted)} of {writing.per_topic} questions after {t.requests} "
            "requests, the most that --attempts allows"
            for t in topics
            if len(t.accepted) < writing.per_topic
        ),
    )


@dataclasses.dataclass(frozen=True)
class _Request:
    topic: Topic
    number: int
    messages: list[Message]

    @property
    def key(self) -> tuple[str, int]:
        return self.topic.name, self.number

    @property
    def id(self) -> int:
        """The number that the reply's randomness follows."""
        return self.topic.index * MOST_REQUESTS + self.number

    @property
    def sha256(self) -> str:
        """Of the conversation: what a saved reply must have been a reply to."""
        return hashlib.sha256(json.dumps(self.messages).encode()).hexdigest()[:16]


def _round(topics: Sequence[Topic], prompt: str, writing: Writing) -> list[_Request]:
    asked = []
    for topic in topics:
        for n in range(topic.requests, topic.requests + topic.next_requests(writing)):
            content = render(prompt, topic.name, topic.examples(writing, n))
            asked.append(_Request(topic, n, [{"role": "user", "content": content}]))
    return asked


def _ask(
    write: Writer, asked: Sequence[_Request], file: MetricsFile
) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows of the replies, appended to the file."""
    replies = write([request.messages for request in asked], [request.id for request in asked])
    rows = {}
    for request, reply in zip(asked, replies, strict=True):
        text = None if reply is None else as_text(reply)
        found = _read(text)
        rows[request.key] = {
            "topic": request.topic.name,
            "request": request.number,
            "asked": request.sha256,
            "reply": text,
            "refused": found.reason if isinstance(found, Refusal) else None,
        }
        file.append(rows[request.key])
    return rows


def _read(reply: str | None) -> Written | Refusal:
    return _TOO_LONG if reply is None else parse_question(reply)


def _saved(file: MetricsFile) -> dict[tuple[str, int], dict[str, Any]]:
    rows = file.read()
    for row in rows:
        if not (
            isinstance(row.get("topic"), str)
            and isinstance(row.get("reply"), str | None)
            and isinstance(row.get("refused", 0), str | None)
        ):
            raise UserError(f"{file.path}: not a file of replies; give another --out")
    return {(row["topic"], row["request"]): row for row in rows}


def _refuse_other(row: Mapping[str, Any], request: _Request, path: Path) -> None:
    """A saved reply to another conversation must not pass for one to this."""
    if row.get("asked") != request.sha256:
        raise UserError(
            f"{path}: request {request.number} on {request.topic.name!r} was another one "
            "(settings, seeds, prompt text or earlier replies differ); give another `out`"
        )


def _progress(saved: Mapping[Any, Mapping[str, Any]]) -> tuple[int, dict[str, str]]:
    """Questions so far, and what to say of the requests."""
    refused = sum(row["refused"] is not None for row in saved.values())
    share = f"{refused} ({100 * refused / len(saved):.0f} %)"
    return len(saved) - refused, {"requests": f"{len(saved)}", "refused": share}


def load_prompt(path: Path | None = None) -> str:
    """The request's text as jinja2 source, the package's or your file's. It sees `topic` and
    `examples`, a list of JSON objects as texts."""
    try:
        if path is not None:
            return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompt {path}: cannot be read ({error})") from None
    return resources.files("jaxalign.prompts").joinpath("question.jinja").read_text("utf-8")


def render(prompt: str, topic: str, examples: Sequence[Written]) -> str:
    """The user's message. Raises UserError with jinja2's complaint."""
    values = {"topic": topic, "examples": list(map(as_json, examples))}
    return templates.render("question.jinja", prompt, **values)


def as_json(question: Written) -> str:
    """A question as the JSON object that a reply is to be."""
    fields = {"question": question.question, "options": list(question.options)}
    return json.dumps(fields, ensure_ascii=False)


def make_instrument(written: Sequence[Written], name: str, source: str) -> Survey:
    """Generated questions as a survey, all ordinal: codes 1 ... n, or the options themselves
    where they are numbers in order.

    Whether a model meant its options as a scale cannot be told from their texts with certainty, and
    the published data take every question for one. Step 3 only asks whether an answer changes.
    Raises UserError where no question is left.
    """
    if not written:
        raise UserError("no question is left; nothing to make a survey of")
    items = tuple(
        Item(q.id, q.question, q.options, _codes(q.options), "ordinal", q.topic) for q in written
    )
    return Survey(name, "generated", source, "paraphrase", items)


def _codes(options: Sequence[str]) -> tuple[int, ...]:
    numbers = bare_numbers(options)
    if numbers and len(set(numbers)) == len(numbers) and sorted(numbers) in (
        numbers, numbers[::-1],
    ):  # fmt: skip
        return tuple(numbers)
    return tuple(range(1, len(options) + 1))
