"""Objectives besides the six scores, and the weight of MAS: losses by hand, gradients, lines."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.core.errors import UserError
from jaxalign.stats.objectives import ObjectiveInputs, objectives
from jaxalign.stats.vsm import trivial_lines
from jaxalign.surveys.factor_scores import read_factor_scores
from jaxalign.surveys.hofstede import DEFAULT_EDITION, DIMENSIONS, targets
from jaxalign.surveys.survey import Item, Survey, vsm

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "factor_scores.json"
FUZZ = settings(deadline=None, max_examples=25, derandomize=True)
COUNTRIES = ("USA", "CHN", "IND")


def survey() -> Survey:
    items = (
        Item("a", "First?", ("no", "so", "yes"), (1, 2, 3)),
        Item("b", "Second?", ("red", "green", "blue"), (1, 2, 3), scale="nominal"),
        Item("c", "Third?", ("no", "yes"), (0, 1)),
    )
    shares = {
        "USA": {"a": (0.5, 0.3, 0.2), "b": (0.1, 0.1, 0.8), "c": (0.25, 0.75)},
        "CHN": {"a": (0.0, 0.2, 0.8), "b": (0.7, 0.2, 0.1)},
        "IND": {"a": (0.2, 0.2, 0.6), "b": (0.3, 0.3, 0.4), "c": (0.5, 0.5)},
    }
    return Survey("test", "1", "ours", "paraphrase", items, shares)


def inputs(asked: Survey, groups=COUNTRIES, **changes) -> ObjectiveInputs:
    fields = {"edition": "matrix2015", "dimensions": DIMENSIONS, "reading": "expected"}
    constants_6 = np.full(6, 50, np.float32)
    return ObjectiveInputs(
        **{"survey": asked, "groups": groups, "constants_6": constants_6, **fields, **changes}
    )


def answers(asked: Survey, rows: int, seed: int = 0) -> np.ndarray:
    """Log-probabilities over each item's options, -inf past them."""
    random = np.random.default_rng(seed)
    most = max(len(item.options) for item in asked.items)
    log_probs = np.full((rows, len(asked.items), most), -np.inf, np.float32)
    for q, item in enumerate(asked.items):
        n = len(item.options)
        log_probs[:, q, :n] = np.log(random.dirichlet(np.ones(n), rows))
    return log_probs


# -- distances ------------------------------------------------------------------------------------


@FUZZ
@given(st.integers(0, 10_000))
def test_distances_against_scipy(seed):
    log_probs = answers(survey(), 3, seed)
    found = {
        name: objectives[name].build(inputs(survey())).loss(log_probs, jnp.arange(3))
        for name in ("jensen-shannon", "earth-mover")
    }
    for c, country in enumerate(COUNTRIES):
        divergence, distance = [], []
        for q, item in enumerate(survey().items):
            if item.id not in survey().distributions[country]:
                continue
            n = len(item.options)
            p, truth = np.exp(log_probs[c, q, :n]), survey().distributions[country][item.id]
            divergence.append(scipy.spatial.distance.jensenshannon(p, truth, base=2) ** 2)
            if item.scale == "ordinal":
                steps = np.arange(n)
                distance.append(scipy.stats.wasserstein_distance(steps, steps, p, truth) / (n - 1))
            else:
                distance.append(np.abs(p - truth).sum() / 2)
        assert found["jensen-shannon"][c] == pytest.approx(100 * np.mean(divergence), abs=1e-3)
        assert found["earth-mover"][c] == pytest.approx(100 * np.mean(distance), abs=1e-3)


@pytest.mark.parametrize("name", ["jensen-shannon", "earth-mover"])
def test_a_groups_own_answers_lose_nothing_and_have_a_finite_gradient(name):
    objective = objectives[name].build(inputs(survey()))
    truth = np.nan_to_num(np.stack([survey().truth_QxO(c) for c in COUNTRIES]), nan=1 / 3)
    with np.errstate(divide="ignore"):
        log_probs = np.log(truth)
    np.testing.assert_allclose(objective.loss(log_probs, jnp.arange(3)), 0, atol=1e-3)

    def mean_loss(logits):
        return objective.loss(jax.nn.log_softmax(logits), jnp.arange(3)).mean()

    # Also where an option has no probability at all: exp(-200) is 0 in float32.
    logits = jnp.asarray(np.where(truth == 0, -200.0, 1.0), jnp.float32)
    assert np.isfinite(jax.grad(mean_loss)(logits)).all()
    assert np.abs(jax.grad(mean_loss)(logits)).max() > 0


@pytest.mark.parametrize("name", ["jensen-shannon", "earth-mover"])
def test_distances_know_which_group_a_candidate_is_for(name):
    objective = objectives[name].build(inputs(survey()))
    log_probs, group = answers(survey(), 4), jnp.array([2, 0, 1, 2])
    all_groups = objective.loss(log_probs, group)
    some = objective.for_groups([2, 0])
    np.testing.assert_array_equal(
        some.loss(log_probs[[0, 1, 3]], jnp.array([0, 1, 0])), all_groups[np.array([0, 1, 3])]
    )
    assert some.group_record(1) == objective.group_record(0)
    assert objective.with_reading("most_likely") is objective
    with pytest.raises(UserError, match=r"`countries` BRA: survey 'test' does not say"):
        objectives[name].build(inputs(survey(), ("USA", "BRA")))


def test_lines_of_a_distance():
    record = objectives["earth-mover"].build(inputs(survey())).group_record(0)
    assert set(record["trivial"]) == {
        "uniform",
        "midpoint",
        "mean_of_others",
        "own_mean",
        "random_respondent",
    }
    # USA, uniform: 1/6 + 2/15 of two steps; total variation 0.8 - 1/3; 1/4 of one step.
    by_hand = 100 * ((1 / 6 + 2 / 15) / 2 + (0.8 - 1 / 3) + 0.25) / 3
    assert record["trivial"]["uniform"] == pytest.approx(by_hand, abs=1e-3)
    # CHN was not asked c, which leaves IND's answers to it as those of all others of USA.
    assert record["trivial"]["mean_of_others"] is not None


# -- linear scores --------------------------------------------------------------------------------


def test_linear_scores_of_the_example_by_hand():
    objective = objectives["linear"].build(inputs(vsm(), scores=EXAMPLE))
    log_probs = answers(vsm(), 1)
    means = dict(
        zip(
            [i.id for i in vsm().items],
            (np.exp(log_probs[0]) * np.arange(1, 6)).sum(-1),
            strict=True,
        )
    )
    openness = 50 - 12 * (means["m06"] - 2.5) - 15 * (means["m11"] - 2.5) + 8 * means["m22"]
    order = 50 - 14 * (means["m04"] - 2.5) - 10 * (means["m24"] - 2.5) + 6 * (means["m15"] - 3)
    measured = objective.measure(log_probs[0], 1)
    np.testing.assert_allclose(measured["scores"], [openness, order], rtol=1e-5)
    loss = abs(openness - 55) + abs(order - 65)
    np.testing.assert_allclose(measured["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(objective.loss(log_probs, jnp.array([1]))[0], loss, rtol=1e-5)
    assert objective.record() == {
        "factor_scores": "invented example",
        "factors": ["openness", "order"],
    }
    record = objective.group_record(1)
    assert record["target"] == [55, 65]
    assert set(record["trivial"]) == {"uniform", "midpoint"}, "nobody's answers are known"
    assert record["trivial"]["uniform"] == pytest.approx(record["trivial"]["midpoint"], abs=1e-3)


def test_the_most_likely_reading_of_linear_scores_has_no_gradient():
    objective = objectives["linear"].build(inputs(vsm(), scores=EXAMPLE, reading="most_likely"))
    log_probs = answers(vsm(), 1)
    one_hot = np.where(log_probs == log_probs.max(axis=-1, keepdims=True), 0.0, -np.inf)
    expected = objective.differentiable()
    np.testing.assert_allclose(
        objective.loss(log_probs, jnp.array([0])), expected.loss(one_hot, jnp.array([0])), rtol=1e-5
    )

    def gradient(of):
        return jax.grad(lambda x: of.loss(jax.nn.log_softmax(x), jnp.array([0]))[0])(log_probs)

    assert np.abs(gradient(objective)).max() == 0
    assert np.abs(gradient(expected)).max() > 0
    broken = log_probs.copy()
    broken[0, 10, 0] = np.nan  # m11
    assert np.isnan(objective.loss(broken, jnp.array([0]))[0])


def test_targets_from_the_surveys_own_distributions_and_all_lines(tmp_path):
    file = tmp_path / "scores.csv"
    file.write_text("factor,item,weight\nf,a,10\n")
    objective = objectives["linear"].build(inputs(survey(), scores=file))
    np.testing.assert_allclose(objective.target_CxK[:, 0], [17, 28, 24], rtol=1e-6)
    lines = objective.for_groups([1]).group_record(0)["trivial"]
    assert lines["own_mean"] == pytest.approx(0, abs=1e-4)
    assert lines["uniform"] == pytest.approx(8, abs=1e-4)
    # CHN was not asked c, which enters no factor.
    assert lines["mean_of_others"] == pytest.approx(28 - (17 + 24) / 2, abs=1e-4)


def test_linear_scores_need_a_file():
    with pytest.raises(UserError, match=r"`objective` linear: give the file .* `scores`"):
        objectives["linear"].build(inputs(vsm()))
    assert read_factor_scores(EXAMPLE).centred is False


# -- the six scores -------------------------------------------------------------------------------


def test_the_second_weight_of_mas_is_the_manuals_or_the_misprint():
    log_probs = answers(vsm(), 1)
    by_weight = {
        weight: objectives["vsm"].build(inputs(vsm(), mas_weight=weight)) for weight in (35, 25)
    }
    scores = {w: np.asarray(o.measure(log_probs[0], 0)["scores"]) for w, o in by_weight.items()}
    means = (np.exp(log_probs[0]) * np.arange(1, 6)).sum(axis=-1)
    gap = np.zeros(6)
    gap[2] = 10 * (means[7] - means[9])  # m08 and m10
    np.testing.assert_allclose(scores[35] - scores[25], gap, atol=1e-3)
    assert by_weight[25].record()["mas_weight"] == 25
    assert objectives["vsm"].build(inputs(vsm())).record()["mas_weight"] == 35
    with pytest.raises(UserError, match="`mas_weight` 30: choose 35"):
        objectives["vsm"].build(inputs(vsm(), mas_weight=30))
    # Fewer scores can be reached exactly or more: the lines change with it.
    target_Cx6, used_6 = targets(["USA"], "matrix2015")
    lines = [trivial_lines(target_Cx6[0], used_6, np.full(6, 50.0), w) for w in (35, 25)]
    assert lines[0]["all_middle"] == lines[1]["all_middle"]
    assert lines[0]["uniform_random"] != lines[1]["uniform_random"]


def test_scores_of_other_countries_as_lines(tmp_path):
    edition = tmp_path / "mine.csv"
    edition.write_text(
        "group,pdi,idv,mas,uai,lto,ivr\nX,10,20,30,40,50,60\nY,20,20,30,40,50,60\n"
        "Z,40,20,30,40,50,70\nW,40,,,,,\n"
    )
    objective = objectives["vsm"].build(inputs(vsm(), ("X", "Z"), edition=str(edition)))
    first, last = (objective.group_record(c)["trivial"] for c in range(2))
    assert first["mean_of_others"] == pytest.approx(20 + 5)
    assert first["another_country"] == pytest.approx((10 + 40) / 2)
    assert objective.for_groups([1]).group_record(0)["trivial"] == last
    alone = tmp_path / "alone.csv"
    alone.write_text("group,pdi,idv,mas,uai,lto,ivr\nX,10,20,30,40,50,60\n")
    record = objectives["vsm"].build(inputs(vsm(), ("X",), edition=str(alone))).group_record(0)
    assert record["trivial"]["mean_of_others"] is None


def test_scores_of_peoples_own_answers_where_they_are_known():
    """The simulated society's answers have the published scores, so their mean loses nothing."""
    from jaxalign.pocket.society import society_values_module

    objective = objectives["vsm"].build(inputs(society_values_module(), edition=DEFAULT_EDITION))
    lines = objective.group_record(0)["trivial"]
    assert lines["own_mean"] == pytest.approx(0, abs=0.1)
    assert lines["random_respondent"] > 100, "one person's answers are far from the mean's scores"
    asked = objectives["vsm"].build(inputs(vsm()))
    assert "own_mean" not in asked.group_record(0)["trivial"]
