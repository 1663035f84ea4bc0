"""How a search is computed: chosen once, and kept by a run that goes on."""

from __future__ import annotations

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from jaxalign.commands import soft_prompt
from jaxalign.core.errors import UserError
from jaxalign.lm.checkpoint import load_checkpoint, save_checkpoint
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.weights import init_params
from jaxalign.methods.soft_prompt import search as program
from jaxalign.methods.soft_prompt.objective import make_fitness
from jaxalign.methods.soft_prompt.result import METHODS, Answers, make_result, show_result
from jaxalign.methods.soft_prompt.search import How, build, choose_how, constants, search_space
from jaxalign.methods.soft_prompt.space import SoftPromptConfig
from jaxalign.methods.soft_prompt.study import Config, read_study
from jaxalign.optim.strategy import Strategy
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.runtime.sharding import local_view, make_mesh
from jaxalign.stats.vsm import make_scorer

TINY = LlamaConfig(
    1792, 16, 24, 2, 2, 1, 8, dtype="float32", param_dtype="float32", initializer_range=0.3
)


@pytest.fixture(scope="module")
def study():
    return read_study(Config())


def test_a_new_run_takes_what_keeps_the_device_busy(study, capsys):
    assert choose_how(Config(), study, make_mesh(), {}) == How(4, "xla", fixed=False)
    assert "attention by xla: cpu has xla alone" in capsys.readouterr().out
    assert choose_how(Config(chunk=3), study, make_mesh(), {}) == How(3, "xla", fixed=False)


def test_a_default_chunk_is_no_larger_than_the_search(study, monkeypatch):
    """More would be padding on any number of devices; a sweep has more searches than countries."""
    strategy = Strategy("SNES", population=3)
    config = Config(countries=("USA",), strategy=strategy)
    monkeypatch.setattr(program, "busy_chunk", lambda *_: 64)
    assert choose_how(config, study, make_mesh(), {}).chunk == 4
    assert choose_how(config, study, make_mesh(), {}, searches=40).chunk == 64
    assert choose_how(Config(), study, make_mesh(), {}).chunk == 64


def test_a_run_that_goes_on_keeps_what_it_began_with(study, capsys):
    began = {"chunk": 7, "attention": "xla", "model_sha256": "…"}
    assert choose_how(Config(), study, make_mesh(), began) == How(7, "xla", fixed=True)
    assert "attention by xla: as this run began" in capsys.readouterr().out


def test_a_kernel_that_is_not_here_any_more_is_refused(study):
    with pytest.raises(UserError, match="--attention splash: cpu has xla alone"):
        choose_how(Config(), study, make_mesh(), {"chunk": 7, "attention": "splash"})


def test_asked_for_what_this_device_lacks(study):
    with pytest.raises(UserError, match="--attention pallas"):
        choose_how(dataclasses.replace(Config(), attention="pallas"), study, make_mesh(), {})


def test_the_gradient_control_tunes_what_has_a_gradient(tmp_path):
    """The most likely reading moves in steps: its gradient is zero, and the control would stay."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_FOLDER / name, tmp_path)
    save_checkpoint(tmp_path, init_params(TINY, jax.random.key(0)), TINY)
    found = {}
    for reading in ("expected", "most_likely"):
        config = Config(
            model=tmp_path, dtype="float32", countries=("USA",), prompt=SoftPromptConfig(length=2),
            icl_examples=0, gradient_steps=3, reading=reading, quiet=True,
        )  # fmt: skip
        study, mesh = read_study(config), make_mesh()
        params = load_checkpoint(tmp_path, study.llama)
        scorer = make_scorer(study.module, constants(config, study, params))
        space = search_space(config, study, params)
        built = build(config, study, params, scorer, space, mesh, How(4, "xla", fixed=True))
        own = local_view(built.objective)
        found[reading] = np.asarray(soft_prompt.descend(config, built.control, own))
    assert np.abs(found["most_likely"]).max() > 0
    np.testing.assert_array_equal(found["most_likely"], found["expected"])


def test_what_was_compiled_to_see_whether_it_fits_is_what_runs(tmp_path, monkeypatch):
    """Traced again, a search would be compiled again where there is no cache: minutes at 8B."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_FOLDER / name, tmp_path)
    save_checkpoint(tmp_path, init_params(TINY, jax.random.key(0)), TINY)
    config = Config(
        model=tmp_path, dtype="float32", countries=("USA",), prompt=SoftPromptConfig(length=2),
        icl_examples=0, gradient_steps=3, strategy=Strategy(population=4), save_every=2, quiet=True,
    )  # fmt: skip
    traced = []

    def counted(*arguments, **named):
        fitness = make_fitness(*arguments, **named)
        return lambda *values: traced.append(1) or fitness(*values)

    monkeypatch.setattr(program, "make_fitness", counted)
    study = read_study(config)
    params = load_checkpoint(tmp_path, study.llama)
    scorer = make_scorer(study.module, constants(config, study, params))
    space = search_space(config, study, params)
    built = build(config, study, params, scorer, space, make_mesh(), How(4, "xla", fixed=True))
    state = built.evolution.init(soft_prompt.first_generation(config, space), built.objective)
    own, before = local_view(built.objective), len(traced)
    built.evolution.run(state, config.save_every, built.objective)
    built.control.advance(built.control.first, own, config.gradient_steps)
    assert len(traced) == before > 0


def test_the_result_is_of_the_dimensions_and_the_reading_asked_for(capsys):
    config = Config(countries=("USA",), dimensions=("pdi",), reading="most_likely", anchor=("DEU",))
    study = read_study(config)

    def answers(instrument):
        shape = 1, len(instrument.items), max(len(item.options) for item in instrument.items)
        return Answers(np.zeros(shape, np.float32), np.ones(shape[:2], np.float32))

    module, held_out = (dict.fromkeys(METHODS, answers(i)) for i in (study.module, study.held_out))
    scorer = make_scorer(study.module, np.float32([54, 0, 0, 0, 0, 0]))
    survey, target_Cx6, used_6 = study.held_out, study.target_Cx6, study.used_6
    found = make_result(config, study.facts(), scorer, target_Cx6, used_6, module, survey, held_out)
    assert found["constants"] == [54.0, None, None, None, None, None]
    found["countries"]["USA"]["tuned"] = {"expected": {"loss": 11.1}, "most_likely": {"loss": 77.7}}
    show_result(found)
    said = capsys.readouterr().out
    assert "most likely reading" in said
    assert "gradient (tuned expected)" in said
    assert said.index("77.7") < said.index("11.1")
