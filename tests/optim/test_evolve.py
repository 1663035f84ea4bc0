"""Evolution on spheres: it converges, it is the published DE, and its bits do not depend on where
or with whom a country runs."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evosax.algorithms import DifferentialEvolution
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.core.errors import UserError
from jaxalign.optim.evolve import entries_of, group_id, make_evolution
from jaxalign.optim.strategy import Strategy
from jaxalign.runs.checkpoints import Checkpoints
from jaxalign.runtime.sharding import make_mesh

COUNTRIES = ("USA", "CHN", "IND")
CENTRE_CxZ = np.linspace(-1, 1, 15, dtype=np.float32).reshape(3, 5)
Z = CENTRE_CxZ.shape[1]


def sphere(candidates_PxZ, country_P, centre_CxZ):
    """Squared distance from the country's own centre, one candidate at a time."""
    one = lambda x: jnp.sum((x[0] - centre_CxZ[x[1]]) ** 2)  # noqa: E731
    return jax.lax.map(one, (candidates_PxZ, country_P))


def initial(population=8, countries=COUNTRIES, num_dims=Z):
    """float32 [C, E, Z], the same for a country whatever the others are."""
    keys = [jax.random.fold_in(jax.random.key(7), group_id(c)) for c in countries]
    return np.stack([jax.random.normal(k, (population, num_dims)) for k in keys])


def build(devices, countries=COUNTRIES, fitness_fn=sphere, seed=1, **strategy):
    strategy = {"population": 8} | strategy
    mesh = make_mesh(devices)
    seeds = (seed,) * len(countries) if isinstance(seed, int) else seed
    entries = zip(countries, seeds, strict=True)
    return make_evolution(Strategy(**strategy), Z, fitness_fn, mesh, entries)


def bits(tree):
    """Every leaf as host bytes, by path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(tree))
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


@functools.cache
def eight(**strategy):
    """On all 8 devices, built once for all tests that only run it."""
    return build(jax.devices(), **strategy)


def run(evolution, generations, context, members=None):
    """State, with one row per entry, and metrics after some generations; on the host."""
    state = evolution.init(initial() if members is None else members, context)
    state, metrics = evolution.run(state, generations, context)
    return jax.device_get((evolution.to_entries(state), metrics))


@functools.cache
def _unbroken():
    return run(eight(), 6, CENTRE_CxZ)


@pytest.fixture
def unbroken(devices):
    """Six generations on all devices: the bits that every other way of running must give."""
    return _unbroken()


@pytest.mark.long
def test_every_country_finds_its_own_centre(devices):
    evolution = build(devices, population=16)
    state = evolution.init(initial(16), CENTRE_CxZ)
    state, metrics = evolution.run(state, 200, CENTRE_CxZ)
    for i, (candidate_Z, fitness) in enumerate(evolution.best(state)):
        assert fitness < 1e-6
        np.testing.assert_allclose(candidate_Z, CENTRE_CxZ[i], atol=1e-3)
    assert all(m.shape == (200, 3) for m in metrics.values())
    assert (np.diff(metrics["best_so_far"], axis=0) <= 0).all()
    # With elitism DE never loses its best, so the standing best is the best so far.
    np.testing.assert_array_equal(metrics["best"], metrics["best_so_far"])
    assert (metrics["best"] <= metrics["median"]).all()


def test_generation_zero_is_evaluated(devices):
    evolution = eight()
    state = evolution.to_entries(evolution.init(initial(), CENTRE_CxZ))
    fitness_CxE = ((initial() - CENTRE_CxZ[:, None]) ** 2).sum(-1)
    np.testing.assert_allclose(state.best_fitness_C, fitness_CxE.min(1), rtol=1e-6)
    np.testing.assert_array_equal(state.best_CxZ[0], initial()[0, fitness_CxE[0].argmin()])


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 2])
def test_bits_do_not_depend_on_the_number_of_devices(devices, unbroken, count):
    assert bits(run(build(devices[:count]), 6, CENTRE_CxZ)) == bits(unbroken)


@pytest.mark.long
@pytest.mark.parametrize("algorithm", ["DifferentialEvolution", "SNES", "CMA_ES"])
def test_a_device_holds_what_its_candidates_need_and_no_more(devices, algorithm):
    """Two devices hold two of three entries each, and run one of them twice, to the same bits."""
    wanted = None
    for count, held in ((1, 3), (2, 2), (3, 1)):
        evolution = build(devices[:count], algorithm=algorithm)
        state = evolution.init(initial(), CENTRE_CxZ)
        parts = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
        assert {leaf.addressable_shards[0].data.shape[0] for leaf in parts} == {held}
        got = bits(run(evolution, 3, CENTRE_CxZ))
        wanted = wanted or got
        assert got == wanted


def solo_and_together(devices, algorithm):
    """Per country but the first: state and metrics of a run alone, and its part of a joint run."""
    together = eight(algorithm=algorithm)
    joint = run(together, 6, CENTRE_CxZ)
    for i, country in list(enumerate(COUNTRIES))[1:]:
        alone = build(devices, countries=(country,), algorithm=algorithm)
        solo, solo_metrics = run(alone, 6, CENTRE_CxZ[[i]], initial(countries=(country,)))
        part = jax.tree.map(lambda x, i=i: x[[i]], joint[0].optimizer)
        yield (solo.optimizer, solo_metrics), (part, {n: v[:, [i]] for n, v in joint[1].items()})


@pytest.mark.long
def test_solo_equals_together(devices):
    for alone, part in solo_and_together(devices, "DifferentialEvolution"):
        assert bits(alone) == bits(part)


@pytest.mark.long
def test_cma_es_alone_agrees_with_together_to_rounding(devices):
    """Bit for bit on jax 0.10.2, but not on 0.12.0.1, where last bits differ; the cause was not
    looked for. So only Differential Evolution is promised to the bit."""
    for (_, alone), (_, part) in solo_and_together(devices, "CMA_ES"):
        for name, values in part.items():
            np.testing.assert_allclose(alone[name], values, rtol=1e-3, err_msg=name)


@pytest.mark.long
def test_seeds_side_by_side_equal_each_alone(devices):
    """Four entries of two countries and two seeds: DE to the bit what one entry alone gives."""
    countries, seeds = ("CHN", "CHN", "IND", "USA"), (1, 2, 1, 4294967295)
    rows = [COUNTRIES.index(c) for c in countries]
    together = build(devices, countries, seed=seeds)
    joint = run(together, 4, CENTRE_CxZ[rows], initial()[rows])
    assert not np.array_equal(joint[0].best_CxZ[0], joint[0].best_CxZ[1])
    assert together.entries == tuple(zip(countries, seeds, strict=True))
    for i, (country, seed) in enumerate(together.entries):
        alone = build(devices, (country,), seed=seed)
        own = CENTRE_CxZ[rows[i : i + 1]]
        solo, metrics = run(alone, 4, own, initial(countries=(country,)))
        part = jax.tree.map(lambda x, i=i: x[[i]], joint[0].optimizer)
        assert bits((solo.optimizer, metrics)) == bits(
            (part, {name: values[:, [i]] for name, values in joint[1].items()})
        )


def test_other_entries_use_the_same_programs(devices, unbroken):
    evolution = build(devices, ("GBR", "USA", "GBR"), seed=(1, 2, 3))
    state = evolution.init(initial(), CENTRE_CxZ)
    evolution.run(state, 6, CENTRE_CxZ)
    other = evolution.for_entries(entries_of(COUNTRIES, 1))
    assert other.settings == eight().settings
    assert bits(run(other, 6, CENTRE_CxZ)) == bits(unbroken)
    assert (evolution.start._cache_size(), evolution.advance._cache_size()) == (1, 1)
    with pytest.raises(UserError, match="2 entries for programs made for 3"):
        evolution.for_entries(entries_of(COUNTRIES[:2], 1))


@pytest.mark.long
def test_lowering_puts_nothing_on_a_device(devices):
    """So that a mesh may be of devices that are only described, not there."""
    evolution = build(devices, seed=(1, 2, 3))
    assert not any(isinstance(x, jax.Array) for x in jax.tree.leaves(evolution.source))
    centre = jax.ShapeDtypeStruct(CENTRE_CxZ.shape, jnp.float32)
    with jax.transfer_guard("disallow_explicit"):
        assert "f32[3,5]" in evolution.lower(3, centre).compile().as_text()


@pytest.mark.long
@pytest.mark.parametrize("count", [3, 5])
def test_a_run_resumed_on_other_devices_equals_the_unbroken_one(devices, unbroken, tmp_path, count):
    first = eight()
    state, early = first.run(first.init(initial(), CENTRE_CxZ), 3, CENTRE_CxZ)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, first.to_entries(state))
    second = build(devices[:count])
    with Checkpoints(tmp_path) as checkpoints:
        _, state = checkpoints.restore(second.abstract_state())
    assert int(state.generation) == 3
    state, late = second.run(second.to_devices(state), 3, CENTRE_CxZ)
    metrics = jax.tree.map(lambda a, b: np.concatenate([a, b]), early, late)
    assert bits((second.to_entries(state), metrics)) == bits(unbroken)


def test_one_program_serves_all_calls_and_moves_nothing(devices, tmp_path):
    """One compilation over repeated calls and a restore; no transfer; the old state is donated."""
    evolution = build(devices)
    context = jax.device_put(CENTRE_CxZ, evolution.sharding)
    state = evolution.init(initial(), context)
    for _ in range(3):
        old = state
        with jax.transfer_guard("disallow"):
            state, _ = evolution.run(old, 3, context)
        assert old.optimizer.population.is_deleted()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(9, evolution.to_entries(state))
        _, state = checkpoints.restore(evolution.abstract_state())
    evolution.run(evolution.to_devices(state), 3, context)
    assert evolution.advance._cache_size() == 1
    assert evolution.start._cache_size() == 1


def heavy(candidates_PxZ, country_P, weight_ZxF):
    """A fitness whose matrix product dwarfs the rest of the program."""
    return jnp.square(candidates_PxZ @ weight_ZxF).sum(1)


def test_the_compiled_program(devices):
    """Each device scores its share only, gathers the fitness only, and is told its context. The
    metrics, a few numbers per entry, are gathered once per dispatch."""
    F, P = 2**17, 3 * 64
    evolution = build(devices, fitness_fn=heavy, population=64)
    program = evolution.lower(3, jax.ShapeDtypeStruct((Z, F), jnp.float32)).compile()
    text, flops = program.as_text(), program.cost_analysis()["flops"]  # per device and generation
    fitness_flops = P * F * (2 * Z + 2)
    assert fitness_flops / 8 < flops < 1.05 * fitness_flops / 8
    exchanges = [x for x in text.splitlines() if re.search(EXCHANGE, x)]
    shapes = [re.search(r"= (\S+?)\{", x)[1] for x in exchanges]
    assert [shape for shape in shapes if "[3,16]" not in shape] == [f"f32[{P}]"]
    assert len(shapes) == 1 + 5
    assert f"f32[{Z},{F}]" in text
    assert not any(f"f32[{Z},{F}]" in x for x in text.splitlines() if " constant(" in x)


EXCHANGE = r" (all-\S+|collective-\S+|reduce-scatter\S*|send|recv)\("


def test_a_mesh_with_a_model_axis(devices, unbroken):
    mesh = make_mesh(devices, population=4, model=2)
    evolution = make_evolution(Strategy(population=8), Z, sphere, mesh, entries_of(COUNTRIES, 1))
    assert bits(run(evolution, 6, CENTRE_CxZ)) == bits(unbroken)


@settings(max_examples=5, deadline=None)
@given(count=st.sampled_from([2, 3, 8]), countries=st.integers(1, 3), population=st.integers(4, 9))
def test_any_number_of_candidates_is_scored_once_each(count, countries, population):
    """Padding up to the devices neither loses, repeats nor reorders a candidate."""
    names = COUNTRIES[:countries]
    assert len(jax.devices()) == 8
    echo = lambda x, country, _: x[:, 0] + 100 * country  # noqa: E731
    evolution = build(jax.devices()[:count], names, echo, population=population)
    state = evolution.to_entries(evolution.init(initial(population, names)))
    wanted_CxE = initial(population, names)[..., 0] + 100 * np.arange(countries)[:, None]
    np.testing.assert_array_equal(state.optimizer.fitness, wanted_CxE.astype(np.float32))


@pytest.mark.long
def test_failed_evaluations_do_not_poison(devices):
    def sometimes(candidates_PxZ, country_P, centre_CxZ):
        bad_P = jnp.array([jnp.nan, -jnp.inf, jnp.inf])[country_P]
        fitness_P = sphere(candidates_PxZ, country_P, centre_CxZ)
        return jnp.where(candidates_PxZ[:, 0] > 0.3, bad_P, fitness_P)

    evolution = build(devices, fitness_fn=sometimes, population=16)
    start_CxExZ = initial(16)
    start_CxExZ[:, 0, 0] = 1  # the first member fails in generation 0
    state = evolution.init(start_CxExZ, 0.2 * CENTRE_CxZ)
    state, metrics = evolution.run(state, 150, 0.2 * CENTRE_CxZ)
    assert np.isfinite(metrics["mean"]).all()
    assert metrics["failed"].any(0).all()
    assert all(fitness < 1e-2 for _, fitness in evolution.best(state))


def test_everything_failing_leaves_numbers(devices):
    evolution = build(devices, fitness_fn=lambda x, *_: x[:, 0] * jnp.nan)
    state, metrics = evolution.run(evolution.init(initial()), 3)
    for candidate_Z, fitness in evolution.best(state):
        assert np.isinf(fitness)
        assert np.isfinite(candidate_Z).all()
    assert (metrics["failed"] == 8).all()


def test_one_generation_is_best_1_bin_written_by_hand(devices):
    """Storn & Price's trial vectors and selection in numpy, from the same random draws."""
    evolution = eight(countries=("IND",))
    state = evolution.init(initial(countries=("IND",)), CENTRE_CxZ)
    x_ExZ, fitness_E = np.array(state.optimizer.population[0]), np.array(state.optimizer.fitness[0])
    state, _ = evolution.run(state, 1, CENTRE_CxZ)

    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), group_id("IND")), 1)
    key = jax.random.split(key)[0]
    dither = jax.random.fold_in(jax.random.fold_in(key, 8), 0)
    weight = float(jax.random.uniform(dither, (), minval=0.5, maxval=1.0))
    best, trial_ExZ = fitness_E.argmin(), np.empty_like(x_ExZ)
    for i, member_key in enumerate(jax.random.split(key, 8)):
        _, key_forced, key_cross, key_pair = jax.random.split(member_key, 4)
        crossed_Z = np.array(jax.random.uniform(key_cross, (Z,))) < 0.9
        crossed_Z[int(jax.random.choice(key_forced, Z))] = True
        p_E = jnp.ones(8).at[i].set(0).at[best].set(0)
        b, c = jax.random.choice(jax.random.split(key_pair)[1], 8, (2,), replace=False, p=p_E)
        mutant_Z = x_ExZ[best] + weight * (x_ExZ[b] - x_ExZ[c])
        trial_ExZ[i] = np.where(crossed_Z, mutant_Z, x_ExZ[i])
    trial_fitness_E = ((trial_ExZ - CENTRE_CxZ[0]) ** 2).sum(1)
    better_E = trial_fitness_E <= fitness_E
    wanted_ExZ = np.where(better_E[:, None], trial_ExZ, x_ExZ)
    assert 0 < better_E.sum() < 8
    np.testing.assert_allclose(state.optimizer.population[0], wanted_ExZ, rtol=1e-5, atol=1e-6)


def test_agrees_with_a_plain_evosax_loop(devices):
    evolution = eight(countries=("IND",))
    state = evolution.init(initial(countries=("IND",)), CENTRE_CxZ)
    plain = DifferentialEvolution(8, jnp.zeros(Z))
    params = plain.default_params.replace(
        differential_weight_min=0.5, differential_weight_max=1.0, differential_weight=1.0
    )
    with jax.numpy_rank_promotion("allow"):
        start_ExZ = state.optimizer.population[0]
        told = plain.init(jax.random.key(0), start_ExZ, state.optimizer.fitness[0], params)
        for generation in range(1, 6):
            key = jax.random.fold_in(jax.random.key(1), group_id("IND"))
            ask, tell = jax.random.split(jax.random.fold_in(key, generation))
            x_ExZ, told = plain.ask(ask, told, params)
            fitness_E = ((x_ExZ - CENTRE_CxZ[0]) ** 2).sum(1)
            told, _ = plain.tell(tell, x_ExZ, fitness_E, told, params)
    for _ in range(5):
        state, _ = evolution.run(state, 1, CENTRE_CxZ)
    np.testing.assert_allclose(state.optimizer.population[0], told.population, rtol=1e-5, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("PSO", {"inertia_coeff": 0.6}),
        ("CMA_ES", {}),
        ("SNES", {"std_init": 0.5}),
        ("SimpleGA", {"std": 0.1}),
        ("Open_ES", {"std": 0.3, "learning_rate": 0.1}),
    ],
)
def test_other_algorithms_improve(devices, algorithm, options):
    evolution = build(devices, algorithm=algorithm, population=16, options=tuple(options.items()))
    state = evolution.init(initial(16), CENTRE_CxZ)
    before = sum(fitness for _, fitness in evolution.best(state))
    state, _ = evolution.run(state, 60, CENTRE_CxZ)
    assert sum(fitness for _, fitness in evolution.best(state)) < 0.5 * before
    assert evolution.settings.items() >= options.items()


def test_bad_input_is_refused(devices):
    twice = ("USA", "USA")
    for seed, countries in ((-1, COUNTRIES), (1, twice), (1, ()), (1, ("",)), ((1, 1), twice)):
        with pytest.raises(UserError):
            build(devices, countries=countries, seed=seed)
    evolution = build(devices)
    with pytest.raises(UserError, match=r"\(3, 9, 5\), expected \(3, 8, 5\)"):
        evolution.init(initial(9), CENTRE_CxZ)
    with pytest.raises(UserError, match="`generations` 0"):
        evolution.run(None, 0)


def test_group_ids_are_stable_and_distinct():
    assert [group_id(c) for c in ("AAA", "AAB", "USA", "ZZZ")] == [0, 1, 13988, 17575]
    others = [group_id(name) for name in ("usa", "Young, urban", "São Paulo", "A" * 1000)]
    assert others == [2480688378, 634283629, 2474992441, 1369469609]
