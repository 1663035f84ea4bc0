"""The lines that need no model, against figures worked out by other means."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from jaxalign.stats import trivial
from jaxalign.stats import vsm as score
from jaxalign.surveys.hofstede import targets

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
    lines = trivial.trivial_lines(target_Cx6[0], used_6, np.full(6, constant))
    assert lines["all_middle"] == expected, "|target − C| summed, from the published scores"


def test_smallest_loss_with_integer_answers() -> None:
    target_Cx6, used_6 = targets(["USA", "CHN", "IND", "SAU"])
    found = {
        constant: [
            trivial.trivial_lines(t, used_6, np.full(6, constant))["smallest_integer"]
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
        lines = trivial.trivial_lines(np.full(6, target), used, np.full(6, 13.0))
        assert lines["smallest_integer"] == np.abs(raw + 13 - target).min()
        np.testing.assert_allclose(lines["uniform_random"], np.abs(raw + 13 - target).mean())


def test_uniform_random_answers_by_drawing_them() -> None:
    answers = np.random.default_rng(0).integers(1, 6, (100_000, 24))
    target = np.array([40.0, 91, 62, 46, 26, 68])
    drawn = np.abs(answers @ score.weights().T + 50 - target).sum(axis=1).mean()
    exact = trivial.trivial_lines(target, ALL, np.full(6, 50.0))["uniform_random"]
    np.testing.assert_allclose(exact, drawn, rtol=5e-3)
    np.testing.assert_allclose(exact, 480.4176, err_msg="USA with C = 50, exact")


def test_reachable_scores_span_the_published_ranges() -> None:
    np.testing.assert_array_equal(
        np.abs(trivial.integer_scores()).max(axis=1), [240, 280, 280, 260, 260, 300]
    )
    np.testing.assert_allclose(trivial.integer_chances().sum(), 1.0)


def test_a_dimension_left_out_counts_for_nothing() -> None:
    target_Cx6, used_6 = targets(["SAU"], "matrix2015", ["lto", "ivr"])
    lines = trivial.trivial_lines(target_Cx6[0], used_6, np.zeros(6))
    assert lines["all_middle"] == 36 + 52
    assert all(np.isfinite(v) for v in lines.values())
