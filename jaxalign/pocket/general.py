"""Small multiple-choice tasks that have nothing to do with culture.

The pocket model is trained on them, so that one can check what fine-tuning makes it forget.
"""

from __future__ import annotations

import numpy as np

from jaxalign.surveys.survey import Item

_OPPOSITES = (
    "hot cold,big small,fast slow,light dark,open closed,early late,rich poor,strong weak,"
    "young old,full empty,wet dry,hard soft,high low,near far,loud quiet,clean dirty,"
    "happy sad,first last,long short,sweet bitter"
)
PAIRS = tuple(tuple(pair.split()) for pair in _OPPOSITES.split(","))


def general_question(random: np.random.Generator) -> tuple[Item, int]:
    """Draw a question; return it and the index of its right option."""
    make = (_larger, _next, _opposite)[random.integers(3)]
    text, right, wrong = make(random)
    options = [right, *wrong]
    order = random.permutation(len(options))
    labels = tuple(options[i] for i in order)
    item = Item(
        "general", text, labels, tuple(range(1, len(labels) + 1)), "nominal", make.__name__[1:]
    )
    return item, int(np.flatnonzero(order == 0)[0])


def general_questions(count: int, seed: int = 0) -> list[tuple[Item, int]]:
    """Return a fixed set of questions with the indices of their right options."""
    random = np.random.default_rng(seed)
    return [general_question(random) for _ in range(count)]


# Each task returns its text, the right option and two wrong ones. Its name is the topic.


def _larger(random: np.random.Generator) -> tuple[str, str, list[str]]:
    numbers = sorted(random.choice(100, size=3, replace=False), reverse=True)
    return "Which number is the largest?", str(numbers[0]), [str(n) for n in numbers[1:]]


def _next(random: np.random.Generator) -> tuple[str, str, list[str]]:
    step, start = int(random.integers(1, 6)), int(random.integers(0, 40))
    shown = [start + step * k for k in range(4)]
    wrong = random.choice([d for d in range(-3, 7) if d not in (0,)], size=2, replace=False)
    text = f"What comes next: {', '.join(map(str, shown[:3]))}?"
    return text, str(shown[3]), [str(max(shown[3] + int(d), 0)) for d in wrong]


def _opposite(random: np.random.Generator) -> tuple[str, str, list[str]]:
    picks = random.choice(len(PAIRS), size=3, replace=False)
    side = int(random.integers(2))
    word, right = PAIRS[picks[0]][side], PAIRS[picks[0]][1 - side]
    wrong = [PAIRS[i][int(random.integers(2))] for i in picks[1:]]
    return f"What is the opposite of {word}?", right, wrong
