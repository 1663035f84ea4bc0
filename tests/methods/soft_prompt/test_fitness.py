"""The fitness with a real (tiny) Llama inside: same bits alone, among others, on any devices."""

from __future__ import annotations

import dataclasses
import functools

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


def descend(inputs, steps, devices=1, remat=False):
    """The gradient control of three countries, built for `steps` steps."""
    mesh = make_mesh(jax.devices()[:devices])
    fitness, dims = make_fitness(CONFIG, 1, remat), inputs.space.dims
    entries = len(inputs.space.start)
    return make_descent(fitness, steps, 0.05, dims, mesh, entries)


@pytest.mark.long
def test_gradient_control_improves_every_country():
    inputs = make_inputs(COUNTRIES)
    descent = descend(inputs, 20)
    first = descent.run(descent.start(), 1, inputs)
    before = descent.best(first)[1]
    last = descent.run(first, 19, inputs)
    assert (descent.best(last)[1] < before - 1).all()


@pytest.mark.long
def test_the_last_step_of_the_gradient_control_counts():
    """A control of one step used to end where it began."""
    inputs = make_inputs(COUNTRIES)
    descent = descend(inputs, 1)
    stepped = descent.run(descent.start(), 1, inputs)
    ended = descent.last(stepped, inputs)
    assert (ended.best_fitness_C < stepped.best_fitness_C).all()
    np.testing.assert_array_equal(ended.best_CxZ, stepped.z_CxZ)


@functools.cache
def descended(count, remat):
    """Where the gradient control of three countries ends on some devices."""
    inputs = make_inputs(COUNTRIES)
    inputs = jax.device_put(inputs, replicated(make_mesh(jax.devices()[:count])))
    descent = descend(inputs, 4, count, remat)
    state = descent.run(descent.start(), 4, inputs)
    best_CxZ, fitness_C = descent.best(descent.last(state, inputs))
    return best_CxZ, fitness_C, jax.device_get(descent.to_entries(state).optimizer)


@pytest.mark.long
@pytest.mark.parametrize(
    ("count", "remat"), [(2, False), (4, False), (8, False), (2, True), (8, True)]
)
def test_the_gradient_control_does_not_depend_on_devices(devices, count, remat):
    """Two devices share out three countries unevenly; each country gets the bits of one device."""
    jax.tree.map(np.testing.assert_array_equal, descended(1, remat), descended(count, remat))


@pytest.mark.long
def test_recomputed_layers_give_the_same_gradient():
    inputs = make_inputs(COUNTRIES)
    found = []
    for remat in (False, True):
        descent = descend(inputs, 3, remat=remat)
        found.append(descent.best(descent.run(descent.start(), 3, inputs))[0])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_gradient_memory_does_not_grow_with_countries():
    def temporary(countries: int) -> int:
        inputs = make_inputs(COUNTRIES[:1] * countries)
        compiled = descend(inputs, 20).lower(1, inputs).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    one, many = temporary(1), temporary(8)
    assert many < 1.2 * one, (one, many)
