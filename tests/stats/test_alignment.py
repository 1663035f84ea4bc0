"""The lines that need no model: worked by hand, then against the figures of the released tables."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxalign.core.errors import UserError
from jaxalign.stats.alignment import (
    LINES,
    agreement,
    alignment,
    between_countries,
    classical_scaling,
    culture_lines,
    identify,
    line_answers,
    long_error_share,
    long_item_share,
)
from jaxalign.surveys.formats import culturespa
from jaxalign.surveys.replies import read_answers
from jaxalign.surveys.reply_files import read_replies
from jaxalign.surveys.survey import Item, Survey
from jaxalign.surveys.tables import Tables, make_tables
from tests.support.culture_folder import published_similarities

DATA = os.environ.get("JAXALIGN_CULTURESPA_DATA")
FUZZ = settings(deadline=None, max_examples=40, derandomize=True)
NAN = float("nan")


def survey(shares: dict[str, dict[str, tuple[float, ...]]], options: dict[str, int]) -> Tables:
    items = tuple(
        Item(i, "?", tuple(map(str, range(n))), tuple(range(n))) for i, n in options.items()
    )
    return make_tables(Survey("made up", "1", "test", "paraphrase", items, shares))


@pytest.fixture(scope="module")
def tables() -> Tables:
    """Two items, of three and of ten options. C was not asked the second."""
    point = np.eye(10)
    return survey(
        {
            "A": {"x": (0.5, 0.25, 0.25), "y": tuple(point[9])},
            "B": {"x": (0.0, 1.0, 0.0), "y": tuple(point[6])},
            "C": {"x": (0.0, 0.25, 0.75)},
        },
        {"x": 3, "y": 10},
    )


def test_tables(tables: Tables) -> None:
    np.testing.assert_array_equal(tables.gold_CxQ, [[0, 9], [1, 6], [2, NAN]])
    np.testing.assert_array_equal(tables.range_Q, [2, 9])
    np.testing.assert_array_equal(tables.long_Q, [False, True])
    assert tables.row("B") == 1
    with pytest.raises(UserError, match="it has A B C"):
        tables.row("D")


def test_lines_by_hand(tables: Tables) -> None:
    lines = culture_lines(tables, draws=20_000)
    assert list(lines.scores) == list(LINES)
    root = np.sqrt
    both = root(4 + 81)
    expected = {
        "midpoint": [1 - root(1 + 4.5**2) / both, 1 - root(0 + 1.5**2) / both, 1 - 1 / 2],
        "another_country": [
            (1 - root(1 + 9) / both + 1 - 2 / 2) / 2,
            (1 - root(1 + 9) / both + 1 - 1 / 2) / 2,
            (1 - 2 / 2 + 1 - 1 / 2) / 2,
        ],
        # The others of A are B and C: the lower of 1 and 2, and 6 alone.
        "median_of_others": [1 - root(1 + 9) / both, 1 - root(1 + 9) / both, 1 - 2 / 2],
        "mean_of_others": [1 - root(1.5**2 + 9) / both, 1 - root(0 + 9) / both, 1 - 1.5 / 2],
        "best_neighbour": [1 - root(1 + 9) / both, 1 - root(1 + 9) / both, 1 - 1 / 2],
        "own_mean": [1 - root(0.75**2) / both, 1, 1 - 0.25 / 2],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(lines.scores[name], values, atol=1e-6, err_msg=name)
    assert lines.best_neighbour == ("B", "A", "B")
    x, y = np.meshgrid(np.arange(3), np.arange(10))
    option = np.mean(1 - np.sqrt((x - 0) ** 2 + (y - 9) ** 2) / both)
    np.testing.assert_allclose(lines.scores["random_option"][0], option, atol=0.005)
    respondent = 0.5 * 1 + 0.25 * (1 - 1 / both) + 0.25 * (1 - 2 / both)
    np.testing.assert_allclose(lines.scores["random_respondent"][0], respondent, atol=0.002)
    np.testing.assert_allclose(lines.scores["random_respondent"][1], 1.0)


def test_random_lines_are_the_same_in_every_call(tables: Tables) -> None:
    first, second = (culture_lines(tables, draws=64).scores for _ in range(2))
    for name in LINES:
        np.testing.assert_array_equal(first[name], second[name])


def test_a_lone_country_has_no_others() -> None:
    lines = culture_lines(survey({"A": {"x": (1.0, 0.0)}}, {"x": 2}), draws=64)
    for name in ("another_country", "best_neighbour", "mean_of_others", "median_of_others"):
        assert np.isnan(lines.scores[name]).all()
    assert lines.best_neighbour == ("",)
    np.testing.assert_allclose(lines.scores["own_mean"], [1.0])


def test_items_may_be_left_out(tables: Tables) -> None:
    lines = culture_lines(tables, np.array([True, False]), draws=64)
    np.testing.assert_allclose(lines.scores["midpoint"], [0.5, 1.0, 0.5])


answers = arrays(np.float32, (4, 6), elements=st.sampled_from([0.0, 1.0, 2.0, 3.0, NAN]))


@FUZZ
@given(answers, st.permutations(range(6)))
def test_alignment_is_symmetric_in_range_and_blind_to_item_order(a, order) -> None:
    # Of like ranges, so that the order of items is all that changes.
    shares = {c: {str(q): (1.0, 0, 0, 0) for q in range(6)} for c in "ABCD"}
    four = survey(shares, {str(q): 4 for q in range(6)})
    matrix = alignment(a[:, None], a[None], four)
    np.testing.assert_array_equal(matrix, matrix.T)
    known = ~np.isnan(matrix)
    assert ((matrix[known] >= 0) & (matrix[known] <= 1)).all()
    np.testing.assert_allclose(np.diag(matrix)[np.diag(known)], 1.0)
    again = alignment(a[:, None][..., order], a[None][..., order], four)
    np.testing.assert_allclose(again, matrix, atol=1e-6)


# -- personas -------------------------------------------------------------------------------------


def test_identification_both_ways() -> None:
    scores = np.array([[0.9, 0.5, 0.1], [0.8, 0.8, 0.2], [NAN, NAN, NAN]])
    own = np.arange(3)
    assert identify(scores, own) == (1, 3, (0, 0, -1))  # a tie is no hit
    assert identify(scores.T, own) == (2, 3, (0, 1, 1))
    assert identify(np.zeros((0, 3)), np.zeros(0, int)) == (0, 0, ())


def test_agreement_and_long_items(tables: Tables) -> None:
    value, pairs = agreement(tables.gold_CxQ, tables)
    assert pairs == 3
    np.testing.assert_allclose(value, np.mean([1 - np.sqrt(10 / 85), 0, 0.5]), atol=1e-6)
    assert agreement(tables.gold_CxQ[:1], tables)[1] == 0
    np.testing.assert_allclose(long_item_share(tables), 81 / 85)
    error = long_error_share(tables.gold_CxQ[0], tables.gold_CxQ[1], tables)
    np.testing.assert_allclose(error, 9 / 10)
    assert np.isnan(long_error_share(tables.gold_CxQ[0], tables.gold_CxQ[0], tables))


def test_the_map_keeps_distances_that_fit_a_plane() -> None:
    shares = {c: {"x": (1.0,) + (0.0,) * 9} for c in "ABC"}
    line = survey(shares, {"x": 10})
    positions = np.array([[0.0], [3.0], [9.0]], np.float32)
    found = classical_scaling(positions, line)
    np.testing.assert_allclose(found.explained, 1.0, atol=1e-6)
    gaps = np.abs(found.xy_Px2[:, None, 0] - found.xy_Px2[None, :, 0])
    np.testing.assert_allclose(gaps, np.abs(positions - positions.T) / 9, atol=1e-5)
    assert found.xy_Px2[2, 0] > 0  # the farthest out
    assert classical_scaling(positions[:1], line).xy_Px2.tolist() == [[0, 0]]


@FUZZ
@given(answers)
def test_the_map_is_finite_centred_and_repeatable(a) -> None:
    shares = {c: {str(q): (1.0, 0, 0, 0) for q in range(6)} for c in "ABCD"}
    four = survey(shares, {str(q): 4 for q in range(6)})
    xy = classical_scaling(a, four).xy_Px2
    assert np.isfinite(xy).all()
    # A coordinate is the root of an eigenvalue: rounding of 1e-16 becomes 1e-8.
    np.testing.assert_allclose(xy.mean(0), 0, atol=1e-7)
    np.testing.assert_array_equal(xy, classical_scaling(a, four).xy_Px2)


if DATA:

    @pytest.fixture(scope="module")
    def released() -> Tables:
        return make_tables(culturespa.read(Path(str(DATA))))

    # Means over 18 countries, points: what an independent computation on the same tables gave.
    FIGURES = {
        "random_option": (46.43, 0.3),
        "midpoint": (57.95, 0.01),
        "another_country": (61.88, 0.01),
        "random_respondent": (63.68, 0.3),
        "median_of_others": (67.68, 0.01),
        "mean_of_others": (71.59, 0.01),
        "best_neighbour": (75.91, 0.01),
        "own_mean": (76.81, 0.01),
    }

    def test_the_lines_of_the_released_tables(released: Tables) -> None:
        lines = culture_lines(released)
        for name, (mean, tolerance) in FIGURES.items():
            found = 100 * lines.scores[name].astype(np.float64).mean()
            assert abs(found - mean) < tolerance, (name, found)

    def test_the_unaware_replies_of_the_released_folder(released: Tables) -> None:
        folder = Path(str(DATA))
        (replies,) = read_replies(folder / "result" / "wvs_result_culture_unaware_0.json")
        answers_Q = read_answers(replies, culturespa.read(folder)).answers()[0, 0]
        scores = 100 * alignment(answers_Q[None], released.gold_CxQ, released)
        assert abs(scores.mean(dtype=np.float64) - 62.36) < 0.01

    def test_similarities_are_alignments_of_majority_answers(released: Tables) -> None:
        published = published_similarities(Path(str(DATA)))
        ours = 100 * between_countries(released).astype(np.float64)
        for country, row in published.items():
            for other, value in row.items():
                found = ours[released.row(country), released.row(other)]
                assert abs(found - value) < 0.0501

    def test_dispersion_and_long_items_of_the_released_tables(released: Tables) -> None:
        assert abs(100 * agreement(released.gold_CxQ, released)[0] - 61.88) < 0.01
        assert abs(100 * long_item_share(released) - 72.9) < 0.05
        assert set(line_answers(released)) < set(LINES)
