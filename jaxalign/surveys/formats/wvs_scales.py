"""The published answer scales of World Values Survey 7: how many options each item has.

These are figures of the questionnaire, not its wording. A country's file need not hold every code
of a scale (nobody may have chosen "never"), so a scale cannot be read off a file. Q223 asks for a
party, and what comes after Q259 describes the respondent: neither has a scale here.
"""

from __future__ import annotations

import re

from jaxalign.surveys.formats.culturespa import FROM_ZERO, NOMINAL
from jaxalign.surveys.survey import Scale

# First and last item and the number of options, in the order of the questionnaire.
_OPTIONS = (
    *((1, 6, 4), (7, 26, 2), (27, 32, 4), (33, 41, 5), (42, 45, 3), (46, 46, 4), (47, 47, 5)),
    *((48, 50, 10), (51, 55, 4), (56, 56, 3), (57, 57, 2), (58, 89, 4), (90, 90, 10)),
    *((91, 105, 3), (106, 110, 10), (111, 111, 3), (112, 112, 10), (113, 118, 4), (119, 119, 5)),
    *((120, 120, 10), (121, 121, 5), (122, 129, 3), (130, 138, 4), (139, 141, 2), (142, 143, 4)),
    *((144, 145, 2), (146, 148, 4), (149, 151, 2), (152, 157, 4), (158, 164, 10), (165, 168, 2)),
    *((169, 170, 4), (171, 171, 7), (172, 172, 8), (173, 173, 3), (174, 175, 2), (176, 195, 10)),
    *((196, 199, 4), (200, 200, 3), (201, 208, 5), (209, 220, 3), (221, 222, 4), (224, 234, 4)),
    *((235, 239, 4), (240, 240, 10), (241, 249, 11), (250, 252, 10), (253, 253, 4), (254, 254, 5)),
    (255, 259, 4),
)
_Q234A_OPTIONS = 5


def published_codes(name: str) -> tuple[int, ...]:
    """Return the codes of an item's published scale; () for an item without one.

    Examples:
        >>> published_codes("Q1"), published_codes("Q122"), published_codes("Q260")
        ((1, 2, 3, 4), (0, 1, 2), ())
    """
    if name == "Q234A":
        return tuple(range(1, _Q234A_OPTIONS + 1))
    number = _number(name)
    options = next((n for first, last, n in _OPTIONS if first <= number <= last), 0)
    start = 0 if number in FROM_ZERO else 1
    return tuple(range(start, start + options))


def scale_of(name: str) -> Scale:
    """Return "nominal" for the items whose options have no order, else "ordinal"."""
    return "nominal" if _number(name) in NOMINAL else "ordinal"


def _number(name: str) -> int:
    match = re.fullmatch(r"Q([1-9][0-9]{0,2})", name)
    return int(match[1]) if match else 0
