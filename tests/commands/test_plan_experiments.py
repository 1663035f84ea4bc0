"""Plans of whole experiments: every program is listed, with the sizes that a run would choose."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import jax
import pytest

from jaxalign.cli import run_command
from jaxalign.commands.plan import experiments
from jaxalign.commands.plan.experiments import ExperimentPlan, plan_experiment
from jaxalign.commands.plan.planning import PlanSettings
from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig, config_to_hf
from jaxalign.lm.mesh import weight_bytes
from jaxalign.lm.model import ModelFiles, open_model
from jaxalign.methods.culturespa import CultureSPASettings
from jaxalign.methods.culturespa import programs as culturespa
from jaxalign.methods.culturespa.inputs import read_inputs
from jaxalign.methods.culturespa.settings import resolve_settings
from jaxalign.methods.soft_prompt import programs as soft_prompt
from jaxalign.methods.soft_prompt.problem import read_problem
from jaxalign.methods.soft_prompt.search import choose_execution
from jaxalign.methods.soft_prompt.settings import Settings
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.pocket.society import held_out_survey
from jaxalign.runtime.memory import Memory
from jaxalign.runtime.programs import Need
from jaxalign.runtime.sharding import make_mesh

GIB = 2**30
# The pocket model's tokens in two layers; nothing reads weights.
TINY = LlamaConfig(1792, 32, 48, 2, 4, 2, 8, param_dtype="float32", dtype="float32")
SOFT_PROMPT = [
    ("baselines", "answers to both surveys, baselines"),
    ("search", "first generation"),
    ("search", "generations of the search"),
    ("gradient control", "steps of the gradient control"),
    ("tuned prompts", "answers to both surveys, tuned prompts"),
]


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder that a plan can read: a config and a tokenizer."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    for file in MODEL_FOLDER.iterdir():
        if file.suffix in (".json", ".jinja") and file.name != "config.json":
            (folder / file.name).symlink_to(file)
    (folder / "config.json").write_text(json.dumps(config_to_hf(TINY)), "utf-8")
    return str(folder)


@pytest.fixture
def measured(monkeypatch) -> dict[str, int]:
    """Replace the compiler: every program has as many bytes of temporaries as are set here."""
    temporaries: dict[str, int] = {}

    def measure(program):
        return Need(program, Memory(GIB, 0, 0, temporaries.get(program.name, 0)), 1.0)

    monkeypatch.setattr(experiments, "measure_program", measure)
    monkeypatch.setattr(soft_prompt, "measure_program", measure)
    return temporaries


def planned(model: str, experiment: str, topology: str = "cpu:16", **changes) -> ExperimentPlan:
    settings = PlanSettings(
        experiment=experiment, topology=topology, model=model, countries=("2",), **changes
    )
    return plan_experiment(settings)


def test_every_program_of_a_soft_prompt_run(model, measured):
    plan = planned(model, "soft-prompt")
    assert [(need.program.stage, need.program.name) for need in plan.needs] == SOFT_PROMPT
    assert len(plan.rows()) == len(SOFT_PROMPT)
    assert plan.summary().startswith("5 programs compiled, all fit; the largest is")
    assert plan.host_seconds < 60


def test_every_program_of_a_culturespa_run(model, measured):
    plan = planned(model, "culturespa", per_topic=3, seeds=2)
    stages = [need.program.stage for need in plan.needs]
    assert sorted(set(stages)) == ["answer", "fine-tune", "measure", "write"]
    names = [need.program.name for need in plan.needs]
    for name in ("fork", "start", "answers to the survey", "answers to the written questions"):
        assert name in names
    assert "a step of the models of all countries, 8 of 8 at a time" in names
    assert "a step of the models of single countries, 4 of 4 at a time" in names
    assert names[-6:] == [
        "answers to the survey, a model of all countries",
        "answers to the survey, a model of a single country",
        "answers to the guard, the unchanged model",
        "answers to the guard, a fine-tuned model",
        "answers to the survey in the other styles, a model of all countries",
        "answers to the survey in the other styles, a model of a single country",
    ]
    # Weights are on the device while caches are copied, although they are no arguments of that.
    (fork,) = (need for need in plan.needs if need.program.name == "fork")
    assert fork.program.beside_bytes == weight_bytes(open_model(model).config)


def test_sampled_answers_are_other_programs(model, measured):
    plan = planned(model, "culturespa", per_topic=3, seeds=1, reading="sampled")
    names = [need.program.name for need in plan.needs if need.program.stage == "answer"]
    assert any(name.startswith("decode") and name.endswith("the survey") for name in names)
    assert not any(name.startswith("answers to the survey") for name in names)


def test_a_culturespa_plan_takes_what_changes_its_programs(model, measured, tmp_path):
    """Fewer replies at a time, no styles for fine-tuned models, and questions held to a form."""
    changes = {"per_topic": 3, "seeds": 1, "batch_size": 8, "prompting": False}
    plan = planned(model, "culturespa", constrain=True, **changes)
    names = [need.program.name for need in plan.needs]
    assert "decode 8 rows" in names
    assert "decode 16 rows" not in names
    assert not any("other styles" in name for name in names)
    (start,) = (need.program.lower() for need in plan.needs if need.program.name == "start")
    # The table of the form is an argument of the programs that draw tokens.
    free = planned(model, "culturespa", **changes)
    (without,) = (need.program.lower() for need in free.needs if need.program.name == "start")
    arguments = [len(jax.tree.leaves(lowered.in_avals)) for lowered in (start, without)]
    assert arguments[0] > arguments[1]


def test_a_culturespa_plan_counts_presentations(model, measured, monkeypatch, caplog):
    """Of a real model two by default; each question is asked in every one."""
    sizes: list[int] = []
    cut = culturespa.plan_blocks

    def plan_blocks(conversations, tokens):
        sizes.append(len(conversations))
        return cut(conversations, tokens)

    monkeypatch.setattr(culturespa, "plan_blocks", plan_blocks)
    caplog.set_level(logging.INFO, "jaxalign")
    by_forms = []
    for presentations in (None, ("A",), ("A", "B", "C", "D")):
        sizes.clear()
        planned(model, "culturespa", per_topic=2, seeds=1, presentations=presentations)
        by_forms.append(sizes[:2])  # the survey, and the written questions
    lines = [line for line in caplog.messages if line.startswith("the survey: ")]
    assert f"{by_forms[-1][0]:,} conversations" in lines[-1]
    two, one, four = by_forms
    assert two == [2 * size for size in one]
    assert four == [4 * size for size in one]


def test_a_culturespa_plan_of_existing_questions_writes_nothing(model, measured, tmp_path):
    rows = [
        {"question": f"Does {what} matter?", "option_lst": ["1. Yes", "2. No"], "class": "Trust"}
        for what in ("honesty", "the law")
    ]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(rows), "utf-8")
    plan = planned(model, "culturespa", seeds=1, questions=(path,))
    assert "write" not in [need.program.stage for need in plan.needs]
    with pytest.raises(UserError, match="nothing is written with `questions`"):
        planned(model, "culturespa", seeds=1, questions=(path,), constrain=True)


def test_a_program_that_does_not_fit_is_named(model, measured, capsys):
    measured["answers to both surveys, tuned prompts"] = 15 * GIB
    plan = planned(model, "soft-prompt")
    assert [need.program.stage for need in plan.too_large] == ["tuned prompts"]
    arguments = ("--experiment", "soft-prompt", "--topology", "cpu:16", "--countries", "2")
    with pytest.raises(SystemExit) as stopped:
        run_command("plan", [*arguments, "--model", model])
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert "1 of 5 programs do not fit: answers to both surveys, tuned prompts" in printed.err
    assert "gradient control" in printed.out  # the table comes all the same


def test_fewer_prompts_at_a_time_where_memory_is_short(model, monkeypatch):
    """As a run does: the search's chunk is halved until it fits."""
    tried = []

    def measure(program):
        tried.append(program.name)
        return Need(program, Memory(10 * GIB if len(tried) < 3 else GIB, 0, 0, 0), 1.0)

    monkeypatch.setattr(soft_prompt, "measure_program", measure)
    settings = Settings(countries=("USA", "CHN"), presentations=("A",))
    problem = read_problem(settings, open_model(model))
    mesh = make_mesh(jax.devices()[:1])
    wanted = choose_execution(problem, mesh, {"attention": "xla", "chunk": 0})
    found = soft_prompt.fitting_search(problem, mesh, wanted, 8 * GIB)
    assert found.execution.chunk == wanted.chunk // 4
    fixed = dataclasses.replace(wanted, fixed=True)
    assert soft_prompt.fitting_search(problem, mesh, fixed, 8 * GIB).execution == fixed


def test_stand_ins_are_as_long_as_the_surveys_questions_and_differ():
    survey = held_out_survey()
    settings, _ = resolve_settings(CultureSPASettings(per_topic=40, seeds=2), open_model())
    stand_ins = culturespa.stand_ins(survey, settings)
    assert list(stand_ins) == [0, 1]
    topics = {item.topic for item in survey.items}
    for questions in stand_ins.values():
        assert len(questions.items) == 40 * len(topics)
        longest = max(len(f"{item.stem} {item.text}".split()) for item in survey.items)
        assert max(len(item.text.split()) for item in questions.items) == longest
    texts = [{item.text for item in questions.items} for questions in stand_ins.values()]
    assert len(texts[0] - texts[1]) > 0.9 * len(texts[0])
    assert len(culturespa.stand_ins(survey, settings, most=2)[0].items) == 2 * len(topics)


def test_more_countries_than_the_survey_has(model):
    with pytest.raises(UserError, match=r"`countries` 99: survey .* has"):
        plan_experiment(
            PlanSettings(
                experiment="soft-prompt", topology="cpu:16", model=model, countries=("99",)
            )
        )


@pytest.mark.long
def test_a_run_is_refused_by_the_program_that_does_not_fit(monkeypatch, tmp_path):
    """A device with little memory: the message names the program, and nothing is loaded."""
    config = dataclasses.replace(open_model().config, num_hidden_layers=2)
    files = ModelFiles(Path("/models/tiny"), config, open_model().tokenizer)
    settings, _ = resolve_settings(
        CultureSPASettings(countries=("USA", "CHN"), per_topic=2, seeds=1), files
    )
    inputs = read_inputs(settings, files)
    monkeypatch.setattr(
        "jaxalign.runtime.programs.available_bytes", lambda device: weight_bytes(config)
    )
    with pytest.raises(UserError) as refused:
        culturespa.check_run(settings, inputs, make_mesh(jax.devices()[:1]))
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith("out of memory foreseen: prefill")
    assert "(stage 'write')" in message
    assert "lower `batch_size`" in message


@pytest.mark.long
def test_plans_of_the_pocket_model_compile_and_fit():
    for experiment in ("soft-prompt", "culturespa"):
        plan = planned(str(MODEL_FOLDER), experiment, per_topic=4, seeds=1)
        assert not plan.too_large
        assert all(need.memory.arguments > 0 for need in plan.needs)
