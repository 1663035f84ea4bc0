"""Published scores: figures, absences, files of the user, and refusals that say what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jaxalign.core.errors import UserError
from jaxalign.surveys import hofstede as c


def test_usa_scores_as_published() -> None:
    expected = {"pdi": 40, "idv": 91, "mas": 62, "uai": 46, "lto": 26, "ivr": 68}
    assert c.country_scores("USA") == expected, "the figures of the official matrix"
    assert c.country_scores("USA", "matrix2015") == expected
    newest = c.country_scores("USA", "culture_factor_2026_05")
    assert newest == expected | {"idv": 60, "lto": 50}, "the 2026 edition replaced IDV and LTO"


def test_blank_is_absent_and_zero_is_a_score() -> None:
    assert c.country_scores("SAU", "matrix2015").keys() == {"lto", "ivr"}
    assert c.country_scores("EGY")["ivr"] == 0.0, "0 is published, not missing"


@pytest.mark.parametrize("edition", c.EDITIONS)
def test_every_edition_has_codes_and_plausible_scores(edition: str) -> None:
    scores = c.edition_scores(edition)
    assert scores
    assert all(len(iso3) == 3 and iso3.isupper() for iso3 in scores), "regions carry no code"
    values = [v for dimensions in scores.values() for v in dimensions.values()]
    assert 0 <= min(values) <= max(values) <= 120


def test_a_caller_may_change_the_result() -> None:
    c.country_scores("USA")["pdi"] = -1.0
    assert c.country_scores("USA")["pdi"] == 40.0


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
        ((["SAU"], "matrix2015"), ["SAU lacks pdi, idv, mas, uai", "`dimensions` lto ivr"]),
        ((["SAU"], "matrix2015"), [c.DEFAULT_EDITION]),
        ((["CRI", "USA", "KEN"],), ["CRI lacks lto, ivr; KEN lacks lto, ivr"]),
        ((["CRI"],), ["`dimensions` pdi idv mas uai"]),
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
        c.name_in_edition("ZZZ")


# -- a file of the user's own ---------------------------------------------------------------------

OWN = """\
group,name,pdi,idv,mas,uai,lto,ivr
night owls,people who work at night,35,80,40,30,45,70
CHN,,81,21,67,31,88,25
Gen Z,,10.5,-3,,,50,60
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "scores.csv"
    path.write_text(OWN, "utf-8")
    return path


def test_any_named_group_may_have_scores(own: Path) -> None:
    assert list(c.edition_scores(own)) == ["night owls", "CHN", "Gen Z"]
    assert c.country_scores("Gen Z", own) == {"pdi": 10.5, "idv": -3, "lto": 50, "ivr": 60}
    target_Cx6, used_6 = c.targets(["CHN", "night owls"], str(own))
    np.testing.assert_array_equal(target_Cx6, [[81, 21, 67, 31, 88, 25], [35, 80, 40, 30, 45, 70]])
    assert used_6.all()


def test_groups_are_named_by_their_file(own: Path) -> None:
    assert c.name_in_edition("night owls", own) == "people who work at night"
    assert c.name_in_edition("Gen Z", own) == "Gen Z", "the file has no name, so it is the group's"
    assert c.name_in_edition("CHN", own) == "China", "a country without a name keeps its own"
    assert c.name_in_edition("USA", own) == "United States"
    assert c.name_in_edition("early birds", groups=("early birds",)) == "early birds"
    for group in ("Gen Z", "night owls"):
        with pytest.raises(UserError, match=f"{group!r} is unknown"):
            c.name_in_edition(group)


def test_semicolons_and_absent_columns(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("group;ivr\nNorth;40\nSouth;\n", "utf-8")
    assert c.edition_scores(path) == {"North": {"ivr": 40}, "South": {}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OWN.replace("night owls", "  "), "row 2, column 'group': the cell is empty"),
        (OWN.replace("Gen Z", "CHN"), "row 4, column 'group': 'CHN' is in row 3 already"),
        (OWN.replace("10.5", "ten"), "row 4, column 'pdi': 'ten' is not a number"),
        (OWN.replace("10.5", "nan"), "row 4, column 'pdi': 'nan' is not a number"),
        (OWN.replace("uai", "uia"), "row 1, column 'uia': not a known column"),
        (OWN.replace("group", "country"), "row 1: the header lacks group"),
        ("", "the file is empty"),
    ],
)
def test_bad_files_of_scores_are_refused(own: Path, text: str, message: str) -> None:
    own.write_text(text, "utf-8")
    with pytest.raises(UserError, match=message) as caught:
        c.edition_scores(own)
    assert str(own) in str(caught.value)


def test_groups_that_a_file_lacks_are_refused(own: Path) -> None:
    with pytest.raises(UserError, match=r"'USA' is not in .*scores\.csv; it has night owls, CHN"):
        c.targets(["USA"], own)
    with pytest.raises(UserError, match="Gen Z lacks mas, uai; leave them out with `dimensions`"):
        c.targets(["Gen Z"], own)
    with pytest.raises(UserError, match="cannot be read"):
        c.targets(["USA"], own.parent / "absent.csv")


def test_the_two_official_matrices_of_2015_differ_in_six_countries():
    august, december = c.edition_scores("matrix2015"), c.edition_scores("matrix2015_12")
    assert december.keys() == august.keys()
    different = {country for country in august if august[country] != december[country]}
    assert different == {"GRC", "GTM", "MYS", "PRT", "SVK", "URY"}
    assert max(max(scores.values()) for scores in december.values()) == 100
    assert max(max(scores.values()) for scores in august.values()) == 112
    assert december["SVK"] == august["SVK"] | {"pdi": 100, "mas": 100}
    assert (december["GTM"]["uai"], december["PRT"]["uai"], december["URY"]["uai"]) == (98, 99, 98)


def test_where_the_edition_of_2026_differs_beyond_the_dimensions_that_it_replaced() -> None:
    """IDV and LTO were replaced; the other four changed in two countries alone, both estimates."""
    before, after = map(c.edition_scores, ("hofstede_insights_2021_23", "culture_factor_2026_05"))
    changed = {
        country
        for country in before.keys() & after.keys()
        for dimension in ("pdi", "mas", "uai", "ivr")
        if dimension in before[country] and before[country][dimension] != after[country][dimension]
    }
    assert changed == {"KWT", "TUN"}
    assert after["TUN"] == {"pdi": 78, "idv": 27, "mas": 47, "uai": 74, "lto": 24, "ivr": 41}
