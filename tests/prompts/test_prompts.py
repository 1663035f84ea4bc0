"""Prompt texts: correct English for every country, and where each text comes from."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from jaxalign.core.errors import UserError
from jaxalign.methods.culturespa.styles import STYLES, StylePrompts, load_texts
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.pocket.phrases import CROSS
from jaxalign.pocket.society import held_out_survey
from jaxalign.prompts import Prompts, icl_messages, load_prompts, read_prompt, untranslated
from jaxalign.surveys.names import countries, country_name, demonym, with_article
from jaxalign.surveys.presentations import present
from jaxalign.surveys.survey import Item, Survey, vsm


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


# -- languages ------------------------------------------------------------------------------------


def test_chinese_texts_name_countries_in_chinese() -> None:
    chinese = load_texts(language="zh")
    assert chinese.prompts.language == "zh"
    for iso3 in countries():
        assert country_name(iso3, "zh") in persona(iso3, chinese.prompts)
    assert "美国" in persona("United States", chinese.prompts), "conditions pass English names"
    styles = StylePrompts(chinese, held_out_survey(), ("USA", "CHN", "IND", "NLD"), count=2)
    item = held_out_survey().items[0]
    for style in STYLES:
        for message in styles.conversation(style, "NLD", item):
            if message["role"] != "assistant":
                assert re.search("[\u4e00-\u9fff]", message["content"]), (style, message)
                outside = message["content"]
                for asked in held_out_survey().items:  # the survey's own words stay English
                    for text in (asked.stem, asked.text, *asked.options):
                        outside = outside.replace(text, "") if text else outside
                assert not re.search("[A-Za-z]", outside), outside
    assert "荷兰" in styles.conversation("p1", "NLD", item)[0]["content"]
    assert "、" in styles.conversation("p2", "NLD", item)[0]["content"]


def test_both_languages_have_the_same_texts_and_values() -> None:
    for name in ("item", "persona", "unaware", "cross_culture", "self_alignment"):
        texts = [read_prompt(name, None, language=language) for language in ("en", "zh")]
        used = [
            set(re.findall(r"(?:item|example)\.\w+|\b(?:persona|similar|code)\b", t)) for t in texts
        ]
        assert used[0] == used[1], name


def test_another_language_needs_texts_of_the_users_own(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"`language` 'de'.*give a folder with your own item\.jinja"
    ):
        load_prompts(language="de")
    (tmp_path / "persona.jinja").write_text("Du kommst aus {{ country }}.", "utf-8")
    (tmp_path / "item.jinja").write_text("{{ item.text }}", "utf-8")
    assert persona("USA", load_prompts(tmp_path, language="de")) == (
        "Du kommst aus Vereinigte Staaten."
    )
    with pytest.raises(UserError, match="`language` 'klingon' is unknown"):
        load_prompts(tmp_path, language="klingon")
    english = load_prompts(tmp_path, model_folder=MODEL_FOLDER)
    assert persona("USA", english) == "Du kommst aus United States."
    # A model's own texts are English, and not asked for.
    chinese = load_prompts(language="zh", model_folder=MODEL_FOLDER)
    assert chinese == load_prompts(language="zh")


def test_questions_in_another_language_than_the_texts_are_said() -> None:
    english = held_out_survey()
    assert untranslated("en", english) is None
    note = untranslated("zh", english)
    assert english.name in note
    assert "English" in note
    items = (Item("q", "工作在您的生活中有多重要？", ("非常重要", "不重要"), (1, 2)),)
    assert untranslated("zh", Survey("s", "1", "x", "official", items)) is None
    items = (Item("q", "Wie wichtig ist für Sie die Familie?", ("sehr", "gar nicht"), (1, 2)),)
    assert untranslated("de", Survey("s", "1", "x", "official", items)) is None


def test_examples_are_shown_as_the_question_is():
    """If not, an example would teach the model the other numbering."""
    item = Item("q", "How often?", ("never", "at times", "often"), (1, 2, 3))
    prompts = dataclasses.replace(load_prompts(), presentation="B")
    question, answer = icl_messages(prompts, [(item, 0)])
    assert "3 = never" in question["content"]
    assert answer["content"] == "3"
    # What is given as shown stays as it is.
    assert "1 = never" in prompts.user(present(item, "A"))["content"]


def test_letters_are_asked_for_as_letters():
    item = Item("q", "How often?", ("never", "at times", "often"), (1, 2, 3))
    for language, word in (("en", "letter of one"), ("zh", "字母")):
        prompts = load_prompts(language=language)
        assert word not in prompts.user(item)["content"]
        content = prompts.user(present(item, "letters"))["content"]
        assert word in content
        assert "C = often" in content
