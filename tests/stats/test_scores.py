"""Tables of scores from responses, against the functions on arrays behind them."""

from __future__ import annotations

import numpy as np
import pytest

from jaxalign.core.errors import UserError
from jaxalign.stats.held_out import similarity_by_item
from jaxalign.stats.scores import ScoreTable, alignment_score, similarity, vsm_scores
from jaxalign.stats.vsm import make_scorer
from jaxalign.surveys.responses import NO_REPLY, Responses
from jaxalign.surveys.survey import Item, Survey, vsm

ITEMS = (
    Item("a", "First?", ("no", "so", "yes"), (1, 2, 3), topic="x"),
    Item("b", "Second?", ("no", "yes"), (0, 1), scale="nominal", topic="x"),
    Item("c", "Third?", ("no", "yes"), (1, 2), topic="y"),
)
SURVEY = Survey(
    "test",
    "1",
    "ours",
    "paraphrase",
    ITEMS,
    {
        "USA": {"a": (1.0, 0.0, 0.0), "b": (0.25, 0.75), "c": (0.4, 0.6)},
        "CHN": {"a": (0.0, 0.0, 1.0), "b": (0.75, 0.25)},
    },
)


def exact(survey: Survey, conditions: int, seed: int = 0) -> Responses:
    """Random distributions over each item's options."""
    most = max(len(item.options) for item in survey.items)
    out = np.full((conditions, len(survey.items), most), -np.inf, np.float32)
    random = np.random.default_rng(seed)
    for q, item in enumerate(survey.items):
        shares = random.dirichlet(np.ones(len(item.options)), conditions)
        out[:, q, : len(item.options)] = np.log(shares)
    return Responses(survey, tuple(f"condition {i}" for i in range(conditions)), out)


@pytest.mark.parametrize("reading", ["expected", "most_likely"])
def test_vsm_scores_are_those_of_the_scorer(reading: str) -> None:
    responses = exact(vsm(), 3)
    table = vsm_scores(responses, reading=reading)
    expected = make_scorer(vsm(), 50.0).scores(responses.log_probs, reading)
    np.testing.assert_array_equal(table.values, expected)
    assert table.columns == ("PDI", "IDV", "MAS", "UAI", "LTO", "IVR")
    assert table.conditions == responses.conditions
    moved = vsm_scores(responses, [0, 1, 2, 3, 4, 5], reading)
    np.testing.assert_allclose(moved.values, table.values - 50 + np.arange(6), atol=1e-4)
    assert "C by dimension" in str(moved)


def test_vsm_scores_need_the_items_of_the_module() -> None:
    with pytest.raises(UserError, match="m01"):
        vsm_scores(exact(SURVEY, 1))


def test_alignment_by_hand() -> None:
    """Two replies of one condition; another condition answers one item only, a third nothing."""
    replies = np.array(
        [
            [[0, 1, 1], [2, NO_REPLY, NO_REPLY], [NO_REPLY] * 3],
            [[2, 0, NO_REPLY], [NO_REPLY] * 3, [NO_REPLY] * 3],
        ]
    )
    table = alignment_score(Responses.from_positions(SURVEY, ["x", "y", "z"], replies))
    # Ranges are 2, 1, 1. The USA's majority answers are 0, 1, 1; CHN's 2, 0, and c was not asked.
    second = 1 - np.sqrt((4 + 1) / (4 + 1))
    assert table["x", "USA"] == pytest.approx(100 * (1 + second) / 2, abs=1e-4)
    assert table["x", "CHN"] == pytest.approx(100 * (0 + 1) / 2, abs=1e-4)
    assert table["y", "USA"] == pytest.approx(0)
    assert table["y", "CHN"] == pytest.approx(100)
    assert np.isnan(table["z", "CHN"])
    assert "–" in str(table)


def test_exact_answers_align_by_their_most_likely_option() -> None:
    responses = exact(SURVEY, 4)
    likely = np.argmax(responses.log_probs, axis=-1)
    sampled = Responses.from_positions(SURVEY, responses.conditions, likely[None])
    np.testing.assert_array_equal(
        alignment_score(responses).values, alignment_score(sampled).values
    )


def test_similarity_is_the_mean_over_items() -> None:
    responses = exact(SURVEY, 4)
    table = similarity(responses, ["CHN", "USA"])
    by_item = similarity_by_item(SURVEY, ["CHN", "USA"], responses.log_probs)
    np.testing.assert_allclose(table.values, np.nanmean(by_item, axis=-1), rtol=1e-5)
    assert table.columns == ("CHN", "USA")


def test_similarity_leaves_out_items_without_an_answer() -> None:
    replies = np.array([[[0, NO_REPLY, NO_REPLY], [NO_REPLY] * 3]])
    table = similarity(Responses.from_positions(SURVEY, ["x", "y"], replies))
    np.testing.assert_array_equal(table.values, [[1, 0], [np.nan, np.nan]])


def test_an_unknown_name_is_refused() -> None:
    table = ScoreTable("Scores", ("plain",), ("PDI",), np.array([[1.0]]))
    with pytest.raises(KeyError, match="choose from PDI"):
        table["plain", "IDV"]
    with pytest.raises(UserError, match="'XXX' is not in the survey"):
        similarity(exact(SURVEY, 1), ["XXX"])
