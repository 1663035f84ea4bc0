"""An optimizer that evosax lacks is one new module: here (1 + lambda) random search."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.core.errors import UserError
from jaxalign.optim import algorithms
from jaxalign.optim.api import optimizers
from jaxalign.optim.evolve import entries_of, make_evolution
from jaxalign.optim.strategy import Strategy
from jaxalign.runtime.sharding import make_mesh

MODULE = '''
"""(1 + lambda) random search: lambda normal steps from the best point, which is kept."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxalign.optim.api import Algorithm, optimizers


@optimizers.register("RandomSearch")
@dataclasses.dataclass(frozen=True)
class RandomSearch(Algorithm):
    population: int = 16
    step: float = 1.0
    shrink: float = 0.9
    """Factor on the step after a generation without improvement."""

    def build(self, num_dims):
        return self

    def start(self, key, initial_ExZ, fitness_E, spread):
        best = jnp.argmin(fitness_E)
        return {"z": initial_ExZ[best], "fitness": fitness_E[best], "step": self.step * spread}

    def ask(self, key, state, spread):
        noise_ExZ = jax.random.normal(key, (self.population, state["z"].size))
        return state["z"][None] + state["step"] * noise_ExZ, state

    def tell(self, key, candidates_ExZ, fitness_E, state, spread):
        best = jnp.argmin(fitness_E)
        better = fitness_E[best] < state["fitness"]
        return {
            "z": jnp.where(better, candidates_ExZ[best], state["z"]),
            "fitness": jnp.where(better, fitness_E[best], state["fitness"]),
            "step": state["step"] * jnp.where(better, 1.0, self.shrink),
        }
'''


@pytest.fixture
def random_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The class of a module that is added to the package's folder of algorithms."""
    (tmp_path / "random_search.py").write_text(MODULE)
    monkeypatch.setattr(algorithms, "__path__", [*algorithms.__path__, str(tmp_path)])
    monkeypatch.setattr(optimizers, "_entries", dict(optimizers._entries))
    monkeypatch.setattr(optimizers, "_loaded", False)
    yield optimizers["RandomSearch"]
    del sys.modules["jaxalign.optim.algorithms.random_search"]


def sphere(candidates_PxZ, entry_P, centre_CxZ):
    one = lambda x: jnp.sum((x[0] - centre_CxZ[x[1]]) ** 2)  # noqa: E731
    return jax.lax.map(one, (candidates_PxZ, entry_P))


def test_it_tunes_every_entry(devices, random_search):
    strategy = Strategy("RandomSearch", 16, options=(("step", 0.5),))
    assert strategy.optimizer() == random_search(population=16, step=0.5)
    centre_CxZ = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    entries = entries_of(("USA", "people over 60"), 1)
    evolution = make_evolution(strategy, 3, sphere, make_mesh(devices), entries)
    assert evolution.settings == {
        "algorithm": "RandomSearch",
        "population": 16,
        "step": 0.5,
        "shrink": 0.9,
        "seed": 1,
        "groups": ["USA", "people over 60"],
    }
    state = evolution.init(jax.random.normal(jax.random.key(0), (2, 16, 3)), centre_CxZ)
    state, metrics = evolution.run(state, 100, centre_CxZ)
    for i, (candidate_Z, fitness) in enumerate(evolution.best(state)):
        assert fitness < 1e-4
        np.testing.assert_allclose(candidate_Z, centre_CxZ[i], atol=1e-2)
    # Without members that outlive a generation, the metrics are of the generation's candidates.
    assert (metrics["best"] >= metrics["best_so_far"]).all()


def test_its_options_are_checked(random_search):
    with pytest.raises(UserError, match=r"no option 'speed'; it takes: shrink, step"):
        Strategy("RandomSearch", options=(("speed", 1.0),)).optimizer()
    with pytest.raises(UserError, match="`crossover_rate`"):
        Strategy("RandomSearch", crossover_rate=0.5).optimizer()
    assert Strategy.of(random_search(step=2.0)).options == (("step", 2.0), ("shrink", 0.9))
