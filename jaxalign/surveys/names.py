"""Names of countries: in English with article and demonym, in other languages from Unicode's CLDR.

`data/countries.csv` is a table of our own: every country and territory of ISO 3166, and two more
that surveys and score tables use: Kosovo (XKX) and Northern Ireland (NIR). It gives the English
name as it stands in a sentence ("Ivory Coast", "Hong Kong"; CLDR's own labels, such as "Congo -
Kinshasa" or "Trinidad & Tobago", are made for lists), the article that the name takes in a
sentence, and the adjective of nationality. Names in other languages come from Babel, which carries
CLDR.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import functools
import unicodedata
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import TYPE_CHECKING

from jaxalign.core.errors import UserError
from jaxalign.surveys.groups import LANGUAGES, Group, read_group

if TYPE_CHECKING:
    import babel

# CLDR names no part of the United Kingdom; surveys treat this one as a country.
_NORTHERN_IRELAND = {"zh": "北爱尔兰", "de": "Nordirland", "es": "Irlanda del Norte"}
_NORTHERN_IRELAND |= {"fr": "Irlande du Nord", "pt": "Irlanda do Norte"}


@dataclasses.dataclass(frozen=True)
class GroupName:
    """What prompts call a country or another group; as text, the plain name.

    Attributes:
        country: The name without an article, such as "United States".
        article_country: The name as it follows "from" in a sentence: "the United States".
        demonym: The English adjective of nationality, such as "American"; None for groups that are
            not countries and for other languages.
        person: Of a group below the country, one of its people in words: "a woman aged 30 to 49
            from the United States". None for whole countries, and in languages without such words.
        people: Of such a group, all of them: "women aged 30 to 49 from the United States".
        values: Of such a group, its values by variable: {"sex": "female", "age": "30-49"}.
    """

    country: str
    article_country: str
    demonym: str | None = None
    person: str | None = None
    people: str | None = None
    values: Mapping[str, str] | None = None

    def __str__(self) -> str:
        return self.people or self.country

    @property
    def in_sentence(self) -> str:
        """The group as a list in an English sentence names it."""
        return self.people or self.article_country


def country_name(iso3: str, language: str = "en") -> str:
    """Return a country's name without an article.

    Args:
        iso3: ISO 3166 alpha-3 code.
        language: Code of a language, such as "zh" or "pt_BR".

    Raises:
        UserError: The country or the language is unknown.

    Examples:
        >>> from jaxalign.surveys import country_name
        >>> country_name("USA"), country_name("USA", "zh")
        ('United States', '美国')
    """
    row = _row(iso3)
    if language == "en":
        return row["name"]
    locale = _locale(language)
    if name := locale.territories.get(row["iso2"]):
        return name
    return _NORTHERN_IRELAND.get(locale.language, row["name"])


def with_article(iso3: str) -> str:
    """Return a country's English name with the article that it takes in a sentence, if any.

    Raises:
        UserError: The country is unknown.

    Examples:
        >>> from jaxalign.surveys.names import with_article
        >>> with_article("USA"), with_article("CHN")
        ('the United States', 'China')
    """
    row = _row(iso3)
    return f"{row['article']} {row['name']}".lstrip()


def demonym(iso3: str) -> str:
    """Return the English adjective of nationality, such as "American".

    Raises:
        UserError: The country is unknown.

    Examples:
        >>> from jaxalign.surveys.names import demonym
        >>> demonym("USA"), demonym("NLD")
        ('American', 'Dutch')
    """
    return _row(iso3)["demonym"]


def group_name(group: str, language: str = "en") -> GroupName:
    """Return what prompts call a group: a country, a group within one, or any by its own name.

    Args:
        group: ISO 3166 alpha-3 code, a country's English name, a name such as `USA:female:30-49`
            (see `jaxalign.surveys.groups`), or any other text.
        language: Language of the name, for countries and groups within them.

    Raises:
        UserError: The language is unknown.

    Examples:
        >>> from jaxalign.surveys.names import group_name
        >>> group_name("NLD").article_country, group_name("night owls").article_country
        ('the Netherlands', 'night owls')
        >>> group_name("NLD:male:50+").person
        'a man aged 50 or over from the Netherlands'
    """
    if (within := group_within(group)) is not None:
        name = group_name(within.country, language)
        words: dict[str, str] = {}
        if language in LANGUAGES:
            place = name.article_country, language
            words = {"person": within.person(*place), "people": within.people(*place)}
        return dataclasses.replace(name, values=dict(within.values), **words)
    iso3 = group if group in _table() else _codes_by_own_name().get(group)
    if iso3 is None:
        return GroupName(group, group)
    if language == "en":
        return GroupName(country_name(iso3), with_article(iso3), demonym(iso3))
    name = country_name(iso3, language)
    return GroupName(name, name)


def group_within(group: str) -> Group | None:
    """Return the group below a known country that a name means; None for any other name."""
    within = read_group(group)
    return within if within is not None and within.country in _table() else None


def name_of_group(group: str) -> str:
    """Return what to give to prompts for a country or a group within one.

    Raises:
        UserError: It is neither.

    Examples:
        >>> from jaxalign.surveys.names import name_of_group
        >>> name_of_group("USA"), name_of_group("USA:female")
        ('United States', 'USA:female')
    """
    return group if group_within(group) is not None else country_name(group)


def countries() -> tuple[str, ...]:
    """Return the codes of all countries that have a name, in alphabetical order."""
    return tuple(_table())


def find_country(name: str) -> str | None:
    """Return the code of the country with this English name; None if no country has it.

    Our own names and CLDR's are known, with or without article, accents and capitals.

    Examples:
        >>> from jaxalign.surveys.names import find_country
        >>> find_country("the Netherlands"), find_country("Türkiye"), find_country("Narnia")
        ('NLD', 'TUR', None)
    """
    return _codes_by_name().get(_folded(name))


def suggest(wanted: str, known: Iterable[str]) -> str:
    """Return which of the codes in `known` a misspelt code or name may mean; "" if none is near."""
    spelled = {}
    for code in known:
        if code in _table():
            spelled[_table()[code]["name"].lower()] = code
        spelled[code.lower()] = code
    near = difflib.get_close_matches(wanted.lower(), spelled, n=3, cutoff=0.6)
    codes = dict.fromkeys(spelled[n] for n in near)
    return " or ".join(f"{c} ({_table()[c]['name']})" if c in _table() else c for c in codes)


@functools.cache
def _table() -> Mapping[str, dict[str, str]]:
    """Return the table's rows by alpha-3 code."""
    path = resources.files("jaxalign.surveys").joinpath("data/countries.csv")
    return {row["iso3"]: row for row in csv.DictReader(path.read_text("utf-8").splitlines())}


def _row(iso3: str) -> dict[str, str]:
    row = _table().get(iso3)
    if row is None:
        near = suggest(iso3, _table())
        advice = f"did you mean {near}?" if near else "use a three-letter code of ISO 3166"
        raise UserError(f"country {iso3!r} is unknown; {advice}")
    return row


@functools.cache
def _codes_by_own_name() -> dict[str, str]:
    return {row["name"]: iso3 for iso3, row in _table().items()}


@functools.cache
def _codes_by_name() -> dict[str, str]:
    """Return codes by folded name: CLDR's English names, and ours, which win."""
    names = {}
    for name_of in (_cldr_english, lambda row: row["name"]):
        for iso3, row in _table().items():
            name = _folded(name_of(row))
            names[name] = iso3
            # "Myanmar (Burma)" is also called by what stands before the bracket.
            names.setdefault(name.partition(" (")[0], iso3)
    names.pop("", None)
    return names


def _cldr_english(row: Mapping[str, str]) -> str:
    return _locale("en").territories.get(row["iso2"], "")


def _folded(name: str) -> str:
    """Return a name without article, accents, capitals and differences of punctuation."""
    plain = unicodedata.normalize("NFKD", name.casefold().replace("’", "'").replace("&", "and"))
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return " ".join(plain.split()).removeprefix("the ")


@functools.cache
def _locale(language: str) -> babel.Locale:
    from babel import Locale, UnknownLocaleError

    try:
        return Locale.parse(language.replace("-", "_"))
    except (UnknownLocaleError, ValueError):
        raise UserError(
            f"`language` {language!r} is unknown; give a code such as en, zh or pt_BR"
        ) from None
