"""Names of countries: complete, correct in a sentence, and in other languages."""

from __future__ import annotations

import pytest
from babel import Locale
from babel.core import get_global

from jaxalign.core.errors import UserError
from jaxalign.surveys import names
from jaxalign.surveys.hofstede import EDITIONS, edition_scores

# Entries of CLDR that are no country of ISO 3166: parts of countries, unions, placeholders.
NOT_ISO = set(["AC", "CP", "CQ", "DG", "EA", "EU", "EZ", "IC", "QO", "TA", "UN", "XA", "XB", "ZZ"])


def test_every_country_of_iso_3166_is_there() -> None:
    """CLDR's list of territories is the second source."""
    expected = {code for code in Locale("en").territories if len(code) == 2} - NOT_ISO
    rows = names._table().values()
    assert {row["iso2"] for row in rows} == expected | {""}, "only Northern Ireland has no code"
    assert len(names.countries()) == 249 + len({"XKX", "NIR"})
    three = get_global("territory_aliases")
    for row in rows:
        if row["iso3"] not in ("XKX", "NIR"):
            assert three[row["iso3"]] == [row["iso2"]]


def test_every_country_has_a_name_an_article_or_none_and_a_demonym() -> None:
    for iso3 in names.countries():
        name, article, demonym = (
            f(iso3) for f in (names.country_name, names.with_article, names.demonym)
        )
        assert name.strip() == name
        assert name
        assert article in (name, f"the {name}"), iso3
        assert not name.lower().startswith("the "), "the article would be doubled"
        assert demonym[0].isupper(), iso3
        assert not any(sign in name + demonym for sign in ("&", "(", ")", "/", "’", " - ")), iso3
    assert len({names.country_name(c) for c in names.countries()}) == len(names.countries())


def test_names_that_need_an_article_have_one() -> None:
    """Plural names, and names with a common noun of state, take it in English."""
    nouns = ("Kingdom", "States", "Republic", "Emirates", "Islands", "Territor", "Isle of")
    without = {"South Georgia and the South Sandwich Islands", "Heard Island and McDonald Islands"}
    for iso3 in names.countries():
        name = names.country_name(iso3)
        if any(noun in name for noun in nouns) and name not in without:
            assert names.with_article(iso3).startswith("the "), name
    plural = ["NLD", "PHL", "BHS", "MDV", "COM", "SYC", "GMB"]  # and one river
    assert all(names.with_article(c).startswith("the ") for c in plural)
    bare = "UKR SDN LBN CHN IND RUS ZWE KEN NIR XKX HKG CUB ARG VAT".split()  # noqa: SIM905
    assert all(names.with_article(c) == names.country_name(c) for c in bare)


@pytest.mark.parametrize(
    ("iso3", "name", "article", "demonym", "chinese"),
    [
        ("USA", "United States", "the United States", "American", "美国"),
        ("GBR", "United Kingdom", "the United Kingdom", "British", "英国"),
        ("NLD", "Netherlands", "the Netherlands", "Dutch", "荷兰"),
        ("CHN", "China", "China", "Chinese", "中国"),
        ("PHL", "Philippines", "the Philippines", "Filipino", "菲律宾"),
        ("ARE", "United Arab Emirates", "the United Arab Emirates", "Emirati", "阿拉伯联合酋长国"),
        ("COD", "Democratic Republic of the Congo", None, "Congolese", "刚果（金）"),
        ("CIV", "Ivory Coast", "Ivory Coast", "Ivorian", "科特迪瓦"),
        ("NIR", "Northern Ireland", "Northern Ireland", "Northern Irish", "北爱尔兰"),
        ("NER", "Niger", "Niger", "Nigerien", "尼日尔"),
        ("NGA", "Nigeria", "Nigeria", "Nigerian", "尼日利亚"),
    ],
)
def test_known_values(
    iso3: str, name: str, article: str | None, demonym: str, chinese: str
) -> None:
    assert names.country_name(iso3) == name
    assert names.with_article(iso3) == (article or f"the {name}")
    assert names.demonym(iso3) == demonym
    assert names.country_name(iso3, "zh") == chinese


@pytest.mark.parametrize("language", ["zh", "zh-Hant", "de", "pt_BR", "ar"])
def test_other_languages_name_every_country_as_cldr_does(language: str) -> None:
    locale = Locale.parse(language.replace("-", "_"))
    for iso3 in names.countries():
        iso2 = names._table()[iso3]["iso2"]
        if iso2:
            assert names.country_name(iso3, language) == locale.territories[iso2]


def test_countries_without_published_scores_have_a_name_too() -> None:
    scored = {iso3 for edition in EDITIONS for iso3 in edition_scores(edition)}
    assert scored < set(names.countries())
    assert names.country_name("NIC") == "Nicaragua"


def test_countries_are_found_by_name() -> None:
    for iso3 in names.countries():
        for name in (names.country_name(iso3), names.with_article(iso3).upper()):
            assert names.find_country(name) == iso3
    others = {"Bosnia & Herzegovina": "BIH", "Cote d'Ivoire": "CIV", "Czechia": "CZE"}
    others |= {"Burma": None, "Myanmar (Burma)": "MMR", "Turkiye": "TUR", "Narnia": None, "": None}
    assert {name: names.find_country(name) for name in others} == others


def test_what_prompts_call_a_group() -> None:
    american = names.GroupName("United States", "the United States", "American")
    assert names.group_name("USA") == names.group_name("United States") == american
    assert names.group_name("USA", "zh") == names.GroupName("美国", "美国")
    assert names.group_name("night owls", "zh") == names.GroupName("night owls", "night owls")
    assert str(american) == "United States"


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: names.country_name("ZZZ"), ["'ZZZ'", "unknown"]),
        (lambda: names.demonym("usa"), ["'usa'", "USA (United States)"]),
        (lambda: names.with_article("Holland"), ["'Holland'"]),
        (lambda: names.country_name("USA", "klingon"), ["`language` 'klingon'", "zh"]),
        (lambda: names.country_name("USA", "../x"), ["`language` '../x'"]),
    ],
)
def test_unknown_countries_and_languages_are_refused(call: object, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert not [part for part in parts if part not in str(caught.value)], caught.value
