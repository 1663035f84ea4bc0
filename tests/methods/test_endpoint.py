"""Replies from a server: each kept as it comes, none asked for twice, failures in one line."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxalign.core.errors import UserError
from jaxalign.lm.generate import Sampling
from jaxalign.methods.culturespa import CultureSPASettings, WritingSettings, write_questions
from jaxalign.methods.culturespa.settings import check_settings
from jaxalign.methods.endpoint import API_KEY, Endpoint, EndpointReplies
from jaxalign.pocket.society import held_out_survey
from tests.support.chat_server import serving

ROOT = Path(__file__).parents[2]
ASK = [{"role": "user", "content": "Is it?"}]
TOPICS = sorted({item.topic for item in held_out_survey().items})[:3]
SURVEY = held_out_survey().subset(
    {item.id for item in held_out_survey().items if item.topic in TOPICS}
)
WRITING = WritingSettings(per_topic=5, per_round=4)


def write(server, folder: Path, writing: WritingSettings = WRITING):
    folder.mkdir(exist_ok=True)
    return write_questions(
        Endpoint(server.url, "fake"), SURVEY, writing=writing, replies=folder / "replies.jsonl"
    )


def test_a_server_writes_the_questions_and_its_replies_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv(API_KEY, "secret")
    with serving() as server:
        found = write(server, tmp_path / "a")
        again = write(server, tmp_path / "b")
        asked = sum(server.asked.values()) // 2
        assert found.requests == asked
        # Without the file of questions, the server's own file stands in; nobody is asked.
        (tmp_path / "a" / "replies.jsonl").unlink()
        third = write(server, tmp_path / "a")
        assert sum(server.asked.values()) == 2 * asked
    assert found == again == third
    assert len(found.questions) == 5 * 3
    assert found.refused, "some replies are cut short"
    for name in ("replies.jsonl", "endpoint.jsonl"):
        texts = [(tmp_path / folder / name).read_bytes() for folder in "ab"]
        assert texts[0] == texts[1], name
        assert b"secret" not in texts[0]
    assert server.keys == {"Bearer secret"}
    seeds = [body["seed"] for body in server.bodies]
    assert len(set(seeds)) == asked
    assert {(b["temperature"], b["top_p"], b["max_tokens"]) for b in server.bodies} == {
        (0.9, 0.95, 256)
    }
    other = dataclasses.replace(WRITING, seed=1)
    with serving() as server:
        assert write(server, tmp_path / "c", other).questions != found.questions


@pytest.mark.long
def test_a_killed_command_goes_on_and_asks_nothing_twice(tmp_path, monkeypatch):
    """Killed with SIGKILL while replies come; the files are those of an unbroken run."""
    monkeypatch.delenv(API_KEY, raising=False)

    def start(url: str, out: Path, *more: str) -> subprocess.Popen:
        command = f"--generator {url} --generator-model fake --per-topic 2 --quiet --out {out}"
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.write_questions", *command.split(), *more],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    with serving() as server:
        whole = start(server.url, tmp_path / "whole", "--batch-size", "3")
        assert whole.wait(120) == 0, whole.stderr.read()
        requests = sum(server.asked.values())
    kept = tmp_path / "killed" / "endpoint.jsonl"
    with serving(pause_seconds=0.1) as server:
        process = start(server.url, tmp_path / "killed", "--batch-size", "3")
        while not kept.exists() or kept.read_bytes().count(b"\n") < 9:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        time.sleep(0.3)  # what was under way is replied to, and nobody reads it
        before = kept.read_bytes().count(b"\n")
        server.pause_seconds = 0
        resumed = start(server.url, tmp_path / "killed", "--batch-size", "3", "--resume")
        assert resumed.wait(120) == 0, resumed.stderr.read()
        # At most the three that were under way are sent again.
        assert set(server.asked.values()) <= {1, 2}
        assert sum(server.asked.values()) <= requests + 3
        assert before < requests
    for name in ("replies.jsonl", "endpoint.jsonl", "questions.json", "result.json"):
        killed, unbroken = ((tmp_path / run / name).read_bytes() for run in ("killed", "whole"))
        assert killed == unbroken, name


def replies_of(server, **settings) -> list:
    replies = EndpointReplies(
        Endpoint(server.url, "fake", pause_seconds=0.01, **settings), Sampling(), 0
    )
    replies.send([ASK], [7])
    found = replies.receive()
    replies.finish()
    return found


def test_failures_that_pass_are_waited_for():
    with serving(failures=(503, 429, 500)) as server:
        assert replies_of(server)[0][0] == 7
        assert sum(server.asked.values()) == 1


@pytest.mark.parametrize(
    ("failures", "words"),
    [
        ((500,) * 3, r"HTTP 500 not now 500 after 3 attempts; what it replied is kept: resume"),
        ((400,), r"HTTP 400 not now 400$"),
        ((401,), r"HTTP 401 not now 401; set OPENAI_API_KEY$"),
    ],
)
def test_failures_that_do_not_are_told_in_one_line(failures, words):
    with serving(failures=failures) as server, pytest.raises(UserError, match=words) as raised:
        replies_of(server, attempts=3)
    assert "\n" not in str(raised.value)
    assert "generator" in str(raised.value)


def test_nobody_at_the_address():
    with serving() as server:
        url = server.url
        Endpoint(url, "fake").check()
    with pytest.raises(UserError, match=r"`generator` http://127\.0\.0\.1:\d+/v1: .*refused"):
        Endpoint(url, "fake").check()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"generator": "localhost:8000"}, "goes with `generator_model`"),
        ({"generator": "localhost:8000", "generator_model": "m"}, "give an address such as"),
        ({"generator": "http://k:v@h/v1", "generator_model": "m"}, "no key in the address"),
        (
            {"generator": "http://h/v1", "generator_model": "m", "constrain": True},
            "`constrain`: needs a model of our own",
        ),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        check_settings(CultureSPASettings(**settings))


def test_a_file_of_something_else_is_not_taken(tmp_path):
    path = tmp_path / "endpoint.jsonl"
    path.write_text(json.dumps({"seed": 1, "reply": "x"}) + "\n", "utf-8")
    with pytest.raises(UserError, match="not a file of replies"):
        EndpointReplies(Endpoint("http://h/v1", "m"), Sampling(), 0, path)


def test_sampled_answers_of_a_server_are_read_by_what_was_asked(tmp_path, monkeypatch):
    """Each reply belongs to its question, country and presentation, and is kept."""
    from jaxalign.lm.model import LM, open_model
    from jaxalign.methods.culturespa import answer
    from jaxalign.methods.culturespa.inputs import Experiment, read_inputs

    countries = ("USA", "CHN")
    survey = SURVEY.subset({item.id for item in SURVEY.items[:3]})
    settings = CultureSPASettings(
        countries=countries,
        reading="sampled",
        runs=2,
        generator_model="fake",
        generator_answers=True,
        presentations=("A", "B"),
    )
    files = open_model(None)
    found = read_inputs(dataclasses.replace(settings, per_topic=2, p3_choice="topics"), files)
    lm = LM(files, {}, None)

    def replied(body: dict) -> str:
        """The number that stands before the last option; the second run gives the first number."""
        lines = body["messages"][-1]["content"].splitlines()
        numbers = [line.split(" = ")[0].strip() for line in lines if " = " in line]
        return numbers[-1] if "China" in body["messages"][0]["content"] else f"{numbers[0]}."

    with serving(reply=replied) as server:
        settings = dataclasses.replace(settings, generator=server.url)
        experiment = Experiment(settings, found, lm, tmp_path)
        asked = answer.in_styles(found, ("p1",), countries, survey)
        (by_style,) = answer.ask(experiment, lm, answer.BASE, asked, 0)
        assert sum(server.asked.values()) == 2 * 2 * 3 * 2
    # The server has gone: everything is kept.
    (again,) = answer.ask(experiment, lm, answer.BASE, asked, 0)
    for name, last in (("A", -1), ("B", -1)):
        positions = by_style["p1"].by_presentation[name].positions
        for q, item in enumerate(survey.items):
            assert (positions[:, 0, q] == 0).all(), "the first line is the first option"
            assert (positions[:, 1, q] == len(item.options) + last).all()
    assert (again["p1"].positions == by_style["p1"].positions).all()
    rows = (tmp_path / "endpoint-answers.jsonl").read_text().splitlines()
    assert len(rows) == 24
