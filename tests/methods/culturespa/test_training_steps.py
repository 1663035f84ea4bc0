"""Step 4 trains in the programs that were checked before step 1, or in others that are checked."""

from __future__ import annotations

import dataclasses
import json
import logging
import re

import jax
import numpy as np
import pytest

from jaxalign.lm.model import ModelFiles, open_model
from jaxalign.methods.culturespa import CultureSPASettings, pipeline, training_steps
from jaxalign.methods.culturespa.inputs import read_inputs
from jaxalign.methods.culturespa.programs import expected_steps, small_run, stand_ins
from jaxalign.methods.culturespa.settings import resolve_settings
from jaxalign.pocket.society import held_out_survey
from jaxalign.runtime.sharding import make_mesh
from jaxalign.surveys.survey import Survey, to_json
from jaxalign.training.step import TrainConfig


@pytest.fixture(scope="module")
def run():
    """Settings, inputs, a mesh and the sizes that a run would train with."""
    settings = CultureSPASettings(countries=("USA", "CHN"), per_topic=3, seeds=1)
    settings, _ = resolve_settings(settings, open_model())
    inputs, mesh = read_inputs(settings), make_mesh(jax.devices()[:1])
    return settings, inputs, mesh, expected_steps(settings, inputs, mesh)


def test_the_sizes_hold_the_surveys_questions_and_longer_ones(run, tmp_path):
    settings, inputs, _, steps = run
    assert (steps.shared.adapters, steps.specific.adapters) == (4, 2)
    questions = stand_ins(inputs.survey, settings)
    assert training_steps.are_held(steps, settings, inputs, questions)
    # The longest question with a few words more.
    longest = max(inputs.survey.items, key=lambda item: len(f"{item.stem} {item.text}"))
    longer = dataclasses.replace(longest, id="longer", text=f"{longest.text} for you and for me")
    (survey,) = questions.values()
    questions = {0: dataclasses.replace(survey, items=(longer, *survey.items))}
    assert training_steps.are_held(steps, settings, inputs, questions)


def test_sizes_are_chosen_again_for_questions_that_are_too_long(run):
    settings, inputs, mesh, steps = run
    item = inputs.survey.items[0]
    long = dataclasses.replace(item, id="long", text=" ".join(["again and"] * 200))
    questions = {0: Survey("questions", "", "", "paraphrase", (item, long))}
    assert not training_steps.are_held(steps, settings, inputs, questions)
    found = training_steps.plan_steps(settings, inputs, mesh, None, questions)
    assert training_steps.are_held(found, settings, inputs, questions)
    assert found.shared.window > 400 > steps.shared.window


def test_an_example_is_as_long_as_the_user_allows(run):
    settings, inputs, mesh, _ = run
    train = dataclasses.replace(settings.train, longest_example=300)
    steps = expected_steps(dataclasses.replace(settings, train=train), inputs, mesh)
    assert steps.shared.window == steps.specific.window == 300


def test_sizes_are_kept_for_a_resumed_run(run, tmp_path):
    *_, steps = run
    assert not training_steps.has_chosen(tmp_path)
    assert training_steps.read_steps(tmp_path) is None
    training_steps.write_steps(tmp_path, steps)
    assert training_steps.has_chosen(tmp_path)
    assert training_steps.read_steps(tmp_path) == steps


def test_only_a_run_that_takes_little_memory_is_not_checked(run):
    settings, inputs, mesh, _ = run
    assert small_run(settings, inputs, mesh, 16 * 2**30).startswith("memory: at most 0.")
    assert small_run(settings, inputs, mesh, 2**30) is None
    assert small_run(settings, inputs, mesh, None) is None
    many = dataclasses.replace(settings, seeds=1000)
    assert small_run(many, inputs, mesh, 16 * 2**30) is None


class Compiled(logging.Handler):
    """The names of the programs that JAX compiles, by the stage of the run in which it does."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def emit(self, record):
        if found := re.match(r"Compiling jit\((\w+)\)", record.getMessage()):
            self.names.append(found.group(1))


@pytest.mark.long
def test_a_run_executes_the_programs_that_were_checked(monkeypatch, tmp_path):
    """Nothing but the blocks of the written questions is compiled after the check."""
    survey = held_out_survey()
    topics = sorted({item.topic for item in survey.items})[:2]
    small = survey.subset({item.id for item in survey.items if item.topic in topics})
    (tmp_path / "survey.json").write_text(json.dumps(to_json(small)), "utf-8")
    monkeypatch.setattr(ModelFiles, "is_pocket", False)  # as if it were a real model
    settings = CultureSPASettings(
        out=tmp_path / "run",
        dtype="float32",
        survey=tmp_path / "survey.json",
        countries=("USA", "CHN"),
        per_topic=4,
        batch_size=8,
        block_tokens=1024,
        specific_batch=2,
        resamples=20,
        train=TrainConfig(batch=2, learning_rate=1e-2, tokens_per_pass=512),
    )
    writing = dataclasses.replace(settings.writing, max_new_tokens=96)
    large = {"step", "answer_blocks", "prefill_program", "segment_program", "fork_program"}
    compiled, by_stage = Compiled(), {}

    def watched(name):
        stage = getattr(pipeline, name)

        def watch(*arguments, **keywords):
            compiled.names.clear()
            result = stage(*arguments, **keywords)
            by_stage[name] = [n for n in compiled.names if n in large]
            return result

        monkeypatch.setattr(pipeline, name, watch)

    stages = "check_memory", "write_all", "answer_survey", "answer_written", "measure"
    for name in (*stages, "fine_tune_all"):
        watched(name)
    logger = logging.getLogger("jax")
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(compiled)
    try:
        with jax.log_compiles():
            result = pipeline.run_culturespa(dataclasses.replace(settings, writing=writing))
    finally:
        logger.removeHandler(compiled)
    checked = by_stage.pop("check_memory")
    assert checked.count("step") == 2
    assert set(checked) == large
    assert set(by_stage.pop("answer_written")) <= {"answer_blocks"}
    assert by_stage == {
        name: [] for name in ("write_all", "answer_survey", "fine_tune_all", "measure")
    }
    assert training_steps.read_steps(result.out) is not None
    joint = result.adapters[0, "joint"]
    assert np.abs(joint.weights["last"]["q_b"]).max() > 0
