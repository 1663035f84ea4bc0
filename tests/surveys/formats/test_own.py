"""Surveys of the user's own: both formats, everything that is wrong with them, and where."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxalign.core.errors import UserError
from jaxalign.surveys.formats import read_survey, recognise
from jaxalign.surveys.formats.json_places import Places, broken_rules
from jaxalign.surveys.formats.own import check_csv, check_json, read_own_csv, schema
from jaxalign.surveys.survey import from_json, to_json, vsm

CSV = """\
id,text,stem,scale,topic,options
a,How often do you read?,At home:,ordinal,leisure,1=never|2=sometimes|3=often
b,"Which one, if any?",,nominal,,0=tea|7=coffee
c,How many hours?,,,leisure,10=many|5=some|0=none
"""
SHARES = """\
country,item,code,share
USA,a,1,0.5
USA,a,3,0.5
USA,b,7,1
CHN,c,0,0.25
CHN,c,5,0.75
"""
GOOD: dict[str, Any] = {
    "name": "pair",
    "version": "1",
    "source": "this test",
    "wording": "paraphrase",
    "items": [
        {"id": "a", "text": "Family?", "options": [{"code": c, "label": f"l{c}"} for c in (1, 2)]},
        {
            "id": "b",
            "text": "Which?",
            "scale": "nominal",
            "options": [{"code": c, "label": f"l{c}"} for c in (0, 9, 4)],
        },
    ],
    "distributions": {"USA": {"a": [0.5, 0.5], "b": [0.25, 0.5, 0.25]}},
}


def put(folder: Path, text: str, name: str = "own.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def test_csv(tmp_path: Path) -> None:
    path, shares = put(tmp_path, CSV), put(tmp_path, SHARES, "shares.csv")
    survey = read_own_csv(path, shares)
    a, b, c = survey.items
    assert (a.stem, a.topic, a.codes) == ("At home:", "leisure", (1, 2, 3))
    assert (b.text, b.scale, b.options) == ("Which one, if any?", "nominal", ("tea", "coffee"))
    assert (c.scale, c.codes) == ("ordinal", (10, 5, 0))
    assert survey.distributions == {
        "USA": {"a": (0.5, 0.0, 0.5), "b": (0.0, 1.0)},
        "CHN": {"c": (0.0, 0.75, 0.25)},
    }
    assert recognise(path) == "own-csv"
    assert read_survey(path, distributions=shares).sha256 == survey.sha256
    groups = put(tmp_path, SHARES.replace("country", "group").replace("USA", "Gen Z"), "groups.csv")
    assert read_survey(path, groups).distributions.keys() == {"Gen Z", "CHN"}
    semicolons = put(tmp_path, CSV.replace('"Which one, if any?"', "Which one?").replace(",", ";"))
    assert len(read_survey(semicolons).items) == 3
    left_by_a_spreadsheet = put(tmp_path, CSV + ",,,,,\n   \n")
    assert read_survey(left_by_a_spreadsheet).items == survey.items


def test_json(tmp_path: Path) -> None:
    path = put(tmp_path, json.dumps(GOOD), "own.json")
    assert recognise(path) == "own-json"
    assert read_survey(path).sha256 == from_json(GOOD).sha256
    module = put(tmp_path, json.dumps(to_json(vsm())), "module.json")
    assert read_survey(module).sha256 == vsm().sha256


def test_every_fault_of_a_csv_is_reported_with_row_and_column(tmp_path: Path) -> None:
    path = put(
        tmp_path,
        "id,text,scale,options\n"
        "a,,ordinal,1=x|2=y\n"
        "b,ok?,sometimes,1=x|2\n"
        "c,ok?,,1=x|1=y\n"
        "a,ok?,,1=x|2=y\n"
        "d,ok?,,1=x\n"
        ",ok?,,\n",
    )
    problems, survey = check_csv(path)
    assert survey is None
    assert [str(p).removeprefix(f"{path}, ") for p in problems] == [
        "row 2, column 'text': the cell is empty",
        "row 3, column 'scale': 'sometimes'; choose ordinal or nominal",
        "row 3, column 'options': '2' is not code=label with a whole number for a code",
        "row 4, column 'options': item 'c': codes [1, 1] repeat",
        "row 5, column 'id': id 'a' is in row 2 already",
        "row 6, column 'options': item 'd': 1 options and 1 codes; give at least two options and "
        "one code for each",
        "row 7, column 'id': the cell is empty",
        "row 7, column 'options': the cell is empty",
    ]
    with pytest.raises(UserError, match=r"row 2, column 'text': the cell is empty \(and 7 more\)"):
        read_survey(path)


def test_every_fault_of_the_shares(tmp_path: Path) -> None:
    rows = (",a,1,1", "USA,z,1,1", "USA,a,x,1", "USA,a,9,1", "USA,a,1,-1", "USA,a,2,1", "USA,a,2,0")
    shares = put(tmp_path, "\n".join(["country,item,code,share", *rows]), "shares.csv")
    problems, survey = check_csv(put(tmp_path, CSV), shares)
    assert survey is None
    assert [str(p).removeprefix(f"{shares}, ")[:40] for p in problems] == [
        "row 2, column 'country': the cell is emp",
        "row 3, column 'item': there is no item '",
        "row 4, column 'code': 'x' is not a whole",
        "row 5, column 'code': code 9 is not one ",
        "row 6, column 'share': '-1' is not a num",
        "row 8, column 'code': code 2 of item a i",
    ]
    for columns in ("item,code,share", "country,group,item,code,share"):
        rows = [columns, ",".join("1" for _ in columns.split(","))]
        with pytest.raises(UserError, match="row 1: give one of the columns country and group"):
            check_csv(put(tmp_path, CSV), put(tmp_path, "\n".join(rows), "shares.csv"))
    shares = put(tmp_path, SHARES.replace("USA,b,7,1", "USA,b,7,0.9"), "shares.csv")
    with pytest.raises(UserError, match=r"row 4, column 'share': .*USA and b sum to 0\.9"):
        read_own_csv(put(tmp_path, CSV), shares)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("id,text,options", "no rows below the header"),
        ("id,text\na,b\n", "the header lacks options"),
        ("id,text,options,scales\na,b,1=x|2=y,o\n", "row 1, column 'scales': not a known column"),
        ("id,text,options\na,b\n", "row 2: 2 cells where the header has 3"),
        ("id|text|options\na|b|c\n", "row 1: the header lacks .*delimit"),
    ],
)
def test_files_that_are_not_such_tables(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_own_csv(put(tmp_path, text))


# -- JSON: line and column ------------------------------------------------------------------------


def changed(change: Callable[[dict[str, Any]], Any]) -> str:
    fields = copy.deepcopy(GOOD)
    change(fields)
    return json.dumps(fields, indent=1)


def at(text: str, what: str, after: str = "") -> tuple[int, int]:
    """Line and column of the first `what` behind `after`."""
    place = text.index(what, text.index(after))
    return text.count("\n", 0, place) + 1, place - text.rfind("\n", 0, place)


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], tuple[str, str], str]] = {
    "missing field": (lambda f: f.pop("source"), ("{", ""), "the field 'source' is absent"),
    "unknown field": (lambda f: f.update(scales=7), ("7", "scales"), "'scales' is not a field"),
    "wording": (lambda f: f.update(wording="mine"), ('"mine"', ""), "'mine' is not one of"),
    "a number as text": (lambda f: f.update(version=12), ("12", ""), "12 is not of type string"),
    "no items": (lambda f: f.update(items=[]), ("[]", ""), "0 elements; at least 1 must be"),
    "item a word": (lambda f: f["items"].append("c"), ('"c"', ""), "'c' is not of type object"),
    "id repeats": (lambda f: f["items"][1].update(id="a"), ('"a"', "Family"), "id 'a' repeats"),
    "empty text": (lambda f: f["items"][1].update(text=" "), ('" "', ""), "the text is empty"),
    "scale": (lambda f: f["items"][1].update(scale="x"), ('"x"', ""), "'x' is not one of ordinal"),
    "code true": (
        lambda f: f["items"][0]["options"][1].update(code=True),
        ("true", ""),
        "not of type integer",
    ),
    "codes unordered": (
        lambda f: f["items"][1].pop("scale"),
        ("[", '"Which?"'),
        "neither rise nor fall",
    ),
    "group without a name": (
        lambda f: f["distributions"].update({" ": {}}),
        ("{}", ""),
        "the group has no name",
    ),
    "simulated a word": (lambda f: f.update(simulated=1), ("1", "simulated"), "of type boolean"),
    "share above 1": (
        lambda f: f["distributions"]["USA"]["a"].__setitem__(1, 1.5),
        ("1.5", ""),
        "above 1",
    ),
    "share no number": (
        lambda f: f["distributions"]["USA"]["a"].__setitem__(1, float("nan")),
        ("NaN", ""),
        "nan",
    ),
    "shares too few": (
        lambda f: f["distributions"]["USA"]["b"].pop(),
        ("[", '"b": ['),
        "2 shares for 3 options",
    ),
    "shares sum": (
        lambda f: f["distributions"]["USA"].update(a=[0.5, 0.4]),
        ("[", '"USA"'),
        "sum to 0.9",
    ),
    "no such item": (
        lambda f: f["distributions"]["USA"].update(z=[0.5, 0.5]),
        ("[", '"z"'),
        "no item 'z'",
    ),
}


@pytest.mark.parametrize(("change", "place", "message"), FAULTS.values(), ids=FAULTS)
def test_faults_of_a_json_have_line_and_column(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], place: tuple[str, str], message: str
) -> None:
    text = changed(change)
    problems, survey = check_json(put(tmp_path, text, "own.json"))
    assert survey is None
    line, column = at(text, *place)
    assert problems[0].place == f"line {line}, column {column}", problems
    assert message in problems[0].message


def test_syntax_errors_and_repeated_keys(tmp_path: Path) -> None:
    path = put(tmp_path, '{"name": "x",\n "items": [,]}', "own.json")
    assert check_json(path)[0][0].place == "line 2, column 12"
    text = json.dumps(GOOD, indent=1).replace('"version": "1"', '"version": "1",\n "name": "again"')
    problems, _ = check_json(put(tmp_path, text, "own.json"))
    assert [str(p).removeprefix(f"{path}, ") for p in problems] == [
        "line 4, column 2: the field 'name' is there twice; keep one"
    ]
    for text, message in (
        ("[" * 100_000, "not JSON"),
        ("{} {}", "line 1, column 4: not JSON"),
        ("[1]", "line 1, column 1: .* is not of type object"),
        (json.dumps(GOOD).replace('"Family?"', r'"\ud800"'), "own.json"),
    ):
        with pytest.raises(UserError, match=message):
            read_survey(put(tmp_path, text, "own.json"))


def test_places_of_everything() -> None:
    text = ' {"a": [1,\n  {"b": "x,]}"}], "c": {}\n}'
    places = Places(text)
    assert [places.of(p) for p in ((), ("a",), ("a", 0), ("a", 1, "b"), ("c",))] == [
        (1, 2),
        (1, 8),
        (1, 9),
        (2, 9),
        (2, 24),
    ]
    assert places.of(("a", 1, "absent")) == (2, 3)


def test_the_schema_file_uses_known_rules_only() -> None:
    assert list(broken_rules(GOOD, schema())) == []
    with pytest.raises(NotImplementedError, match="oneOf"):
        list(broken_rules(GOOD, {"oneOf": []}))


# -- fuzzing ------------------------------------------------------------------------------------

edits = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 5), st.binary(max_size=6)), min_size=1, max_size=4
)


@settings(
    deadline=None,
    max_examples=80,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(changes=edits, keep=st.floats(0, 1))
def test_a_damaged_survey_is_refused_or_read(
    tmp_path: Path, changes: list[tuple[float, int, bytes]], keep: float
) -> None:
    for name, text, read in (
        ("own.csv", CSV, read_survey),
        ("own.json", json.dumps(GOOD, indent=1), read_survey),
        ("shares.csv", SHARES, lambda path: read_own_csv(put(tmp_path, CSV, "good.csv"), path)),
    ):
        content = text.encode()
        for where, cut, new in changes:
            place = int(where * len(content))
            content = content[:place] + new + content[place + cut :]
        for spoilt in (content, text.encode()[: int(keep * len(text))]):
            path = tmp_path / name
            path.write_bytes(spoilt)
            said = ""
            try:
                assert read(path).items
            except UserError as error:
                said = str(error)
            assert "\n" not in said
