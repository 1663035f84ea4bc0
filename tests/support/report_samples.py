"""Made-up results in the form that the commands write, for tests of the reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxalign.stats.analysis import analyse
from jaxalign.surveys.responses import OUT_OF_RANGE, UNREADABLE, Responses
from jaxalign.surveys.survey import Item, Survey

_METHODS = ("naive", "persona", "icl", "start", "tuned")
_COMPARED = ("before", "start", "permuted")


def soft_prompt_sample(countries: Sequence[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return `result.json` and the rows of `metrics.jsonl` of a made-up soft-prompt run."""
    random = np.random.default_rng(0)
    matrix = random.uniform(0.5, 0.8, (len(countries),) * 2)
    result = {
        "countries": {c: _soft_prompt_entry(random) for c in countries},
        "trivial": {
            c: {"all_middle": 110.0, "uniform_random": 480.0, "smallest_integer": 20.0}
            for c in countries
        },
        "held_out": {
            "survey": "a survey",
            "simulated": True,
            "items": 80,
            "score": "a score",
            "interval": "95 %",
            "matrix": matrix.tolist(),
            "permutation_test": {
                "own": 0.7,
                "others": 0.6 if len(countries) > 1 else None,
                "p_value": 0.5,
                "assignments": 2,
                "exhaustive": True,
            },
        },
        "constants": [50.0] * 6,
        "dimensions": ["pdi", "idv", "mas", "uai", "lto", "ivr"],
        "settings": {
            "model": None,
            "edition": "hofstede_2015",
            "anchor": [],
            "instrument": None,
            "countries": list(countries),
            "strategy.population": 64,
        },
        "facts": {"prompts": {"item": "{{ question }}\n| <b>", "persona": "x"}},
        "versions": {"python": "3.11"},
    }
    metrics = [
        {
            "generation": g,
            **{
                c: {"best": 99.0, "best_so_far": 80.0 / g, "median": 160.0 / g if g > 1 else None}
                for c in countries
            },
        }
        for g in range(1, 31)
    ]
    return result, metrics


def _soft_prompt_entry(random: np.random.Generator) -> dict[str, Any]:
    reading = {"scores": random.uniform(-20, 130, 6).tolist(), "loss": 90.0}
    held_out = {
        name: interval(0.6) for name in ("before", "start", "after", "persona", "icl", "permuted")
    }
    held_out |= {f"after_minus_{name}": interval(0.01) for name in _COMPARED}
    return {
        "target": random.uniform(0, 100, 6).tolist(),
        **{m: {"expected": reading, "most_likely": reading, "valid_mass": 0.98} for m in _METHODS},
        "held_out": held_out,
    }


def interval(mean: float, half: float = 0.05) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def analysis_sample(countries: Sequence[str], personas: int | None = None) -> dict[str, Any]:
    """Return the analysis (`jaxalign.stats.analysis.analyse`) of `analysis_inputs`."""
    return analyse(*analysis_inputs(countries, personas), resamples=50)


def analysis_inputs(
    countries: Sequence[str], personas: int | None = None
) -> tuple[Survey, dict[str, list[Responses]], list[Responses]]:
    """Return a survey of `countries`, made-up answers of personas, and those without a persona.

    The first `personas` countries, by default all but the last, have a persona.
    """
    random = np.random.default_rng(0)
    items = [_item(i) for i in range(8)]
    distributions = {
        c: {i.id: tuple(random.dirichlet(np.ones(len(i.options)))) for i in items}
        for c in countries
    }
    survey = Survey(
        "a survey", "1", "made up", "paraphrase", tuple(items), distributions, simulated=True
    )
    with_persona = countries[: len(countries) - 1 if personas is None else personas]
    aware = {c: [_answers(random, survey), _answers(random, survey)] for c in with_persona}
    return survey, aware, [_answers(random, survey)]


def _item(i: int) -> Item:
    options = 10 if i == 0 else 4
    labels, codes = tuple(f"option {o}" for o in range(options)), tuple(range(1, options + 1))
    scale = "nominal" if i == 7 else "ordinal"
    return Item(f"q{i}", "A question?", labels, codes, scale, f"topic {i % 3}")


def _answers(random: np.random.Generator, survey: Survey) -> Responses:
    """Return random answers; one reply is unreadable, another names no option."""
    chosen = np.array([random.integers(len(i.options)) for i in survey.items])
    chosen[2:4] = UNREADABLE, OUT_OF_RANGE
    return Responses.from_positions(survey, ["-"], chosen[None, None])
