"""System messages that the pocket model is trained on, and the culture that each one asks for.

There are three kinds: no message, or nothing about a culture (answer from home); a country's name
(move part of the way); a description by the six dimensions, of a real or an invented society (move
all the way).
"""

from __future__ import annotations

import numpy as np

from jaxalign.pocket.society import (
    DIMENSIONS,
    PERSONA_COUNTRIES,
    Culture,
    adherence,
    countries,
    country_name,
    culture,
    home,
)
from jaxalign.prompts import Prompts

UNAWARE = (
    None,
    None,
    "You are a helpful assistant.",
    "You are a real person with your own values, filling in a survey.",
    "You are a real person, filling in a survey with your own values.",
    "Answer the survey question.",
)
PERSONA = (
    "You come from {c}.",
    "You are a person from {c}.",
    "Answer as people in {c} would.",
    "You grew up in {c} and live there today. Answer with your own values.",
    "You are a real person with the cultural background of {c}. Answer the survey as yourself.",
    "Your culture is that of {c}.",
)
CROSS = (
    " Cultures similar to yours: {s}. Cultures different from yours: {d}.",
    " Your culture is close to {s} and far from {d}.",
)
NAMES = dict(
    zip(
        DIMENSIONS,
        (
            "power distance",
            "individualism",
            "masculinity",
            "uncertainty avoidance",
            "long-term orientation",
            "indulgence",
        ),
        strict=True,
    )
)
LEVELS = {"very low": 10, "low": 30, "medium": 50, "high": 70, "very high": 90}
# What a high and a low score look like in daily life, in our own words.
POLES = {
    "pdi": ("people accept unequal power", "people want equal power"),
    "idv": ("each person looks after themselves", "the group comes first"),
    "mas": ("people want to win", "people care for each other"),
    "uai": ("people need clear rules", "people live easily with doubt"),
    "lto": ("people plan for the future", "people honour the past"),
    "ivr": ("people enjoy life freely", "people hold back their wishes"),
}
_ARTICLE = {"United States", "United Kingdom", "Netherlands", "Dominican Republic"}
_ARTICLE |= {"Czech Republic", "United Arab Emirates", "Philippines"}
DEGREES = {"very often": 90, "mostly": 75, "rather": 60}


def unaware(random: np.random.Generator) -> str | None:
    """Draw a system message that names no culture; None for no message."""
    return UNAWARE[random.integers(len(UNAWARE))]


def name_of(random: np.random.Generator, iso3: str) -> str:
    """Return the country's name, half of the time with its article if it takes one.

    Prompts that insert a bare name into a sentence leave the article out.
    """
    name = country_name(iso3)
    return f"the {name}" if name in _ARTICLE and random.random() < 0.5 else name


def persona(random: np.random.Generator, iso3: str, prompts: Prompts) -> str:
    """Draw a line that names the country: half of the time the package's own persona text."""
    name = name_of(random, iso3)
    if random.random() < 0.5:
        return prompts.system(name)["content"]
    return PERSONA[random.integers(len(PERSONA))].format(c=name)


def neighbours(iso3: str) -> tuple[list[str], list[str]]:
    """Return the three persona countries with the nearest and the farthest scores."""
    scores = {c: countries()[c] for c in PERSONA_COUNTRIES if c != iso3}
    target = countries()[iso3]
    ranked = sorted(scores, key=lambda c: float(np.abs(scores[c] - target).sum()))
    return ranked[:3], ranked[-3:][::-1]


def cross_culture(random: np.random.Generator, iso3: str) -> str:
    """Draw the text after a persona line that names similar and different cultures."""
    near, far = (", ".join(name_of(random, c) for c in group) for group in neighbours(iso3))
    return CROSS[random.integers(len(CROSS))].format(s=near, d=far)


def named(random: np.random.Generator, iso3: str, prompts: Prompts) -> tuple[str, float]:
    """Draw a persona message; return it and its worth in examples (see `society.adherence`)."""
    text = persona(random, iso3, prompts)
    if random.random() < 0.15:
        return text + cross_culture(random, iso3), 3.0
    return text, 2.0


def toward(iso3: str, evidence: float) -> Culture:
    """Return the point that answers move to after this much evidence for a country."""
    return home().toward(culture(iso3), adherence(0, evidence))


def invented_scores(random: np.random.Generator) -> np.ndarray:
    """Draw six scores 0...100: a real country's, or between two countries with noise added."""
    table = list(countries().values())
    a, b = (table[i] for i in random.integers(len(table), size=2))
    if random.random() < 0.3:
        return a
    mix = a + random.random() * (b - a) + random.normal(0, 18, len(DIMENSIONS))
    return np.clip(mix, 0, 100)


def description(random: np.random.Generator) -> tuple[str, Culture]:
    """Draw a text about the six dimensions; return it and the culture that it describes.

    Scores that the text rounds are rounded in the culture too; dimensions that it leaves out stay
    at home.
    """
    scores = invented_scores(random)
    form = random.integers(4)
    order = list(DIMENSIONS)
    random.shuffle(order)
    if form == 3:
        order = order[: random.integers(1, 6)]
    z_6 = home().z_6.copy()
    parts = []
    for d in order:
        k = DIMENSIONS.index(d)
        phrase, value = _part(d, scores[k], int(form))
        parts.append(phrase)
        z_6[k] = (value - 50) / 25
    text = ", ".join(parts)
    lead = (
        "You come from a society with {}.",
        "Your society: {}.",
        "Where you live, {}.",
        "Your culture has {}.",
    )[form]
    return lead.format(text), Culture(z_6)


def _part(dimension: str, score: float, form: int) -> tuple[str, float]:
    """Return the phrase for one dimension's score in this form, and the score it stands for."""
    if form == 1:
        value = int(np.clip(round(score / 10) * 10, 0, 100))
        return f"{NAMES[dimension]} {value}", value
    if form == 2:
        strength = abs(score - 50) + 50
        degree = min(DEGREES, key=lambda w: abs(DEGREES[w] - strength))
        text = POLES[dimension][0 if score >= 50 else 1]
        return f"{degree} {text}", DEGREES[degree] if score >= 50 else 100 - DEGREES[degree]
    word = min(LEVELS, key=lambda w: abs(LEVELS[w] - score))
    return f"{word} {NAMES[dimension]}", LEVELS[word]
