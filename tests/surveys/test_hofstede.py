"""Published country scores: figures, absences, and refusals that say what to do."""

from __future__ import annotations

import numpy as np
import pytest

from jaxalign.core.errors import UserError
from jaxalign.surveys import hofstede as c


def test_usa_scores_as_published() -> None:
    expected = {"pdi": 40, "idv": 91, "mas": 62, "uai": 46, "lto": 26, "ivr": 68}
    assert c.country_scores()["USA"] == expected, "the figures of the official matrix"
    assert c.country_scores("matrix2015")["USA"] == expected
    assert c.country_scores("culture_factor_2026_05")["USA"] == expected | {"idv": 60, "lto": 50}, (
        "the 2026 edition replaced IDV and LTO"
    )


def test_blank_is_absent_and_zero_is_a_score() -> None:
    assert c.country_scores("matrix2015")["SAU"].keys() == {"lto", "ivr"}
    assert c.country_scores()["EGY"]["ivr"] == 0.0, "0 is published, not missing"


@pytest.mark.parametrize("edition", c.EDITIONS)
def test_every_edition_has_codes_and_plausible_scores(edition: str) -> None:
    scores = c.country_scores(edition)
    assert scores
    assert all(len(iso3) == 3 and iso3.isupper() for iso3 in scores), "regions carry no code"
    values = [v for dimensions in scores.values() for v in dimensions.values()]
    assert 0 <= min(values) <= max(values) <= 120


def test_result_is_the_callers_own() -> None:
    c.country_scores()["USA"]["pdi"] = -1.0
    assert c.country_scores()["USA"]["pdi"] == 40.0


def test_names_are_plain_english() -> None:
    names = [c.country_name(i) for i in ("USA", "SAU", "CHN", "IND", "CZE", "KOR", "KGZ", "MNG")]
    assert names == [
        "United States", "Saudi Arabia", "China", "India", "Czech Republic", "South Korea",
        "Kyrgyzstan", "Mongolia",
    ]  # fmt: skip
    every = {iso3 for edition in c.EDITIONS for iso3 in c.country_scores(edition)}
    assert not [n for n in map(c.country_name, every) if n.endswith((" Rep", ".")) or not n]


def test_targets_in_the_order_asked_for() -> None:
    target_Cx6, used_6 = c.targets(["SAU", "USA"])
    np.testing.assert_array_equal(target_Cx6, [[72, 48, 43, 64, 27, 14], [40, 91, 62, 46, 26, 68]])
    assert target_Cx6.dtype == np.float32
    assert used_6.all()


def test_a_dimension_left_out_may_be_missing() -> None:
    target_Cx6, used_6 = c.targets(["SAU"], "matrix2015", ["ivr", "lto"])
    assert used_6.tolist() == [False, False, False, False, True, True]
    assert target_Cx6[0][used_6].tolist() == [36, 52]
    assert np.isnan(target_Cx6[0][~used_6]).all(), "not published, so never filled in"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((["SAU"], "matrix2015"), ["SAU lacks pdi, idv, mas, uai", "--dimensions lto ivr"]),
        ((["SAU"], "matrix2015"), [c.DEFAULT_EDITION]),
        ((["CRI", "USA", "KEN"],), ["CRI lacks lto, ivr; KEN lacks lto, ivr"]),
        ((["CRI"],), ["--dimensions pdi idv mas uai"]),
        ((["BTN"], c.DEFAULT_EDITION, ["ivr"]), ["BTN lacks ivr", "leave the country out"]),
        ((["US"],), ["'US' is unknown", "USA (United States)"]),
        ((["saudi arabia"],), ["SAU (Saudi Arabia)"]),
        ((["QXQ"],), ["'QXQ' is unknown", "three-letter code", " USA ", " CHN "]),
        ((["MNG"],), ["'MNG' is not in edition", "culture_factor_2026_05"]),
        ((["USA"], "2015"), ["'2015' is unknown", *c.EDITIONS]),
        ((["USA"], c.DEFAULT_EDITION, ["pdi", "PDI"]), ["'PDI' is unknown", "pdi, idv"]),
        ((["USA"], c.DEFAULT_EDITION, []), ["no dimensions"]),
    ],
)
def test_refusals_are_one_line_that_says_what_to_do(arguments: tuple, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        c.targets(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert not [part for part in parts if part not in message], message


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match="'ZZZ' is unknown"):
        c.country_name("ZZZ")
