"""Reading replies: which number, which option, and the files of three tools."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxalign.core.errors import UserError
from jaxalign.surveys.formats import culturespa
from jaxalign.surveys.replies import (
    first_integer,
    plain_digits,
    position,
    read_answers,
    read_option,
    strict,
    without_reasoning,
)
from jaxalign.surveys.reply_files import Replies, read_replies
from jaxalign.surveys.responses import NO_REPLY, OPTION_LIST, OUT_OF_RANGE, UNREADABLE
from jaxalign.surveys.survey import Item, Survey
from tests.support.culture_folder import (
    OPTIONS,
    labels,
    replies,
    reply_files,
    write,
    write_folder,
    write_replies,
)
from tests.support.json_strategies import assert_valid_or_one_line, nearly

DATA = os.environ.get("JAXALIGN_CULTURESPA_DATA")
FUZZ = settings(
    deadline=None,
    max_examples=80,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
READERS = ("first_integer", "strict")
AGREE = Item("a", "?", ("Agree", "Not sure", "5", "Dis-agree"), (1, 2, 3, 4))
FROM_ZERO = Item("b", "?", ("No", "Perhaps", "Yes"), (0, 1, 2))


@pytest.fixture
def survey(tmp_path: Path) -> Survey:
    return culturespa.read(write_folder(tmp_path))


# -- from text to a number ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "published", "strictly"),
    [
        ("3", 3, 3),
        (" 3.\n", 3, 3),
        ("(3)", 3, 3),
        ("**3**", 3, 3),
        ("'10'", 10, 10),
        ("Option 3", 3, 3),
        ("I would choose option 3.", 3, 3),
        ("I'd say... 3", 3, 3),
        ("My answer is: 3", 3, 3),
        ("1. Agree", 1, 1),
        ("4) disagree", 4, 4),
        ("2: Not sure", 2, 2),
        ("1. Not sure", 1, None),
        ("3.5", 3, None),
        ("1.1", 1, None),
        ("-3", -3, None),
        ("−3", -3, None),
        ("(-3)", -3, None),
        ("1-5", 1, None),
        ("3 out of 4", 3, 3),
        ("I would say 3/4.", 3, 3),
        ("3 out of 5", 3, None),
        ("4 = Dis-agree", 4, 4),
        ("4 (disagree)", 4, 4),
        ("Option 4: dis-agree.", 4, 4),
        ("4 = Agree", 4, None),
        ("2 or 3", 2, None),
        ("I am 18 and choose 2", 18, None),
        ("Call 1-800-273", 1, None),
        ("I cannot answer that.", None, None),
        ("", None, None),
        ("three", None, 3),
        ("Option two.", None, 2),
        ("One: agree", None, 1),
        ("one of them", None, None),
        ("选项三", None, 3),
        ("x²", None, None),
        ("3 " * 400, 3, None),
    ],
)
def test_which_number_each_reader_takes(text, published, strictly) -> None:
    assert first_integer(text, AGREE) == published
    assert strict(text, AGREE) == strictly


def test_a_number_of_thousands_of_digits_is_out_of_range() -> None:
    number = first_integer("9" * 10_000, AGREE)
    assert number is not None
    assert position(number, AGREE, "codes") is None


def test_codes_from_zero_and_positions_from_one() -> None:
    assert [position(n, FROM_ZERO, "codes") for n in (0, 1, 2, 3)] == [0, 1, 2, None]
    assert [position(n, FROM_ZERO, "positions") for n in (0, 1, 2, 3)] == [None, 0, 1, 2]
    assert [position(n, AGREE, "codes") for n in (0, 1, 4)] == [None, 0, 3]


@FUZZ
@given(number=st.integers(1, 4), before=st.sampled_from(["", "I choose ", "Option "]))
def test_readers_agree_on_plain_numbers(number: int, before: str) -> None:
    assert first_integer(f"{before}{number}", AGREE) == strict(f"{before}{number}", AGREE) == number


@FUZZ
@given(text=st.text(max_size=40))
def test_strict_reads_no_more_than_the_published_reader(text: str) -> None:
    """But for words, which it reads where they are the whole reply."""
    text = plain_digits(text)
    published = first_integer(text, AGREE)
    assert strict(text, AGREE) in (None, published) or published is None


IMPORTANCE = Item(
    "q",
    "How important is leisure time?",
    ("Very important", "Rather important", "Not very important", "Not at all important"),
    (1, 2, 3, 4),
)
TEN = Item("t", "?", ("Never", *map(str, range(2, 10)), "Always"), tuple(range(1, 11)))
CHINESE = Item("zh", "?", ("非常重要", "比较重要", "不重要"), (1, 2, 3))
LIST = "1 = Very important 2 = Rather important 3 = Not very important 4 = Not at all important"


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("<think>3 of them …</think> 2", 1),
        ("<think>\n</think>\n\n2", 1),
        ("<THINK>1</THINK>2", 1),
        ("<thinking type='x'>4</thinking>2", 1),
        ("<reasoning>4</reasoning>\n<reflection>1</reflection> 2", 1),
        ("<think>a<think>1</think>3</think>2", 1),
        ("3 of them … </think> 2", 1),
        ("2 <think>or 3", 1),
        ("<think>3 of them", UNREADABLE),
        ("<think>3</think>", UNREADABLE),
        ("[THINK]3[/THINK]2", 1),
        ("◁think▷3◁/think▷2", 1),
        ("<|begin_of_thought|>3<|end_of_thought|>2", 1),
        ("<|channel|>analysis<|message|>3<|end|><|start|>assistant<|channel|>final<|message|>2", 1),
        ("analysisThere are 3.assistantfinal2", 1),
        ("<think>3</think><answer>2</answer>", 1),
        ("I think 2", 1),
    ],
)
@pytest.mark.parametrize("reader", READERS)
def test_reasoning_is_no_part_of_a_reply(text: str, option: int, reader: str) -> None:
    """Case P2: 3 was read of the first of these."""
    assert read_option(text, IMPORTANCE, reader) == option


def test_a_reply_of_tags_alone_is_read_in_one_pass() -> None:
    assert without_reasoning("</think>" * 50_000 + "2") == "2"
    assert without_reasoning("<think>" * 50_000 + "2") == ""


@FUZZ
@given(thought=st.text("<>/think 123", max_size=30), number=st.integers(1, 4))
def test_whatever_was_thought_the_last_word_counts(thought: str, number: int) -> None:
    text = f"<think>{thought}</think>{number}"
    assert read_option(text, IMPORTANCE, "strict") == number - 1
    assert without_reasoning(f"{number}<think>{thought}".replace("</think>", "")).startswith(
        str(number)
    )


@pytest.mark.parametrize(
    ("text", "option"),
    [
        (LIST, OPTION_LIST),
        ("1 = Very important 2 = …", OPTION_LIST),
        ("1 = Very important 2 = ", OPTION_LIST),
        ("1 = Very important\n2 = Rath", OPTION_LIST),
        (LIST.replace(" 2", "\n2").replace(" 3", "\n3").replace(" = ", ". "), OPTION_LIST),
        ("Option 1: very important, option 2: rather important", OPTION_LIST),
        ("(1) Very important or (2) Rather important", OPTION_LIST),
        ("4 = Not at all important, 3 = Not very important", OPTION_LIST),
        ("How important is leisure time? " + LIST, OPTION_LIST),
        ("1, 2, 3, or 4", OPTION_LIST),
        ("1 2 3 4", OPTION_LIST),
        ("1-4", OPTION_LIST),
        (f"{LIST}\n3", 2),
        (f"{LIST}. My answer is 3.", 2),
        (f"{LIST}. Given my values, I choose option 3 because", 2),
        (f"3\n\n{LIST}", 2),
        (f"3 = Not very important\n{LIST}", 2),
        (f"{LIST}\nRather important", 1),
        (f"{LIST}\n7", OUT_OF_RANGE),
        ("2 = Rather important", 1),
        ("1 = Very important 2 = x", 0),
        ("1. Very important. 2 of my friends agree", 0),
        ("On a scale from 1 to 4, I would say 3.", 2),
    ],
)
def test_a_list_of_the_options_is_no_answer(text: str, option: int) -> None:
    """Case P3: 1 was read of the first of these."""
    assert read_option(text, IMPORTANCE) == option


def test_lists_of_other_scales() -> None:
    assert read_option("1 = Never 2 = 2 3 = 3", TEN) == OPTION_LIST
    assert read_option("1 2 3 4 5 6 7 8 9 10", TEN) == OPTION_LIST
    assert read_option("I'd rate it 8 on a scale from 1 to 10.", TEN) == 7
    assert read_option("10", TEN) == read_option("10", TEN, "strict") == 9
    assert read_option("1=非常重要2=比较重要", CHINESE) == OPTION_LIST
    assert read_option("2=比较重要", CHINESE) == 1
    assert read_option("0 = No 1 = Perhaps 2 = Yes", FROM_ZERO) == OPTION_LIST
    assert read_option("1. No 2. Perhaps", FROM_ZERO, numbering="positions") == OPTION_LIST


@FUZZ
@given(data=st.data())
def test_any_numbered_list_is_found_and_a_single_option_is_none(data: st.DataObject) -> None:
    sign = data.draw(st.sampled_from([" = ", ". ", ") ", ": "]))
    end = data.draw(st.sampled_from(["\n", ", ", " "]))
    first = data.draw(st.integers(0, 2))
    last = data.draw(st.integers(first + 1, 3))
    entries = [f"{n + 1}{sign}{IMPORTANCE.options[n]}" for n in range(first, last + 1)]
    for reader in READERS:
        assert read_option(end.join(entries), IMPORTANCE, reader) == OPTION_LIST
        assert read_option(entries[0], IMPORTANCE, reader) == first


@pytest.mark.parametrize("text", ["2", "２", "２.", "②", "2️⃣", "٢", "२", "Option ２", "(２)"])
@pytest.mark.parametrize("reader", READERS)
def test_digits_of_all_scripts_are_digits(text: str, reader: str) -> None:
    assert read_option(text, IMPORTANCE, reader) == 1


def test_an_options_text_alone_is_an_answer_if_read_strictly() -> None:
    assert read_option("Rather important.", IMPORTANCE, "strict") == 1
    assert read_option("Rather important.", IMPORTANCE) == UNREADABLE, "as published"
    assert read_option("important", IMPORTANCE, "strict") == UNREADABLE
    assert read_option("perhaps", FROM_ZERO, "strict", "positions") == 1
    twice = Item("c", "?", ("Yes", "yes", "No"), (1, 2, 3), scale="nominal")
    assert read_option("Yes", twice, "strict") == UNREADABLE


def test_a_negative_number_is_not_the_option_without_its_sign() -> None:
    assert read_option("-1", IMPORTANCE) == OUT_OF_RANGE
    signed = Item("s", "?", ("less", "same", "more"), (-1, 0, 1))
    assert [read_option(text, signed) for text in ("-1", "0", "1")] == [0, 1, 2]


def test_unreadable_and_out_of_range_replies_are_counted_apart(survey: Survey) -> None:
    texts = {"Q1": "2", "Q2": "no", "Q48": "11", "Q94": "0", "Q241": "10"}
    found = read_answers(Replies(Path("f"), "unaware", None, 0, texts, {}), survey)
    assert found.counts() == {"replies": 5, "unreadable": 1, "out_of_range": 1, "option_lists": 0}
    assert found.unreadable_items() == ["Q2", "Q48"]
    assert found.conditions == ("unaware",)
    answers = {i.id: a for i, a in zip(survey.items, found.answers()[0, 0], strict=True)}
    assert (answers["Q1"], answers["Q94"], answers["Q241"]) == (1, 0, 10)
    assert np.isnan([answers["Q2"], answers["Q48"], answers["Q7"]]).all()
    positions = {i.id: p for i, p in zip(survey.items, found.positions[0, 0], strict=True)}
    marks = (positions["Q2"], positions["Q48"], positions["Q7"])
    assert marks == (UNREADABLE, OUT_OF_RANGE, NO_REPLY)


def test_unknown_items_and_other_options_are_refused(survey: Survey) -> None:
    def refused(texts: dict[str, str], options: dict[str, tuple[str, ...]]) -> str:
        with pytest.raises(UserError) as error:
            read_answers(Replies(Path("f"), "unaware", None, 0, texts, options), survey)
        return str(error.value)

    assert "item 'Q999' is not in" in refused({"Q999": "1"}, {})
    assert "differ from the survey's 4 at option 2" in refused(
        {"Q1": "1"}, {"Q1": ("choice a", "x", "choice c", "choice d")}
    )
    assert "3 options, which differ from the survey's 4 at option 4" in refused(
        {"Q1": "1"}, {"Q1": tuple(labels(3))}
    )


# -- files ----------------------------------------------------------------------------------------


def harness_row(item: str, resps: Any, **more: Any) -> dict[str, Any]:
    return {
        "doc_id": 0,
        "doc": {"Q_id": item},
        "arguments": {},
        "resps": resps,
        "target": "",
    } | more


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def inspect_log(*samples: dict[str, Any]) -> dict[str, Any]:
    return {"version": 2, "status": "success", "eval": {"task": "x"}, "samples": list(samples)}


def sample(item: str, text: str, epoch: int = 1, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    output = {"model": "m", "choices": [{"message": message, "stop_reason": "stop"}]}
    return {"id": item, "epoch": epoch, "input": "?", "target": "", "output": output} | more


def test_culturespa_result_files(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (found,) = read_replies(write_replies(folder, "aware_USA_2", {"Q1": "3"}))
    assert (found.mode, found.country, found.run) == ("aware", "USA", 2)
    assert found.texts["Q1"] == "3"
    assert found.options["Q94"] == tuple(labels(3))
    (unaware,) = read_replies(write_replies(folder, "unaware_0", "1"))
    assert (unaware.mode, unaware.country, len(unaware.texts)) == ("unaware", None, len(OPTIONS))


def test_harness_samples(tmp_path: Path) -> None:
    path = tmp_path / "samples_culture_aware_CHN_2026-01-02T03-04-05.jsonl"
    rows = [
        harness_row("Q1", [["3"]]),
        harness_row("Q2", [["I say 4"]]),
        harness_row("Q7", [], filtered_resps=["2"]),
    ]
    (found,) = read_replies(write_lines(path, rows))
    assert (found.mode, found.country, found.run) == ("aware", "CHN", 0)
    assert found.texts == {"Q1": "3", "Q2": "I say 4", "Q7": "2"}


def test_harness_repeats_are_runs_and_further_filters_are_not(tmp_path: Path) -> None:
    rows = [harness_row("Q1", [["3", "4"]], filter=f) for f in ("none", "strict-match")]
    path = write_lines(tmp_path / "samples.jsonl", rows)
    runs = read_replies(path, country="USA", mode="aware")
    assert [(r.run, dict(r.texts)) for r in runs] == [(0, {"Q1": "3"}), (1, {"Q1": "4"})]


def test_harness_logs_without_a_filter_field_hold_a_line_per_filter(tmp_path: Path) -> None:
    """Case P1: versions before the field `filter` was written; "answered twice" was said."""
    rows = [
        harness_row(item, [[text]], filtered_resps=[filtered])
        for filtered in ("1", "[invalid]", "")
        for item, text in (("Q1", "3"), ("Q2", "I say 4"))
    ]
    (found,) = read_replies(write_lines(tmp_path / "unaware.jsonl", rows))
    assert found.texts == {"Q1": "3", "Q2": "I say 4"}
    rows.append(harness_row("Q2", [["1"]], filtered_resps=["1"]))
    with pytest.raises(UserError, match="item Q2 is answered twice"):
        read_replies(write_lines(tmp_path / "unaware.jsonl", rows))
    named = [harness_row("Q1", [["3"]], filter="none")] * 2
    with pytest.raises(UserError, match="item Q1 is answered twice"):
        read_replies(write_lines(tmp_path / "unaware.jsonl", named))


def test_replies_of_null_are_unreadable(tmp_path: Path, survey: Survey) -> None:
    """Case P2, second half: one reply of null ended the run."""
    rows = [
        harness_row("Q1", [[None]]),
        harness_row("Q2", [["2"]]),
        harness_row("Q7", [], filtered_resps=[None]),
    ]
    (found,) = read_replies(write_lines(tmp_path / "unaware.jsonl", rows))
    assert found.texts == {"Q1": "", "Q2": "2", "Q7": ""}
    assert read_answers(found, survey).counts()["unreadable"] == 2
    write(tmp_path / "unaware.json", [{"Q_id": "Q1", "answer": None}])
    assert read_replies(tmp_path / "unaware.json")[0].texts == {"Q1": ""}
    write(tmp_path / "unaware.json", inspect_log(sample("Q1", None)))
    assert read_replies(tmp_path / "unaware.json")[0].texts == {"Q1": ""}


@pytest.mark.parametrize("status", ["cancelled", "error", "started"])
def test_inspect_logs_that_did_not_end_well_say_so(tmp_path: Path, status: str) -> None:
    """Case P4. The fields are those that inspect 0.3.285 writes for samples that fail."""
    empty = {"model": "m", "choices": [], "completion": ""}
    failed = sample("Q2", "", output=empty, error={"message": "no connection", "traceback": ""})
    retried = sample("Q7", "4", error={"message": "too late"})
    log = inspect_log(sample("Q1", "3"), failed, retried) | {"status": status}
    if status == "error":
        log["error"] = {"message": "no connection\nat all"}
    write(tmp_path / "unaware.json", log)
    (found,) = read_replies(tmp_path / "unaware.json")
    assert found.texts == {"Q1": "3", "Q7": "4"}
    assert f"status {status}" in found.notes[0]
    assert ("'no connection'" in found.notes[0]) == (status == "error")
    assert "1 of 3 samples ended in an error" in found.notes[1]
    write(tmp_path / "unaware.json", log | {"samples": [failed]})
    with pytest.raises(UserError, match=rf"no replies; inspect ended with status {status}"):
        read_replies(tmp_path / "unaware.json")
    write(tmp_path / "unaware.json", inspect_log(sample("Q1", "3")))
    assert read_replies(tmp_path / "unaware.json")[0].notes == ()
    del log["samples"]
    write(tmp_path / "unaware.json", log)
    with pytest.raises(UserError, match="inspect log without samples"):
        read_replies(tmp_path / "unaware.json")


def test_harness_rows_may_name_countries_themselves(tmp_path: Path) -> None:
    rows = [
        harness_row("Q1", [["1"]], doc={"item_id": "Q1", "country": c, "mode": "aware"})
        for c in ("USA", "night owls")
    ]
    found = read_replies(write_lines(tmp_path / "samples.jsonl", rows))
    assert [r.country for r in found] == ["USA", "night owls"], "any name, not only a code"


def test_inspect_logs(tmp_path: Path) -> None:
    path = tmp_path / "2026_culture_unaware.json"
    newer = sample("Q2", "", output={"completion": "I say 2", "choices": []})
    parts = [{"type": "reasoning", "reasoning": "9"}, {"type": "text", "text": "4"}]
    listed = sample("Q48", "")
    listed["output"]["choices"][0]["message"]["content"] = parts
    nothing = sample("Q7", "", output={"choices": []})
    write(path, inspect_log(sample("Q1", "3"), newer, listed, nothing, sample("Q1", "1", epoch=2)))
    first, second = read_replies(path)
    assert (first.mode, first.run, second.run) == ("unaware", 0, 1)
    assert first.texts == {"Q1": "3", "Q2": "I say 2", "Q48": "4", "Q7": ""}
    assert second.texts == {"Q1": "1"}


def test_inspect_metadata_names_item_country_and_mode(tmp_path: Path) -> None:
    metadata = {"item_id": "Q1", "country": "USA", "mode": "aware"}
    write(tmp_path / "log.json", inspect_log(sample("1", "3", metadata=metadata)))
    (found,) = read_replies(tmp_path / "log.json")
    assert (found.country, found.texts) == ("USA", {"Q1": "3"})
    (other,) = read_replies(tmp_path / "log.json", country="CHN")
    assert other.country == "CHN"


def test_an_id_that_is_a_number_stands_for_its_text(tmp_path: Path) -> None:
    """Both tools number their samples; an item's own id, if it is there as text, comes first."""
    rows = [
        harness_row("Q1", [["1"]]) | {"doc": {"id": 3}},
        harness_row("Q1", [["2"]]) | {"doc": {"question_id": 5, "id": "Q2"}},
    ]
    (found,) = read_replies(write_lines(tmp_path / "unaware.jsonl", rows))
    assert found.texts == {"3": "1", "Q2": "2"}
    write(tmp_path / "unaware.json", inspect_log(sample("Q1", "3") | {"id": 7, "metadata": {}}))
    assert read_replies(tmp_path / "unaware.json")[0].texts == {"7": "3"}


BAD = {
    "give `mode` aware": replies("1"),
    "neither CultureSPA replies": {"results": {}},
    "no replies": [],
    "entry 1: expected an object": [1],
    "entry 1: no item id": [{"answer": "1", "id": True}],
    "entry 1: no 'answer'": [{"Q_id": "Q1"}],
    "entry 1: 'answer': must be text": [{"Q_id": "Q1", "answer": [1]}],
    "'option_lst' must be": [{"Q_id": "Q1", "answer": "1", "option_lst": [1]}],
    "sample 1: epoch 0": inspect_log(sample("Q1", "1", epoch=0)),
    "sample 1: 'output': expected": inspect_log(sample("Q1", "1", output=None)),
    "has neither 'completion' nor 'choices'": inspect_log(sample("Q1", "1", output={})),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_files_are_named(tmp_path: Path, message: str) -> None:
    path = tmp_path / "file.json"
    write(path, BAD[message])
    mode = None if message.startswith("give") else "unaware"
    with pytest.raises(UserError, match=message.replace("(", r"\(")) as error:
        read_replies(path, mode=mode)
    assert str(path) in str(error.value)


def test_more_bad_files(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    twice = tmp_path / "unaware.json"
    write(twice, [*replies("1"), *replies("2")])
    with pytest.raises(UserError, match="item Q1 is answered twice"):
        read_replies(twice)
    with pytest.raises(UserError, match="about; give `country`"):
        read_replies(write_replies(folder, "aware", "1"))
    scores = write_lines(tmp_path / "unaware.jsonl", [harness_row("Q1", [[[-3.0, False]]])])
    with pytest.raises(UserError, match="line 1: 'resps' or 'filtered_resps' must hold the texts"):
        read_replies(scores)
    broken = tmp_path / "broken_unaware.jsonl"
    broken.write_text(json.dumps(harness_row("Q1", [["1"]])) + '\n{"doc": ', "utf-8")
    with pytest.raises(UserError, match="line 2: not JSON"):
        read_replies(broken)
    hint = r"inspect log convert .*log\.eval.? --to json --output-dir "
    with pytest.raises(UserError, match=hint):  # as inspect 0.3.285 takes it
        read_replies(tmp_path / "a log.eval")
    with pytest.raises(UserError, match="cannot be read"):
        read_replies(tmp_path / "absent.json")


@FUZZ
@given(data=st.data())
def test_any_file_gives_replies_or_one_line(
    tmp_path: Path, survey: Survey, data: st.DataObject
) -> None:
    good = {
        "a.json": replies("1")[:2],
        "b.json": inspect_log(sample("Q1", "3"), sample("Q2", "2", metadata={"country": "USA"})),
        "c.jsonl": harness_row("Q1", [["3"]], filtered_resps=["3"]),
    }
    name = data.draw(st.sampled_from(list(good)))
    (tmp_path / name).write_bytes(data.draw(nearly(good[name])))

    def read() -> list[Any]:
        found = read_replies(tmp_path / name, mode="unaware")
        return [read_answers(r, survey, reader) for r in found for reader in READERS]

    assert_valid_or_one_line(read, list)


if DATA:

    def test_unreadable_replies_of_the_released_files() -> None:
        folder = Path(str(DATA))
        survey = culturespa.read(folder)
        lost = {}
        for path in reply_files(folder):
            (found,) = read_replies(path)
            for reader in READERS:
                answers = read_answers(found, survey, reader)
                counts = answers.counts()
                assert (counts["replies"], counts["out_of_range"]) == (259, 0)
                lost[found.country, reader] = counts["unreadable"]
        published = {c: n for (c, reader), n in lost.items() if reader == "first_integer"}
        assert published == {"USA": 3, "CHN": 1, "NGA": 1, None: 5}
        assert all(lost[c, "strict"] >= n for c, n in published.items())
