"""Every algorithm of evosax can be named, prints all its settings, and refuses what it lacks."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evosax.algorithms import algorithms

from jaxalign.core.errors import UserError
from jaxalign.optim.strategy import READ_MAGNITUDES, Strategy, describe, make_search

Z = 5


@pytest.mark.parametrize("algorithm", sorted(algorithms))
def test_every_algorithm_builds_starts_and_prints_its_settings(algorithm):
    search = make_search(Strategy(algorithm, population=16), Z)
    arguments = jax.random.key(0), jnp.ones((16, Z)), jnp.ones(16), jnp.float32(1)
    state = jax.eval_shape(search.start, *arguments)
    asked, _ = jax.eval_shape(search.ask, jax.random.key(0), state, jnp.float32(1))
    assert asked.shape == (16, Z)
    assert all(isinstance(v, (bool, int, float, str)) for v in describe(search).values())


def test_importing_starts_no_backend():
    """`jax.distributed.initialize` and the simulated devices must still be possible afterwards."""
    code = "import jax, jaxalign.optim.evolve; jax.config.update('jax_num_cpu_devices', 3)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_options_reach_evosax():
    search = make_search(Strategy("SimpleGA", 16, options=(("std", 0.25),)), Z)
    assert search.algorithm.std_schedule(3) == 0.25
    assert describe(search) == {
        "algorithm": "SimpleGA",
        "population": 16,
        "std": 0.25,
        "crossover_rate": 0.0,
    }


def test_the_initial_spread_is_the_first_step_size_unless_given():
    search = make_search(Strategy("SNES", 16), Z)
    assert describe(search)["std_init"] == "spread of the initial population"
    arguments = jax.random.key(0), jnp.ones((16, Z)), jnp.ones(16), jnp.float32(0.02)
    np.testing.assert_allclose(search.start(*arguments).std, 0.02)
    given = make_search(Strategy("SNES", 16, options=(("std_init", 0.5),)), Z)
    assert describe(given)["std_init"] == 0.5
    np.testing.assert_allclose(given.start(*arguments).std, 0.5)


def test_arithmetic_on_fitness_sees_the_worst_finite_value_instead_of_infinity():
    fitness_E = jnp.array([3.0, jnp.inf, 1.0])
    for algorithm, wanted in (("LES", 3.0), ("DifferentialEvolution", np.inf)):
        search = make_search(Strategy(algorithm, 16), Z)
        np.testing.assert_array_equal(search.readable(fitness_E), [3, wanted, 1])
        assert not np.isnan(search.readable(jnp.full(3, jnp.inf))).any()
    assert set(algorithms) >= READ_MAGNITUDES


def test_differential_evolution_prints_every_setting():
    search = make_search(Strategy(differential_weight_min=0.7, differential_weight_max=0.7), Z)
    assert describe(search) == {
        "algorithm": "DifferentialEvolution",
        "population": 64,
        "elitism": True,
        "crossover_rate": pytest.approx(0.9),
        "differential_weight": pytest.approx(0.7),  # what evosax uses when the dither is off
        "differential_weight_min": pytest.approx(0.7),
        "differential_weight_max": pytest.approx(0.7),
        "num_diff": 1,
    }


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ({"algorithm": "Nonesuch"}, ["'Nonesuch'", "DifferentialEvolution", "CMA_ES"]),
        ({"population": 3}, ["3", "4 or more"]),
        ({"differential_weight_min": 0.9, "differential_weight_max": 0.5}, ["(0.9, 0.5)"]),
        ({"crossover_rate": 1.5}, ["1.5"]),
        ({"algorithm": "PSO", "crossover_rate": 0.5}, ["crossover_rate", "PSO"]),
        ({"algorithm": "PSO", "options": (("speed", 1),)}, ["'speed'", "inertia_coeff"]),
        ({"options": (("crossover_rate", 0.5),)}, ["crossover_rate", "fields"]),
        ({"algorithm": "Open_ES", "population": 7}, ["7", "even"]),
        (
            {"algorithm": "SV_CMA_ES", "population": 8, "options": (("num_populations", 3),)},
            ["8", "3 groups"],
        ),
    ],
)
def test_bad_strategies_are_refused_in_one_line(strategy, words):
    with pytest.raises(UserError) as error:
        make_search(Strategy(**strategy), Z)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)
