"""Surveys: the file format survives a round trip, and a bad file is refused in one clear line."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.core.errors import UserError
from jaxalign.pocket import society
from jaxalign.surveys.formats import read_survey
from jaxalign.surveys.survey import Item, Survey, from_json, load, to_json, vsm
from jaxalign.surveys.tables import make_tables

GOOD: dict[str, Any] = {
    "name": "pair",
    "version": "1",
    "source": "written for this test",
    "wording": "paraphrase",
    "items": [
        {
            "id": "a",
            "stem": "In your life,",
            "text": "how important is family?",
            "scale": "ordinal",
            "topic": "values",
            "options": [{"code": c, "label": f"level {c}"} for c in (1, 2, 3)],
        },
        {
            "id": "b",
            "text": "Which matters most?",
            "scale": "nominal",
            "options": [{"code": 0, "label": "order"}, {"code": 7, "label": "freedom"}],
        },
    ],
    "distributions": {
        "USA": {"a": [0.5, 0.3, 0.2], "b": [0.4, 0.6]},
        "CHN": {"b": [0.9, 0.1]},
    },
}

options = st.lists(
    st.tuples(st.integers(-20, 20), st.text(min_size=1)),
    min_size=2,
    max_size=6,
    unique_by=lambda pair: pair[0],
)


@st.composite
def surveys(draw: st.DrawFn) -> Survey:
    ids = draw(st.lists(st.text(min_size=1), min_size=1, max_size=4, unique=True))
    items = []
    for i in ids:
        codes, labels = zip(*draw(options), strict=True)
        text = "? " + draw(st.text())
        scale = draw(st.sampled_from(["ordinal", "nominal"]))
        codes = tuple(sorted(codes)) if scale == "ordinal" else codes
        items.append(Item(i, text, labels, codes, scale, draw(st.text()), draw(st.text())))
    shares = {item.id: (1.0,) + (0.0,) * (len(item.codes) - 1) for item in items}
    return Survey(
        draw(st.text(min_size=1)), "1", draw(st.text()), "paraphrase", tuple(items), {"USA": shares}
    )


@settings(deadline=None, max_examples=80, derandomize=True)
@given(survey=surveys())
def test_round_trip_through_json(survey: Survey) -> None:
    again = from_json(json.loads(json.dumps(to_json(survey))))
    assert again == survey
    assert again.distributions == survey.distributions
    assert again.sha256 == survey.sha256


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pair.json"
    path.write_text(json.dumps(GOOD), encoding="utf-8")
    read = load(path)
    assert read == from_json(GOOD)
    assert [item.codes for item in read.items] == [(1, 2, 3), (0, 7)]
    assert read.items[1].stem == ""


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    """Windows editors write one; `load` reads whatever `check_survey` accepts."""
    path = tmp_path / "pair.json"
    path.write_text(json.dumps(GOOD), encoding="utf-8-sig")
    assert load(path) == read_survey(path) == from_json(GOOD)


def test_the_hash_covers_wording_codes_and_distributions() -> None:
    base = from_json(GOOD)
    assert base.sha256 == from_json(copy.deepcopy(GOOD)).sha256
    changed = [copy.deepcopy(GOOD) for _ in range(4)]
    changed[0]["items"][0]["text"] += " "
    changed[1]["items"][1]["options"][0]["code"] = 1
    changed[2]["distributions"]["CHN"]["b"] = [0.8, 0.2]
    changed[3]["items"].reverse()
    assert len({base.sha256, *(from_json(c).sha256 for c in changed)}) == 5


def test_truth_majority_and_subset() -> None:
    pair = from_json(GOOD)
    np.testing.assert_allclose(pair.truth_QxO("USA"), [[0.5, 0.3, 0.2], [0.4, 0.6, 0]])
    china = pair.truth_QxO("CHN")
    assert china.dtype == np.float32
    assert np.isnan(china[0]).all(), "not asked is not zero"
    np.testing.assert_allclose(china[1], [0.9, 0.1, 0])
    assert pair.majority("USA") == {"a": 0, "b": 1}
    assert pair.majority("KEN") == {}
    only = pair.subset({"b", "elsewhere"})
    assert [item.id for item in only.items] == ["b"]
    assert only.distributions["USA"] == {"b": (0.4, 0.6)}
    assert only.sha256 != pair.sha256


def test_a_source_may_say_which_of_tied_options_is_the_majority() -> None:
    tied = copy.deepcopy(GOOD)
    tied["distributions"]["USA"]["b"] = [0.5, 0.5]
    plain = from_json(tied)
    assert "majorities" not in to_json(plain), "the hash of other surveys stays the same"
    second = from_json(tied | {"majorities": {"USA": {"b": 1}}})
    assert plain.majority("USA") == {"a": 0, "b": 0}
    assert second.majority("USA") == {"a": 0, "b": 1}
    np.testing.assert_array_equal(make_tables(second).gold_CxQ, [[0, 1], [np.nan, 0]])
    assert second.sha256 != plain.sha256
    assert from_json(to_json(second)).majorities == second.majorities
    assert second.subset({"a"}).majorities == {"USA": {}}


def test_simulated_answers_are_marked_and_change_no_hash() -> None:
    plain = from_json(GOOD)
    simulated = from_json(GOOD | {"simulated": True})
    assert (plain.simulated, simulated.simulated) == (False, True)
    assert simulated.sha256 == plain.sha256
    assert "simulated" not in to_json(plain)
    assert from_json(to_json(simulated)).simulated
    assert simulated.subset({"a"}).simulated


def test_any_named_group_may_have_answered() -> None:
    groups = copy.deepcopy(GOOD)
    groups["distributions"] = {"night owls": {"b": [0.5, 0.5]}, "Gen Z": {"b": [0.1, 0.9]}}
    survey = from_json(groups)
    assert make_tables(survey).countries == ("night owls", "Gen Z")
    assert survey.majority("Gen Z") == {"b": 1}


# -- bad input ------------------------------------------------------------------------------------


def edit(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(fields: dict[str, Any]) -> None:
        *parents, last = path
        for key in parents:
            fields = fields[key]
        fields[last] = to

    return apply


def drop(*path: str | int) -> Callable[[dict[str, Any]], None]:
    def apply(fields: dict[str, Any]) -> None:
        *parents, last = path
        for key in parents:
            fields = fields[key]
        del fields[last]

    return apply


BAD = {
    "no items": (edit("items", to=[]), "no items"),
    "items missing": (drop("items"), "items"),
    "text missing": (drop("items", 0, "text"), "text"),
    "code missing": (drop("items", 0, "options", 1, "code"), "code"),
    "items a number": (edit("items", to=3), "malformed"),
    "an item a word": (edit("items", 0, to="a"), "malformed"),
    "options a word": (edit("items", 0, "options", to="yes"), "malformed"),
    "text empty": (edit("items", 0, "text", to="  "), "'a': empty text"),
    "text a number": (edit("items", 0, "text", to=5), "'a': text must be text, not 5"),
    "one option": (edit("items", 1, "options", to=[{"code": 1, "label": "x"}]), "at least two"),
    "codes repeat": (edit("items", 0, "options", 1, "code", to=1), "codes [1, 1, 3] repeat"),
    "code a word": (edit("items", 0, "options", 1, "code", to="many"), "'many'"),
    "half a character": (edit("items", 0, "options", 1, "label", to="\ud800"), "surrogates"),
    "ids repeat": (edit("items", 1, "id", to="a"), "ids repeat: ['a']"),
    "scale": (edit("items", 0, "scale", to="interval"), "'interval'"),
    "share of no item": (edit("distributions", "USA", "z", to=[1, 0]), "'z': no such item"),
    "shares too few": (edit("distributions", "USA", "a", to=[1, 0]), "2 shares for 3 options"),
    "shares below zero": (edit("distributions", "USA", "b", to=[1.5, -0.5]), "not a distribution"),
    "shares of 60 %": (edit("distributions", "USA", "b", to=[0.3, 0.3]), "not a distribution"),
    "shares NaN": (edit("distributions", "USA", "b", to=[float("nan"), 1]), "not a distribution"),
    "shares a word": (edit("distributions", "USA", "b", to="half"), "malformed"),
    "distributions a list": (edit("distributions", to=[1]), "malformed"),
    "majority less chosen": (edit("majorities", to={"USA": {"a": 1}}), "less often than 0"),
    "majority of no option": (
        edit("majorities", to={"USA": {"a": 3}}),
        "position of one of 3",
    ),
    "majority not asked": (
        edit("majorities", to={"CHN": {"a": 0}}),
        "position of one of 0",
    ),
    "majority a word": (edit("majorities", to={"USA": {"a": "x"}}), "'x' is not the position"),
    "majorities a list": (edit("majorities", to=[1]), "malformed"),
    "country a list": (edit("distributions", "USA", to=[1]), "malformed"),
    "group without a name": (edit("distributions", " ", to={}), "has no name"),
    "simulated a word": (edit("simulated", to="yes"), "must be true or false, not 'yes'"),
    "wording": (edit("wording", to="translated"), "'translated'"),
    "code not whole": (edit("items", 0, "options", 1, "code", to=2.5), "2.5"),
    "code infinite": (edit("items", 0, "options", 1, "code", to=float("inf")), "inf"),
    "share beyond a float": (edit("distributions", "USA", "b", to=[10**400, 0]), "too large"),
    "label a number": (edit("items", 0, "options", 1, "label", to=5), "'a'"),
    "name a list": (edit("name", to=["pair"]), "name"),
    "codes out of order": (edit("items", 0, "options", 2, "code", to=0), "[1, 2, 0]"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_in_one_line_that_names_it(case: str, tmp_path: Path) -> None:
    change, part = BAD[case]
    fields = copy.deepcopy(GOOD)
    change(fields)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(fields), encoding="utf-8")
    check_refusal(path, part)


def check_refusal(path: Path, part: str) -> None:
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[]", "JSON object"),
        (b"null", "JSON object"),
        (b"[" * 100_000, "not JSON"),
        (b'{"items": ' + b"9" * 5_000 + b"}", "not JSON"),
    ],
    ids=["empty", "cut", "not text", "list", "null", "nested too deep", "number too long"],
)
def test_a_file_that_is_not_an_object_is_refused(content: bytes, part: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    check_refusal(path, part)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    check_refusal(tmp_path / "absent.json", "cannot be read")
    check_refusal(tmp_path, "cannot be read")


def test_a_line_break_in_an_id_stays_inside_the_one_line(tmp_path: Path) -> None:
    fields = copy.deepcopy(GOOD)
    fields["items"][0]["id"] = fields["items"][1]["id"] = "a\nb"
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(fields), encoding="utf-8")
    check_refusal(path, "ids repeat")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
places = st.sampled_from(
    [
        (),
        ("name",),
        ("version",),
        ("source",),
        ("wording",),
        ("items",),
        ("items", 0),
        ("items", 0, "id"),
        ("items", 0, "text"),
        ("items", 0, "stem"),
        ("items", 0, "scale"),
        ("items", 0, "topic"),
        ("items", 0, "options"),
        ("items", 0, "options", 1),
        ("items", 0, "options", 1, "code"),
        ("items", 0, "options", 1, "label"),
        ("distributions",),
        ("distributions", "USA"),
        ("distributions", "USA", "a"),
        ("distributions", "USA", "a", 0),
    ]
)


@settings(deadline=None, max_examples=400, derandomize=True)
@given(where=places, junk=anything)
def test_junk_anywhere_gives_a_survey_or_a_user_error(where: tuple, junk: Any) -> None:
    fields = copy.deepcopy(GOOD)
    if where:
        edit(*where, to=junk)(fields)
    else:
        fields = junk
    made = attempt(fields)
    if isinstance(made, UserError):
        assert str(made).startswith("fuzz.json")
        assert len(str(made).splitlines()) == 1
    else:
        assert from_json(to_json(made)).sha256 == made.sha256
        json.dumps(to_json(made), allow_nan=False)


def attempt(fields: Any) -> Survey | UserError:
    try:
        return from_json(fields, "fuzz.json")
    except UserError as error:
        return error


def test_an_item_built_in_code_is_checked_too() -> None:
    with pytest.raises(UserError, match="3 options and 2 codes"):
        Item("a", "?", ("x", "y", "z"), (1, 2))
    item = Item("a", "?", ("x", "y"), (1, 2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        item.id = "b"  # type: ignore[misc]


def test_the_pocket_society_is_simulated_and_the_questionnaire_is_not() -> None:
    assert society.held_out_survey().simulated
    assert society.society_values_module().simulated
    assert not vsm().simulated
    assert society.society_values_module().items == vsm().items


def test_a_message_on_an_absent_group_lists_its_country() -> None:
    item = Item("q1", "Tea?", ("yes", "no"), (1, 2))
    groups = [f"{c}:{sex}" for c in ("USA", "CHN") for sex in ("female", "male")]
    shares = {group: {"q1": (0.5, 0.5)} for group in groups}
    survey = Survey("s", "", "", "official", (item,), shares)
    assert survey.why_absent("USA").endswith("it has USA:female USA:male")
    assert survey.why_absent("BRA").endswith(f"it has {' '.join(groups)}")
    many = {f"group {n}": {"q1": (0.5, 0.5)} for n in range(90)}
    survey = Survey("s", "", "", "official", (item,), many)
    assert survey.why_absent("USA").endswith("group 79 and 10 more")
