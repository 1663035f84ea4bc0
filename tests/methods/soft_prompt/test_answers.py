"""What a run compares is asked in blocks that are kept: a killed run asks nothing twice."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest

from jaxalign.answering import block_program
from jaxalign.answering.options import option_log_probs, prepare_items
from jaxalign.lm.checkpoint import save_checkpoint
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.model import load_model
from jaxalign.lm.weights import init_params
from jaxalign.methods.soft_prompt import Settings, SoftPromptConfig
from jaxalign.methods.soft_prompt.answers import ask_baselines, ask_tuned
from jaxalign.methods.soft_prompt.problem import read_problem
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.runtime.sharding import make_mesh

TINY = LlamaConfig(
    1792, 16, 24, 2, 2, 1, 8, dtype="float32", param_dtype="float32", initializer_range=0.3
)
COUNTRIES = ("USA", "CHN")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model of two layers with the pocket model's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_FOLDER / name, folder)
    save_checkpoint(folder, init_params(TINY, jax.random.key(0)), TINY)
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
