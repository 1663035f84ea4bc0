"""Groups below the country: what their names mean, and what prompts say of them."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from jaxalign.core.errors import UserError
from jaxalign.methods.conditions import Persona
from jaxalign.methods.culturespa.styles import StylePrompts, load_texts
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.prompts import load_prompts
from jaxalign.surveys.groups import REGION, VARIABLES, Group, read_group, variables_of
from jaxalign.surveys.hofstede import name_in_edition
from jaxalign.surveys.names import group_name, name_of_group
from jaxalign.surveys.survey import Item, Survey


def test_a_persona_says_whom_it_means_in_plain_words() -> None:
    said = Persona("USA:female:30-49").lead_in(load_prompts())[0]["content"]
    assert said.startswith("You are a woman aged 30 to 49 from the United States, filling in")
    said = load_prompts(language="zh").system("USA:female:30-49")["content"]
    assert said.startswith("你是一位来自美国、30至49岁的女性，正在")
    trained = load_prompts(model_folder=MODEL_FOLDER).system("NLD:male")["content"]
    assert trained.startswith("You are a man from the Netherlands, filling in")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("JPN:65+", "a person aged 65 or over from Japan"),
        ("GBR:married:male", "a married man from the United Kingdom"),
        ("CHE:cohabiting:female", "a woman living with a partner from Switzerland"),
        (
            "DEU:female:higher-education:rural:region=Bayern",
            "a woman with higher education from Bayern in Germany living in the countryside",
        ),
        ("NGA:low-income:16-24", "a person aged 16 to 24 with a low income from Nigeria"),
    ],
)
def test_words(name: str, words: str) -> None:
    assert group_name(name).person == words
    assert group_name(name).country == group_name(name[:3]).country


def test_every_pair_of_values_has_a_name_that_says_it_all() -> None:
    values = [(v.name, value.key) for v in VARIABLES for value in v.values]
    assert len({key for _, key in values}) == len(values), "a key says which variable it is of"
    for pair in combinations([*values, (REGION, "Ohio: north")], 2):
        group = Group("USA", dict(pair))
        if len(dict(pair)) == 2 and "Ohio: north" not in dict(pair).values():
            assert read_group(group.name) == group
            assert name_of_group(group.name) == group.name
            said = {load_prompts().system(group.name)["content"], *map(str, pair)}
            assert len(said) == 3


@pytest.mark.parametrize("name", ["USA", "night owls", "USA:left", "XXX:female", "USA:male:female"])
def test_other_names_are_no_groups_below_a_country(name: str) -> None:
    assert group_name(name).person is None
    assert str(group_name(name)) in (name, "United States")


def test_a_text_that_would_speak_of_the_whole_country_is_refused(tmp_path: Path) -> None:
    (tmp_path / "persona.jinja").write_text("From {{ country }}.")
    prompts = load_prompts(tmp_path)
    assert prompts.system("USA")["content"] == "From United States."
    with pytest.raises(UserError, match="of USA:male but the country; use `person` or"):
        prompts.system("USA:male")
    (tmp_path / "persona.jinja").write_text("From {{ country }}, {{ values.sex }}.")
    assert load_prompts(tmp_path, language="en").system("USA:male")["content"].endswith(", male.")
    (tmp_path / "item.jinja").write_text("{{ item.text }}")
    german = load_prompts(tmp_path, language="de").system("USA:male")["content"]
    assert german == "From Vereinigte Staaten, male."
    (tmp_path / "persona.jinja").write_text("Aus {{ person | default(country) }}.")
    with pytest.raises(UserError, match="says nothing of USA:male but the country; use `values`"):
        load_prompts(tmp_path, language="de").system("USA:male")


def test_prompts_name_similar_groups_in_words() -> None:
    item = Item("q1", "Tea?", ("yes", "no"), (1, 2))
    shares = {"USA:male": (0.2, 0.8), "USA:female": (0.3, 0.7), "CHN:male": (0.9, 0.1)}
    survey = Survey("s", "", "", "official", (item,), {g: {"q1": s} for g, s in shares.items()})
    prompts = StylePrompts(load_texts(), survey, tuple(shares))
    said = prompts.conversation("p2", "USA:male", item)[0]["content"]
    assert said.startswith("You are a man from the United States")
    assert "similar to yours: women from the United States." in said
    assert "different from yours: men from China." in said


def test_scores_of_ones_own_name_groups_below_the_country(tmp_path: Path) -> None:
    assert name_in_edition("USA:female") == "USA:female"
    with pytest.raises(UserError, match="'USA:left' is unknown"):
        name_in_edition("USA:left")


def test_variables_by_their_names_and_by_the_codebooks() -> None:
    same = (["sex", "age", "education"], "sex, age,education", ["q260", "X003R2,Q275R"])
    for by in same:
        assert [v.name for v in variables_of(by)] == ["sex", "age", "education"]
    assert variables_of(["N_REGION_WVS"])[0].columns == ("N_REGION_WVS",)
    for by, message in (
        (["left"], "`by` 'left': no variable .*sex \\(Q260\\)"),
        (["sex", "Q260"], "sex is named twice"),
        (["age", "X003R"], "age6 is named twice"),
    ):
        with pytest.raises(UserError, match=message):
            variables_of(by)
