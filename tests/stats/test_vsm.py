"""The survey scorer: formulas against the manual's, both readings, gradients, batches."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxalign.core.errors import UserError
from jaxalign.stats import vsm as score
from jaxalign.surveys.hofstede import DIMENSIONS, targets
from jaxalign.surveys.survey import Item, Survey, vsm

FUZZ = settings(deadline=None, max_examples=50, derandomize=True)
LABELS = ("one", "two", "three", "four", "five")


def instrument(ids: tuple[str, ...], **changes: object) -> Survey:
    item = Item("x", "How much?", LABELS, (1, 2, 3, 4, 5), **changes)
    items = tuple(dataclasses.replace(item, id=i) for i in ids)
    return Survey("synthetic", "1", "test", "paraphrase", items)


def means(**answers: float) -> jax.Array:
    """Answers to m01...m24, 3 where not given."""
    return jnp.array([answers.get(i, 3.0) for i in score.VALUE_ITEMS], jnp.float32)


# -- the six scores -------------------------------------------------------------------------------


def test_the_manuals_formulas_worked_by_hand() -> None:
    answers = means(
        **{"m07": 3.4, "m02": 2.1, "m20": 2.6, "m23": 3.1},  # 35*1.3 + 25*-0.5 = 33
        **{"m04": 1.9, "m01": 2.2, "m09": 3.0, "m06": 2.0},  # 35*-0.3 + 35*1.0 = 24.5
        **{"m05": 2.0, "m03": 1.5, "m08": 2.5, "m10": 1.8},  # 35*0.5 + 35*0.7 = 42
        **{"m18": 2.4, "m15": 2.9, "m21": 3.6, "m24": 3.2},  # 40*-0.5 + 25*0.4 = -10
        **{"m13": 2.5, "m14": 2.3, "m19": 1.4, "m22": 2.6},  # 40*0.2 + 25*-1.2 = -22
        **{"m12": 2.7, "m11": 1.9, "m17": 3.1, "m16": 2.2},  # 35*0.8 + 40*0.9 = 64
    )
    scores = score.dimension_scores(answers, jnp.array([10.0, 20, 30, 40, 50, 60]))
    expected = [43, 44.5, 72, 30, 28, 124]
    np.testing.assert_allclose(scores, expected, atol=1e-4, err_msg="a weight or an item changed")


def test_weights_use_each_item_once_and_span_the_published_ranges() -> None:
    weights = score.weights()
    assert (np.count_nonzero(weights, axis=0) == 1).all(), "the dimensions' items are disjoint"
    assert (weights.sum(axis=1) == 0).all(), "every dimension is made of differences"
    spans = dict(zip(DIMENSIONS, 2 * np.abs(weights).sum(axis=1), strict=True))
    assert spans == {"pdi": 240, "idv": 280, "mas": 280, "uai": 260, "lto": 260, "ivr": 300}, (
        "half-range without C; 240 for MAS would mean the misprint 35 and 25"
    )


def test_middle_answers_give_the_constant() -> None:
    constants = jnp.arange(6.0)
    np.testing.assert_array_equal(score.dimension_scores(means(), constants), constants)


# -- answers --------------------------------------------------------------------------------------

CODES = jnp.array([[1.0, 2, 3, 4, 5], [0.0, 1, 7, 0, 0]])
VALID = jnp.array([[True] * 5, [True] * 3 + [False] * 2])


def test_both_readings_by_hand() -> None:
    p = jnp.array([[0.1, 0.2, 0.4, 0.2, 0.1], [0.5, 0.25, 0.25, 0.6, 0.9]])
    d = score.answer_distributions(jnp.log(p), VALID)
    np.testing.assert_allclose(d.sum(-1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(d[1, 3:], 0.0)
    np.testing.assert_allclose(score.item_means(d, CODES), [3.0, 2.0], rtol=1e-6)
    np.testing.assert_array_equal(score.most_likely_answers(d, CODES), [3.0, 0.0])


def test_an_unnormalised_row_is_renormalised_over_its_options() -> None:
    logits = jnp.log(jnp.array([[0.02, 0.01, 0.01, 0.0, 0.0], [0.2, 0.1, 0.1, 0.0, 0.0]])) - 40.0
    d = score.answer_distributions(logits, VALID)
    np.testing.assert_allclose(d, [[0.5, 0.25, 0.25, 0, 0]] * 2, rtol=1e-5)


def test_padding_of_any_value_changes_nothing_nor_the_gradient() -> None:
    def mean(x: jax.Array) -> jax.Array:
        return score.item_means(score.answer_distributions(x, VALID), CODES).sum()

    x = jax.random.normal(jax.random.key(0), (2, 5))
    for padding in (jnp.nan, -jnp.inf, jnp.inf, 1e30):
        padded = jnp.where(VALID, x, padding)
        assert mean(padded) == mean(x)
        np.testing.assert_array_equal(jax.grad(mean)(padded), jax.grad(mean)(x))


def test_a_broken_candidate_stays_nan_in_both_readings() -> None:
    d = score.answer_distributions(jnp.array([[0.0, jnp.nan, 0, 0, 0], [0.0] * 5]), VALID)
    for read in (score.item_means, score.most_likely_answers):
        assert np.isnan(read(d, CODES)).tolist() == [True, False]


def test_the_first_of_equally_likely_options_is_read() -> None:
    d = score.answer_distributions(jnp.zeros((2, 5)), VALID)
    np.testing.assert_array_equal(score.most_likely_answers(d, CODES), [1.0, 0.0])


log_probs = arrays(np.float32, (2, 5), elements=st.floats(-30, 0, width=32))


@FUZZ
@given(x=log_probs, shift=st.floats(-20, 20, width=32))
def test_distributions_sum_to_one_and_ignore_a_common_factor(x: np.ndarray, shift: float) -> None:
    d = score.answer_distributions(jnp.asarray(x), VALID)
    np.testing.assert_allclose(d.sum(-1), 1.0, rtol=1e-5)
    shifted = score.answer_distributions(jnp.asarray(x + np.float32(shift)), VALID)
    np.testing.assert_allclose(shifted, d, atol=2e-5)
    expected = score.item_means(d, CODES)
    assert (expected >= jnp.array([1.0, 0.0]) - 1e-5).all(), "no lower than the lowest code"
    assert (expected <= jnp.array([5.0, 7.0]) + 1e-5).all(), "no higher than the highest code"


# -- loss and constants ---------------------------------------------------------------------------


def test_loss_is_a_sum_over_the_dimensions_used() -> None:
    scores = jnp.array([10.0, 20, 30, 40, 50, 60])
    target = jnp.array([12.0, 15, 33, jnp.nan, 46, 61])
    used = jnp.array([True, True, True, False, True, True])
    value, gradient = jax.value_and_grad(score.loss)(scores, target, used)
    assert value == 2 + 5 + 3 + 0 + 4 + 1
    np.testing.assert_array_equal(gradient, [-1, 1, -1, 0, 1, -1], "NaN must not leak")


def test_anchored_constants_are_least_squares() -> None:
    rng = np.random.default_rng(0)
    raw = rng.normal(0, 50, (5, 6)).astype(np.float32)
    published = rng.normal(50, 20, (5, 6)).astype(np.float32)
    published[[0, 3], [1, 4]] = np.nan
    constants = score.anchor_constants(jnp.asarray(raw), jnp.asarray(published))
    for d in range(6):
        here = ~np.isnan(published[:, d])
        best = np.linalg.lstsq(np.ones((here.sum(), 1)), (published - raw)[here, d], rcond=None)
        np.testing.assert_allclose(constants[d], best[0][0], rtol=1e-5)


def test_a_dimension_without_references_has_no_constant() -> None:
    published = jnp.full((2, 6), 50.0).at[:, 2].set(jnp.nan)
    constants = score.anchor_constants(jnp.zeros((2, 6)), published)
    assert np.isnan(constants).tolist() == [False, False, True, False, False, False]


# -- the whole way --------------------------------------------------------------------------------


def test_batched_equals_one_by_one_and_jit_vmap_grad_work() -> None:
    scorer = score.make_scorer(instrument(score.VALUE_ITEMS), 50.0)
    target, used = jnp.full((6,), 40.0), jnp.ones(6, bool)
    x_ExCxQxO = jax.random.normal(jax.random.key(1), (3, 2, 24, 5))

    def whole(scorer: score.Scorer, x: jax.Array) -> jax.Array:
        return score.loss(scorer.scores(x), target, used)

    batched = jax.jit(whole)(scorer, x_ExCxQxO)
    assert batched.shape == (3, 2)
    single = jnp.stack([jnp.stack([whole(scorer, x) for x in row]) for row in x_ExCxQxO])
    np.testing.assert_allclose(batched, single, rtol=1e-5)
    mapped = jax.vmap(jax.vmap(whole, (None, 0)), (None, 0))(scorer, x_ExCxQxO)
    np.testing.assert_allclose(mapped, single, rtol=1e-5)
    gradient = jax.grad(lambda x: whole(scorer, x).sum())(x_ExCxQxO)
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient).max(axis=(2, 3)) > 0).all()


def test_the_gradient_is_the_slope() -> None:
    scorer = score.make_scorer(instrument(score.VALUE_ITEMS))
    target, used = jnp.full((6,), 500.0), jnp.ones(6, bool)  # far off: no kink of |.| nearby

    def whole(x: jax.Array) -> jax.Array:
        return score.loss(scorer.scores(x), target, used)

    x, v = jax.random.normal(jax.random.key(2), (2, 24, 5))
    slope = (whole(x + 0.01 * v) - whole(x - 0.01 * v)) / 0.02
    np.testing.assert_allclose(jnp.vdot(jax.grad(whole)(x), v), slope, rtol=1e-2)


def test_items_are_found_by_id_in_any_order_among_others() -> None:
    ids = ("extra", *reversed(score.VALUE_ITEMS), "more")
    mixed = score.make_scorer(instrument(ids), 7.0)
    plain = score.make_scorer(instrument(score.VALUE_ITEMS), 7.0)
    x = jax.random.normal(jax.random.key(3), (26, 5))
    for reading in score.READINGS:
        np.testing.assert_allclose(
            mixed.scores(x, reading), plain.scores(x[1:-1][::-1], reading), rtol=1e-5
        )


def test_integer_answers_move_a_score_in_steps_of_its_weights() -> None:
    scorer = score.make_scorer(instrument(score.VALUE_ITEMS))
    x = 9.0 * jax.random.normal(jax.random.key(4), (200, 24, 5))
    idv = scorer.scores(x, "most_likely")[:, 1]
    np.testing.assert_allclose(idv / 35, jnp.round(idv / 35), atol=1e-5)


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: score.make_scorer(instrument(score.VALUE_ITEMS[2:])), ["m01, m02", "'synthetic'"]),
        (
            lambda: score.make_scorer(instrument(score.VALUE_ITEMS, scale="nominal")),
            ["m01", "nominal"],
        ),
        (lambda: score.make_scorer(instrument(score.VALUE_ITEMS), np.zeros(5)), ["5 values"]),
        (lambda: score.make_scorer(instrument(score.VALUE_ITEMS), np.nan), ["finite", "nan"]),
    ],
)
def test_refusals(make, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert not [p for p in parts if p not in str(caught.value)]


def test_codes_other_than_one_to_five_are_refused() -> None:
    items = [dataclasses.replace(i, codes=(0, 1, 2, 3, 4)) for i in instrument(("m20",)).items]
    others = instrument(tuple(i for i in score.VALUE_ITEMS if i != "m20")).items
    shifted = dataclasses.replace(instrument(("x",)), items=(*others, *items))
    with pytest.raises(UserError, match=r"m20 .*\[0, 1, 2, 3, 4\].*codes 1 to 5"):
        score.make_scorer(shifted)


# -- the shipped module ---------------------------------------------------------------------------


def test_the_values_module_fits_the_formulas() -> None:
    module = vsm()
    assert tuple(item.id for item in module.items) == score.VALUE_ITEMS
    assert {item.codes for item in module.items} == {(1, 2, 3, 4, 5)}
    assert {item.scale for item in module.items} == {"ordinal"}
    assert module.wording == "paraphrase", "the questionnaire's own wording is copyrighted"
    scorer = score.make_scorer(module, 50.0)
    np.testing.assert_allclose(scorer.scores(jnp.zeros((24, 5))), 50.0, atol=1e-3)


# -- losses that need no model --------------------------------------------------------------------

ALL = np.ones(6, bool)


@pytest.mark.parametrize(
    ("edition", "constant", "expected"),
    [
        ("matrix2015", 0.0, 333.0),  # 40 + 91 + 62 + 46 + 26 + 68
        ("hofstede_insights_2021_23", 0.0, 333.0),
        ("hofstede_insights_2021_23", 50.0, 109.0),  # 10 + 41 + 12 + 4 + 24 + 18
        ("culture_factor_2026_05", 50.0, 54.0),  # 10 + 10 + 12 + 4 + 0 + 18
    ],
)
def test_answering_three_throughout(edition: str, constant: float, expected: float) -> None:
    target_Cx6, used_6 = targets(["USA"], edition)
    lines = score.trivial_lines(target_Cx6[0], used_6, np.full(6, constant))
    assert lines["all_middle"] == expected, "|target − C| summed, from the published scores"


def test_smallest_loss_with_integer_answers() -> None:
    target_Cx6, used_6 = targets(["USA", "CHN", "IND", "SAU"])
    found = {
        constant: [
            score.trivial_lines(t, used_6, np.full(6, constant))["smallest_integer"]
            for t in target_Cx6
        ]
        for constant in (0.0, 50.0)
    }
    assert found == {0.0: [26, 22, 31, 27], 50.0: [22, 24, 12, 15]}, (
        "IDV and MAS move in steps of 35, so no country is met exactly: 12 to 31 in all"
    )


def test_smallest_loss_of_one_dimension_by_trying_every_answer() -> None:
    answers = np.array(list(itertools.product(range(1, 6), repeat=4)), np.float64)
    for d, target in enumerate((40.0, 91.0, 62.0, 46.0, 26.0, 68.0)):
        weights = score.weights()[d]
        raw = answers @ weights[weights != 0]
        used = np.arange(6) == d
        lines = score.trivial_lines(np.full(6, target), used, np.full(6, 13.0))
        assert lines["smallest_integer"] == np.abs(raw + 13 - target).min()
        np.testing.assert_allclose(lines["uniform_random"], np.abs(raw + 13 - target).mean())


def test_uniform_random_answers_by_drawing_them() -> None:
    answers = np.random.default_rng(0).integers(1, 6, (100_000, 24))
    target = np.array([40.0, 91, 62, 46, 26, 68])
    drawn = np.abs(answers @ score.weights().T + 50 - target).sum(axis=1).mean()
    exact = score.trivial_lines(target, ALL, np.full(6, 50.0))["uniform_random"]
    np.testing.assert_allclose(exact, drawn, rtol=5e-3)
    np.testing.assert_allclose(exact, 480.4176, err_msg="USA with C = 50, exact")


def test_reachable_scores_span_the_published_ranges() -> None:
    np.testing.assert_array_equal(
        np.abs(score.integer_scores()).max(axis=1), [240, 280, 280, 260, 260, 300]
    )
    np.testing.assert_allclose(score.integer_chances().sum(), 1.0)


def test_a_dimension_left_out_counts_for_nothing() -> None:
    target_Cx6, used_6 = targets(["SAU"], "matrix2015", ["lto", "ivr"])
    lines = score.trivial_lines(target_Cx6[0], used_6, np.zeros(6))
    assert lines["all_middle"] == 36 + 52
    assert all(np.isfinite(v) for v in lines.values())
