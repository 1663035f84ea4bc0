"""Parsing and filtering generated questions: by example, by property, and on the released file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxalign.commands import filter_questions
from jaxalign.core.errors import UserError
from jaxalign.methods.culturespa import filters
from jaxalign.methods.culturespa.filters import Filtered
from jaxalign.methods.culturespa.questions import (
    MOST_OPTIONS,
    Question,
    Refusal,
    as_json,
    parse_question,
    read_questions,
    topic_id,
)
from jaxalign.surveys.survey import Item, load
from tests.support.json_strategies import ANY, assert_valid_or_one_line, nearly

DATA = os.environ.get("JAXALIGN_CULTURESPA_DATA")
FUZZ = settings(
    deadline=None, max_examples=200, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
GOOD = {"question": "How often do you vote?", "options": ["Always", "Never"]}
EACH: tuple[Callable[[list[Question]], Filtered], ...] = (
    filters.drop_duplicates,
    filters.drop_undefined_scales,
    filters.strip_option_numbers,
    filters.move_end_labels,
    filters.drop_half_labelled,
    filters.drop_repeated_options,
)


# One reply


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
        ("", "does not begin with"), ("Here you are: " + made(), "does not begin with"),
        (f"[{made()}]", "does not begin with"), (made() + made(), "text after"),
        (made() + " I hope this helps", "text after"), (made()[:-1], "not JSON"),
        (made()[:-9] + '", ]}', "not JSON"), ('{"question": ' + "9" * 5000 + "}", "not JSON"),
        ('{"a":' * 3000 + "1" + "}" * 3000, "nested"), ("{" + "x" * 30_000, "too long"),
        (made(topic="x"), "keys"), ('{"question": "a"}', "keys"), ("{}", "keys"),
        ('{"question": "a", "Question": "b", "options": ["c", "d"]}', "keys"),
        (made(question=["a"]), "question is not a text"), (made(question=" "), "empty"),
        (made(options="Always, Never"), "not a list"), (made(options=[1, 2]), "option is not"),
        (made(options={"1": "Always", "2": "Never"}), "not a list"),
        (made(options={}), "not a list"),
        (made(options=[None, "a"]), "option is not"), (made(options=["a", ""]), "empty"),
        (made(options=[]), "fewer than 2"), (made(options=["a"]), "fewer than 2"),
        (made(options=list(map(str, range(MOST_OPTIONS + 20)))), "more than 20"),
        (made(options=["a", " a "]), "twice"), (made(options=["a", "b\0"]), "control or half"),
        (made(question="\ud800"), "control or half"), (made(question="a" * 1001), "too long"),
        (b'{"question": "a\xff", "options": ["c", "d"]}', "control or half"),
        (made(question="a<|eot_id|>"), "chat marker"),
    ],
)  # fmt: skip
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


# Filters, one by one


def texts(*options: str, question: str = "How much?") -> Question:
    return Question(question, options)


def test_duplicates_are_exact_texts_and_the_first_stays() -> None:
    first, second, other = (Question("A?", (x, "z")) for x in "abc")
    other = Question("a?", other.options)  # another case: another text
    seed = Question("Seed?", ("x", "y"))
    assert filters.drop_duplicates([first, second, other, seed], [seed]) == ([first, other], 2)


@pytest.mark.parametrize(
    ("question", "options", "kept"),
    [
        ("How much?", "123", False),
        ("On a scale of 1 to 3, how much?", "123", True),
        ("How much, where 1 means little?", "123", True),
        ("How much, with 1 being little?", "123", True),
        ("Using this card on which 1 means little, how much?", "123", True),
        ("How much?", "12x", True),
    ],
)
def test_bare_numbers_need_a_scale(question: str, options: str, kept: bool) -> None:
    found = filters.drop_undefined_scales([texts(*options, question=question)])
    assert (len(found[0]), found[1]) == ((1, 0) if kept else (0, 1))


@pytest.mark.parametrize(
    ("options", "stripped"),
    [
        (("1. a", "2. b"), ("a", "b")),
        (("1) a", "2) b", "9) c"), ("a", "b", "c")),
        (("1 - a", "10 - c", "9 - b"), ("a", "c", "b")),
        (("1 (rarely)", "2 (often)"), ("rarely", "often")),
        (("1: a (b)", "2: c"), ("a (b)", "c")),
        (("1. 18-24 years", "2. 25-34 years"), ("18-24 years", "25-34 years")),
        (("1. 1. a", "2. 2. b"), ("a", "b")),
        (("1. a", "b"), None),
        (("1. a", "1. b"), None),
        (("1-2 times", "3-4 times"), None),
        (("1 - 2 times", "3 - 4 times"), None),
        (("1.5 hours", "2.5 hours"), None),
        (("1-3: slow", "4-6: fast"), None),
        (("1 child", "2 children"), None),
        (("1. 10", "2. 20"), None),
        (("1.", "2."), None),
    ],
)
def test_numbers_of_options(options: tuple[str, ...], stripped: tuple[str, ...] | None) -> None:
    (found,), changed = filters.strip_option_numbers([texts(*options)])
    assert found.options == (stripped or options)
    assert changed == (stripped is not None)


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        (("1 - never", "2", "3", "4 - always"), '1 means "never"', '4 means "always"'),
        (("0 (no)", "1", "2 (yes)"), '0 means "no"', '2 means "yes"'),
        (("5. much", "4", "3. little"), '5 means "much"', '3 means "little"'),
    ],
)
def test_end_labels_go_into_the_question(options: tuple[str, ...], low: str, high: str) -> None:
    (found,), changed = filters.move_end_labels([texts(*options)])
    assert changed == 1
    assert found.question == f"How much? On a scale where {low} and {high}."
    assert found.options == tuple(o[0] for o in options)
    for keep in (filters.drop_undefined_scales, filters.drop_half_labelled):
        assert keep([found]) == ([found], 0)


@pytest.mark.parametrize(
    "options",
    [
        ("1 - never", "2", "3", "9 - always"),
        ("1 - never", "2", "3 - refused"),
        ("1 - never", "2", "3 - often", "4 - always"),
        ("1 - never", "2", "3"),
        ("0", "1-2", "3-4", "5-6"),
    ],
)
def test_other_half_labelled_scales_are_dropped(options: tuple[str, ...]) -> None:
    question = texts(*options)
    assert filters.move_end_labels([question]) == ([question], 0)
    assert filters.drop_half_labelled([question]) == ([], 1)


def test_options_that_only_begin_with_numbers_stay() -> None:
    some = [texts("1-2 times", "3 times or more"), texts("1", "2"), texts("None", "1", "2 - many")]
    assert filters.drop_half_labelled(some) == (some, 0)


# Filters, all together

_NUMBER = st.integers(0, 11).map(str)
_LABEL = st.sampled_from(["never", "1. often", "always (daily)", "refused", "2", "3-4 times", "ü"])
_OPTION = st.one_of(
    _LABEL, _NUMBER,
    st.tuples(_NUMBER, st.sampled_from([". ", ") ", " - ", "-", ": ", " (", " "]), _LABEL).map(
        lambda t: "".join(t) + ")" * (t[1] == " (")
    ),
)  # fmt: skip
_SCALE = st.integers(2, 10).map(
    lambda n: [f"{i} - end" if i in (1, n) else str(i) for i in range(1, n + 1)]
)
_OPTIONS = st.one_of(st.lists(_OPTION, min_size=2, max_size=6), _SCALE)
_QUESTION = st.sampled_from(["A?", "B?", "On a scale of 1 to 3, C?", "a?", "With 1 being low, D?"])
WRITTEN = st.lists(
    st.builds(lambda q, o: Question(q, tuple(o)), _QUESTION, _OPTIONS), max_size=8
).map(lambda some: [Question(q.question, q.options, id=str(i)) for i, q in enumerate(some)])


@FUZZ
@given(WRITTEN, st.integers(0, len(EACH) - 1))
def test_a_filter_keeps_the_order_counts_right_and_is_idempotent(
    written: list[Question], which: int
) -> None:
    kept, count = EACH[which](written)
    places = [int(q.id) for q in kept]
    assert places == sorted(set(places))
    changed = sum(q != written[int(q.id)] for q in kept)
    assert count == changed + len(written) - len(kept)
    assert EACH[which](kept) == (kept, 0)


@FUZZ
@given(WRITTEN, WRITTEN)
def test_all_filters_are_idempotent_and_add_up(written: list[Question], seeds: list[Question]):
    filtered = filters.filter_questions(written, seeds)
    left = len(written)
    for count in filtered.counts.values():
        left -= count.removed
        assert count.left == left
    assert left == len(filtered.questions)
    again = filters.filter_questions(filtered.questions, seeds)
    assert again.questions == filtered.questions
    assert all(count.removed == count.changed == 0 for count in again.counts.values())


# A file


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
            row("One?", "a"), row("Forty?", *map(str, range(40))), row("Number?", 1, 2),
            row("Half \ud800?", "a", "b"), row("Bytes XX?", "a", "b"), row("Good?", "a", "b"),
            row("Good too?", "1. a", "2. b"), {"question": "No options?"}, {"class": 7},
        ).replace(b"XX", b"\xff\xfe")
    )  # fmt: skip
    written, refused = read_questions(path)
    assert [(q.id, q.question) for q in written] == [
        ("science_technology-0001", "Good?"), ("science_technology-0002", "Good too?"),
    ]  # fmt: skip
    assert refused == {
        "fewer than 2 options": 1, "more than 20 options": 1, "an option is not a text": 1,
        "a control or half character in a text": 2, "options are not a list": 1,
        "topic is not a text": 1,
    }  # fmt: skip


def test_the_command_says_what_each_filter_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "generated.json", tmp_path / "kept.json"
    path.write_bytes(
        released(
            row("A?", "1. a", "2. b"), row("A?", "c", "d"), row("B?", "1", "2"), row("C?", "a"),
            row("D?", "1 - a", "2", "3 - c"), row("E?", "1. a", "2. a"), row("F?", "1", "2 - x"),
        )
    )  # fmt: skip
    filter_questions.run(filter_questions.Settings(path, out=out))
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    for name, *counts in (
        ("written", "–", "–", "6"), ("duplicates", "1", "0", "5"), ("scales", "1", "0", "4"),
        ("numbers", "0", "2", "4"), ("labels", "0", "1", "4"), ("labelled", "1", "0", "3"),
        ("options", "1", "0", "2"), ("options", "1"),
    ):  # fmt: skip
        assert [name, *counts] in [line[-len(counts) - 1 :] for line in said], name
    items = load(out).items
    scale = 'D? On a scale where 1 means "a" and 3 means "c".'
    assert [(i.id, i.text, i.options) for i in items] == [
        ("science_technology-0001", "A?", ("a", "b")),
        ("science_technology-0004", scale, ("1", "2", "3")),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not JSON"), (b'[{"a": ', "not JSON"), (b"{}", "a list"), (b"[" * 100_000, "nested")],
)
def test_files_that_are_no_list_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "generated.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        filter_questions.run(filter_questions.Settings(path))
    with pytest.raises(UserError, match="cannot be read"):
        read_questions(tmp_path / "absent.json")
    with pytest.raises(UserError, match="no such folder"):
        filter_questions.run(filter_questions.Settings(path, out=tmp_path / "no" / "kept.json"))
    with pytest.raises(UserError, match="a folder; name a file"):
        filter_questions.run(filter_questions.Settings(path, out=tmp_path))


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


if DATA:

    def test_the_released_topic() -> None:
        """Counts of the published notebook's rules on this file, worked out by hand as well."""
        path = Path(str(DATA)) / "generated_questions_topic_3_from_all_seed.json"
        written, refused = read_questions(path)
        assert (len(written), refused) == (1000, {})
        seeds = filter_questions.read_seeds(Path(str(DATA)))
        filtered = filters.filter_questions(written, seeds)
        found = {name: (c.removed, c.changed, c.left) for name, c in filtered.counts.items()}
        assert found == {
            "duplicates": (2, 0, 998), "undefined_scales": (14, 0, 984),
            "option_numbers": (0, 934, 984), "end_labels": (0, 0, 984),
            "half_labelled": (0, 0, 984), "repeated_options": (4, 0, 980),
        }  # fmt: skip
        number = re.compile(r"[0-9]+[.)] ")
        numbered = [q for q in filtered.questions if any(map(number.match, q.options))]
        assert len(numbered) == 1  # "Don't know" and "Refused" follow its options unnumbered
