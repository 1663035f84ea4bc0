"""What a soft-prompt run refuses, in one line, before the weights are read."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from jaxalign.core.errors import UserError
from jaxalign.methods.soft_prompt.problem import (
    check_comparison,
    file_names,
    read_problem,
    recorded_start,
    start_text,
)
from jaxalign.methods.soft_prompt.settings import (
    Settings,
    limited,
    pocket_defaults,
    setting_sources,
)
from jaxalign.methods.soft_prompt.space import SoftPromptConfig
from jaxalign.optim.strategy import Strategy
from jaxalign.pocket.society import held_out_survey
from jaxalign.runs import with_flags
from jaxalign.surveys.survey import to_json, vsm
from tests.support.own_files import own_csv, wvs_people


def refusal(settings: Settings) -> str:
    with pytest.raises(UserError) as error:
        check_comparison(read_problem(settings))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"icl_examples": -1}, "`icl_examples` -1"),
        ({"gradient_steps": -1}, "`gradient_steps` -1"),
        ({"seeds": (-1,)}, "`seeds` -1"),
        ({"seeds": ()}, "`seeds`: give one or more"),
        ({"seeds": (4, 4)}, "`seeds` 4: give each once"),
        ({"replies": 0}, "`replies` 0"),
        ({"presentations": ("E",)}, "`presentations` E: choose from"),
        ({"presentations": ("B",), "test_presentations": ("B",)}, "B: tuned on already"),
        (
            {"presentations": ("order-54321",), "test_presentations": ("D",)},
            "`test_presentations` D: tuned on already",
        ),
        ({"answer": "label", "reading": "sampled"}, "`answer` label: sampled replies"),
        ({"penalty": float("nan")}, "`penalty` nan"),
        ({"gradient_rate": float("nan")}, "`gradient_rate` nan"),
        ({"constant": float("inf")}, "C must be finite"),
        ({"countries": ()}, "`countries`: give one or more"),
        ({"countries": ("USA", "CHN", "USA")}, "`countries` USA CHN USA: give each once"),
        ({"strategy": Strategy("SNES", options=(("std_init", float("nan")),))}, "std_init = nan"),
        ({"strategy": Strategy("SNES", options=(("speed", 1.0),))}, "no option 'speed'"),
        ({"strategy": Strategy("Open_ES", population=7)}, "`population` 7"),
        ({"prompt": SoftPromptConfig(length=5000)}, "max_position_embeddings=4096"),
        ({"icl_examples": 81}, "`icl_examples` 81"),
        ({"icl_examples": 82}, "none is left to be held out"),
    ],
)
def test_settings_that_no_run_survives(change, said):
    assert said in refusal(dataclasses.replace(Settings(), **change))


def presentations_of(**settings) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """What both surveys are asked in, and what is tuned on; of the pocket model."""
    problem = read_problem(Settings(**settings))
    return [asked.presentations for asked in problem.reported], problem.tuned_presentations


def test_what_is_tuned_on_and_what_is_reported():
    assert presentations_of() == ([("A", "B", "C", "D")], ("A",))
    assert presentations_of(presentations=("B", "D")) == ([("B", "D", "A", "C")], ("B", "D"))
    assert presentations_of(test_presentations=()) == ([("A",)], ("A",))
    # Reading by label asks the same in every presentation, so that none is left to test.
    assert presentations_of(answer="label") == ([("A",)], ("A",))


def test_all_orders_are_those_of_the_tuned_survey():
    """The held-out survey has items of other lengths: it is asked in the two ways of numbering."""
    problem = read_problem(Settings(presentations=("orders",)))
    tuned, held_out = problem.reported
    assert tuned.surveys == (problem.tuned_survey,)
    # A and D are two of the 120 orders.
    assert tuned.presentations == ("orders", "B", "C")
    assert len(problem.tuned_presentations) == 120
    assert held_out.presentations == ("A", "B", "C")
    assert problem.scored_on_the_way is None
    answers = problem.survey_answers(problem.held_out_survey, held_out.presentations, {})
    assert answers.tuned == (0, 1)


def test_without_anything_to_average_the_search_is_the_one_of_plain_items():
    assert read_problem(Settings()).read is None
    assert read_problem(Settings(presentations=("B",))).read is None
    assert read_problem(Settings(presentations=("A", "B"))).read is not None
    assert read_problem(Settings(answer="label-against-prior")).read is not None


def survey_where_china_answered(items: set[str], path: Path) -> Path:
    survey = held_out_survey()
    answers = {i: shares for i, shares in survey.distributions["CHN"].items() if i in items}
    changed = survey.distributions | {"CHN": answers}
    path.write_text(json.dumps(to_json(dataclasses.replace(survey, distributions=changed))))
    return path


@pytest.mark.parametrize("count", [0, 5])
def test_a_country_without_held_out_answers(count, tmp_path):
    """Found out after the search, it would cost the whole run."""
    answered = {item.id for item in held_out_survey().items[:count]}
    path = survey_where_china_answered(answered, tmp_path / "survey.json")
    said = refusal(dataclasses.replace(Settings(), held_out=path, icl_examples=count))
    assert f"`icl_examples` {count}" in said
    assert "no item that CHN answered" in said


def module_with(path: Path, **changes) -> Path:
    fields = to_json(vsm())
    fields["items"][0] |= changes
    path.write_text(json.dumps(fields))
    return path


def test_a_question_longer_than_the_model_reads(tmp_path):
    path = module_with(tmp_path / "long.json", text="word " * 5000)
    assert "max_position_embeddings=4096" in refusal(Settings(instrument=path))


def test_a_code_beyond_float32(tmp_path):
    survey = to_json(held_out_survey())
    survey["items"][0]["options"][-1]["code"] = 10**400
    (tmp_path / "huge.json").write_text(json.dumps(survey))
    assert "has code 1000000" in refusal(Settings(held_out=tmp_path / "huge.json"))


@pytest.mark.parametrize(
    ("text", "said"), [(b"caf\xe9", "item.jinja: not UTF-8"), (b"{{ 1/0 }}", "division by zero")]
)
def test_own_prompt_texts(text, said, tmp_path):
    (tmp_path / "item.jinja").write_bytes(text)
    assert said in refusal(Settings(prompts=tmp_path))


def test_a_prompt_starts_from_the_persona_line_of_the_models_texts(tmp_path):
    """Case S3 for tuned prompts. The pocket model was trained on the bare name."""
    start = start_text(read_problem(Settings()), "USA")
    line = "You are a real person from United States, filling in a survey with your own values."
    assert start == line
    (tmp_path / "persona.jinja").write_text("As an {{ demonym }} citizen")
    assert start_text(read_problem(Settings(prompts=tmp_path)), "USA") == "As an American citizen"
    chinese = read_problem(Settings(language="zh"))
    assert "美国" in start_text(chinese, "USA")
    assert "美国" in chinese.in_context("USA").lead_in(chinese.prompts)[0]["content"]
    given = Settings(prompt=SoftPromptConfig(text="From {article_country}"))
    assert start_text(read_problem(given), "USA") == "From the United States"


def test_held_out_in_a_csv_of_ones_own_comes_with_its_shares(tmp_path):
    files = own_csv(tmp_path, ("USA", "CHN", "NGA"))
    settings = Settings(held_out=files["survey"], icl_examples=1, countries=("USA", "CHN"))
    shares = files["distributions"]
    problem = read_problem(dataclasses.replace(settings, held_out_distributions=shares))
    check_comparison(problem)
    assert set(problem.answered_survey.distributions) == {"USA", "CHN", "NGA"}
    assert (len(problem.held_out_survey.items), len(problem.examples)) == (2, 1)
    assert "`held_out_distributions`" in refusal(settings)
    alone = Settings(held_out_distributions=shares)
    assert "shares.csv: only used with a `held_out` of your own" in refusal(alone)


@pytest.mark.user_data
def test_the_world_values_survey_as_released_with_culturespa_is_held_out():
    folder = Path(os.environ["JAXALIGN_CULTURESPA_DATA"])
    settings = Settings(held_out=folder, countries=("USA", "CHN"))
    problem = read_problem(settings)
    check_comparison(problem)
    assert len(problem.answered_survey.items) == len(problem.held_out_survey.items) + 5 > 200
    assert not problem.facts()["simulated_held_out"]


@pytest.mark.parametrize("option", ["held_out", "instrument"])
def test_a_test_with_right_answers_is_no_survey(option, tmp_path):
    path = tmp_path / "mmlu.csv"
    path.write_text("question,A,B,C,D,answer\nWhich is most?,1,2,3,4,D\n")
    assert f"`{option}` {path}: " in refusal(Settings(**{option: path}))


def test_an_instrument_in_csv(tmp_path):
    """As the official wording may be at hand."""
    rows = [
        f'{i.id},"{i.text}",'
        + "|".join(f"{c}={o}" for c, o in zip(i.codes, i.options, strict=True))
        for i in vsm().items
    ]
    path = tmp_path / "vsm.csv"
    path.write_text("\n".join(["id,text,options", *rows]), "utf-8")
    problem = read_problem(Settings(instrument=path))
    assert [i.id for i in problem.tuned_survey.items] == [i.id for i in vsm().items]


def test_global_opinion_qa_is_held_out(tmp_path):
    """Its countries by their names, its shares as Python prints them."""
    rows = [
        f"Is made-up thing {n} right?\t{{'United States': [0.7, 0.3], 'China': [0.{n}, 0.{9 - n}]}}"
        f"\t['Yes', 'No']\tGAS"
        for n in range(1, 5)
    ]
    path = tmp_path / "opinions.csv"
    path.write_text("\n".join(["question\tselections\toptions\tsource", *rows]), "utf-8")
    settings = Settings(held_out=path, icl_examples=1, countries=("USA", "CHN"))
    problem = read_problem(settings)
    check_comparison(problem)
    assert set(problem.answered_survey.distributions) == {"USA", "CHN"}
    assert len(problem.held_out_survey.items) == 3


def test_names_of_groups_are_fit_for_files():
    assert file_names(["USA", "night owls / Zürich"]) == {
        "USA": "USA",
        "night owls / Zürich": "night_owls_Zürich",
    }
    with pytest.raises(
        UserError, match="'a/b': its files would be called 'a_b', as those of 'a b'"
    ):
        file_names(["a/b", "a b"])
    with pytest.raises(UserError, match="as those of 'the folder itself'"):
        file_names([".."])


def test_an_edition_of_the_users_own_is_one_of_the_runs_facts(tmp_path):
    """A resumed run would otherwise go on toward other targets without a word."""
    path = tmp_path / "mine.csv"
    head = "group,name,pdi,idv,mas,uai,lto,ivr\n"
    path.write_text(head + "farmers,farmers,50,40,60,30,20,70\n", "utf-8")
    settings = Settings(countries=("farmers",), edition=str(path), icl_examples=0)
    before = read_problem(settings).facts()
    path.write_text(head + "farmers,farmers,50,40,60,30,20,71\n", "utf-8")
    after = read_problem(settings).facts()
    assert before["edition_sha256"] != after["edition_sha256"]
    assert "edition_sha256" not in read_problem(Settings()).facts()


def test_a_file_of_scores_is_one_of_the_runs_facts(tmp_path):
    path = tmp_path / "scores.csv"
    settings = Settings(countries=("USA",), objective="linear", scores=path, icl_examples=0)
    hashes = set()
    for target in (1, 2):
        path.write_text(f"factor,item,weight,group,target\nf,m01,1,,\nf,,,USA,{target}\n")
        hashes.add(read_problem(settings).facts()["scores_sha256"])
    assert len(hashes) == 2
    assert "scores_sha256" not in read_problem(Settings()).facts()


def test_a_real_model_is_told_which_settings_were_chosen_on_the_pocket_model():
    note = pocket_defaults(Settings(generations=500))
    assert "`prompt.spread` 0.5, `gradient_steps` 100" in note
    assert "generations" not in note
    assert with_flags(note, Settings).endswith("--gradient-rate 0.05")
    sources = setting_sources(Settings(generations=500, constant=0.0))
    assert {sources[name] for name in ("generations", "constant")} == {"given"}
    assert sources["strategy.algorithm"] == "the paper's"
    for name in ("strategy.population", "prompt.spread", "gradient_rate"):
        assert sources[name] == "chosen on the pocket model; nobody has published a value"


def test_groups_below_the_country_and_borrowed_wording(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache"))
    caplog.set_level("INFO", "jaxalign")
    words = tmp_path / "words.csv"
    rows = [f"Q{n},Is thing {n} good?,1=very|2=rather|3=not very|4=not at all" for n in (1, 2)]
    words.write_text("\n".join(["id,text,options", *rows]) + "\n")
    scores = tmp_path / "scores.csv"
    groups = ("USA:female", "CHN:male")
    lines = [f"{group},50,40,60,30,20,70" for group in groups]
    scores.write_text("\n".join(["group,pdi,idv,mas,uai,lto,ivr", *lines]) + "\n")
    people = {"USA:female": 60, "USA:male": 20, "CHN:male": 60}
    settings = Settings(
        held_out=wvs_people(tmp_path, people),
        countries=groups,
        edition=str(scores),
        icl_examples=1,
        wording=words,
        by=("sex",),
    )
    problem = read_problem(settings)
    check_comparison(problem)
    assert set(problem.answered_survey.distributions) == set(groups)
    start = recorded_start(problem, "USA:female")
    assert "a woman from the United States" in start
    assert (
        problem.in_context("CHN:male")
        .lead_in(problem.prompts)[0]["content"]
        .startswith("You are a man from China")
    )
    assert any("refused 1 group" in line for line in caplog.messages)
    small = dataclasses.replace(settings, countries=("USA:male", "CHN:male"), edition=str(scores))
    scores.write_text(scores.read_text() + "USA:male,50,40,60,30,20,70\n")
    assert "'USA:male' has 20 respondents" in refusal(small)
    taken = read_problem(dataclasses.replace(small, min_respondents=10))
    assert "USA:male" in taken.answered_survey.distributions


def test_what_is_tuned_is_not_held_out(tmp_path):
    fields = to_json(held_out_survey())
    items = [item | {"id": f"q{n}"} for n, item in enumerate(to_json(vsm())["items"][:3])]
    fields["items"] = [*fields["items"], *items]
    path = tmp_path / "both.json"
    path.write_text(json.dumps(fields))
    problem = read_problem(Settings(held_out=path))
    assert not {item.id for item in problem.answered_survey.items} & {"q0", "q1", "q2"}
    fields["items"], fields["distributions"] = items, {"USA": {"q0": [0.2] * 5}}
    path.write_text(json.dumps(fields))
    said = refusal(Settings(held_out=path, countries=("USA",)))
    assert "every question of it is tuned on" in said


def test_a_quick_look_is_short_and_keeps_held_out_items_beside_the_examples():
    whole = Settings(limit=3, gradient_steps=2, generations=50)
    settings = limited(whole)
    assert (settings.generations, settings.gradient_steps, settings.limit) == (3, 2, 3)
    assert limited(settings) == settings  # as a resumed run has them
    problem = read_problem(settings)
    assert len(problem.held_out_survey.items) == 3
    assert len(problem.answered_survey.items) == 3 + settings.icl_examples
    assert limited(Settings()) == Settings()
    assert "`limit` 0" in refusal(Settings(limit=0))
