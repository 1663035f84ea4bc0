"""The CultureSPA folder reader on made-up folders, broken ones and, if given, the real one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxalign.core.errors import UserError
from jaxalign.surveys.formats import culturespa as cs
from jaxalign.surveys.formats import recognise
from jaxalign.surveys.survey import Survey, from_json, to_json
from jaxalign.surveys.tables import make_tables
from tests.support.culture_folder import NOT_SCORED, OPTIONS, questions, shares, write_folder
from tests.support.json_strategies import assert_valid_or_one_line, nearly

DATA = os.environ.get("JAXALIGN_CULTURESPA_DATA")
FUZZ = settings(
    deadline=None,
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path)


def test_items_have_their_topics_scales_and_codes(folder: Path) -> None:
    items = {item.id: item for item in cs.read(folder).items}
    assert list(items) == list(OPTIONS)
    assert not set(items) & set(NOT_SCORED)
    assert items["Q111"].scale == "nominal"
    assert items["Q94"].codes == (0, 1, 2)
    assert items["Q241"].codes == tuple(range(11))
    assert items["Q48"].codes == tuple(range(1, 11))
    topics = [items[i].topic for i in ("Q1", "Q124", "Q234A")]
    assert topics == ["social values", "migration", "political participation"]
    assert cs.topic("Q260") == cs.topic("X1") == ""


def test_topics_cover_the_259_scored_items_once() -> None:
    numbers = [n for _, first, last in cs.TOPICS for n in range(first, last + 1)]
    assert numbers == list(range(1, 260))


def test_shares_are_renormalised_and_unasked_items_absent(folder: Path) -> None:
    survey = cs.read(folder)
    assert tuple(survey.distributions) == cs.COUNTRIES
    assert "Q2" not in survey.distributions["CHN"]
    found = survey.distributions["USA"]["Q241"]
    given = list(shares()["USA"]["Q241"].values())
    np.testing.assert_allclose(found, np.array(given) / 0.9, rtol=1e-9)


def test_the_survey_survives_a_round_trip_through_json(folder: Path) -> None:
    survey = cs.read(folder)
    again = from_json(to_json(survey))
    assert again == survey
    assert again.sha256 == survey.sha256


def test_of_tied_options_the_one_listed_first_is_the_majority(tmp_path: Path) -> None:
    tables = shares()
    tables["USA"]["Q1"] = {"3": 0.4, "1": 0.4, "2": 0.1}
    survey = cs.read(write_folder(tmp_path, tables))
    assert survey.majorities == {"USA": {"Q1": 2}}, "the others' are the first of the scale"
    assert survey.majority("USA")["Q1"] == 2
    gold_CxQ = make_tables(survey).gold_CxQ
    assert gold_CxQ[0, 0] == 2
    assert np.isnan(gold_CxQ[cs.COUNTRIES.index("CHN"), 1])


def test_countries_may_be_chosen(folder: Path) -> None:
    assert tuple(cs.read(folder, ("MEX", "USA")).distributions) == ("MEX", "USA")
    with pytest.raises(
        UserError, match=r"proportions_group_by_country.json: no country XXX; it has"
    ):
        cs.read(folder, ("XXX",))


BAD_SHARES = {
    "unknown code '9'; it has 1 to 4": {"9": 0.5},
    "sum to 1.2": {"1": 0.6, "2": 0.6},
    "sum to 0, not": {"1": 0.0},
    "code 2: expected a number, not 'x'": {"2": "x"},
    "code 2: expected a number, not nan": {"2": float("nan")},
    "expected an object": [0.5, 0.5],
}


@pytest.mark.parametrize("message", BAD_SHARES)
def test_bad_shares_are_named_by_file_country_item_and_code(tmp_path: Path, message: str) -> None:
    tables = shares()
    tables["GBR"]["Q1"] = BAD_SHARES[message]
    folder = write_folder(tmp_path, tables)
    with pytest.raises(UserError, match="country GBR, item Q1") as error:
        cs.read(folder)
    assert message in str(error.value)
    assert str(folder / cs.SHARES) in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_questions_are_named_by_file_and_entry(tmp_path: Path) -> None:
    def refused(rows: object) -> str:
        with pytest.raises(UserError) as error:
            cs.read(write_folder(tmp_path, None, rows))  # type: ignore[arg-type]
        return str(error.value)

    rows = questions()
    assert "question Q1 appears twice" in refused([*rows, rows[0]])
    assert "item Q1 is not in wvs_questions.json" in refused(rows[1:])
    assert "entry 1 (Q1): expected a text 'question'" in refused([{"Q_id": "Q1"}, *rows[1:]])
    assert "entry 2: expected an object with a Q_id" in refused([rows[0], 7])
    assert "expected a list of questions" in refused([])
    assert "empty text" in refused([rows[0] | {"question": " "}, *rows[1:]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b'{"USA": ', "line 1"),
        (b"\xff\xfe{}", "not JSON"),
        (b'{"a": 1, "a": 2}', "appears twice"),
        (b"[" * 100_000, "nested"),
        (b"\x80", "UTF-8"),
        (b'{"USA": ' + b"9" * 5000 + b"}", "limit"),
    ],
)
def test_broken_files_are_named(folder: Path, content: bytes, message: str) -> None:
    (folder / cs.SHARES).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        cs.read(folder)
    assert cs.SHARES in str(error.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a folder without the files of a known format"):
        recognise(tmp_path)
    with pytest.raises(UserError, match=cs.SHARES):
        cs.read(tmp_path)
    assert recognise(write_folder(tmp_path / "folder")) == "culturespa"


@FUZZ
@given(data=st.data())
def test_any_file_gives_a_survey_or_one_line(tmp_path: Path, data: st.DataObject) -> None:
    countries = ("USA", "CHN")
    small = {c: {i: s for i, s in shares()[c].items() if i in ("Q1", "Q94")} for c in countries}
    folder = write_folder(tmp_path, small, questions()[:5])
    files = {cs.SHARES: small, cs.QUESTIONS: questions()[:5]}
    name = data.draw(st.sampled_from(list(files)))
    (folder / name).write_bytes(data.draw(nearly(files[name])))

    def read() -> Survey:
        return cs.read(folder, countries)

    assert_valid_or_one_line(read, Survey)


if DATA:

    def test_the_released_folder() -> None:
        folder = Path(str(DATA))
        survey = cs.read(folder)
        tables = make_tables(survey)
        assert tables.truth_CxQxO.shape == (18, 259, 11)
        assert tables.ordinal_Q.sum() == 247
        assert tables.long_Q.sum() == 51
        assert len({item.topic for item in survey.items}) == 13
        for item in survey.items:  # every code that anyone gave is an option's, and the other way
            given = {c for t in survey.distributions.values() if item.id in t for c in t[item.id]}
            assert given
        assert json.loads((folder / cs.SHARES).read_text("utf-8")).keys() - {*cs.COUNTRIES} == {
            "MEX"
        }
