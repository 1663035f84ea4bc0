"""Groups of people below the country: by sex, age, education, region and the like.

A group is named by its country and its values, such as `USA:female:30-49` or
`DEU:higher-education:region=Bayern`. The name says everything, so that a persona, a table or a file
of tuned prompts needs nothing else to know who is meant, and prompts can say it in plain words: "a
woman aged 30 to 49 from the United States".

`VARIABLES` lists what groups can be made of, with the columns of the World Values Survey's codebook
and what their codes mean. Values are words of this package, not the survey's labels. A region is
called as the file's own labels call it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from jaxalign.core.errors import UserError

REGION = "region"
_REGION_PREFIX = f"{REGION}="


@dataclasses.dataclass(frozen=True)
class Value:
    """One value of a variable.

    Attributes:
        key: How it stands in a group's name, such as "30-49".
        codes: The codes that mean it in the variable's first column.
        words: The words for it by language: in English what stands in the variable's place of the
            sentence, such as "aged 30 to 49".
    """

    key: str
    codes: tuple[int, ...]
    words: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Variable:
    """Something by which people of a country are grouped.

    Attributes:
        name: Its name, such as "sex".
        columns: Columns of the codebook that hold it in the codes of `values`; the first that a
            file has is read. Any of them may be given as the variable's name.
        values: Its values; none for regions, which are called by the file's labels.
        derived: Another column, and which of its numbers, from least to most, mean each value, for
            files that lack `columns`.
    """

    name: str
    columns: tuple[str, ...]
    values: tuple[Value, ...] = ()
    derived: tuple[str, Mapping[str, tuple[int, int]]] | None = None


def _ages(*bounds: tuple[int, int | None]) -> tuple[Value, ...]:
    """Return bands of ages, coded 1, 2, ... as the survey codes its own."""
    values = []
    for code, (least, most) in enumerate(bounds, 1):
        key = f"{least}+" if most is None else f"{least}-{most}"
        english = f"aged {least} or over" if most is None else f"aged {least} to {most}"
        chinese = f"{least}岁及以上" if most is None else f"{least}至{most}岁"
        values.append(Value(key, (code,), {"en": english, "zh": chinese}))
    return tuple(values)


_THREE_AGES = ((16, 29), (30, 49), (50, None))
_SIX_AGES = ((16, 24), (25, 34), (35, 44), (45, 54), (55, 64), (65, None))
_OLDEST = 130


def _age_variable(name: str, column: str, bounds: Sequence[tuple[int, int | None]]) -> Variable:
    values = _ages(*bounds)
    # Few respondents are under 16; the survey's own bands count them to the first.
    spans = {
        value.key: (0 if i == 0 else least, most or _OLDEST)
        for i, (value, (least, most)) in enumerate(zip(values, bounds, strict=True))
    }
    return Variable(name, (column,), values, ("Q262", spans))


def _value(key: str, code: int, en: str, zh: str) -> Value:
    return Value(key, (code,), {"en": en, "zh": zh})


VARIABLES = (
    Variable(
        "sex",
        ("Q260",),
        (_value("male", 1, "man", "男性"), _value("female", 2, "woman", "女性")),
    ),
    _age_variable("age", "X003R2", _THREE_AGES),
    _age_variable("age6", "X003R", _SIX_AGES),
    Variable(
        "education",
        ("Q275R",),
        (
            _value(
                "lower-education", 1, "with at most lower secondary education", "初中及以下学历"
            ),
            _value("middle-education", 2, "with upper secondary education", "高中学历"),
            _value("higher-education", 3, "with higher education", "大学学历"),
        ),
        (
            "Q275",  # levels of ISCED 2011
            {"lower-education": (0, 2), "middle-education": (3, 4), "higher-education": (5, 8)},
        ),
    ),
    Variable(
        "income",
        ("Q288R",),
        (
            _value("low-income", 1, "with a low income", "低收入"),
            _value("medium-income", 2, "with a medium income", "中等收入"),
            _value("high-income", 3, "with a high income", "高收入"),
        ),
        ("Q288", {"low-income": (1, 3), "medium-income": (4, 7), "high-income": (8, 10)}),
    ),
    Variable(
        "settlement",
        ("H_URBRURAL",),
        (
            _value("urban", 1, "living in a town or city", "住在城市"),
            _value("rural", 2, "living in the countryside", "住在农村"),
        ),
    ),
    Variable(
        "marital",
        ("Q273",),
        (
            _value("married", 1, "married", "已婚"),
            _value("cohabiting", 2, "living with a partner", "与伴侣同居"),
            _value("divorced", 3, "divorced", "离异"),
            _value("separated", 4, "separated", "分居"),
            _value("widowed", 5, "widowed", "丧偶"),
            _value("single", 6, "single", "未婚"),
        ),
    ),
    Variable(REGION, ("N_REGION_ISO", "N_REGION_WVS", "N_REGION_NUTS2", "N_REGION_NUTS1")),
)
_CHINESE_ORDER = ("marital", "age", "age6", "education", "income", "settlement")
_VALUE_OF = {value.key: (variable, value) for variable in VARIABLES for value in variable.values}
_PLURALS = {"man": "men", "woman": "women", "person": "people"}
_ADJECTIVES = ("married", "divorced", "separated", "widowed", "single")
LANGUAGES = ("en", "zh")
"""Languages in which a group can be said in words."""


@dataclasses.dataclass(frozen=True)
class Group:
    """A group below the country.

    Attributes:
        country: Its country, as its name begins.
        values: The key of each variable's value, or a region's name, by the variable's name.
    """

    country: str
    values: Mapping[str, str]

    @property
    def name(self) -> str:
        """The group's name in surveys, settings and results."""
        parts = [
            f"{_REGION_PREFIX}{value}" if variable == REGION else value
            for variable, value in self.values.items()
        ]
        return ":".join([self.country, *parts])

    def person(self, article_country: str, language: str = "en") -> str:
        """Return one of its people in words, such as "a woman aged 30 to 49 from Japan".

        Args:
            article_country: The country as it follows "from".
            language: Language of the words, one of `LANGUAGES`.
        """
        if language == "zh":
            return f"一位{self._chinese(article_country)}"
        return f"a {self._english(article_country, self._noun)}"

    def people(self, article_country: str, language: str = "en") -> str:
        """Return the group in words, such as "women aged 30 to 49 from Japan"; as `person`."""
        if language == "zh":
            return self._chinese(article_country)
        return self._english(article_country, _PLURALS[self._noun])

    @property
    def _noun(self) -> str:
        return self._words("sex", "en") or "person"

    def _words(self, variable: str, language: str) -> str:
        value = self.values.get(variable)
        return "" if value is None else _VALUE_OF[value][1].words[language]

    def _english(self, article_country: str, noun: str) -> str:
        marital = self._words("marital", "en")
        before = [marital] if marital in _ADJECTIVES else []
        after = [self._words(v, "en") for v in ("age", "age6", "education", "income")]
        after.insert(0, "" if before else marital)
        region = self.values.get(REGION)
        place = article_country if region is None else f"{region} in {article_country}"
        after += ["from", place, self._words("settlement", "en")]
        return " ".join(filter(None, [*before, noun, *after]))

    def _chinese(self, country: str) -> str:
        place = country + self.values.get(REGION, "")
        words = [f"来自{place}", *(self._words(v, "zh") for v in _CHINESE_ORDER)]
        return f"{'、'.join(filter(None, words))}的{self._words('sex', 'zh') or '人'}"


def read_group(name: str) -> Group | None:
    """Return the group that a name such as `USA:female:30-49` means; None if it is no such name.

    Examples:
        >>> read_group("USA:female:30-49").person("the United States")
        'a woman aged 30 to 49 from the United States'
        >>> read_group("DEU:higher-education:region=Bayern").people("Germany")
        'people with higher education from Bayern in Germany'
        >>> read_group("night owls: north") is None
        True
    """
    country, *parts = name.split(":")
    values: dict[str, str] = {}
    for part in parts:
        if part.startswith(_REGION_PREFIX) and len(part) > len(_REGION_PREFIX):
            variable, value = REGION, part.removeprefix(_REGION_PREFIX)
        elif part in _VALUE_OF:
            variable, value = _VALUE_OF[part][0].name, part
        else:
            return None
        if variable in values:
            return None
        values[variable] = value
    return Group(country, values) if country and values else None


def variables_of(by: Sequence[str] | str) -> tuple[Variable, ...]:
    """Return the variables that a user names, by our names or by the codebook's columns.

    Args:
        by: Names; several may stand in one text with commas between them.

    Raises:
        UserError: A name is unknown, or a variable is named twice.

    Examples:
        >>> [variable.name for variable in variables_of(["sex,X003R2", "Q275R"])]
        ['sex', 'age', 'education']
    """
    by = (by,) if isinstance(by, str) else by
    known = {v.name.lower(): v for v in VARIABLES}
    for variable in VARIABLES:
        columns = [*variable.columns, *([variable.derived[0]] if variable.derived else [])]
        for column in columns:
            # A region's columns are different regions, so each is a variable of its own.
            own = (
                dataclasses.replace(variable, columns=(column,))
                if not variable.values
                else variable
            )
            known.setdefault(column.lower(), own)
    chosen: list[Variable] = []
    for name in [part.strip() for text in by for part in text.split(",") if part.strip()]:
        variable = known.get(name.lower())
        if variable is None:
            names = ", ".join(f"{v.name} ({v.columns[0]})" for v in VARIABLES)
            raise UserError(f"`by` {name!r}: no variable to group by; choose from {names}")
        if any(variable.name.rstrip("6") == other.name.rstrip("6") for other in chosen):
            raise UserError(f"`by` {' '.join(by)}: {variable.name} is named twice")
        chosen.append(variable)
    return tuple(chosen)
