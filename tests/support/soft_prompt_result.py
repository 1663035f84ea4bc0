"""A made-up `result.json` of a soft-prompt run, in the form that `soft_prompt.result` describes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxalign.stats.result_warnings import (
    SIMULATED_HELD_OUT,
    ResultWarning,
    few_countries,
    warning_records,
)

LEVELS = {  # losses under each presentation, tuned ones first
    "naive": (150.0, 140.0, 160.0, 120.0),
    "persona": (120.0, 118.0, 140.0, 131.0),
    "icl": (110.0, 104.0, 120.0, 115.0),
    "start": (125.0, 119.0, 141.0, 133.0),
    "tuned": (40.0, 44.0, 180.0, 160.0),
    "gradient": (30.0, 33.0, 190.0, 170.0),
}
OWN_PROMPTS = ("start", "tuned", "gradient")  # methods with a prompt per seed
DIMENSIONS = ("pdi", "idv", "mas", "uai", "lto", "ivr")


def example_result(
    countries: Sequence[str] = ("USA", "CHN"),
    seeds: Sequence[int] = (0, 1),
    tuned: Sequence[str] = ("A", "B"),
    untuned: Sequence[str] = ("C", "D"),
    reading: str = "expected",
) -> dict[str, Any]:
    """Return the result; with `reading` "sampled" also what only drawn replies have."""
    forms, sampled = [*tuned, *untuned], reading == "sampled"
    number = itertools.count()

    def value(low: float, high: float) -> float:
        return round(low + (high - low) * (0.618 * next(number) % 1), 3)

    def interval(mean: float, half: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - half, "high": mean + half}

    def read(loss: float) -> dict[str, Any]:
        readings = ("expected", "most_likely", *(["sampled"] if sampled else []))
        return {
            name: {"scores": [value(10, 90) for _ in DIMENSIONS], "loss": loss + k}
            for k, name in enumerate(readings)
        }

    def method(name: str, shift: float = 0.0) -> dict[str, Any]:
        losses = dict(zip(forms, LEVELS[name], strict=False))
        record = read(np.mean([losses[f] for f in tuned]) + shift)
        record["valid_mass"] = value(0.8, 1)
        record["presentations"] = {
            form: {
                **read(loss + shift),
                "valid_mass": value(0.8, 1),
                "held_out": value(0.6, 0.9),
            }
            for form, loss in losses.items()
        }
        if untuned:
            record["untuned"] = read(np.mean([losses[f] for f in untuned]) + shift)
        if sampled:
            record["readable"] = value(0.8, 1)
            record["counts"] = {
                "replies": 576,
                "unreadable": 40,
                "out_of_range": 3,
                "option_lists": 0,
            }
        return record

    def held_out() -> dict[str, Any]:
        names = ("gradient", "before", "start", "after", "persona", "icl", "permuted")
        differences = [f"after_minus_{n}" for n in ("before", "start", "permuted", "strongest")]
        return {n: interval(value(0.6, 0.9), 0.03) for n in names} | {
            n: interval(value(-0.05, 0.05), 0.03) for n in differences
        }

    def spread(values: Sequence[float]) -> dict[str, Any]:
        by_form = dict(zip(forms, values, strict=False))
        known = list(by_form.values())
        many = len(known) > 1
        return {
            "by_presentation": by_form,
            "mean": float(np.mean(known)),
            "spread": float(np.std(known, ddof=1)) if many else None,
            "interval": interval(float(np.mean(known)), 0.2) if many else None,
        }

    def gate(names: Sequence[str], passes: bool) -> dict[str, Any]:
        verdict = (
            "The instrument carries signal on this model: persona answers follow people's "
            "differences between countries (r = 0.31 [0.19, 0.43]), and they are closer to people "
            "than a uniform answer (+0.040 [+0.020, +0.060])."
            if passes
            else "Instrument without signal on this model: persona answers do not follow people's "
            "differences between countries (r = 0.03 [-0.09, 0.15]), and they are not closer to "
            "people than a uniform answer (-0.027 [-0.047, -0.007])."
        )
        return {
            "passes": passes,
            "sentence": verdict,
            "correlation": interval(0.31 if passes else 0.03, 0.12),
            "over_uniform": interval(0.04 if passes else -0.027, 0.02),
            "similarity": 0.78,
            "uniform_similarity": 0.74,
            "permutation": None,
            "persona_spread": 0.05,
            "human_spread": 0.13,
            "countries": len(countries),
            "items": 70,
            "presentations": list(names),
            "replies": None,
        }

    def gain() -> dict[str, Any]:
        return {
            "tuned": interval(105.0, 4.0),
            "untuned": interval(-30.0, 8.0) if untuned else None,
            "loss_tuned": 42.0,
            "loss_untuned": 170.0 if untuned else None,
            "kept": -0.29 if untuned else None,
            "verdict": "vanishes" if untuned else "not tested",
            "sentence": "The loss on presentations A, B fell by 105.0 points, on C, D, never tuned "
            "on, it rose by 30.0: the gain vanishes on presentations that were not tuned on.",
        }

    def constant(name: str) -> dict[str, Any]:
        if name == "tuned":
            return {"mark": "1", "share": 1.0, "answers": 48, "sentence": "answers 1 throughout"}
        return {"mark": "2", "share": 0.4, "answers": 48, "sentence": "no constant answer"}

    entries = {
        country: {
            "target": [value(20, 90) for _ in DIMENSIONS],
            **{name: method(name) for name in LEVELS},
            "seeds": {
                str(seed): {
                    **{name: method(name, seed) for name in OWN_PROMPTS},
                    "fitness": 42.0 + seed,
                    "held_out": {name: value(0.6, 0.9) for name in OWN_PROMPTS},
                }
                for seed in seeds
            },
            "held_out": held_out(),
        }
        for country in countries
    }
    dispersion = {
        "personas": 0.05,
        "people": 0.13,
        "ratio": interval(0.38, 0.05),
        "countries": len(countries),
        "items": 77,
    }
    agreement = {
        "icc": interval(0.6, 0.1),
        "icc_mean": 0.82,
        "flips": 0.44,
        "disagreement": 0.31,
        "repetitions": 3.0,
        "items": 96,
    }
    over_seeds = {
        name: interval(mean, half)
        | {"student": interval(mean, 2 * half), "by_seed": [mean] * len(seeds)}
        for name, mean, half in (
            ("loss", 42.0, 3.0),
            ("held_out", 0.7, 0.03),
            ("after_minus_before", 0.02, 0.03),
        )
    }
    gap = {
        "generations": [0, 80, 160],
        "tuned_loss": [125.0, 70.0, 42.0],
        "held_out": [0.7, 0.71, 0.69],
        "tuned_removed": [0.0, 0.44, 0.664],
        "held_out_removed": [0.0, 0.033, -0.033],
        "gap": [0.0, 0.407, 0.697],
    }
    lines = {
        "uniform": 0.744,
        "midpoint": 0.731,
        "mean_of_others": 0.861 if len(countries) > 1 else None,
        "own_mean": 0.82,
        "random_respondent": 0.66,
    }
    return {
        "warnings": warning_records(
            [ResultWarning("simulated", SIMULATED_HELD_OUT), few_countries(len(countries))]
        ),
        "presentations": {"tuned": list(tuned), "untuned": list(untuned)},
        "seeds": list(seeds),
        "countries": entries,
        "trivial": {
            country: {
                "all_middle": 100.0,
                "uniform_random": 500.5,
                "smallest_integer": 20.0,
                "mean_of_others": 110.0,
                "another_country": 140.0,
            }
            for country in countries
        },
        "held_out": {
            "survey": "made-up",
            "simulated": True,
            "items": 77,
            "presentations": forms,
            "score": "mean over items of 1 - ordinal Wasserstein (nominal: 1 - total variation)",
            "interval": "95 %, bootstrap over items and seeds",
            "matrix": np.where(np.eye(len(countries), dtype=bool), 0.8, 0.7).tolist(),
            "permutation_test": {
                "own": 0.8,
                "others": 0.7 if len(countries) > 1 else None,
                "p_value": 0.5,
                "assignments": 2,
                "exhaustive": True,
            },
        },
        "measure": {
            "validity": gate(forms, passes=False),
            "validity_tuned": gate(tuned, passes=True),
            "dispersion": dict.fromkeys(("persona", "icl", "tuned", "gradient"), dispersion),
            "lines": dict.fromkeys(countries, lines),
            "correlation": {
                survey: {name: interval(-0.7, 0.1) for name in LEVELS}
                for survey in ("tuned_survey", "held_out")
            },
            "constant": {name: dict.fromkeys(forms, constant(name)) for name in LEVELS},
            "gain": {name: dict.fromkeys(countries, gain()) for name in ("tuned", "gradient")},
            "spread": {
                "loss": {c: {name: spread(v) for name, v in LEVELS.items()} for c in countries},
                "held_out": {
                    c: {name: spread([value(0.6, 0.9) for _ in forms]) for name in LEVELS}
                    for c in countries
                },
            },
            "seeds": dict.fromkeys(countries, over_seeds) if len(seeds) > 1 else None,
            "agreement": dict.fromkeys(LEVELS, agreement) if sampled else None,
            "gap": dict.fromkeys(countries, gap),
        },
        "answer_examples": [
            {
                "survey": "held-out survey",
                "country": countries[0],
                "item": "q1",
                "question": "How important is a friend?",
                "answers": {
                    "plain question": {"code": 1, "label": "very", "probability": 0.64},
                    "tuned soft prompt": {"code": 4, "label": "not at all", "probability": 0.9},
                },
            }
        ],
        "constants": [50.0] * 6,
        "dimensions": list(DIMENSIONS),
        "mas_weight": 35,
        "settings": {
            "model": "smollm2",
            "countries": list(countries),
            "reading": reading,
            "answer": "number",
            "replies": 3,
            "presentations": None,
            "test_presentations": None,
            "seeds": list(seeds),
            "objective": "vsm",
            "scores": None,
            "mas_weight": 35,
            "strategy.algorithm": "DifferentialEvolution",
            "strategy.population": 16,
            "generations": 160,
            "penalty": 0.0,
            "gradient_rate": 0.05,
        },
        "sources": {"generations": "the user"},
        "facts": {"gradient_steps": 100},
        "versions": {"jaxalign": "0"},
    }
