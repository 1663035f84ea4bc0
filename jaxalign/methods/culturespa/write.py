"""Step 1 of CultureSPA: a model writes new survey questions, topic by topic, after examples.

Every request shows five examples of its topic: only questions of the survey (seeds) until the model
has written two questions on the topic, then three seeds and two of the model's own. A reply that is
not a question (see `questions`) is counted, and another request is sent. A topic advances in
rounds, at its own pace:

    round    an unfinished topic sends up to `per_round` requests; while it has fewer than two
             questions of its own, it sends no more requests than it lacks
    request  request n of a topic draws its examples by (seed, topic, n) from the seeds and from the
             questions that the topic had when the round started

A reply therefore depends on seed, topic, request number and earlier replies of its topic alone, and
the set of questions is the same whatever the batch size and however often the run was interrupted.
Since no topic waits for another, a model's slots stay busy to the end. Replies can be kept as JSON
lines; those already in the file are not asked for again.

Source: Xu et al. 2025 (CultureSPA, NAACL), the section on generating questions. The paper sends one
request per topic at a time, so its examples are a little newer than ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.core.files import MetricsFile
from jaxalign.core.progress import OnProgress, Progress, ignore
from jaxalign.core.templates import render
from jaxalign.lm.constrain import Constraint, object_with_list
from jaxalign.lm.constrain import constrain as make_constraint
from jaxalign.lm.generate import Sampling
from jaxalign.lm.model import LM, ModelFiles
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.methods.culturespa.questions import (
    FEWEST_OPTIONS,
    MOST_OPTIONS,
    SCHEMA,
    Question,
    Refusal,
    as_json,
    as_text,
    from_item,
    parse_question,
    topic_id,
    with_ids,
)
from jaxalign.methods.culturespa.writer import ModelWriter, Writer
from jaxalign.methods.endpoint import Endpoint, EndpointReplies
from jaxalign.prompts import Message, read_prompt
from jaxalign.surveys.survey import Survey

MOST_REQUESTS = 1 << 20  # per topic, so that topic and request number together fit into 32 bits
_MOST_TOPICS = 1 << 11
_TOO_LONG = Refusal("request too long for the model")

PUBLISHED_SAMPLING = Sampling(max_new_tokens=256, temperature=0.9, top_p=0.95)


@dataclasses.dataclass(frozen=True)
class WritingSettings:
    """How many questions are asked for, and after which examples."""

    per_topic: int = 1000
    """Number of questions to write on each topic."""
    per_round: int = 32
    """Number of requests per topic and round. Examples are drawn from the questions written before
    the round."""
    attempts: float = 5.0
    """Largest number of requests per question wanted. A topic that uses them up ends short."""
    examples: int = 5
    """Number of examples in a request."""
    own_examples: int = 2
    """Number of examples that are the model's own questions, once it has written that many."""
    seed: int = 0
    """Seed of the choice of examples and of the replies."""

    def __post_init__(self) -> None:
        if not 1 <= self.per_topic <= 100_000:
            raise UserError(f"`per_topic` {self.per_topic}: give 1 to 100000")
        if self.per_round < 1:
            raise UserError(f"`per_round` {self.per_round}: give at least 1")
        if not self.per_topic <= self.most_requests < MOST_REQUESTS:
            raise UserError(
                f"`attempts` {self.attempts}: give 1 to {MOST_REQUESTS // self.per_topic - 1} "
                f"for {self.per_topic} questions a topic"
            )
        if not 1 <= self.examples <= 50:
            raise UserError(f"`examples` {self.examples}: give 1 to 50")
        if not 0 <= self.own_examples <= self.examples:
            raise UserError(
                f"`own_examples` {self.own_examples}: give 0 to {self.examples}, the number of all "
                "examples"
            )
        if not 0 <= self.seed < 1 << 32:
            raise UserError(f"`seed` {self.seed}: give 0 to {(1 << 32) - 1}")

    @property
    def most_requests(self) -> float:
        """Largest number of requests on a topic."""
        return self.per_topic * self.attempts


@dataclasses.dataclass(frozen=True)
class TopicCount:
    """What became of the requests on one topic. `refused` counts replies by reason."""

    topic: str
    requests: int
    accepted: int
    refused: dict[str, int]


@dataclasses.dataclass(frozen=True)
class WrittenQuestions:
    """Questions that a model wrote, before any filter.

    Attributes:
        questions: All questions, topic by topic, in the order written.
        topics: What became of the requests, by topic.
        notes: A sentence for every topic that ended short.
    """

    questions: tuple[Question, ...]
    topics: tuple[TopicCount, ...]
    notes: tuple[str, ...]

    @property
    def requests(self) -> int:
        """Number of requests on all topics."""
        return sum(topic.requests for topic in self.topics)

    @property
    def refused(self) -> dict[str, int]:
        """Replies that were not a question, by reason, the most frequent first."""
        total = sum((Counter(topic.refused) for topic in self.topics), Counter())
        return dict(total.most_common())


def write_questions(
    lm: LM | Endpoint,
    survey: Survey,
    *,
    writing: WritingSettings = WritingSettings(per_topic=20),
    sampling: Sampling = PUBLISHED_SAMPLING,
    prompt: str | None = None,
    batch_size: int = 64,
    replies: Path | None = None,
    constrain: bool = False,
    on_progress: OnProgress = ignore,
) -> WrittenQuestions:
    """Have a model write new questions on each topic of a survey.

    Args:
        lm: The model that writes, or a server that has one. A server's replies are also kept in
            endpoint.jsonl beside `replies`.
        survey: Its questions are the seeds, shown as examples; every item needs a topic.
        writing: How many questions, how many examples, and the seed.
        sampling: How replies are sampled; by default as published.
        prompt: Text of a request as a jinja source; default: see `load_request`.
        batch_size: Number of replies written at a time. In float32 the questions do not depend on
            it.
        replies: A file that keeps every reply as a JSON line. Requests whose replies it already
            holds are not sent again, so an interrupted call can be repeated.
        constrain: Whether to hold replies to JSON of the form that a request asks for: tokens that
            cannot go on with it are not drawn.
        on_progress: Called with the number of questions written so far.

    Returns:
        The questions by topic, and what became of the requests.

    Raises:
        UserError: If the survey has no topics, a request does not fit the model, or `replies` holds
            replies to other requests.

    Example:
        >>> import jaxalign as ja
        >>> from jaxalign.methods.culturespa import WritingSettings
        >>> from jaxalign.pocket.society import held_out_survey
        >>> survey = held_out_survey()
        >>> trust = survey.subset({item.id for item in survey.items if item.topic == "trust"})
        >>> written = ja.write_questions(
        ...     ja.pocket_model(), trust, writing=WritingSettings(per_topic=2), batch_size=4
        ... )
        >>> len(written.questions), written.questions[0].topic
        (2, 'trust')
    """
    check_batch_size(batch_size)
    if isinstance(lm, Endpoint):
        Endpoint.of(lm.url, lm.model, constrain)
        server = server_writer(lm, writing, sampling, replies, batch_size)
        prompt = prompt or load_request()
        return collect_questions(survey, server, prompt, writing, replies, on_progress=on_progress)
    if prompt is None:
        prompt = load_request(model_folder=lm.files.folder)
    check_requests_fit(lm.files, survey, prompt, writing, sampling)
    writer = model_writer(lm, survey, prompt, writing, sampling, batch_size, constrain)
    return collect_questions(survey, writer, prompt, writing, replies, on_progress=on_progress)


def collect_questions(
    survey: Survey,
    writer: Writer,
    prompt: str,
    writing: WritingSettings,
    replies: Path | None = None,
    on_progress: OnProgress = ignore,
) -> WrittenQuestions:
    """Send requests to any writer until every topic has its questions; see the module's docstring.

    Args:
        survey: Its items are the seeds.
        writer: Writes the replies, such as `model_writer`.
        prompt: Text of a request as a jinja source.
        writing: How many questions, how many examples, and the seed.
        replies: A file that keeps every reply as it comes, and holds those of an interrupted call.
            In the end it is ordered by topic and request.
        on_progress: Called with the number of questions written so far.

    Raises:
        UserError: If the survey has no topics, or `replies` holds replies to other requests.
    """
    topics = make_topics(survey)
    file = None if replies is None else MetricsFile(replies, "request")
    saved = {} if file is None else _read_saved(file)
    count = _Count(writing.per_topic * len(topics))
    for row in saved.values():
        count.add(row)
    on_progress(count.progress())
    rounds: dict[str, list[_Request]] = {}  # of each topic that waits for replies
    asked: dict[int, _Request] = {}
    for topic in topics:
        rounds[topic.name] = _send_round(topic, prompt, writing, saved, replies, writer, asked)
    while asked:
        for number, reply in writer.receive():
            request = asked.pop(number)
            row = saved[request.key] = _row(request, reply)
            if file is not None:
                file.append(row)
            count.add(row)
            topic = request.topic
            if all(r.key in saved for r in rounds[topic.name]):
                _take(rounds[topic.name], saved)
                rounds[topic.name] = _send_round(
                    topic, prompt, writing, saved, replies, writer, asked
                )
        on_progress(count.progress())
    writer.finish()
    if file is not None and saved:
        _put_in_order(file, [topic.name for topic in topics])
    return WrittenQuestions(
        questions=tuple(q for topic in topics for q in with_ids(topic.accepted)),
        topics=tuple(
            TopicCount(t.name, t.requests, len(t.accepted), dict(t.refused.most_common()))
            for t in topics
        ),
        notes=tuple(
            f"{t.name}: {len(t.accepted)} of {writing.per_topic} questions after {t.requests} "
            f"requests, the most that `attempts` {writing.attempts:g} allows"
            for t in topics
            if len(t.accepted) < writing.per_topic
        ),
    )


@dataclasses.dataclass
class Topic:
    """The state of one topic: its seeds, the questions accepted so far, the requests sent."""

    name: str
    index: int
    seeds: list[Question]
    accepted: list[Question] = dataclasses.field(default_factory=list)
    refused: Counter[str] = dataclasses.field(default_factory=Counter)
    requests: int = 0

    def next_requests(self, writing: WritingSettings) -> int:
        """Return the number of requests in the next round, 0 if the topic has ended."""
        missing = writing.per_topic - len(self.accepted)
        before_own = writing.own_examples - len(self.accepted)
        at_once = before_own if before_own > 0 else writing.per_round
        return max(0, min(missing, at_once, int(writing.most_requests) - self.requests))

    def examples(self, writing: WritingSettings, request: int) -> list[Question]:
        """Draw the examples of a request.

        The model's own questions are among them once there are enough. Where there are fewer seeds
        than wanted, more of the model's own questions take their place.
        """
        random = np.random.default_rng([writing.seed, zlib.crc32(self.name.encode()), request])
        own = writing.own_examples if len(self.accepted) >= writing.own_examples else 0
        seeds = min(writing.examples - own, len(self.seeds))
        if own:
            own = min(writing.examples - seeds, len(self.accepted))
        drawn = [*_draw(random, self.seeds, seeds), *_draw(random, self.accepted, own)]
        return _draw(random, drawn, len(drawn))

    def take(self, parsed: Question | Refusal) -> None:
        """Record what the next reply was."""
        self.requests += 1
        if isinstance(parsed, Refusal):
            self.refused[parsed.reason] += 1
        else:
            self.accepted.append(dataclasses.replace(parsed, topic=self.name))


def _draw(random: np.random.Generator, questions: Sequence[Question], count: int) -> list[Question]:
    return [questions[i] for i in random.permutation(len(questions))[:count]]


def make_topics(survey: Survey) -> list[Topic]:
    """Return the topics of a survey in its order, each with its items as seeds.

    Raises:
        UserError: If an item has no topic, or two topics would get the same ids.
    """
    by_name: dict[str, list[Question]] = {}
    for item in survey.items:
        if not item.topic.strip():
            raise UserError(f"survey {survey.name!r}, item {item.id!r}: a seed needs a topic")
        by_name.setdefault(item.topic, []).append(from_item(item))
    if len(by_name) > _MOST_TOPICS or len(set(map(topic_id, by_name))) < len(by_name):
        raise UserError(f"survey {survey.name!r}: topics {list(by_name)[:20]} are too alike")
    return [Topic(name, i, seeds) for i, (name, seeds) in enumerate(by_name.items())]


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
        """Hash of the conversation, kept with the reply to recognise what it replied to."""
        return hashlib.sha256(json.dumps(self.messages).encode()).hexdigest()[:16]


def _send_round(
    topic: Topic,
    prompt: str,
    writing: WritingSettings,
    saved: Mapping[tuple[str, int], Mapping[str, Any]],
    path: Path | None,
    writer: Writer,
    asked: dict[int, _Request],
) -> list[_Request]:
    """Send the requests of a topic's next round that have no reply yet, and return the round.

    Rounds whose replies are all there are taken at once. Empty if the topic has ended.
    """
    while True:
        requests = []
        for n in range(topic.requests, topic.requests + topic.next_requests(writing)):
            content = request_text(prompt, topic.name, topic.examples(writing, n))
            requests.append(_Request(topic, n, [{"role": "user", "content": content}]))
        for request in requests:
            if request.key in saved:
                _check_same_request(saved[request.key], request, path)
        fresh = [request for request in requests if request.key not in saved]
        if fresh or not requests:
            writer.send([request.messages for request in fresh], [r.id for r in fresh])
            asked |= {request.id: request for request in fresh}
            return requests
        _take(requests, saved)


def _take(requests: Sequence[_Request], saved: Mapping[tuple[str, int], Mapping[str, Any]]) -> None:
    """Record the replies of a round in their topic, in the order of the requests."""
    for request in requests:
        request.topic.take(_parse(saved[request.key]["reply"]))


def _row(request: _Request, reply: str | bytes | None) -> dict[str, Any]:
    """Return what is kept of a request and its reply."""
    text = None if reply is None else as_text(reply)
    parsed = _parse(text)
    return {
        "topic": request.topic.name,
        "request": request.number,
        "asked": request.sha256,
        "reply": text,
        "refused": parsed.reason if isinstance(parsed, Refusal) else None,
    }


def _put_in_order(file: MetricsFile, topics: Sequence[str]) -> None:
    """Order the lines of a file of replies by topic and request."""
    place = {name: i for i, name in enumerate(topics)}
    file.put_in_order(lambda row: (place.get(row["topic"], len(place)), row["request"]))


def _parse(reply: str | None) -> Question | Refusal:
    return _TOO_LONG if reply is None else parse_question(reply)


def _read_saved(file: MetricsFile) -> dict[tuple[str, int], dict[str, Any]]:
    file.rewind(sys.maxsize)  # drops a last line that a kill has torn
    rows = file.read()
    for row in rows:
        if not (
            isinstance(row.get("topic"), str)
            and isinstance(row.get("reply"), str | None)
            and isinstance(row.get("refused", 0), str | None)
        ):
            raise UserError(f"{file.path}: not a file of replies; give another `out`")
    return {(row["topic"], row["request"]): row for row in rows}


def _check_same_request(row: Mapping[str, Any], request: _Request, path: Path | None) -> None:
    """Refuse a saved reply to another conversation under the same number."""
    if row.get("asked") != request.sha256:
        raise UserError(
            f"{path}: request {request.number} on {request.topic.name!r} was another one "
            "(settings, seeds, prompt text or earlier replies differ); give another `out`"
        )


@dataclasses.dataclass
class _Count:
    """How many replies there are, and how many of them are no questions."""

    wanted: int
    replies: int = 0
    refused: int = 0

    def add(self, row: Mapping[str, Any]) -> None:
        self.replies += 1
        self.refused += row["refused"] is not None

    def progress(self) -> Progress:
        fields = {}
        if self.replies:
            share = f"{self.refused} ({100 * self.refused / self.replies:.0f} %)"
            fields = {"requests": f"{self.replies}", "refused": share}
        done = self.replies - self.refused
        return Progress("question", done, self.wanted, "questions", fields=fields)


def load_request(
    path: Path | None = None, *, folder: Path | None = None, model_folder: Path | None = None
) -> str:
    """Return the text of a request as a jinja source.

    The source may use `topic`; `examples`, a list of JSON objects as texts; and `schema`, the JSON
    schema of a reply as a text.

    Args:
        path: A file with the text; default: question.jinja from the places that follow.
        folder: Folder with prompt texts of the user's own.
        model_folder: Folder of the model, which may bring the request that it was trained on.

    Raises:
        UserError: If the file cannot be read.
    """
    if path is None:
        return read_prompt("question", folder, model_folder=model_folder)
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompt {path}: cannot be read ({error})") from None


def request_text(prompt: str, topic: str, examples: Sequence[Question]) -> str:
    """Return the user message of a request. Raises UserError for a faulty jinja source."""
    shown = list(map(as_json, examples))
    return render("question.jinja", prompt, topic=topic, examples=shown, schema=SCHEMA)


def check_batch_size(batch_size: int) -> None:
    """Raise UserError for a batch size below 1."""
    if batch_size < 1:
        raise UserError(f"`batch_size` {batch_size}: give at least 1")


def check_requests_fit(
    files: ModelFiles,
    survey: Survey,
    prompt: str,
    writing: WritingSettings,
    sampling: Sampling,
    advice: str = "lower `examples` or `max_new_tokens`",
) -> None:
    """Check that a first request on every topic, with its reply, fits the model.

    Raises:
        UserError: Ending with `advice`, if one does not fit.
    """
    limit = files.config.max_position_embeddings
    for topic in make_topics(survey):
        content = request_text(prompt, topic.name, topic.seeds[: writing.examples])
        length = len(files.tokenizer.encode_chat([{"role": "user", "content": content}]))
        if length > limit - sampling.max_new_tokens:
            raise UserError(
                f"a request on {topic.name!r} has {length} tokens and its reply up to "
                f"{sampling.max_new_tokens}, but the model sees {limit}; {advice}"
            )


def longest_request(
    tokenizer: Tokenizer, survey: Survey, prompt: str, writing: WritingSettings
) -> int:
    """Return the tokens of a request with the longest examples of its topic.

    Caches are made for it: the same for every seed, and so are the programs.
    """
    requests = [
        request_text(
            prompt,
            topic.name,
            sorted(topic.seeds, key=lambda q: -len(as_json(q)))[: writing.examples],
        )
        for topic in make_topics(survey)
    ]
    return max(len(tokenizer.encode_chat([{"role": "user", "content": text}])) for text in requests)


def model_writer(
    lm: LM,
    survey: Survey,
    prompt: str,
    writing: WritingSettings,
    sampling: Sampling,
    batch_size: int | None,
    constrain: bool = False,
) -> Writer:
    """Return a writer that samples its replies from a model.

    Args:
        lm: The model.
        survey: Its questions are the examples that requests begin with.
        prompt: Text of a request as a jinja source.
        writing: How many questions, how many examples, and the seed.
        sampling: How replies are sampled.
        batch_size: Number of replies written at a time.
        constrain: Whether to hold replies to JSON of the form asked for.

    Raises:
        UserError: If replies are to be constrained and the tokenizer is of an unknown kind.
    """
    topics = make_topics(survey)
    constraint = question_constraint(lm.tokenizer, lm.config.vocab_size) if constrain else None
    longest = longest_request(lm.tokenizer, survey, prompt, writing)
    return ModelWriter(
        lm,
        sampling,
        writing.seed,
        batch_size,
        replies=writing.per_topic * len(topics),
        positions=longest + sampling.max_new_tokens,
        constraint=constraint,
    )


def server_writer(
    endpoint: Endpoint,
    writing: WritingSettings,
    sampling: Sampling,
    replies: Path | None,
    at_once: int | None,
) -> Writer:
    """Return a writer whose replies are a server's.

    Args:
        endpoint: The server.
        writing: Holds the seed.
        sampling: How it is to sample.
        replies: The file of replies, beside which its own are kept.
        at_once: Most requests that wait for a reply.
    """
    path = None if replies is None else replies.with_name("endpoint.jsonl")
    return EndpointReplies(endpoint, sampling, writing.seed, path, at_once)


def question_constraint(tokenizer: Tokenizer, vocab_size: int) -> Constraint:
    """Return the form of a reply for a model: JSON as `questions.SCHEMA` says, on one line."""
    form = object_with_list("question", "options", FEWEST_OPTIONS, MOST_OPTIONS)
    return make_constraint(form, tokenizer, vocab_size)
