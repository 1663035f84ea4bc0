"""How a search is computed: chosen once, compiled once, and kept by a run that is resumed."""

from __future__ import annotations

import dataclasses
import functools
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.core.errors import UserError
from jaxalign.lm.checkpoint import save_checkpoint
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.model import LM, load_model
from jaxalign.lm.weights import init_params
from jaxalign.methods.soft_prompt import control as control_module
from jaxalign.methods.soft_prompt import search as module
from jaxalign.methods.soft_prompt.control import make_control
from jaxalign.methods.soft_prompt.fitness import make_fitness
from jaxalign.methods.soft_prompt.problem import Problem, read_problem
from jaxalign.methods.soft_prompt.search import (
    ExecutionPlan,
    build_search,
    choose_execution,
)
from jaxalign.methods.soft_prompt.settings import Settings
from jaxalign.methods.soft_prompt.space import SoftPromptConfig
from jaxalign.optim.gradient import make_descent
from jaxalign.optim.strategy import Strategy
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.runtime.sharding import make_mesh

TINY = LlamaConfig(
    1792, 16, 24, 2, 2, 1, 8, dtype="float32", param_dtype="float32", initializer_range=0.3
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A model of two layers with the pocket model's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_FOLDER / name, folder)
    save_checkpoint(folder, init_params(TINY, jax.random.key(0)), TINY)
    return folder


def tiny_settings(folder: Path, **changes) -> Settings:
    return Settings(
        **{
            "model": folder,
            "dtype": "float32",
            "countries": ("USA",),
            "prompt": SoftPromptConfig(length=2),
            "icl_examples": 0,
            "gradient_steps": 3,
        }
        | changes
    )


def load(settings: Settings) -> tuple[Problem, LM]:
    problem = read_problem(settings)
    return problem, load_model(problem.model, mesh=make_mesh())


def choose(settings: Settings, recorded: dict | None = None, **options) -> ExecutionPlan:
    return choose_execution(read_problem(settings), make_mesh(), recorded or {}, **options)


def test_a_new_run_takes_what_keeps_the_device_busy(caplog):
    caplog.set_level(logging.DEBUG, "jaxalign")
    assert choose(Settings()) == ExecutionPlan(4, "xla", fixed=False)
    assert "attention by xla: cpu has xla alone" in caplog.text
    assert choose(Settings(chunk=3)) == ExecutionPlan(3, "xla", fixed=False)


def test_a_default_chunk_is_no_larger_than_the_search(monkeypatch):
    """More would be padding on any number of devices; a sweep has more searches than countries."""
    settings = Settings(countries=("USA",), strategy=Strategy("SNES", population=3))
    monkeypatch.setattr(module, "busy_chunk", lambda *_: 64)
    assert choose(settings).chunk == 4
    assert choose(settings, searches=40).chunk == 64
    assert choose(Settings()).chunk == 64


def test_a_resumed_run_keeps_what_it_began_with(caplog):
    caplog.set_level(logging.DEBUG, "jaxalign")
    recorded = {"chunk": 7, "attention": "xla", "model_sha256": "…"}
    assert choose(Settings(), recorded) == ExecutionPlan(7, "xla", fixed=True)
    assert "attention by xla: as this run began" in caplog.text


def test_a_kernel_that_is_not_here_any_more_is_refused():
    with pytest.raises(UserError, match="`attention` splash: cpu has xla alone"):
        choose(Settings(), {"chunk": 7, "attention": "splash"})


def test_asked_for_what_this_device_lacks():
    with pytest.raises(UserError, match="`attention` pallas"):
        choose(Settings(attention="pallas"))


@pytest.mark.long
def test_the_gradient_control_tunes_what_has_a_gradient(tiny):
    """The most likely reading moves in steps: its gradient is zero, and the control would stay."""
    found = {}
    for reading in ("expected", "most_likely"):
        problem, lm = load(tiny_settings(tiny, reading=reading))
        search = build_search(problem, lm, ExecutionPlan(4, "xla", fixed=True))
        found[reading] = np.asarray(make_control(search).run())
    assert np.abs(found["most_likely"]).max() > 0
    np.testing.assert_array_equal(found["most_likely"], found["expected"])


@pytest.mark.long
def test_the_gradient_control_tunes_what_starts_alike_once(tiny):
    """Each seed has the bits of a control of its own; starts that are drawn are all tuned."""
    found, entries = {}, {}
    for start in ("text", "vocabulary"):
        for seeds in ((3, 4), (3,), (4,)):
            settings = tiny_settings(
                tiny,
                countries=("USA", "CHN"),
                prompt=SoftPromptConfig(length=2, initialisation=start),
                strategy=Strategy(population=4),
                seeds=seeds,
            )
            problem, lm = load(settings)
            control = make_control(build_search(problem, lm, ExecutionPlan(4, "xla", fixed=True)))
            found[start, seeds], entries[start, seeds] = control.run(), len(control.entries)
        alone = np.concatenate([found[start, (3,)], found[start, (4,)]])
        np.testing.assert_array_equal(found[start, (3, 4)], alone)
    assert (entries["text", (3, 4)], entries["vocabulary", (3, 4)]) == (2, 4)


@pytest.mark.long
def test_what_was_compiled_to_see_whether_it_fits_is_what_runs(tiny, monkeypatch):
    """Traced again, a search would be compiled again where there is no cache: minutes at 8B."""
    traced = []

    def counted(*arguments, **named):
        fitness = make_fitness(*arguments, **named)
        return lambda *values: traced.append(1) or fitness(*values)

    monkeypatch.setattr(module, "make_fitness", counted)
    monkeypatch.setattr(control_module, "make_fitness", counted)
    problem, lm = load(tiny_settings(tiny, strategy=Strategy(population=4), save_every=2))
    search = build_search(problem, lm, ExecutionPlan(4, "xla", fixed=True))
    control = make_control(search)
    state = search.evolution.init(search.first_members, search.inputs)
    before = len(traced)
    search.evolution.run(state, problem.settings.save_every, search.inputs)
    descent = control.descent
    descent.run(descent.start(), problem.settings.gradient_steps, control.inputs)
    assert len(traced) == before > 0


@pytest.mark.long
def test_a_search_goes_on_from_its_checkpoint(tiny, tmp_path):
    """Stopped after two of five generations, it ends with the bits of an unbroken search."""
    settings = tiny_settings(
        tiny, countries=("USA", "CHN"), strategy=Strategy(population=4), generations=5, save_every=2
    )
    problem, lm = load(settings)
    search = build_search(problem, lm, ExecutionPlan(4, "xla", fixed=True))
    events = []
    unbroken = search.run(on_progress=events.append)
    assert [event.done for event in events] == [0, 2, 4, 5]
    assert events[0].units_per_step == 8
    assert set(events[-1].fields) == {"USA", "CHN"}

    def stop(progress):
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search.run(tmp_path / "checkpoints", on_progress=stop)
    events.clear()
    resumed = search.run(tmp_path / "checkpoints", on_progress=events.append)
    assert [event.done for event in events] == [2, 4, 5]
    np.testing.assert_array_equal(resumed.best_CxZ, unbroken.best_CxZ)
    np.testing.assert_array_equal(resumed.fitness_C, unbroken.fitness_C)
    # Everything is done: the last generation was saved too.
    finished = search.run(tmp_path / "checkpoints")
    assert finished.seconds == 0
    np.testing.assert_array_equal(finished.best_CxZ, unbroken.best_CxZ)


@pytest.mark.long
def test_the_control_goes_on_from_its_checkpoint(tiny, tmp_path, monkeypatch):
    """Stopped after two of five steps, it ends with the bits of an unbroken control; its folder
    lies in that of the search's checkpoints, which find their own steps there all the same."""
    monkeypatch.setattr(control_module, "GRADIENT_STEPS_PER_DISPATCH", 2)
    settings = tiny_settings(
        tiny,
        countries=("USA", "CHN"),
        strategy=Strategy(population=4),
        generations=2,
        gradient_steps=5,
    )
    problem, lm = load(settings)
    search = build_search(problem, lm, ExecutionPlan(4, "xla", fixed=True))
    search.run(tmp_path)
    control, events = make_control(search), []
    unbroken = control.run()
    folder = control_module.control_directory(tmp_path, 5)

    def stop(progress):
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        control.run(folder, on_progress=stop)
    resumed = control.run(folder, on_progress=events.append)
    assert [event.done for event in events] == [2, 4, 5]
    np.testing.assert_array_equal(resumed, unbroken)
    # Nothing is left of either, and nothing is done again.
    events.clear()
    np.testing.assert_array_equal(control.run(folder, on_progress=events.append), unbroken)
    assert [event.done for event in events] == [5]
    assert search.run(tmp_path).seconds == 0


@pytest.mark.long
def test_other_entries_share_the_compiled_programs(tiny):
    """What a sweep does with its batches: the same search for other countries and seeds."""
    settings = tiny_settings(
        tiny, countries=("USA", "CHN"), strategy=Strategy(population=4), generations=2
    )
    problem, lm = load(settings)
    execution = ExecutionPlan(4, "xla", fixed=True)
    search = build_search(problem, lm, execution, entries=[("USA", 0), ("USA", 1)])
    search.run()
    other = search.for_entries([("CHN", 0), ("USA", 0)]).run()
    assert search.evolution.advance._cache_size() == 1
    wanted = build_search(problem, lm, execution).run()
    np.testing.assert_array_equal(other.best_CxZ[::-1], wanted.best_CxZ)
    chosen = {"chunk": 4, "kernel": "xla", "fixed": True, "slots": None}
    assert dataclasses.asdict(execution) == chosen


def test_candidates_without_a_finite_loss_are_spoken_of(caplog):
    search = SimpleNamespace(_labels=("USA", "CHN"), evolution=SimpleNamespace(population=8))
    note = functools.partial(module.Search._note_failures, search, 10)
    best_TxC = np.array([[3.0, np.inf], [2.0, np.inf]], np.float32)
    metrics = {"best_so_far": best_TxC, "failed": np.array([[0, 8], [2, 8]])}
    with pytest.raises(UserError, match="CHN: no candidate has a finite loss after generation 12"):
        note(metrics, False, True)
    # Without that, as in a sweep whose other cells go on, it is said once.
    assert note(metrics, False, False)
    assert "generation 11: the loss of 8 of 8 candidates of CHN is not finite" in caplog.text
    caplog.clear()
    assert note(metrics, True, False)
    assert not caplog.text
    assert not note({"best_so_far": np.ones((1, 2)), "failed": np.zeros((1, 2), int)}, False, True)


@pytest.mark.long
def test_the_gradient_control_keeps_no_point_without_a_finite_loss(devices):
    """Its fitness is -inf and NaN where a coordinate is above a bound that the descent crosses."""

    def fitness(z_PxZ, entry_P, context):
        bad_P = jnp.where(entry_P == 0, -jnp.inf, jnp.nan)
        return jnp.where(z_PxZ[:, 0] > 0.1, bad_P, -z_PxZ.sum(-1))

    descent = make_descent(fitness, 8, 0.05, 3, make_mesh(devices[:1]), entries=2)
    state = descent.last(descent.run(descent.start(), 8, None), None)
    best_CxZ, fitness_C = descent.best(state)
    assert np.isfinite(fitness_C).all()
    assert np.isfinite(best_CxZ).all()
    assert (fitness_C < 0).all()
    assert (best_CxZ[:, 0] <= 0.1).all()
