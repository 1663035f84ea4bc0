"""What a reader must know before the numbers of a result."""

from __future__ import annotations

import numpy as np
import pytest

from jaxalign.commands.reports.warnings import warning_notes
from jaxalign.stats import result_warnings as warn
from jaxalign.stats.presentations import constant_answers


def test_few_replies_that_name_an_option():
    found = warn.no_option({"plain question": 0.27, "persona line": 0.5, "tuned": None})
    assert found.kind == "no_option"
    assert "In 73 % (plain question) of the probability the model does not answer" in found.text
    assert warn.no_option({"a": 0.5, "b": float("nan")}) is None
    many = warn.no_option({f"m{i}": i / 100 for i in range(6)})
    assert "99 % (m1)" in many.text
    assert "in 2 more" in many.text
    assert "m5" not in many.text


def test_one_option_is_counted_over_items():
    marks = [("1", "2", "3", "4", "5")] * 24
    everywhere, nearly, varied = (np.full(24, 2) for _ in range(3))
    nearly[0] = 4
    varied[:3] = 0  # 21 of 24 is below nine in ten
    found = warn.one_option(
        {
            "plain question": {"A": constant_answers(everywhere, marks)},
            "persona line, CHN": {"A": constant_answers(everywhere, marks).record()},
            "tuned": {"A": constant_answers(nearly, marks), "B": None},
            "ICL": {"A": constant_answers(varied, marks)},
        }
    )
    assert "option 3 to 24 of 24 items (plain question and persona line, CHN)" in found.text
    assert "option 3 to 23 of 24 items (tuned, presentation A)" in found.text
    assert "ICL" not in found.text
    assert warn.one_option({"ICL": {"A": constant_answers(varied, marks)}}) is None


def test_identical_answers_are_called_that():
    a = np.array([[0.0, 1.0, np.nan]])
    other = a + 1
    found = warn.identical({"plain": a, "persona": np.stack([a[0]] * 2), "tuned": other})
    assert "plain and persona" in found.text
    assert "tuned" not in found.text
    assert warn.identical({"plain": a, "tuned": other, "more items": np.zeros((1, 4))}) is None
    nobody = np.full((1, 3), np.nan)
    assert warn.identical({"x": nobody, "y": nobody}) is None


@pytest.mark.parametrize(("count", "words"), [(1, "no permutation test"), (3, "0.167"), (4, "")])
def test_countries_that_the_permutation_test_needs(count, words):
    found = warn.few_countries(count)
    assert (found is None) == (words == "")
    assert words in (found.text if found else "")


def test_few_items_pairs_and_unread_replies():
    assert warn.few_items(20) is None
    assert "has 1 item." in warn.few_items(1, "held-out survey").text
    found = warn.few_pairs({"joint": 400, "specific-CHN": 7, "specific-USA": 0})
    assert "specific-USA (0) and specific-CHN (7)" in found.text
    assert warn.few_pairs({"joint": 30}) is None
    assert "of 1,000" not in str(warn.unread("writing questions", 500, 1000))
    assert warn.unread("nothing", 0, 0) is None
    text = warn.unread("writing questions", 120, 1000).text
    assert text == "Of 1,000 replies in writing questions, 880 could not be read (88 %)."


def test_records_leave_out_what_there_is_nothing_to_warn_of():
    assert warn.warning_records([None, warn.ResultWarning("few", "x")]) == [
        {"kind": "few", "text": "x"}
    ]


def test_a_quick_look_is_the_first_thing_to_know():
    assert warn.quick_look(None, "5 items were asked") is None
    look = warn.quick_look(5, "5 items were asked")
    assert look == warn.ResultWarning(
        "limited", "This run was cut short by limit 5: 5 items were asked. It measures nothing."
    )
    [note] = warning_notes({"warnings": [look.record()]})
    assert (note.lead, note.kind) == ("A quick look.", "warning")
