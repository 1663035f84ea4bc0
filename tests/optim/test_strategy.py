"""Every algorithm of evosax can be named, prints all its settings, and refuses what it lacks."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evosax.algorithms import algorithms

from jaxalign.core.errors import UserError
from jaxalign.optim.algorithms.differential_evolution import DifferentialEvolution
from jaxalign.optim.algorithms.evosax_algorithms import READ_MAGNITUDES, Evosax
from jaxalign.optim.evolve import make_evolution
from jaxalign.optim.generation import finite_or_inf
from jaxalign.optim.strategy import Strategy
from jaxalign.runtime.sharding import make_mesh

Z = 5


def settings_of(strategy: Strategy) -> dict:
    """Every setting of a strategy as a run records it."""
    mesh = make_mesh(jax.devices()[:1])
    evolution = make_evolution(strategy, Z, lambda x, *_: x[:, 0], mesh, [("USA", 0)])
    return {k: v for k, v in evolution.settings.items() if k not in ("seed", "groups")}


@pytest.mark.parametrize("algorithm", sorted(algorithms))
def test_every_algorithm_builds_starts_and_prints_its_settings(algorithm):
    built = Strategy(algorithm, population=16).build(Z)
    arguments = jax.random.key(0), jnp.ones((16, Z)), jnp.ones(16), jnp.float32(1)
    state = jax.eval_shape(built.start, *arguments)
    asked, _ = jax.eval_shape(built.ask, jax.random.key(0), state, jnp.float32(1))
    assert asked.shape == (16, Z)
    assert all(isinstance(v, (bool, int, float, str)) for v in built.describe().values())


def test_importing_starts_no_backend():
    """`jax.distributed.initialize` and the simulated devices must still be possible afterwards."""
    code = (
        "import jax, jaxalign.optim.evolve, jaxalign.optim.strategy;"
        "jax.config.update('jax_num_cpu_devices', 3)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_options_reach_evosax():
    strategy = Strategy("SimpleGA", 16, options=(("std", 0.25),))
    assert strategy.build(Z).algorithm.std_schedule(3) == 0.25
    assert settings_of(strategy) == {
        "algorithm": "SimpleGA",
        "population": 16,
        "std": 0.25,
        "crossover_rate": 0.0,
    }


def test_the_initial_spread_is_the_first_step_size_unless_given():
    built = Strategy("SNES", 16).build(Z)
    assert built.describe()["std_init"] == "spread of the initial population"
    arguments = jax.random.key(0), jnp.ones((16, Z)), jnp.ones(16), jnp.float32(0.02)
    np.testing.assert_allclose(built.start(*arguments).std, 0.02)
    given = Strategy("SNES", 16, options=(("std_init", 0.5),)).build(Z)
    assert given.describe()["std_init"] == 0.5
    np.testing.assert_allclose(given.start(*arguments).std, 0.5)


def test_arithmetic_on_fitness_sees_the_worst_finite_value_instead_of_infinity():
    fitness_E = jnp.array([3.0, jnp.inf, 1.0])
    for algorithm, wanted in (("LES", 3.0), ("DifferentialEvolution", np.inf)):
        built = Strategy(algorithm, 16).build(Z)
        np.testing.assert_array_equal(built.finite_where_read(fitness_E), [3, wanted, 1])
        assert not np.isnan(built.finite_where_read(jnp.full(3, jnp.inf))).any()
    assert set(algorithms) >= READ_MAGNITUDES


@pytest.mark.long
@pytest.mark.parametrize("algorithm", sorted(algorithms))
def test_a_candidate_without_a_finite_loss_loses_under_every_algorithm(algorithm):
    """Half of the candidates fail in every generation; the state stays finite, and so does what is
    asked next. (Which of two algorithms copes better is not tested.)"""
    built = Strategy(algorithm, population=16).build(Z)
    failing_E = jnp.arange(16) % 2 == 0

    def fitness(x_ExZ):
        wrong_E = jnp.array([jnp.nan, jnp.inf, -jnp.inf, jnp.nan])[jnp.arange(16) // 2 % 4]
        return finite_or_inf(jnp.where(failing_E, wrong_E, jnp.square(x_ExZ - 0.3).sum(-1)))

    def generation(t, state):
        asking, telling = jax.random.split(jax.random.key(t))
        x_ExZ, state = built.ask(asking, state, jnp.float32(1))
        return built.tell(telling, x_ExZ, fitness(x_ExZ), state, jnp.float32(1)), x_ExZ

    def run():
        first_ExZ = jax.random.normal(jax.random.key(9), (16, Z))
        state = built.start(jax.random.key(0), first_ExZ, fitness(first_ExZ), jnp.float32(1))
        for t in range(1, 4):
            state, x_ExZ = generation(t, state)
        return state, x_ExZ

    state, x_ExZ = jax.jit(run)()
    assert np.isfinite(x_ExZ).all()
    # Fitness itself may be kept as +inf.
    kept = {name: leaf for name, leaf in _leaves(state).items() if "fitness" not in name}
    assert not [name for name, leaf in kept.items() if np.isnan(leaf).any()]


def _leaves(state):
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    numbers = {jax.tree_util.keystr(p): x for p, x in leaves if not _is_key(x)}
    return {name: np.asarray(x) for name, x in numbers.items() if x.dtype.kind == "f"}


def _is_key(x):
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def test_differential_evolution_prints_every_setting():
    assert settings_of(Strategy(differential_weight_min=0.7, differential_weight_max=0.7)) == {
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
    "optimizer",
    [
        DifferentialEvolution(population=8, crossover_rate=0.5, num_diff=2),
        Evosax("CMA_ES", 8),
        Evosax("SNES", population=8, options={"std_init": 0.5}),
    ],
)
def test_a_strategy_names_an_optimizer_and_gives_it_back(optimizer):
    strategy = Strategy.of(optimizer)
    assert strategy.optimizer() == optimizer
    assert Strategy.of(strategy) is strategy


def test_a_strategy_has_the_defaults_of_differential_evolution():
    assert Strategy().optimizer() == DifferentialEvolution()


@dataclasses.dataclass(frozen=True)
class Unregistered:
    """An optimizer that no command line could name."""

    population: int = 4


def test_an_optimizer_that_is_not_registered_cannot_be_recorded():
    with pytest.raises(UserError, match=r"Unregistered is not registered; decorate"):
        Strategy.of(Unregistered())


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ({"algorithm": "Nonesuch"}, ["'Nonesuch'", "DifferentialEvolution", "CMA_ES"]),
        ({"population": 3}, ["`population` 3", "4 or more"]),
        (
            {"differential_weight_min": 0.9, "differential_weight_max": 0.5},
            ["`differential_weight_min` 0.9", "`differential_weight_max` 0.5"],
        ),
        ({"crossover_rate": 1.5}, ["`crossover_rate` 1.5"]),
        ({"num_diff": 0}, ["`num_diff` 0"]),
        ({"algorithm": "PSO", "crossover_rate": 0.5}, ["`crossover_rate`", "PSO"]),
        ({"algorithm": "PSO", "options": (("speed", 1),)}, ["'speed'", "inertia_coeff"]),
        ({"options": (("crossover_rate", 0.5),)}, ["crossover_rate", "fields"]),
        ({"options": (("speed", 0.5),)}, ["no option 'speed'"]),
        ({"algorithm": "Open_ES", "population": 7}, ["`population` 7", "even"]),
        (
            {"algorithm": "SV_CMA_ES", "population": 8, "options": (("num_populations", 3),)},
            ["8", "3 groups"],
        ),
    ],
)
def test_bad_strategies_are_refused_in_one_line(strategy, words):
    with pytest.raises(UserError) as error:
        Strategy(**strategy).build(Z)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)
