"""What the settings of `jaxalign ask` name: who is asked how, and what is refused at once."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from jaxalign.core.errors import UserError
from jaxalign.lm.model import ModelFiles, open_model
from jaxalign.methods.ask_survey.inputs import AskInputs, _named, read_inputs
from jaxalign.methods.ask_survey.settings import AskSettings, check_settings
from jaxalign.methods.soft_prompt.prompt import SoftPrompt
from jaxalign.pocket.society import held_out_survey
from jaxalign.surveys.survey import to_json
from tests.support.own_files import wvs_csv, wvs_people

WIDTH = 128  # of the pocket model's embeddings
COUNTRIES = ("USA", "CHN", "NGA")


@pytest.fixture(scope="module")
def files() -> ModelFiles:
    return open_model()


def read(files: ModelFiles, **fields) -> AskInputs:
    settings = AskSettings(**fields)
    check_settings(settings)
    return read_inputs(settings, files)


def prompt_file(folder: Path, name: str, group: str | None, width: int = WIDTH) -> str:
    path = folder / f"{name}.safetensors"
    SoftPrompt(np.zeros((2, width), np.float32), group=group).save(path)
    return str(path)


def test_every_country_is_asked_in_styles_that_name_one(files):
    inputs = read(files, countries=COUNTRIES, styles=("unaware", "p1", "p3", "naive"))
    assert [row.key for row in inputs.rows] == [
        *("model-unaware", "model-p1", "model-p3", "model-naive")
    ]
    assert [row.groups for row in inputs.rows] == [(None,), COUNTRIES, COUNTRIES, (None,)]
    [job] = inputs.jobs
    assert len(job.questions.conversations) == (1 + 3 + 3 + 1) * len(inputs.survey.items)
    # p3 shows other examples on other topics, so that it has several lead-ins a country.
    assert len(job.questions.conversations.lead_ins) > len(job.asked)
    assert any("p3 read answers of the very survey" in note for note in inputs.notes)
    assert read(files, styles=("unaware",)).countries == tuple(held_out_survey().distributions)


def test_leak_free_examples_come_from_another_survey(files):
    inputs = read(files, countries=COUNTRIES, styles=("p3", "icl"), examples="leak_free")
    assert not inputs.shows_test
    assert not inputs.notes
    assert len(inputs.facts["icl_examples"]) == 5
    assert inputs.facts["source_sha256"] != inputs.facts["survey_sha256"]


def test_prompts_of_countries_are_one_row_and_others_one_each(files, tmp_path):
    china, anyone = prompt_file(tmp_path, "a", "CHN"), prompt_file(tmp_path, "b", None)
    inputs = read(files, countries=COUNTRIES, prompt=(china, f"USA={anyone}", anyone))
    assert [row.key for row in inputs.rows] == [
        *("model-unaware", "model-p1", "b-naive", "prompts-naive")
    ]
    assert inputs.rows[-1].groups == ("CHN", "USA")
    assert len(inputs.facts["prompts"]) == 3
    alone = read(files, countries=("CHN",), prompt=(china,), unchanged=False, styles=("p1",))
    assert [row.key for row in alone.rows] == ["prompts-p1"]
    assert alone.jobs[0].questions.extra_ExD.shape == (2, WIDTH)


def test_surveys_without_answers_are_asked_of_nobody_unless_countries_are_named(files, tmp_path):
    inputs = read(files, survey="vsm")
    assert [row.key for row in inputs.rows] == ["model-unaware"]
    assert not inputs.has_answers
    assert read(files, survey="vsm", countries=("USA",)).rows[1].groups == ("USA",)
    with pytest.raises(UserError, match=r"`countries`: the survey .* p1"):
        read(files, survey="vsm", styles=("p1",))
    with (tmp_path / "test.csv").open("w", encoding="utf-8") as file:
        csv.writer(file).writerows([["question", *"ABCD", "answer"], ["Which?", *"wxyz", "C"]])
    inputs = read(files, survey=str(tmp_path / "test.csv"))
    assert inputs.test.answers == (2,)
    assert [row.key for row in inputs.rows] == ["model-unaware"]


def test_codes_alone_are_asked_in_the_words_of_another_file(files, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache"))
    words = tmp_path / "words.csv"
    words.write_text("id,text,options\nQ1,Is it so?,1=yes|2=rather|3=hardly|4=no\n")
    with pytest.raises(UserError, match=r"no wording.*add these as `wording`"):
        read(files, survey=str(wvs_csv(tmp_path)))
    inputs = read(files, survey=str(wvs_csv(tmp_path)), wording=words, styles=("unaware",))
    assert [item.text for item in inputs.survey.items] == ["Is it so?"]
    assert set(inputs.survey.distributions) == {"USA", "CHN"}


def test_groups_below_the_country_are_asked_in_plain_words(files, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache"))
    words = tmp_path / "words.csv"
    words.write_text("id,text,options\nQ1,Is it so?,1=yes|2=rather|3=hardly|4=no\n")
    people = {"USA:female": 60, "USA:male": 49, "CHN:male": 60}
    path = wvs_people(tmp_path, people)
    given = {"survey": str(path), "wording": words, "by": ("sex",), "styles": ("persona", "p1")}
    prompt = prompt_file(tmp_path, "tuned", "USA:female")
    inputs = read(files, **given, prompt=(prompt, f"CHN:male={prompt}"))
    assert inputs.countries == ("CHN:male", "USA:female")
    assert {row.groups for row in inputs.rows} == {("CHN:male", "USA:female")} | {
        ("USA:female", "CHN:male")
    }
    for asked in inputs.jobs[0].asked:
        said = asked.condition.lead_ins(inputs.texts.prompts, inputs.survey.items)[0][0]
        who = {"CHN:male": "a man from China", "USA:female": "a woman from the United States"}
        assert f"You are {who[asked.group]}" in said[0]["content"]
    with pytest.raises(UserError, match="'USA:male' has 49 respondents"):
        read(files, **given, countries=("USA:male",))
    assert len(read(files, **given, min_respondents=10).countries) == 3


def test_a_name_of_a_group_may_hold_an_equals_sign(files):
    known = ("DEU:region=Bayern", "DEU")
    assert _named("DEU:region=Bayern=a/b=c", known) == ("DEU:region=Bayern", Path("a/b=c"))
    assert _named("DEU=a", known) == ("DEU", Path("a"))
    assert _named("mine=a", known) == ("mine", Path("a"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"countries": ("USA", "XXX")}, "'XXX' is not in the survey"),
        ({"countries": ("USA", "USA")}, "`countries` USA USA: give at least one, each once"),
        ({"styles": ()}, "`styles` : give at least one"),
        ({"runs": 0}, "`runs` 0: give at least 1"),
        ({"unchanged": False}, "nothing is left to ask"),
        ({"survey": "nothing.json"}, "nothing.json"),
        ({"survey": "vsm", "styles": ("icl",)}, "the style icl with `survey` vsm: name another"),
        ({"survey": "vsm", "examples": "leak_free"}, "`examples` leak_free with `survey` vsm"),
        ({"source": Path("x.json")}, "`source` x.json: read only with"),
        ({"distributions": Path("x.csv")}, "`distributions` x.csv: goes with a `survey`"),
        ({"wording": Path("x.csv")}, "`wording` x.csv: goes with a `survey`"),
        ({"adapter": ("nothing",)}, "nothing"),
        ({"adapter": ("a/b=nothing",)}, "give NAME=PATH"),
        ({"prompt": ("nothing.safetensors",)}, "nothing.safetensors"),
        ({"p3_choice": "nearest"}, "`p3_choice` nearest"),
    ],
)
def test_what_cannot_be_asked_is_refused(files, fields, message):
    with pytest.raises(UserError, match=message) as found:
        read(files, **({"countries": ("USA", "CHN")} | fields))
    assert "\n" not in str(found.value)


def test_examples_are_never_questions_of_the_survey_itself(files, tmp_path):
    path = tmp_path / "survey.json"
    path.write_text(json.dumps(to_json(held_out_survey())), "utf-8")
    with pytest.raises(UserError, match="examples from it would not be leak-free"):
        read(files, countries=("USA",), styles=("icl",), survey=str(path), source=path)


def test_prompts_that_do_not_fit_are_refused(files, tmp_path):
    china, again = prompt_file(tmp_path, "a", "CHN"), prompt_file(tmp_path, "b", "CHN")
    with pytest.raises(UserError, match="`prompt`: two speak for CHN"):
        read(files, countries=COUNTRIES, prompt=(china, again))
    with pytest.raises(UserError, match="tuned for CHN, which is not among the countries"):
        read(files, countries=("USA",), prompt=(china,))
    wide = prompt_file(tmp_path, "wide", None, 7)
    with pytest.raises(UserError, match="embeddings are 7 wide and the model's 128"):
        read(files, countries=COUNTRIES, prompt=(wide,))


def test_a_quick_look_asks_items_from_all_over_the_survey(files):
    inputs = read(files, countries=COUNTRIES, limit=4)
    everything = held_out_survey().items
    step = len(everything) / 4
    assert [item.id for item in inputs.survey.items] == [
        everything[int(n * step)].id for n in range(4)
    ]
    assert set(inputs.survey.distributions["USA"]) <= {item.id for item in inputs.survey.items}
    with pytest.raises(UserError, match="`limit` 0: give at least 1"):
        read(files, limit=0)
