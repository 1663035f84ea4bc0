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
from jaxalign.surveys.replies import first_integer, position, read_answers, strict
from jaxalign.surveys.reply_files import Replies, read_replies
from jaxalign.surveys.responses import NO_REPLY, OUT_OF_RANGE, UNREADABLE
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
        ("-3", 3, None),
        ("−3", 3, None),
        ("2 or 3", 2, None),
        ("I am 18 and choose 2", 18, None),
        ("Call 1-800-273", 1, None),
        ("I cannot answer that.", None, None),
        ("", None, None),
        ("three", None, None),
        ("٣", None, None),
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
    assert strict(text, AGREE) in (None, first_integer(text, AGREE))


def test_unreadable_and_out_of_range_replies_are_counted_apart(survey: Survey) -> None:
    texts = {"Q1": "2", "Q2": "no", "Q48": "11", "Q94": "0", "Q241": "10"}
    found = read_answers(Replies(Path("f"), "unaware", None, 0, texts, {}), survey)
    assert found.counts() == {"replies": 5, "unreadable": 1, "out_of_range": 1}
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
    "entry 1: 'answer': must be text": [{"Q_id": "Q1", "answer": None}],
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
    with pytest.raises(UserError, match="inspect log convert"):
        read_replies(tmp_path / "log.eval")
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
