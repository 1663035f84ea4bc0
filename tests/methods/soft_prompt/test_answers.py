"""What a run compares is asked in blocks that are kept: a killed run asks nothing twice."""

from __future__ import annotations

import dataclasses
import shutil

import jax
import numpy as np
import pytest

import jaxalign as ja
from jaxalign.answering import block_program
from jaxalign.answering.options import option_log_probs, prepare_items
from jaxalign.lm.checkpoint import save_checkpoint
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.model import load_model
from jaxalign.lm.weights import init_params
from jaxalign.methods.soft_prompt import Settings, SoftPrompt, SoftPromptConfig
from jaxalign.methods.soft_prompt.answers import ask_baselines, ask_tuned
from jaxalign.methods.soft_prompt.fitness import make_fitness
from jaxalign.methods.soft_prompt.problem import read_problem
from jaxalign.methods.soft_prompt.programs import SearchPrograms, plan_answers, run_programs
from jaxalign.methods.soft_prompt.search import ExecutionPlan, build_search
from jaxalign.optim.strategy import Strategy
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.runtime.sharding import make_mesh

TINY = LlamaConfig(
    1792, 16, 24, 2, 2, 1, 8, dtype="float32", param_dtype="float32", initializer_range=0.3
)
COUNTRIES = ("USA", "CHN")
MOST_POINTS = 0.01  # between the search, the final scoring and `ask` in float32


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model of two layers with the pocket model's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_FOLDER / name, folder)
    save_checkpoint(folder, init_params(TINY, jax.random.key(0)), TINY)
    return folder


@pytest.fixture(scope="module")
def sharp(tmp_path_factory):
    """The same, but with losses that differ by hundreds of points."""
    folder = tmp_path_factory.mktemp("sharp")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_FOLDER / name, folder)
    config = dataclasses.replace(TINY, initializer_range=0.6)
    save_checkpoint(folder, init_params(config, jax.random.key(0)), config)
    return folder


def problem_of(folder, placement="front"):
    prompt = SoftPromptConfig(length=2, placement=placement)
    return read_problem(
        Settings(model=folder, dtype="float32", countries=COUNTRIES, prompt=prompt, icl_examples=1)
    )


def same(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.methods.keys() == other.methods.keys()
        for method, answers in one.methods.items():
            expected = other.methods[method]
            np.testing.assert_array_equal(answers.log_probs_SxCxFxQxO, expected.log_probs_SxCxFxQxO)
            np.testing.assert_array_equal(answers.valid_mass_SxCxFxQ, expected.valid_mass_SxCxFxQ)


def test_what_is_answered_is_not_asked_again(tiny, tmp_path, monkeypatch, devices):
    problem = problem_of(tiny)
    lm = load_model(problem.model, mesh=make_mesh(devices[:1]))
    prompts = {
        name: np.random.default_rng(i).normal(0, 0.3, (2, 2, 16)).astype(np.float32)
        for i, name in enumerate(("start", "tuned"))
    }
    rounds, limit, program = [], [2], block_program.answer_blocks

    def counting(*args):
        if len(rounds) == limit[0]:
            raise KeyboardInterrupt
        rounds.append(args)
        return program(*args)

    monkeypatch.setattr(block_program, "answer_blocks", counting)
    for ask in (
        lambda folder: ask_baselines(problem, lm, folder),
        lambda folder: ask_tuned(problem, lm, prompts, folder)[0],
    ):
        limit[0] = 2
        rounds.clear()
        with pytest.raises(KeyboardInterrupt):
            ask(tmp_path)
        limit[0] = None
        first = ask(tmp_path)
        asked = len(rounds)
        assert asked > 2
        rounds.clear()
        same(ask(tmp_path), first)
        assert not rounds
        same(ask(None), first)
        assert len(rounds) == asked - 1  # of the two under way when killed, one was kept
    # Another prompt is another file.
    rounds.clear()
    ask_tuned(problem, lm, prompts | {"tuned": prompts["start"]}, tmp_path)
    assert rounds
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.long
@pytest.mark.parametrize("placement", ["front", "after"])
def test_tuned_prompts_answer_as_in_the_search(tiny, placement, devices):
    problem = problem_of(tiny, placement)
    lm = load_model(problem.model, mesh=make_mesh(devices[:1]))
    prompts_CxMxD = 0.3 * jax.random.normal(jax.random.key(1), (2, 2, 16))
    (tuned, held_out), _ = ask_tuned(problem, lm, {"tuned": prompts_CxMxD})
    assert held_out.log_probs("tuned").shape[:2] == (1, len(COUNTRIES))
    items = prepare_items(lm.config, lm.params, problem.layout)
    expected = problem.asked.mean_log_probs(option_log_probs(lm.config, items, prompts_CxMxD, 2))
    np.testing.assert_allclose(tuned.log_probs("tuned")[0], expected, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(
    ("presentations", "answer", "placement"),
    [
        (("A",), "number", "front"),
        (("A", "B"), "number", "front"),
        (("A", "letters", "D"), "number", "system"),
        (("A", "B"), "number", "after"),
        (("A",), "label", "front"),
        (("A",), "label-per-token", "front"),
        (("A",), "label-against-prior", "front"),
    ],
)
def test_search_scoring_and_ask_agree(sharp, presentations, answer, placement):
    settings = Settings(
        model=str(sharp),
        dtype="float32",
        countries=("USA", "CHN"),
        seeds=(0, 1),
        presentations=presentations,
        test_presentations=(),
        answer=answer,
        prompt=SoftPromptConfig(length=2, placement=placement),
        strategy=Strategy(population=4),
        generations=1,
        icl_examples=0,
    )
    problem, lm = read_problem(settings), ja.load_model(str(sharp), dtype="float32")
    search = build_search(problem, lm, ExecutionPlan(4, "xla", fixed=True))
    entries = len(settings.entries)
    z_CxZ = jax.random.normal(jax.random.key(7), (entries, search.evolution.num_dims))
    fitness = make_fitness(lm.config, 4, read=problem.read)
    in_search_C = np.asarray(jax.jit(fitness)(z_CxZ, np.arange(entries), search.inputs))
    prompts_CxMxD = np.asarray(search.prompts(z_CxZ))

    def losses(log_probs_xQxO: np.ndarray) -> np.ndarray:
        """Of one set of answers per entry; the objective counts countries."""
        groups = [settings.countries.index(group) for group, _ in settings.entries]
        found = zip(log_probs_xQxO, groups, strict=True)
        return np.array([float(search.objective.measure(x, c)["loss"]) for x, c in found])

    (tuned, _), _ = ask_tuned(problem, lm, {"tuned": prompts_CxMxD})
    log_probs_SxCxQxO = tuned.log_probs("tuned")
    in_scoring_C = losses(log_probs_SxCxQxO.reshape(-1, *log_probs_SxCxQxO.shape[2:]))
    conditions = [
        SoftPrompt(prompt, placement, group=str(number))
        for number, prompt in enumerate(prompts_CxMxD)
    ]
    responses = ja.ask(
        lm,
        ja.surveys.vsm(),
        conditions,
        presentations=presentations,
        reading=ja.Exact(answer=answer),
    )
    in_ask_C = losses(responses.log_probs)
    assert np.ptp(in_search_C) > 1, "prompts that all have one loss would prove nothing"
    np.testing.assert_allclose(in_scoring_C, in_search_C, rtol=0, atol=MOST_POINTS)
    np.testing.assert_allclose(in_ask_C, in_search_C, rtol=0, atol=MOST_POINTS)


def test_the_programs_that_are_checked_read_answers_as_the_run_does(monkeypatch):
    """Another way of reading is another program: the checked one would not be the one that runs."""
    asked = []

    def remembered(*arguments, **named):
        asked.append(named["per_token"])
        return block_program.answer_program(*arguments, **named)

    monkeypatch.setattr("jaxalign.methods.soft_prompt.programs.answer_program", remembered)
    mesh = make_mesh()
    for answer in ("label", "label-per-token"):
        problem = read_problem(Settings(countries=("USA",), answer=answer, icl_examples=0))
        search = SearchPrograms(ExecutionPlan(4, "xla", fixed=True), ())
        run_programs(problem, mesh, search, plan_answers(problem))
        assert set(asked) == {answer == "label-per-token"}
        asked.clear()
