"""Groups below the country from World Values Survey files, beside pandas on random tables."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyreadstat
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxalign.core.errors import UserError
from jaxalign.stats import score_replies
from jaxalign.surveys import check_survey
from jaxalign.surveys.formats import read_answered
from jaxalign.surveys.formats.wvs import read_wvs
from jaxalign.surveys.groups import VARIABLES
from jaxalign.surveys.options import SurveyOptions, check_options
from jaxalign.surveys.survey import Respondents, Survey
from jaxalign.surveys.tables import make_tables
from tests.support.own_files import wvs_people

FUZZ = settings(
    deadline=None,
    max_examples=15,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SEX, BANDS = {1: "male", 2: "female"}, ((0, 29, "16-29"), (30, 49, "30-49"), (50, 130, "50+"))


def read(path: Path, **options: Any) -> Survey:
    return read_wvs(path, **({"min_respondents": 1, "use_cache": False} | options))


def age_band(age: float) -> str | None:
    return next((name for low, high, name in BANDS if low <= age <= high), None)


def expected(table: pd.DataFrame) -> dict[str, tuple[list[float], Respondents]]:
    """Return the shares of Q1 and the respondents of each group, counted by pandas."""
    table = table.assign(sex=table["Q260"].map(SEX), age=table["Q262"].map(age_band))
    found = {}
    for (country, sex, age), rows in table.groupby(["B_COUNTRY_ALPHA", "sex", "age"]):
        weights = rows["W_WEIGHT"]
        answered = rows[rows["Q1"] > 0]
        total = answered["W_WEIGHT"].sum()
        by_code = answered.groupby("Q1")["W_WEIGHT"].sum()
        shares = [by_code.get(code, 0.0) / total for code in range(1, 5)] if total else []
        effective = weights.sum() ** 2 / (weights**2).sum() if weights.sum() else 0.0
        found[f"{country}:{sex}:{age}"] = shares, Respondents(len(rows), effective)
    return found


@pytest.mark.parametrize("suffix", [".csv", ".sav", ".dta"])
@FUZZ
@given(seed=st.integers(0, 2**32 - 1), people=st.integers(5, 60))
def test_groups_are_those_of_pandas(tmp_path: Path, suffix: str, seed: int, people: int) -> None:
    random = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "B_COUNTRY_ALPHA": random.choice(["USA", "CHN"], people),
            "W_WEIGHT": random.integers(0, 300, people) / 100,
            "Q1": random.choice([-2, -1, 1, 2, 3, 4], people),
            "Q260": random.choice([-2, 1, 2], people),
            "Q262": random.choice([-2, 15, 16, 29, 30, 49, 50, 99], people),
        }
    )
    table.loc[0, ["Q1", "Q260", "Q262", "W_WEIGHT"]] = [1, 1, 30, 1.5]
    path = tmp_path / f"wvs{suffix}"
    if suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        getattr(pyreadstat, f"write_{suffix[1:]}")(table, str(path))
    survey = read(path, by=["sex", "age"])
    groups = expected(table)
    assert survey.respondents.keys() == groups.keys()
    for name, (shares, people_of) in groups.items():
        assert survey.respondents[name].number == people_of.number
        assert survey.respondents[name].effective == pytest.approx(people_of.effective)
        if shares:
            np.testing.assert_allclose(survey.distributions[name]["Q1"], shares, atol=1e-12)
        else:
            assert name in survey.refused
    inside = sum(people_of.number for _, people_of in groups.values())
    said = f"{len(table) - inside} of {len(table)} respondents do not say their sex, age"
    assert (said in " ".join(survey.notes)) == (inside < len(table))


def test_the_surveys_own_recoded_columns_come_first(tmp_path: Path) -> None:
    path = tmp_path / "wvs.csv"
    header = "b_country_alpha,w_weight,q1,q262,x003r2,q275r,h_urbrural,q273,q288r"
    path.write_text(f"{header}\nUSA,1,1,20,3,2,1,6,3\nUSA,1,2,20,1,-1,2,1,1\n")
    assert list(read(path, by=["age"]).distributions) == ["USA:16-29", "USA:50+"]
    assert list(read(path, by=["X003R"]).distributions) == ["USA:16-24"], "from the age itself"
    assert list(read(path, by=["education"]).distributions) == ["USA:middle-education"]
    by = ["settlement", "marital", "income"]
    groups = list(read(path, by=by).distributions)
    assert groups == ["USA:rural:married:low-income", "USA:urban:single:high-income"]
    with pytest.raises(UserError, match="`by` sex: the file has no column Q260"):
        read(path, by=["sex"])


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda v: v.name)
def test_what_is_derived_has_the_recoded_columns_values(variable: Any) -> None:
    if variable.derived:
        keys = [value.key for value in variable.values]
        assert list(variable.derived[1]) == keys
        spans = list(variable.derived[1].values())
        assert all(b[0] == a[1] + 1 for a, b in itertools.pairwise(spans))


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("US-CA California", "California"),
        ("840006 US-CA California", "California"),
        ("US: California", "California"),
        ("Île-de-France", "Île-de-France"),
        ("DE-BY: Bayern: Süd", "Bayern - Süd"),
        ("North West", "North West"),
    ],
)
def test_regions_are_called_as_the_file_calls_them(tmp_path: Path, label: str, name: str) -> None:
    table = pd.DataFrame(
        {"B_COUNTRY_ALPHA": ["USA"] * 2, "W_WEIGHT": [1.0] * 2, "Q1": [1.0, 2.0]}
        | {"N_REGION_ISO": [840006.0, -4.0]}
    )
    for suffix, write in ((".sav", pyreadstat.write_sav), (".dta", pyreadstat.write_dta)):
        path = tmp_path / f"wvs{suffix}"
        write(table, str(path), variable_value_labels={"N_REGION_ISO": {840006: label}})
        assert list(read(path, by=["region"]).distributions) == [f"USA:region={name}"]
    table.to_csv(tmp_path / "wvs.csv", index=False)
    assert list(read(tmp_path / "wvs.csv", by=["region"]).distributions) == ["USA:region=840006"]
    table.assign(N_REGION_ISO=[label, ""]).to_csv(tmp_path / "wvs.csv", index=False)
    assert list(read(tmp_path / "wvs.csv", by=["region"]).distributions) == [f"USA:region={name}"]


def test_small_groups_are_refused_by_name_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache"))
    path = wvs_people(tmp_path, {"USA:male": 60, "USA:female": 49, "CHN:female": 50})
    survey = read_answered(path, "survey", worded=False, options=SurveyOptions(by=("sex",)))
    assert list(survey.distributions) == ["CHN:female", "USA:male"]
    assert any("refused 1 group" in note and "USA:female (49)" in note for note in survey.notes)
    said = str(check_survey(path, options=SurveyOptions(by=("sex",))))
    assert "2 groups (CHN:female, USA:male)" in said
    message = "'USA:female' has 49 respondents and no item with the 50 answers .*min_respondents"
    with pytest.raises(UserError, match=message):
        make_tables(survey, ["USA:male", "USA:female"])
    replies = tmp_path / "r.jsonl"
    replies.write_text(
        '{"doc": {"Q_id": "Q1", "country": "USA:female", "mode": "aware"}, "resps": [["2"]]}\n'
    )
    with pytest.raises(UserError, match=message):
        score_replies(path, [replies], by=["sex"])
    analysis = score_replies(path, [replies], by=["sex"], min_respondents=40, resamples=10)
    assert analysis["scores"]["USA:female"]["items"] == 1
    of_women = analysis["instrument"]["respondents"]["USA:female"]
    assert of_women == {"number": 49, "effective": pytest.approx(49)}
    assert "3 groups by sex, of 49 to 60 respondents (effective number 49 to 60)" in " ".join(
        analysis["notes"]
    )
    # The counts are in the cache now, and those of whole countries are other ones.
    assert list(read_answered(path, "survey", worded=False).distributions) == ["CHN", "USA"]


def test_options_that_do_not_go_with_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("id,text,options\nQ1,Tea?,1=a|2=b\n")
    for options, message in (
        ({"by": ("sex",)}, r"`by` sex: goes with a file of respondents.*own-csv"),
        ({"min_respondents": 3}, "`min_respondents` 3: goes with a file of respondents"),
    ):
        with pytest.raises(UserError, match=message):
            check_survey(path, options=SurveyOptions(**options))
    for options, message in (
        ({"by": ("sex",)}, "`by` sex: goes with a `survey` of your own"),
        ({"wording": path}, "`wording` .*: goes with a `survey` of your own"),
        ({"min_respondents": 0}, "`min_respondents` 0: give at least 1"),
        ({"by": ("party",)}, "`by` 'party': no variable"),
    ):
        with pytest.raises(UserError, match=message):
            check_options(SurveyOptions(**options), {"survey": False, "source": False})
