"""Prompt texts: correct English for every country, and where each text comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxalign.core.errors import UserError
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.pocket.phrases import CROSS
from jaxalign.prompts import Prompts, load_prompts, read_prompt
from jaxalign.surveys.names import countries, country_name, demonym, with_article
from jaxalign.surveys.survey import vsm


def persona(group: str, prompts: Prompts | None = None) -> str:
    return (prompts or load_prompts()).system(group)["content"]


def test_personas_are_named_in_correct_english() -> None:
    start = "You are a real person from "
    assert persona("USA").startswith(f"{start}the United States,")
    assert persona("GBR").startswith(f"{start}the United Kingdom,")
    assert persona("NLD").startswith(f"{start}the Netherlands,")
    assert persona("CHN").startswith(f"{start}China,")
    for iso3 in countries():
        assert persona(iso3).startswith(f"{start}{with_article(iso3)},")
        assert persona(country_name(iso3)) == persona(iso3), "a name does as well as a code"
    assert persona("people who work at night").startswith(f"{start}people who work at night,")


def test_texts_see_country_article_and_demonym(tmp_path: Path) -> None:
    (tmp_path / "persona.jinja").write_text("{{ country }} | {{ article_country }} | {{ demonym }}")
    own = load_prompts(tmp_path)
    for iso3 in ("USA", "NLD", "CHN"):
        parts = country_name(iso3), with_article(iso3), demonym(iso3)
        assert persona(iso3, own) == " | ".join(parts)
    with pytest.raises(UserError, match=r"persona\.jinja.*demonym"):
        persona("night owls", own)


def test_own_texts_replace_the_packages(tmp_path: Path) -> None:
    (tmp_path / "persona.jinja").write_text("As someone from {{ country }}:")
    prompts = load_prompts(tmp_path)
    assert persona("India", prompts) == "As someone from India:"
    assert prompts.item == load_prompts().item
    (tmp_path / "persona.jinja").write_text("As {{ nobody }}:")
    with pytest.raises(UserError, match="nobody"):
        load_prompts(tmp_path).system("India")
    with pytest.raises(UserError, match="no such folder"):
        load_prompts(tmp_path / "missing")


def test_the_pocket_model_keeps_the_texts_it_was_trained_on(tmp_path: Path) -> None:
    trained = load_prompts(model_folder=MODEL_FOLDER)
    for name in ("USA", "the United States"):  # it was trained on names with and without article
        said = persona(name, trained)
        bare = name.replace("USA", "United States")
        assert (
            said == f"You are a real person from {bare}, filling in a survey with your own values."
        )
    cross = read_prompt("cross_culture", None, model_folder=MODEL_FOLDER)
    assert cross.startswith("{{ persona }}" + CROSS[0].partition("{s}")[0])
    (tmp_path / "persona.jinja").write_text("{{ country }}")
    assert persona("USA", load_prompts(tmp_path, model_folder=MODEL_FOLDER)) == "United States"
    assert load_prompts(model_folder=tmp_path / "other") == load_prompts()
    item = vsm().items[0]
    assert trained.user(item) == load_prompts().user(item)
