"""Made-up results in the form that the commands write, for tests of the reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxalign.stats.analysis import analyse
from jaxalign.stats.result_warnings import POCKET, ResultWarning
from jaxalign.surveys.responses import OUT_OF_RANGE, UNREADABLE, Responses
from jaxalign.surveys.survey import Item, Survey
from tests.support.soft_prompt_result import example_result


def soft_prompt_sample(
    countries: Sequence[str], signal: bool = True
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return `result.json` and the rows of `metrics.jsonl` of a made-up soft-prompt run.

    Args:
        countries: The countries.
        signal: Whether the validity gate is passed.
    """
    result = example_result(countries, (0,), ("A",), ("B", "C", "D"))
    measure = result["measure"]
    measure["validity"] |= {
        name: measure["validity_tuned" if signal else "validity"][name]
        for name in ("passes", "sentence", "correlation", "over_uniform")
    }
    result["warnings"][0] = ResultWarning("simulated", POCKET).record()
    result["held_out"]["survey"] = "a survey"
    result["settings"] |= {
        "model": None,
        "edition": "hofstede_2015",
        "anchor": [],
        "instrument": None,
        "strategy.population": 64,
    }
    result["facts"] = {"prompts": {"item": "{{ question }}\n| <b>", "persona": "x"}}
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
    # As read from a file: the example shares one record among countries.
    return json.loads(json.dumps(result)), metrics


def analysis_sample(
    countries: Sequence[str], personas: int | None = None, signal: bool = True
) -> dict[str, Any]:
    """Return the analysis (`jaxalign.stats.analysis.analyse`) of `analysis_inputs`.

    The answers are made up at random and do not pass the validity gate; `signal` says that they do.
    """
    analysis = analyse(*analysis_inputs(countries, personas), resamples=50)
    if analysis["validity"]:
        analysis["validity"]["passes"] = signal
    return analysis


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
