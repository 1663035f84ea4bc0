"""The fitness with a real (tiny) Llama inside: same bits alone, among others, on any devices."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.answering.options import option_log_probs, prepare_items
from jaxalign.answering.plan import plan_layout
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.weights import init_params
from jaxalign.methods.soft_prompt.fitness import FitnessInputs, make_fitness
from jaxalign.methods.soft_prompt.space import (
    SoftPromptConfig,
    decode,
    group_key,
    initial_population,
    make_space,
)
from jaxalign.optim.evolve import entries_of, make_evolution
from jaxalign.optim.gradient import make_descent
from jaxalign.optim.strategy import Strategy
from jaxalign.runtime.sharding import make_mesh, replicated
from jaxalign.stats.objectives.vsm import VsmObjective
from jaxalign.stats.vsm import loss, make_scorer
from jaxalign.surveys.survey import vsm

CONFIG = LlamaConfig(
    61, 32, 48, 3, 4, 2, 8, dtype="float32", param_dtype="float32", initializer_range=0.15
)
PARAMS = init_params(CONFIG, jax.random.key(0))
COUNTRIES = ("USA", "CHN", "IND")
TARGETS = jnp.array(
    [[40.0, 91, 62, 46, 26, 68], [80, 20, 66, 30, 87, 24], [77, 48, 56, 40, 51, 26]]
)


def make_inputs(countries, penalty=0.0) -> FitnessInputs:
    items = [[1, 2, 3, *([4, 5] if q < 10 else [6]), 10 + q, 50] for q in range(24)]
    options = [[[(40 + o,)] for o in range(5)]] * 24
    prompt = SoftPromptConfig(length=3, spread=2.0)
    start = jax.random.normal(jax.random.key(1), (3, 3, CONFIG.hidden_size))
    rows = jnp.array([COUNTRIES.index(c) for c in countries])
    return FitnessInputs(
        items=prepare_items(CONFIG, PARAMS, plan_layout([7, 8], 3, items, options)),
        objective=VsmObjective(
            scorer=make_scorer(vsm(), 50.0),
            target_Cx6=TARGETS[rows],
            used_6=jnp.ones(6, bool),
            reading="expected",
        ),
        space=make_space(prompt, 0.1 * start[rows], PARAMS["embed"]),
        penalty=jnp.float32(penalty),
    )


def search(countries, devices, generations=3, population=6):
    """Best prompts and loss history of a short search."""
    mesh = make_mesh(devices)
    fitness = make_fitness(CONFIG, chunk=2)
    dims = 3 * CONFIG.hidden_size
    evolution = make_evolution(
        Strategy(population=population), dims, fitness, mesh, entries_of(countries, 0)
    )
    inputs = make_inputs(countries)
    first = jnp.stack(
        [
            initial_population(inputs.space, group_key(jax.random.key(0), c), population)
            for c in countries
        ]
    )
    inputs = jax.device_put(inputs, replicated(mesh))
    state, metrics = evolution.run(evolution.init(first, inputs), generations, inputs)
    best = {c: z for c, (z, _) in zip(countries, evolution.best(state), strict=True)}
    history = {c: np.asarray(metrics["median"])[:, i] for i, c in enumerate(countries)}
    return best, history


@pytest.fixture(scope="module")
def among_others():
    return search(COUNTRIES, jax.devices()[:1])


def assert_same_bits(found, expected, countries):
    for country in countries:
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one[country], other[country], country)


@pytest.mark.long
def test_one_device_equals_eight(devices, among_others):
    assert_same_bits(search(COUNTRIES, devices), among_others, COUNTRIES)


@pytest.mark.long
def test_solo_equals_among_others(among_others):
    assert_same_bits(search(("CHN",), jax.devices()[:1]), among_others, ("CHN",))


@pytest.mark.long
def test_search_improves(among_others):
    _, history = among_others
    assert all(losses[-1] < losses[0] for losses in history.values())


def test_fitness_is_the_loss_of_the_decoded_prompt_plus_penalty():
    inputs = make_inputs(COUNTRIES, penalty=3.0)
    z = jax.random.normal(jax.random.key(5), (4, inputs.space.dims))
    country = jnp.array([2, 0, 1, 2])
    fitness = make_fitness(CONFIG, chunk=4)(z, country, inputs)
    for i, c in enumerate([2, 0, 1, 2]):
        space = dataclasses.replace(inputs.space, start=inputs.space.start[c])
        log_probs = option_log_probs(CONFIG, inputs.items, decode(space, z[i][None]))
        scores = inputs.objective.scorer.scores(log_probs[0])
        expected = loss(scores, TARGETS[c], jnp.ones(6, bool)) + 3.0 * jnp.mean(z[i] ** 2)
        np.testing.assert_allclose(fitness[i], expected, rtol=1e-5)


@pytest.mark.long
def test_gradient_control_improves_every_country():
    inputs = make_inputs(COUNTRIES)
    start, advance, _ = make_descent(make_fitness(CONFIG, 1), 20, 0.05)
    first = advance(start(3, inputs.space.dims), inputs, 1)
    last = advance(first, inputs, 19)
    assert (last.best_fitness_C < first.best_fitness_C - 1).all()


@pytest.mark.long
def test_the_last_step_of_the_gradient_control_counts():
    """A control of one step used to end where it began."""
    inputs = make_inputs(COUNTRIES)
    start, advance, finish = make_descent(make_fitness(CONFIG, 1), 1, 0.05)
    stepped = advance(start(3, inputs.space.dims), inputs, 1)
    ended = finish(stepped, inputs)
    assert (ended.best_fitness_C < stepped.best_fitness_C).all()
    np.testing.assert_array_equal(ended.best_CxZ, stepped.z_CxZ)


@pytest.mark.long
def test_gradient_memory_does_not_grow_with_countries():
    def temporary(countries: int) -> int:
        inputs = make_inputs(COUNTRIES[:1] * countries)
        start, advance, _ = make_descent(make_fitness(CONFIG, 1), 20, 0.05)
        lowered = advance.lower(start(countries, inputs.space.dims), inputs, 1)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    one, many = temporary(1), temporary(8)
    assert many < 1.2 * one, (one, many)
