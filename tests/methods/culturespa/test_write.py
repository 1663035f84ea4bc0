"""Writing questions with made-up writers, killed and continued ones, and the pocket Llama."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxalign.commands import write_questions as command
from jaxalign.core.errors import UserError
from jaxalign.core.progress import Progress
from jaxalign.lm.generate import Sampling, generate
from jaxalign.lm.model import load_model, open_model
from jaxalign.methods.culturespa.questions import Question, from_item, to_survey
from jaxalign.methods.culturespa.write import (
    WritingSettings,
    WrittenQuestions,
    collect_questions,
    load_request,
    make_topics,
    request_text,
)
from jaxalign.methods.culturespa.writer import FunctionWriter, ModelWriter
from jaxalign.pocket import corpus
from jaxalign.pocket.society import held_out_survey
from jaxalign.prompts import Message
from jaxalign.runs import Run
from jaxalign.surveys.survey import Item, Survey, load, to_json

TOPICS = ("social values", "science", "trust")


def seeds(*sizes: int) -> Survey:
    """A survey with so many items on each of the first topics."""
    items = [
        Item(f"{topic}{i}", f"seed {topic} {i}?", ("yes", "no"), (1, 2), topic=topic)
        for topic, size in zip(TOPICS, sizes, strict=False)
        for i in range(size)
    ]
    return Survey("seeds", "1", "made up", "paraphrase", tuple(items))


SURVEY = seeds(7, 5, 6)
REQUEST = load_request(model_folder=open_model().folder)  # the pocket model's
WRITING = WritingSettings(per_topic=12, per_round=4)


class Fake:
    """A writer whose reply follows conversation and id alone. One reply in four is no question."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.left, self.sizes = stop_after, []
        self.asked: dict[int, list[Message]] = {}

    def __call__(self, conversations: list[list[Message]], ids: list[int]) -> list[str]:
        if self.left < len(ids):
            raise KeyboardInterrupt
        self.left -= len(ids)
        self.sizes.append(len(ids))
        assert not self.asked.keys() & set(ids)
        self.asked |= dict(zip(ids, conversations, strict=True))
        return [self.reply(c, i) for c, i in zip(conversations, ids, strict=True)]

    def reply(self, conversation: list[Message], id: int) -> str:
        digest = hashlib.sha256(f"{conversation}{id}".encode()).hexdigest()
        good = json.dumps({"question": f"own {digest[:8]}?", "options": ["a", "b"]})
        return good if int(digest, 16) % 4 else good[: int(digest[:2], 16) % len(good)]


def ask(
    path: Path | None,
    write: Callable[..., Sequence[str | bytes | None]],
    writing: WritingSettings = WRITING,
    survey: Survey = SURVEY,
    at_once: int = 256,
    **more: Callable[[Progress], None],
) -> WrittenQuestions:
    writer = FunctionWriter(write, at_once)
    return collect_questions(survey, writer, REQUEST, writing, path, **more)


def shown(conversation: list[Message]) -> list[str]:
    """Questions of the examples in a request."""
    (message,) = conversation
    assert message["role"] == "user"
    return [json.loads(line)["question"] for line in message["content"].split("\n")[1:]]


def test_every_topic_gets_its_questions_and_refusals_are_counted(tmp_path: Path) -> None:
    fake = Fake()
    found = ask(tmp_path / "replies.jsonl", fake)
    assert [t.topic for t in found.topics] == list(TOPICS)
    assert all(
        t.accepted == 12 and t.requests == 12 + sum(t.refused.values()) for t in found.topics
    )
    assert sum(t.requests for t in found.topics) == len(fake.asked)
    assert sum(sum(t.refused.values()) for t in found.topics) > 0
    assert found.notes == ()
    assert [q.id for q in found.questions[:13]] == [
        *(f"social_values-{n:04d}" for n in range(1, 13)),
        "science-0001",
    ]
    rows = [json.loads(line) for line in (tmp_path / "replies.jsonl").read_text().splitlines()]
    assert len(rows) == len(fake.asked)
    assert sum(row["refused"] is None for row in rows) == len(found.questions) == 36


def test_examples_are_seeds_first_and_then_three_with_two_own(tmp_path: Path) -> None:
    fake = Fake()
    found = ask(tmp_path / "replies.jsonl", fake)
    own_of = {t: {q.question for q in found.questions if q.topic == t} for t in TOPICS}
    assert fake.sizes[0] == 2 * len(TOPICS)  # before a topic has two, it asks for two
    drawn, mixed = set(), 0
    for id, conversation in fake.asked.items():
        topic, questions = TOPICS[id >> 20], shown(conversation)
        own = [q for q in questions if q.startswith("own")]
        assert set(own) <= own_of[topic]
        assert all(q.startswith(f"seed {topic} ") for q in questions if q not in own)
        assert len(set(questions)) == 5
        assert len(own) == (2 if id & 0xFFFFF >= 8 else len(own))
        assert len(own) in (0, 2)
        assert id & 0xFFFFF >= 2 or not own
        mixed += bool(own) and not questions[0].startswith("seed")
        drawn.add(tuple(questions))
    assert len(drawn) > 0.9 * len(fake.asked)  # each request draws its own
    assert mixed  # in an order of their own too


def test_topics_draw_their_own_examples(tmp_path: Path) -> None:
    fake = Fake()
    ask(tmp_path / "replies.jsonl", fake, survey=seeds(9, 9))
    first = [
        [[q.split()[-1] for q in shown(fake.asked[topic << 20 | n])] for n in (0, 1)]
        for topic in (0, 1)
    ]
    assert first[0] != first[1]


def test_few_seeds_are_made_up_for_by_own_questions(tmp_path: Path) -> None:
    fake = Fake()
    ask(tmp_path / "replies.jsonl", fake, survey=seeds(1))
    sizes = [len(shown(fake.asked[id])) for id in sorted(fake.asked)]
    assert sizes[:2] == [1, 1]
    assert sizes[-1] == 5
    last = shown(fake.asked[max(fake.asked)])
    assert sum(q.startswith("seed") for q in last) == 1


def test_the_set_depends_on_the_seed_and_not_on_how_it_was_asked_for(tmp_path: Path) -> None:
    found = ask(tmp_path / "a.jsonl", Fake())
    fake = Fake()
    assert ask(tmp_path / "b.jsonl", fake, at_once=3) == found
    assert max(fake.sizes) == 3
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    other = ask(tmp_path / "c.jsonl", Fake(), dataclasses.replace(WRITING, seed=1))
    assert {q.question for q in other.questions}.isdisjoint(q.question for q in found.questions)


def test_a_topic_is_asked_the_same_alone(tmp_path: Path) -> None:
    """Examples follow the topic's own name and history."""
    fakes = Fake(), Fake()
    ask(tmp_path / "a.jsonl", fakes[0])
    ask(tmp_path / "b.jsonl", fakes[1], survey=seeds(7))
    mine = {id: c for id, c in fakes[0].asked.items() if id >> 20 == 0}
    assert fakes[1].asked == mine


@pytest.mark.parametrize("stop_after", [0, 1, 7, 20, 33, 40])
@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_run_goes_on_and_ends_the_same(
    tmp_path: Path, stop_after: int, torn: bool
) -> None:
    whole, path = tmp_path / "whole.jsonl", tmp_path / "replies.jsonl"
    found = ask(whole, Fake(), at_once=3)
    with pytest.raises(KeyboardInterrupt):
        ask(path, Fake(stop_after), at_once=3)
    if torn and path.exists():
        path.write_bytes(path.read_bytes()[:-9])
    kept = path.read_bytes().count(b"\n") if path.exists() else 0
    rest = Fake()
    assert ask(path, rest, at_once=5) == found
    assert len(rest.asked) == whole.read_bytes().count(b"\n") - kept
    assert path.read_bytes() == whole.read_bytes()
    assert ask(path, Fake(stop_after=0)) == found  # all there: nobody is asked


def test_replies_to_other_requests_are_not_taken_for_ours(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    ask(path, Fake())
    with pytest.raises(UserError, match="give another `out`"):
        ask(path, Fake(), dataclasses.replace(WRITING, seed=1))
    writer = FunctionWriter(Fake())
    with pytest.raises(UserError, match="give another `out`"):
        collect_questions(SURVEY, writer, "Another text on {{ topic }}.", WRITING, path)
    path = tmp_path / "others.jsonl"
    path.write_text('{"request": 1, "topic": 2}\n')
    with pytest.raises(UserError, match="not a file of replies"):
        ask(path, Fake())


def test_a_model_that_never_writes_a_question_ends_short(tmp_path: Path) -> None:
    calls = []

    def write(conversations: list[list[Message]], ids: list[int]) -> list[str | None]:
        calls.append(len(ids))
        return [None if id % 2 else "I cannot do that." for id in ids]

    found = ask(tmp_path / "replies.jsonl", write, dataclasses.replace(WRITING, attempts=1.5))
    assert found.questions == ()
    assert [t.requests for t in found.topics] == [18, 18, 18]
    assert sum(calls) == 3 * 18
    assert found.topics[0].refused == {
        "does not begin with a JSON object": 9,
        "request too long for the model": 9,
    }
    assert [note.split(",")[0] for note in found.notes] == [
        f"{t}: 0 of 12 questions after 18 requests" for t in TOPICS
    ]
    with pytest.raises(UserError, match="no question is left"):
        to_survey(found.questions, "generated", "nobody")


def test_progress_says_how_many_are_there(tmp_path: Path) -> None:
    seen: list[Progress] = []
    ask(tmp_path / "replies.jsonl", Fake(), on_progress=seen.append)
    done = [progress.done for progress in seen]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 36)
    assert all(progress.total == 36 for progress in seen)
    again: list[Progress] = []
    ask(tmp_path / "replies.jsonl", Fake(), on_progress=again.append)
    assert [progress.done for progress in again] == [36]


@settings(
    deadline=None,
    max_examples=30,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_no_reply_stops_the_run(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    hostile = st.one_of(
        st.text(max_size=20),
        st.binary(max_size=20),
        st.none(),
        st.sampled_from(
            [
                b'{"question": "\xff", "options": ["a", "b"]}',
                '{"question": "\ud800", "options": []}',
                '{"question": "a?", "options": ["a", "b"]}',
                '{"a":' * 2000,
                "[" * 5000,
                json.dumps({"question": "a?", "options": list(map(str, range(40)))}),
                json.dumps({"question": "<|eot_id|>", "options": ["a", "\u2028b"]}),
            ]
        ),
    )
    given: dict[int, str | bytes | None] = {}

    def write(conversations: list[list[Message]], ids: list[int]) -> list[str | bytes | None]:
        return [given.setdefault(id, data.draw(hostile)) for id in ids]

    path = tmp_path_factory.mktemp("hostile") / "replies.jsonl"
    writing = WritingSettings(per_topic=3, per_round=2, attempts=2)
    found = ask(path, write, writing, seeds(2, 1))
    assert all(t.accepted + sum(t.refused.values()) == t.requests <= 6 for t in found.topics)
    assert ask(path, Fake(stop_after=0), writing, seeds(2, 1)) == found


def test_the_request_is_what_the_pocket_model_was_trained_on() -> None:
    survey = held_out_survey()
    for topic in make_topics(survey):
        examples = [item for item in survey.items if item.topic == topic.name][:4]
        trained = [corpus.REQUESTS[0].format(topic=topic.name), *map(corpus.as_json, examples)]
        asked = request_text(REQUEST, topic.name, list(map(from_item, examples)))
        assert asked == "\n".join(trained)


def test_prompt_files_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text("{{ topic }} ({{ examples | length }}): ☂", "utf-8-sig")
    assert request_text(load_request(path), "rain", [Question("a?", ("b", "c"))]) == "rain (1): ☂"
    for bad in ("{{ nobody }}", "{% if %}"):
        path.write_text(bad)
        with pytest.raises(UserError, match=r"prompt text question\.jinja"):
            request_text(load_request(path), "rain", [])
    path.write_bytes(b"\xff")
    for unreadable in (path, tmp_path / "absent.jinja", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            load_request(unreadable)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WritingSettings(per_topic=0), "`per_topic` 0"),
        (lambda: WritingSettings(per_round=0), "`per_round` 0"),
        (lambda: WritingSettings(attempts=0.5), "`attempts` 0.5"),
        (lambda: WritingSettings(attempts=float("nan")), "`attempts` nan"),
        (lambda: WritingSettings(attempts=float("inf")), "`attempts` inf"),
        (lambda: WritingSettings(own_examples=6), "`own_examples` 6"),
        (lambda: WritingSettings(seed=-1), "`seed` -1"),
        (lambda: make_topics(untitled("")), "needs a topic"),
        (lambda: make_topics(untitled("a b", "a-b")), "too alike"),
    ],
)
def test_bad_settings_are_told_in_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def untitled(*topics: str) -> Survey:
    items = [Item(f"q{i}", "?", ("a", "b"), (1, 2), topic=t) for i, t in enumerate(topics)]
    return Survey("untitled", "1", "made up", "paraphrase", tuple(items))


@pytest.mark.long
def test_the_pocket_model_writes_questions_and_a_killed_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    survey = tmp_path / "seeds.json"
    ids = {item.id for item in held_out_survey().items if item.topic in ("trust", "science")}
    survey.write_text(json.dumps(to_json(held_out_survey().subset(ids))))
    config = command.Settings(
        out=tmp_path / "run",
        survey=survey,
        quiet=True,
        batch_size=8,
        writing=WritingSettings(per_topic=3, examples=2, own_examples=1),
        sampling=Sampling(64, temperature=0.9, top_p=0.95),
    )
    command.run(config)
    assert "Filters" in capsys.readouterr().out
    files = ("questions.json", "result.json", "replies.jsonl")
    before = {name: (config.out / name).read_bytes() for name in files}
    result = json.loads(before["result.json"])
    assert [topic["accepted"] for topic in result["topics"]] == [3, 3]
    assert result["filters"]["repeated_options"]["left"] == len(load(config.out / files[0]).items)
    with pytest.raises(UserError, match="`resume`"):
        command.run(config)
    for bad in ({"sampling": Sampling(5000)}, {"survey": tmp_path / "none"}, {"batch_size": 0}):
        with pytest.raises(UserError):
            command.run(dataclasses.replace(config, out=tmp_path / "bad", **bad))
    assert not (tmp_path / "bad").exists()
    (config.out / "replies.jsonl").write_bytes(before["replies.jsonl"][:-30])
    command.run(dataclasses.replace(config, resume=True, batch_size=3))
    assert {name: (config.out / name).read_bytes() for name in files} == before


def test_a_setting_changed_since_is_named_as_its_option(tmp_path):
    """`writing.per_topic`, which the command line spells --per-topic."""
    first = command.Settings(out=tmp_path / "run")
    Run.create(first.out, first, {}).close()
    other = dataclasses.replace(first, writing=dataclasses.replace(first.writing, per_topic=3))
    with pytest.raises(UserError, match=r": `writing\.per_topic` was 20 and is 3 now"):
        Run.create(first.out, other, {}, resume=True)


@pytest.mark.long
def test_a_writer_skips_what_has_no_room_and_makes_room_for_longer_ones() -> None:
    """Caches are made for what waits first; a longer request waits for larger ones."""
    lm = load_model()
    texts = ("one", "word " * 5000, "two", "three " * 60)
    said = [[{"role": "user", "content": text}] for text in texts]
    sampling = Sampling(max_new_tokens=8)
    writer = ModelWriter(lm, sampling, 3, batch_size=4, replies=4)
    assert writer.receive() == []
    writer.send(said[:3], [5, 6, 7])
    found = writer.receive()
    assert found == [(6, None)]
    found += writer.receive()
    writer.send(said[3:], [8])
    while more := writer.receive():
        found += more
    writer.finish()
    tokens = [lm.tokenizer.encode_chat(said[i]) for i in (0, 2, 3)]
    stop = lm.tokenizer.stop_ids
    replies = generate(lm.config, lm.params, tokens, sampling, stop, 3, [5, 7, 8])
    expected = dict(zip((5, 7, 8), map(lm.tokenizer.decode, replies), strict=True))
    assert dict(found) == expected | {6: None}


def test_questions_can_be_written_without_a_file():
    assert ask(None, Fake()).questions == ask(None, Fake(), at_once=7).questions
