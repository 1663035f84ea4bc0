"""One type for answers: exact ones are log-probabilities, sampled ones shares of replies."""

import numpy as np
import pytest

from jaxalign.core.errors import UserError
from jaxalign.surveys import Item, Responses, Survey
from jaxalign.surveys.responses import NO_REPLY, OUT_OF_RANGE, UNREADABLE

ITEMS = (
    Item("a", "How much?", ("none", "some", "much"), (0, 1, 2)),
    Item("b", "Agree?", ("yes", "no"), (1, 2)),
)
SURVEY = Survey("small", "1", "made up", "official", ITEMS)


def exact(shares, conditions=("plain",)):
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.array(shares, np.float32))
    return Responses(SURVEY, conditions, log_probs)


def test_exact_answers_are_the_exponentials_of_log_probabilities():
    found = exact([[[0.2, 0.5, 0.3], [0.75, 0.25, 0]]])
    np.testing.assert_allclose(
        found.distributions(), [[[0.2, 0.5, 0.3], [0.75, 0.25, 0]]], rtol=1e-6
    )
    np.testing.assert_allclose(found.expected(), [[1.1, 1.25]], rtol=1e-6)
    np.testing.assert_array_equal(found.most_likely_positions(), [[1, 0]])
    np.testing.assert_array_equal(found.most_likely(), [[1, 1]])
    np.testing.assert_array_equal(found.answers(), [[[1, 0]]])
    assert found.counts() == {"replies": 2, "unreadable": 0, "out_of_range": 0, "option_lists": 0}
    assert found.distributions().dtype == found.expected().dtype == np.float32


def test_sampled_answers_are_shares_of_the_replies_that_name_an_option():
    positions = np.array([[[2, 0]], [[2, UNREADABLE]], [[1, NO_REPLY]], [[2, OUT_OF_RANGE]]])
    found = Responses.from_positions(SURVEY, ["persona"], positions)
    np.testing.assert_array_equal(
        found.distributions(), np.array([[[0, 0.25, 0.75], [1, 0, 0]]], np.float32)
    )
    np.testing.assert_array_equal(found.valid_mass, np.array([[1, 1 / 3]], np.float32))
    np.testing.assert_array_equal(found.answers()[:, 0, 0], [2, 2, 1, 2])
    np.testing.assert_array_equal(found.answers()[:, 0, 1], [0, np.nan, np.nan, np.nan])
    assert found.counts() == {"replies": 7, "unreadable": 1, "out_of_range": 1, "option_lists": 0}


def test_shares_of_replies_keep_their_bits():
    """exp(log(share)) need not be the share again."""
    positions = np.array([0, 1, 1, 2, 2, 2, 2])[:, None, None] * np.array([1, 0])
    found = Responses.from_positions(SURVEY, ["persona"], positions)
    np.testing.assert_array_equal(
        found.distributions()[0, 0], (np.array([1, 2, 4]) / 7).astype(np.float32)
    )


def test_an_item_without_a_readable_reply_has_no_answer():
    found = Responses.from_positions(SURVEY, ["persona"], np.array([[[0, UNREADABLE]]]))
    assert np.isnan(found.distributions()[0, 1]).all()
    np.testing.assert_array_equal(found.most_likely_positions(), [[0, -1]])
    np.testing.assert_array_equal(found.most_likely(), [[0, np.nan]])
    np.testing.assert_array_equal(found.expected(), [[0, np.nan]])


def test_conditions_are_found_and_selected_by_their_labels():
    found = exact([[[1, 0, 0], [1, 0, 0]], [[0, 0, 1], [0, 1, 0]]], ("plain", "CHN"))
    np.testing.assert_array_equal(found.select(["CHN"]).most_likely(), [[2, 2]])
    assert found.row("CHN") == 1
    with pytest.raises(UserError, match="'USA' was not asked; choose from plain, CHN"):
        found.select(["USA"])


def test_table_has_a_row_per_item_and_a_column_per_condition():
    found = exact([[[1, 0, 0], [1, 0, 0]], [[0, 0, 1], [0, 1, 0]]], ("plain", "CHN"))
    assert found.table().splitlines() == [
        "item  plain  CHN",
        "a     0.00   2.00",
        "b     1.00   2.00",
    ]
    assert repr(found) == "Responses('small', 2 items; plain, CHN)"


@pytest.mark.parametrize(
    "arrays",
    [
        {"log_probs": np.zeros((1, 2, 2))},
        {"log_probs": np.zeros((1, 2, 3)), "valid_mass": np.zeros((1, 3))},
        {"log_probs": np.zeros((1, 2, 3)), "positions": np.zeros((4, 2, 2))},
    ],
)
def test_shapes_must_fit(arrays):
    with pytest.raises(ValueError, match="has shape"):
        Responses(SURVEY, ("plain",), **arrays)
