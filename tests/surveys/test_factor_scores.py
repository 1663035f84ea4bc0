"""Files of factor scores: both formats, the arithmetic by hand, and messages for what is wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.core.errors import UserError
from jaxalign.surveys.factor_scores import Factor, FactorScores, ItemWeight, read_factor_scores
from jaxalign.surveys.survey import Item, Survey, vsm

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
FUZZ = settings(deadline=None, max_examples=40, derandomize=True)


def survey() -> Survey:
    items = (
        Item("a", "First?", ("no", "so", "yes"), (1, 2, 3)),
        Item("b", "Second?", ("no", "yes"), (0, 1), scale="nominal"),
        Item("c", "Third?", ("red", "green", "blue"), (1, 2, 3), scale="nominal"),
    )
    shares = {"X": {"a": (0.5, 0.3, 0.2), "b": (0.25, 0.75), "c": (0.2, 0.2, 0.6)}}
    return Survey("test", "1", "ours", "paraphrase", items, shares)


def scores_of(scores: FactorScores, shares_QxO: np.ndarray) -> np.ndarray:
    weights_KxQxO, constants_K = scores.option_weights(survey())
    return constants_K + np.einsum("kqo,qo->k", weights_KxQxO, shares_QxO)


def test_both_examples_are_the_same_scores():
    one, other = (read_factor_scores(EXAMPLES / f"factor_scores.{e}") for e in ("json", "csv"))
    assert one.targets == other.targets
    assert one.items == other.items == ("m06", "m11", "m22", "m04", "m24", "m15")
    for a, b in zip(one.option_weights(vsm()), other.option_weights(vsm()), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(one.sha256) == 64


def test_the_arithmetic_by_hand():
    care = Factor(
        "care",
        {"a": ItemWeight(2.0, 2.0, 0.5), "c": ItemWeight(-1.0, values=((1, 1), (2, 0), (3, 0.5)))},
        constant=10.0,
        mean=4.0,
        sd=2.0,
    )
    found = scores_of(FactorScores("s", "", (care,), {}), survey().truth_QxO("X"))
    # Mean of a is 1.7, of c 0.2 + 0.3 = 0.5.
    assert found[0] == pytest.approx((10 + 2 * (1.7 - 2) / 0.5 - 0.5 - 4) / 2, abs=1e-6)
    with pytest.raises(UserError, match="has no order; say what each code counts"):
        scores_of(FactorScores("s", "", (Factor("f", {"c": ItemWeight(1)}),), {}), None)


@FUZZ
@given(st.lists(st.floats(-3, 3), min_size=4, max_size=4), st.integers(0, 99))
def test_centred_scores_take_a_persons_mean_answer_away(weights, seed):
    first = Factor("f", {"a": ItemWeight(weights[0]), "b": ItemWeight(weights[1])})
    second = Factor("g", {"b": ItemWeight(weights[2], 0.3, 2.0), "a": ItemWeight(weights[3])})
    scores = FactorScores("s", "", (first, second), {}, centred=True)
    shares = np.zeros((3, 3))
    random = np.random.default_rng(seed)
    shares[[0, 2]] = random.dirichlet(np.ones(3), 2)
    shares[1, :2] = random.dirichlet(np.ones(2))
    a, b = shares[0] @ [1, 2, 3], shares[1] @ [0, 1, 0]
    centre = (a + b) / 2
    by_hand = [
        weights[0] * (a - centre) + weights[1] * (b - centre),
        weights[2] * (b - centre - 0.3) / 2 + weights[3] * (a - centre),
    ]
    np.testing.assert_allclose(scores_of(scores, shares), by_hand, atol=1e-9)


def test_targets_come_from_the_file_and_else_from_the_groups_own_answers():
    factors = Factor("f", {"a": ItemWeight(1.0)}), Factor("g", {"b": ItemWeight(2.0)})
    scores = FactorScores("s", "", factors, {"X": {"f": 9.0}, "Y": {"f": 1.0, "g": 2.0}})
    np.testing.assert_allclose(scores.group_targets(("X", "Y"), survey()), [[9, 1.5], [1, 2]])
    with pytest.raises(UserError, match=r"`countries` Z: no target for factor 'f'"):
        scores.group_targets(("Z",), survey())
    # A group that was not asked the item has no score either.
    unasked = dataclasses.replace(survey(), distributions={"X": {"a": (0.5, 0.3, 0.2)}})
    with pytest.raises(UserError, match="no target for factor 'g'"):
        scores.group_targets(("X",), unasked)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factors": {}}, "`factors` is empty"),
        ({"factors": None}, "`factors` is None; give an object"),
        ({"factor": {}}, "the file has 'factor'; known are name, source, centred"),
        ({"centred": "yes"}, "`centred` is 'yes'; give true or false"),
        ({"factors": {"f": {"items": {}}}}, "factor 'f' has no items"),
        ({"factors": {"f": {"items": {"a": "x"}}}}, "the weight is 'x'; give a number"),
        ({"factors": {"f": {"items": {"a": {"mean": 1}}}}}, "`weight` is None; give a number"),
        ({"factors": {"f": {"items": {"a": 1}, "sd": 0}}}, "`sd` is 0; give more than 0"),
        (
            {"factors": {"f": {"items": {"a": {"weight": 1, "values": {"x": 1}}}}}},
            "'x', which is not a code",
        ),
        ({"targets": {"USA": {"g": 1}}}, "targets of USA: there is no factor 'g'"),
        ({"targets": {"USA": {"f": float("inf")}}}, "give a number"),
    ],
)
def test_what_is_wrong_with_a_json_file_is_said(tmp_path, change, message):
    file = tmp_path / "scores.json"
    file.write_text(json.dumps({"factors": {"f": {"items": {"a": 1}}}} | change))
    with pytest.raises(UserError) as error:
        read_factor_scores(file)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["factor,item,weights", "f,a,1"], "not a known column"),
        (["factor,item,weight", ",a,1"], "row 2, column 'factor': the cell is empty"),
        (["factor,item,weight", "f,a,"], "item a is ''; give a number"),
        (["factor,item,weight", "f,a,1", "f,a,2"], "item a of factor 'f' is there twice"),
        (["factor,item,weight,group", "f,a,1,USA"], "an item or a group, not both"),
        (["factor,item,weight,group", "f,a,1,", "f,,,USA"], "needs the column 'target'"),
        (["factor,item,weight", "f,a,1", "g,,1"], "factor 'g' has no items"),
        (["factor,item,weight,sd", "f,a,1,-1"], "`sd` is -1; give more than 0"),
    ],
)
def test_what_is_wrong_with_a_csv_file_is_said(tmp_path, rows, message):
    file = tmp_path / "scores.csv"
    file.write_text("\n".join(rows))
    with pytest.raises(UserError) as error:
        read_factor_scores(file)
    assert message in str(error.value)


def test_items_and_codes_that_do_not_fit_the_survey_are_refused():
    lacking = FactorScores("s", "", (Factor("f", {"q9": ItemWeight(1)}),), {})
    with pytest.raises(UserError, match=r"item 'q9' is not in survey 'test', which has a, b, c"):
        lacking.option_weights(survey())
    partial = Factor("f", {"a": ItemWeight(1, values=((1, 0), (2, 1)))})
    with pytest.raises(UserError, match="`values` lack code 3"):
        FactorScores("s", "", (partial,), {}).option_weights(survey())
    other = Factor("g", {"a": ItemWeight(1, values=((1, 0), (2, 1), (3, 2)))})
    with pytest.raises(UserError, match="different `values` in two factors"):
        FactorScores("s", "", (partial, other), {}).option_weights(survey())
