"""A search that the host drives has the bits of the compiled one, for the same fitness."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxalign.core.errors import UserError
from jaxalign.optim.host_steps import make_host_steps
from jaxalign.runtime.sharding import POPULATION
from tests.optim.test_evolve import COUNTRIES, CENTRE_CxZ, bits, build, initial


def recorded(candidates_PxZ, country_P, fitness_PxE):
    """The fitness that the context holds, whatever the candidates are: both sides see the same."""
    # A device's stretch of the candidates may begin within an entry.
    P, E = len(country_P), fitness_PxE.shape[1]
    row_P = jax.lax.axis_index(POPULATION) * P + jax.numpy.arange(P)
    return fitness_PxE[country_P, row_P % E]


def fitness(generation):
    """float32 [C, E]; one candidate of a generation fails."""
    found = np.random.default_rng(generation).normal(size=(len(COUNTRIES), 8)).astype(np.float32)
    found[generation % 3, 5] = np.nan
    return found


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.long)])
def test_equal_fitness_gives_equal_bits(devices, count):
    """Two devices hold two of three entries each, so entries and devices' places differ."""
    evolution = build(devices[:count], fitness_fn=recorded)
    steps = make_host_steps(evolution)
    state = evolution.init(initial(), fitness(0))
    driven = steps.first(initial().__getitem__, fitness(0))
    assert bits(state) == bits(driven)
    for generation in range(1, 4):
        state, wanted = evolution.run(state, 1, fitness(generation))
        asked = steps.ask(driven)
        assert asked.candidates_CxExZ.shape == initial().shape
        driven, metrics = steps.tell(asked, fitness(generation))
        assert bits(state) == bits(driven)
        for name, value_TxC in wanted.items():
            np.testing.assert_array_equal(value_TxC[0], metrics[name], err_msg=name)
    # A state may pass to the compiled program.
    both = evolution.run(driven, 1, fitness(9))[0], evolution.run(state, 1, fitness(9))[0]
    assert bits(both[0]) == bits(both[1])


def test_the_candidates_are_those_that_the_program_evaluates(devices):
    """The sphere of the asked candidates is the fitness that the program finds."""
    evolution = build(devices[:1])
    steps = make_host_steps(evolution)
    state = evolution.init(initial(), CENTRE_CxZ)
    asked = steps.ask(evolution.init(initial(), CENTRE_CxZ))
    found_CxE = np.square(asked.candidates_CxExZ - CENTRE_CxZ[:, None]).sum(-1)
    after, metrics = steps.tell(asked, found_CxE)
    _, wanted = evolution.run(state, 1, CENTRE_CxZ)
    np.testing.assert_allclose(metrics["mean"], wanted["mean"][0], rtol=1e-6)
    assert int(after.generation) == 1


def test_replies_whose_loss_is_not_finite_lose(devices):
    """What the host finds may hold anything: none of it becomes a member or the best."""
    steps = make_host_steps(build(devices[:1], fitness_fn=recorded))
    found = np.full((3, 8), 5.0, np.float32)
    found[:, :3] = np.nan, -np.inf, np.inf
    state = steps.first(initial().__getitem__, found)
    np.testing.assert_array_equal(state.best_fitness_C, np.full(3, 5))
    state, metrics = steps.tell(steps.ask(state), np.full((3, 8), -np.inf, np.float32))
    np.testing.assert_array_equal(metrics["failed"], np.full(3, 8))
    np.testing.assert_array_equal(state.best_fitness_C, np.full(3, 5))


def test_a_fitness_of_another_shape_is_refused(devices):
    steps = make_host_steps(build(devices[:1]))
    with pytest.raises(UserError, match=r"fitness has shape \(3, 7\), expected \(3, 8\)"):
        steps.first(initial().__getitem__, np.zeros((3, 7)))
