"""Questions as a model writes them: parsing replies, reading released files, making surveys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxalign.methods.culturespa import filters
from jaxalign.methods.culturespa.questions import (
    MOST_OPTIONS,
    Question,
    Refusal,
    as_json,
    from_item,
    parse_question,
    read_questions,
    to_survey,
    topic_id,
)
from jaxalign.surveys.survey import Item, from_json, to_json
from tests.support.json_strategies import ANY, assert_valid_or_one_line, nearly

FUZZ = settings(
    deadline=None,
    max_examples=200,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
GOOD = {"question": "How often do you vote?", "options": ["Always", "Never"]}


@pytest.mark.parametrize(
    "reply",
    [
        json.dumps(GOOD),
        f"  {json.dumps(GOOD, indent=2)}\n",
        f"```json\n{json.dumps(GOOD)}\n```",
        f"```\n{json.dumps(GOOD)}\n```",
        json.dumps(GOOD).encode(),
        '{"Question:": "How often do\\n you vote? ", "Options": ["Always", " Never"]}',
    ],
)
def test_forms_that_are_read(reply: str | bytes) -> None:
    assert parse_question(reply) == Question("How often do you vote?", ("Always", "Never"))


def made(**changes: object) -> str:
    return json.dumps(GOOD | changes)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "does not begin with"),
        ("Here you are: " + made(), "does not begin with"),
        (f"[{made()}]", "does not begin with"),
        (made() + made(), "text after"),
        (made() + " I hope this helps", "text after"),
        *((made()[:n], "cut short") for n in (1, 5, 12, 13, 20, 36, 50, -3, -1)),
        (made()[:-9] + '", ]}', "cut short"),
        (made()[:-1] + ", ]}", "not JSON"),
        (made().replace(":", "", 1), "not JSON"),
        ('{"question": ' + "9" * 5000 + "}", "not JSON"),
        ('{"a":' * 3000 + "1" + "}" * 3000, "nested"),
        ("{" + "x" * 30_000, "too long"),
        (made(topic="x"), "keys"),
        ('{"question": "a"}', "keys"),
        ("{}", "keys"),
        ('{"question": "a", "Question": "b", "options": ["c", "d"]}', "keys"),
        (made(question=["a"]), "question is not a text"),
        (made(question=" "), "empty"),
        (made(options="Always, Never"), "not a list"),
        (made(options=[1, 2]), "option is not"),
        (made(options={"1": "Always", "2": "Never"}), "not a list"),
        (made(options={}), "not a list"),
        (made(options=[None, "a"]), "option is not"),
        (made(options=["a", ""]), "empty"),
        (made(options=[]), "fewer than 2"),
        (made(options=["a"]), "fewer than 2"),
        (made(options=list(map(str, range(MOST_OPTIONS + 20)))), "more than 20"),
        (made(options=["a", " a "]), "twice"),
        (made(options=["a", "b\0"]), "control or half"),
        (made(question="\ud800"), "control or half"),
        (made(question="a" * 1001), "too long"),
        (b'{"question": "a\xff", "options": ["c", "d"]}', "control or half"),
        (made(question="a<|eot_id|>"), "chat marker"),
    ],
)
def test_anything_else_is_refused_with_its_reason(reply: str | bytes, reason: str) -> None:
    found = parse_question(reply)
    assert isinstance(found, Refusal)
    assert reason in found.reason


@FUZZ
@given(st.one_of(st.text(), st.binary(), nearly(GOOD), ANY.map(json.dumps)))
def test_any_reply_gives_a_question_that_can_be_asked_or_a_reason(reply: str | bytes) -> None:
    found = parse_question(reply)
    if isinstance(found, Refusal):
        assert found.reason
        assert "\n" not in found.reason
        return
    Item("q", found.question, found.options, tuple(range(len(found.options))))
    assert parse_question(as_json(found)) == found
    assert parse_question(f"\n{as_json(found)} ".encode()) == found


def released(*rows: dict[str, object]) -> bytes:
    return json.dumps(
        [{"Q_id": "Q0", "class": "Science & Technology", **row} for row in rows]
    ).encode()


def row(question: str, *options: object) -> dict[str, object]:
    return {"question": question, "option_lst": list(options)}


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "generated.json"
    path.write_bytes(b"\xef\xbb\xbf" + released(row("Good?", "a", "b")))
    assert [q.question for q in read_questions(path)[0]] == ["Good?"]


def test_faulty_entries_are_counted_and_do_not_stop_the_file(tmp_path: Path) -> None:
    path = tmp_path / "generated.json"
    path.write_bytes(
        released(
            row("One?", "a"),
            row("Forty?", *map(str, range(40))),
            row("Number?", 1, 2),
            row("Half \ud800?", "a", "b"),
            row("Bytes XX?", "a", "b"),
            row("Good?", "a", "b"),
            row("Good too?", "1. a", "2. b"),
            {"question": "No options?"},
            {"class": 7},
        ).replace(b"XX", b"\xff\xfe")
    )
    written, refused = read_questions(path)
    assert [(q.id, q.question) for q in written] == [
        ("science_technology-0001", "Good?"),
        ("science_technology-0002", "Good too?"),
    ]
    assert refused == {
        "fewer than 2 options": 1,
        "more than 20 options": 1,
        "an option is not a text": 1,
        "a control or half character in a text": 2,
        "options are not a list": 1,
        "topic is not a text": 1,
    }


@FUZZ
@given(nearly([{"class": "x", **row("A?", "a", "b")}, row("B?", "1", "2", "3")]))
def test_any_file_is_read_or_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "generated.json"
    path.write_bytes(content)

    def read() -> tuple[list[Question], dict[str, int]]:
        written, refused = read_questions(path)
        filters.filter_questions(written)
        assert len({q.id for q in written}) == len(written)
        return written, refused

    assert_valid_or_one_line(read, tuple)


def test_topics_become_ids() -> None:
    assert (
        topic_id("Social Values, Attitudes & Stereotypes") == "social_values_attitudes_stereotypes"
    )
    assert topic_id("Ценности") == "ценности"
    assert topic_id("?") == "question"


def test_questions_become_a_survey_that_reads_back() -> None:
    written = [
        Question("How much?", ("little", "much"), "trust", "trust-0001"),
        Question("On a scale of 0 to 2?", ("0", "1", "2"), "trust", "trust-0002"),
        Question("On a scale of 3 to 1?", ("3", "2", "1"), "science", "science-0001"),
        Question("On a scale of 1 to 3, mixed?", ("1", "3", "2"), "science", "science-0002"),
    ]
    survey = to_survey(written, "generated", "the model in a folder")
    assert from_json(json.loads(json.dumps(to_json(survey)))) == survey
    assert [i.codes for i in survey.items] == [(1, 2), (0, 1, 2), (3, 2, 1), (1, 2, 3)]
    assert {i.scale for i in survey.items} == {"ordinal"}
    assert [from_item(item) for item in survey.items] == written
