"""What a CultureSPA run refuses before it works, and what it needs to find unchanged."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import tyro

import jaxalign.commands.culturespa as culturespa
from jaxalign.core.errors import UserError
from jaxalign.lm.lora import LoraConfig
from jaxalign.lm.model import LM, ModelFiles, open_model
from jaxalign.methods.culturespa import pipeline
from jaxalign.methods.culturespa.fine_tune import adapter_folder, adapter_names, training_examples
from jaxalign.methods.culturespa.inputs import (
    CULTURES,
    Experiment,
    Inputs,
    example_lengths,
    read_inputs,
)
from jaxalign.methods.culturespa.select import Pair, Selection
from jaxalign.methods.culturespa.settings import (
    CultureSPASettings,
    check_settings,
    resolve_settings,
    setting_sources,
)
from jaxalign.methods.culturespa.writer import FunctionWriter
from jaxalign.pocket.society import held_out_survey, society_values_module
from jaxalign.runs import settings_of
from jaxalign.surveys.formats import read_answered
from jaxalign.surveys.survey import Survey, to_json
from jaxalign.training.defaults import resolve_training
from jaxalign.training.packing import check_lengths
from jaxalign.training.step import TrainConfig
from tests.support.own_files import own_csv


def write(path: Path, survey: Survey) -> Path:
    path.write_text(json.dumps(to_json(survey)), "utf-8")
    return path


def inputs(**settings) -> Inputs:
    return read_inputs(CultureSPASettings(**settings))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"countries": ("USA",)}, "`countries` USA"),
        ({"countries": ("USA", "XXX")}, "XXX"),
        ({"seeds": 0}, "`seeds` 0"),
        ({"per_topic": 1}, "`per_topic` 1"),
        ({"model": Path("/nowhere")}, "/nowhere"),
        ({"survey": Path("/nowhere.json")}, "/nowhere.json"),
        ({"guard": Path("/nowhere.csv")}, "/nowhere.csv"),
        ({"p3_choice": "nearest"}, "`p3_choice` nearest: give topics, similar or an existing"),
    ],
)
def test_bad_settings_are_refused_before_any_work(change, said):
    with pytest.raises(UserError, match=said):
        inputs(**change)


def test_a_setting_that_fits_no_model_is_refused():
    writing = dataclasses.replace(CultureSPASettings().writing, max_new_tokens=4000)
    with pytest.raises(UserError, match=r"`writing\.max_new_tokens`"):
        inputs(writing=writing)


def test_leak_free_examples_come_from_another_survey():
    found = inputs(examples="leak_free")
    tested = {item.text for item in found.survey.items}
    messages = found.prompts.lead_in("p3", "CHN", found.survey.items[0])
    assert not any(text in m["content"] for m in messages for text in tested)


def test_the_survey_whose_answers_are_shown_is_a_fact(tmp_path):
    """A run that goes on after --source was edited would mix two sources."""
    other = society_values_module()
    source = write(tmp_path / "source.json", other)
    first = inputs(examples="leak_free", source=source).facts()
    write(source, other.subset({item.id for item in other.items[:-1]}))
    assert first != inputs(examples="leak_free", source=source).facts()
    assert inputs().facts()["shown_sha256"] == held_out_survey().sha256


def test_made_up_answers_are_not_shown_for_a_survey_of_ones_own(tmp_path):
    survey = write(tmp_path / "mine.json", held_out_survey())
    with pytest.raises(
        UserError, match=r"`examples` leak_free with `survey` .*mine.json.* `source`"
    ):
        inputs(survey=survey, examples="leak_free")


def test_a_source_that_nothing_reads_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"`source` other.json: .* `examples` leak_free"):
        inputs(source=Path("other.json"))


def test_a_broken_text_is_named_before_any_work(tmp_path):
    (tmp_path / "unaware.jinja").write_text("{{ country }}", "utf-8")
    with pytest.raises(UserError, match=r"unaware\.jinja: 'country' is undefined"):
        inputs(texts=tmp_path)
    (tmp_path / "unaware.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"unaware\.jinja: not UTF-8"):
        inputs(texts=tmp_path)


def test_examples_are_looked_for_before_every_item(tmp_path):
    """Of a source that has nothing but the last item's topic, nothing can be shown before it."""
    other, survey = society_values_module(), held_out_survey()
    topic = survey.items[-1].topic
    assert survey.items[0].topic != topic
    items = tuple(dataclasses.replace(item, topic=topic) for item in other.items)
    source = write(tmp_path / "source.json", dataclasses.replace(other, items=items))
    with pytest.raises(UserError, match="may be shown before it"):
        inputs(examples="leak_free", source=source)


def test_a_row_shorter_than_a_question_is_refused():
    train = dataclasses.replace(CultureSPASettings().train, longest_example=10)
    with pytest.raises(UserError, match=r"`train.longest_example` 10: .* tokens; give more"):
        inputs(train=train)


def written_with(found: Inputs, row_length: int, out: Path, monkeypatch) -> tuple[Survey, dict]:
    """Questions and counts where every fifth question is a long one."""
    train = dataclasses.replace(CultureSPASettings().train, longest_example=row_length)
    settings = CultureSPASettings(
        per_topic=10, seeds=1, countries=("USA", "CHN"), train=train, batch_size=64
    )

    def reply(_, ids: list[int]) -> list[str]:
        words = ("Is it " + "very " * (100 * (n % 5 == 0)) + f"true that {n} is odd?" for n in ids)
        return [json.dumps({"question": w, "options": ["Yes", "No"]}) for w in words]

    monkeypatch.setattr(pipeline, "model_writer", lambda *_, **__: FunctionWriter(reply))
    out.mkdir()
    experiment = Experiment(settings, found, LM(found.files, {}, None), out)
    questions, counts = pipeline.write_all(experiment)
    for model in ("joint", "cct"):  # as step 4 does, under p1 and p2
        pairs = [Pair(c, i.id, 2) for c in settings.countries for i in questions[0].items]
        selection = Selection.of(pairs)
        examples = training_examples(experiment, questions[0], selection, model, 0)
        check_lengths(examples.lengths, row_length)
    return questions[0], counts[0]


def test_written_questions_too_long_for_a_row_are_left_out_and_counted(tmp_path, monkeypatch):
    """Found out when fine-tuning begins, one of them ends a run whose long steps are done."""
    found = inputs(countries=("USA", "CHN"))
    room = max(
        example_lengths(CultureSPASettings(countries=("USA", "CHN")), found, found.survey.items)
    )
    questions, counts = written_with(found, room, tmp_path / "short", monkeypatch)
    assert all(item.text.startswith("Is it true") for item in questions.items)
    assert counts["removed"]["too_long"] == counts["parsed"] // 5
    assert counts["left"] == len(questions.items) == counts["parsed"] * 4 // 5
    questions, counts = written_with(found, 10 * room, tmp_path / "long", monkeypatch)
    assert counts["removed"]["too_long"] == 0
    assert counts["left"] == len(questions.items) == counts["parsed"]
    with pytest.raises(UserError, match=r"`train.longest_example` 20: fits none of the \d+"):
        written_with(found, 20, tmp_path / "none", monkeypatch)


def survey_of(tmp_path: Path, *countries: str, items: int | None = None) -> Path:
    """The simulated survey of some countries and items; a name after "=" stands for the country."""
    whole = held_out_survey()
    whole = whole.subset({item.id for item in whole.items[:items]})
    shares = {c.split("=")[-1]: whole.distributions[c.split("=")[0]] for c in countries}
    return write(tmp_path / "survey.json", dataclasses.replace(whole, distributions=shares))


def test_a_survey_of_few_countries_and_items_can_run(tmp_path, caplog):
    survey = survey_of(tmp_path, "USA", "CHN", "SWE", "POL", items=3)
    with caplog.at_level("INFO", "jaxalign"):
        found = inputs(survey=survey, countries=("USA", "CHN"))
    said = caplog.text
    assert "P2 names 3 other countries instead of 6" in said
    assert "P3 shows 2 examples before some questions instead of 5" in said
    [p2] = found.prompts.lead_in("p2", "USA", found.survey.items[0])
    assert all(name in p2["content"] for name in ("China", "Sweden", "Poland"))


def test_neighbours_are_the_surveys_where_the_papers_are_too_few(tmp_path):
    others = ("SWE", "POL", "FRA", "ITA", "ESP", "AUT", "FIN", "PRT")
    survey = survey_of(tmp_path, *others)
    assert inputs(survey=survey, countries=("SWE", "POL")).prompts.groups == others
    assert "SWE" not in inputs().prompts.groups


def test_countries_without_published_scores_have_a_name(tmp_path, caplog):
    survey = survey_of(tmp_path, "USA", "CHN=TJK", "SWE=Kosovo")
    with caplog.at_level("INFO", "jaxalign"):
        found = inputs(survey=survey, countries=("USA", "TJK", "Kosovo"))
    item = found.survey.items[0]
    assert "from Tajikistan," in found.prompts.lead_in("p1", "TJK", item)[0]["content"]
    assert "from Kosovo," in found.prompts.lead_in("p1", "Kosovo", item)[0]["content"]
    assert "as the survey calls them: Kosovo" in caplog.text


def test_a_csv_of_ones_own_comes_with_its_shares(tmp_path):
    files = own_csv(tmp_path, ("USA", "CHN", "NGA"))
    found = inputs(**files, countries=("USA", "CHN"))
    assert set(found.survey.distributions) == {"USA", "CHN", "NGA"}
    targets = read_answered(files["survey"], "survey", files["distributions"], worded=False)
    assert targets.distributions == found.survey.distributions
    for refuse in (
        lambda: inputs(survey=files["survey"]),
        lambda: read_answered(files["survey"], "survey", worded=False),
    ):
        with pytest.raises(UserError, match=r"own\.csv: it does not say .* `distributions`"):
            refuse()


def test_shares_that_nothing_reads_are_refused(tmp_path):
    files = own_csv(tmp_path, ("USA", "CHN"))
    with pytest.raises(UserError, match=r"`distributions` .*shares\.csv: goes with a `survey`"):
        inputs(distributions=files["distributions"])
    json_file = survey_of(tmp_path, "USA", "CHN")
    with pytest.raises(UserError, match=r"`distributions` .*shares\.csv: .* is own-json"):
        inputs(survey=json_file, distributions=files["distributions"], countries=("USA", "CHN"))


def test_a_source_in_a_csv_of_ones_own_comes_with_its_shares(tmp_path):
    files = own_csv(tmp_path, ("USA", "CHN", "NGA"))
    source, shares = files["survey"], files["distributions"]
    survey = survey_of(tmp_path, "USA", "CHN", items=3)
    settings = {"survey": survey, "countries": ("USA", "CHN"), "examples": "leak_free"}
    found = inputs(**settings, source=source, source_distributions=shares)
    assert set(found.prompts.shown.distributions) == {"USA", "CHN", "NGA"}
    assert set(found.survey.distributions) == {"USA", "CHN"}
    with pytest.raises(UserError, match=r"`source` .*own\.csv: .* `source_distributions`"):
        inputs(**settings, source=source)
    with pytest.raises(UserError, match=r"`source_distributions` .*shares\.csv: .* is own-json"):
        inputs(**settings, source=survey, source_distributions=shares)
    with pytest.raises(UserError, match=r"`source_distributions` .*: goes with a `source` of"):
        inputs(source_distributions=shares)


def test_groups_need_not_be_countries(tmp_path):
    """Any name that the survey has; an adapter's folder can be made of it and read back."""
    survey = survey_of(tmp_path, "USA=men", "CHN=women", "SWE=Asian/Pacific Islander")
    groups = ("men", "Asian/Pacific Islander")
    found = inputs(survey=survey, countries=groups)
    item = found.survey.items[0]
    assert "from men," in found.prompts.lead_in("p1", "men", item)[0]["content"]
    [p2] = found.prompts.lead_in("p2", "men", item)
    assert "Asian/Pacific Islander" in p2["content"]
    names = [(0, f"specific-{group}") for group in groups] + [(0, "joint")]
    for name in names:
        adapter_folder(tmp_path, name).mkdir(parents=True)
    assert sorted(adapter_names(tmp_path)) == sorted(names)
    assert adapter_folder(tmp_path, (0, "specific-USA")).name == "specific-USA"


def real_files(**changes) -> ModelFiles:
    """The pocket model's config and tokenizer under another folder, as a real model has."""
    files = open_model()
    return dataclasses.replace(files, folder=Path("/models/llama"), **changes)


def test_a_real_model_gets_the_papers_settings_and_the_pocket_model_its_own():
    """Every replaced setting is said once, with its source; given ones are left alone."""
    settings = CultureSPASettings(seeds=3)
    real, notes = resolve_settings(settings, real_files())
    assert (real.per_topic, real.seeds, real.lora) == (1000, 3, LoraConfig(8, 16.0))
    assert real.train == resolve_training(TrainConfig(), config=real_files().config)[0]
    assert (real.train.batch, real.train.learning_rate, real.specific_batch) == (128, 1e-4, 8)
    assert (real.p3_choice, real.p3_form) == ("similar", "one_message")
    assert "form of P3 one message (the paper's; give `p3_form` to change)" in notes
    assert (real.train.remat, real.train.unroll, real.end_of_turn) == (False, False, False)
    expected = "learning rate 1e-4 (the paper's; give `train.learning_rate` to change)"
    assert notes.count(expected) == 1
    assert not any("seeds" in note for note in notes)
    pocket, notes = resolve_settings(CultureSPASettings(), open_model())
    assert (pocket.per_topic, pocket.seeds, pocket.batch_size) == (12, 5, None)
    assert pocket.block_tokens == 4096
    assert (pocket.p3_choice, pocket.p3_form) == ("topics", "turns")
    assert (pocket.train.batch, pocket.train.learning_rate) == (8, 1e-2)
    assert (pocket.train.remat, pocket.train.unroll) == (False, True)
    assert "learning rate 1e-2 (measured on the pocket model; give `train.lea" in "\n".join(notes)
    assert resolve_settings(pocket, open_model()) == (pocket, ())


def test_each_default_says_where_it_comes_from():
    """Nothing that was measured on the pocket model reaches a real one; read off the values, so
    that a resumed run, which is given all of them, says the same."""
    record = settings_of(CultureSPASettings(), fixed_only=True)
    found = {}
    for name, files in (("pocket", open_model()), ("real", real_files())):
        settings, _ = resolve_settings(CultureSPASettings(seeds=3), files)
        found[name] = setting_sources(settings, files)
        again, _ = resolve_settings(settings, files)
        assert setting_sources(again, files) == found[name]
        assert found[name].keys() <= record.keys()
        assert found[name]["seeds"] == "given"
        assert found[name]["lora.rank"] == "the paper's"
    assert found["pocket"]["train.learning_rate"] == "measured on the pocket model"
    assert found["real"]["train.learning_rate"] == "the paper's"
    for name, source in found["real"].items():
        assert "pocket" not in source or name == "guard"
    given, _ = resolve_settings(CultureSPASettings(guard_tasks=("mmlu",)), real_files())
    assert "guard" not in setting_sources(given, real_files())


def test_the_documented_command_for_8b_gives_what_no_default_can():
    """The rest follows the model."""
    text = culturespa.__doc__
    lines = text[text.index("jaxalign culturespa --model") :].splitlines()
    last = next(i for i, line in enumerate(lines) if not line.endswith("\\"))
    command = " ".join(line.rstrip("\\").strip() for line in lines[: last + 1]).split()
    settings = tyro.cli(CultureSPASettings, args=command[2:])
    assert settings.countries == CULTURES
    assert settings.train == TrainConfig()
    assert (settings.per_topic, settings.seeds) == (None, None)


@pytest.mark.parametrize(
    ("presentations", "message"),
    [
        (("A", "E"), "`presentations` E: choose from A, B, C, D"),
        (("A", "A"), "`presentations`: A is there twice"),
        (
            ("orders",),
            "written questions have any number of options; choose from A, B, C, D, letters",
        ),
        (("A", "order-21"), "`presentations` order-21: written questions have any number"),
        ((), "`presentations`: give at least one"),
    ],
)
def test_presentations_that_no_run_can_have(presentations, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_settings(CultureSPASettings(presentations=presentations))


def test_a_real_model_is_asked_in_two_presentations_and_the_pocket_model_in_one():
    pocket = open_model()
    real = ModelFiles(Path("/models/real"), pocket.config, pocket.tokenizer)
    for files, expected in ((pocket, ("A",)), (real, ("A", "B"))):
        settings, notes = resolve_settings(CultureSPASettings(), files)
        assert settings.presentations == expected
        line = f"forms in which questions are shown {' and '.join(expected)} ("
        assert any(note.startswith(line) for note in notes)
    given, notes = resolve_settings(CultureSPASettings(presentations=("D",)), real)
    assert given.presentations == ("D",)
    assert not any("forms" in note for note in notes)


def test_a_quick_look_writes_few_questions_under_one_seed():
    for files in (open_model(), real_files()):
        settings, _ = resolve_settings(CultureSPASettings(limit=3), files)
        assert (settings.per_topic, settings.seeds) == (3, 1)
        given, _ = resolve_settings(CultureSPASettings(limit=1, seeds=2), files)
        assert (given.per_topic, given.seeds) == (2, 2)
