"""The same prompts have one loss: in the search, in the final scoring, and in `ask`."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxalign as ja
from jaxalign.lm.checkpoint import save_checkpoint
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.weights import init_params
from jaxalign.methods.soft_prompt import Settings, SoftPrompt, SoftPromptConfig
from jaxalign.methods.soft_prompt.answers import ask_tuned
from jaxalign.methods.soft_prompt.fitness import make_fitness
from jaxalign.methods.soft_prompt.problem import read_problem
from jaxalign.methods.soft_prompt.search import ExecutionPlan, build_search
from jaxalign.optim.strategy import Strategy
from jaxalign.pocket import MODEL_FOLDER

MOST_POINTS = 0.01
# Sharper than a model at its initialisation, so that losses differ by hundreds of points.
TINY = LlamaConfig(
    1792, 16, 24, 2, 2, 1, 8, dtype="float32", param_dtype="float32", initializer_range=0.6
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A model of two layers with the pocket model's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_FOLDER / name, folder)
    save_checkpoint(folder, init_params(TINY, jax.random.key(0)), TINY)
    return folder


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
def test_search_scoring_and_ask_agree(tiny, presentations, answer, placement):
    settings = Settings(
        model=str(tiny),
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
    problem, lm = read_problem(settings), ja.load_model(str(tiny), dtype="float32")
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
