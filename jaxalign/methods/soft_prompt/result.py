"""What `experiments.soft_prompt` reports: `result.json`, the plots and the table on the screen.

    countries.USA.target                                       six published scores (null: not used)
    countries.USA.{naive,persona,icl,start,tuned,gradient}.{expected,most_likely}.{scores,loss}
    countries.USA.{naive,...}.valid_mass                       chance that a reply begins an option
    countries.USA.held_out.{before,start,after,gradient,persona,icl,permuted}.{mean,low,high}
    countries.USA.held_out.after_minus_{before,start,permuted}.{mean,low,high}   paired by item
    held_out.{matrix,permutation_test,...}                     tuned prompts x countries
    trivial.USA.{all_middle,uniform_random,smallest_integer}
    constants                                                  C by dimension (null: not used)
    dimensions, settings, facts, versions

A loss is the sum of absolute score differences over the dimensions used, in points. `start` is the
soft prompt before tuning, `tuned` after it, by whatever algorithm; `gradient` the same prompt tuned
by Adam, there unless it was left out, and in the expected reading whichever the search tunes, for
the most likely has no gradient. Held-out scores are in [0, 1], 1 where the answers are the
country's own.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.methods.base import ICL, NAIVE, PERSONA, TUNED
from jaxalign.optim.strategy import DIFFERENTIAL_EVOLUTION
from jaxalign.report import figures
from jaxalign.report.drawing import save_png
from jaxalign.runs import settings_of, versions
from jaxalign.runs.console import print_table
from jaxalign.stats.held_out import held_out_record, permutation_test, similarity_by_item
from jaxalign.stats.vsm import READINGS, Scorer, loss, trivial_lines
from jaxalign.surveys.hofstede import DIMENSIONS
from jaxalign.surveys.survey import Survey

METHODS = ("naive", "persona", "icl", "start", "tuned", "gradient")


@dataclasses.dataclass(frozen=True)
class Answers:
    """One method's answers for C countries to the items of one instrument."""

    log_probs_CxQxO: np.ndarray  # normalised over an item's options
    mass_CxQ: np.ndarray  # probability that the reply begins with an option


def readings(result: Mapping[str, Any]) -> tuple[str, str]:
    """The reading that was tuned, and the other one."""
    tuned = result["settings"].get("reading", "expected")
    return tuned, "most_likely" if tuned == "expected" else "expected"


def reading_words(reading: str) -> str:
    return reading.replace("_", " ")


def make_result(
    config: Any,
    facts: Mapping[str, Any],
    scorer: Scorer,
    target_Cx6: np.ndarray,
    used_6: np.ndarray,
    module: Mapping[str, Answers],
    held_out_survey: Survey,
    held_out: Mapping[str, Answers],
) -> dict[str, Any]:
    """All of `result.json`."""
    similarity = {
        name: similarity_by_item(held_out_survey, config.countries, answers.log_probs_CxQxO)
        for name, answers in held_out.items()
    }
    matrix_CxC = np.nanmean(similarity["tuned"], axis=-1)
    constants_6 = np.asarray(scorer.constants)
    entries, trivial = {}, {}
    for c, country in enumerate(config.countries):
        target = np.where(used_6, target_Cx6[c], np.nan)
        entries[country] = {
            "target": known(target),
            **{name: _method(scorer, module[name], c, target, used_6) for name in module},
            "held_out": held_out_record(similarity, config.countries, country, config.seed),
        }
        trivial[country] = trivial_lines(target, used_6, constants_6)
    return {
        "countries": entries,
        "trivial": trivial,
        "held_out": {
            "survey": held_out_survey.name,
            "simulated": facts["simulated_held_out"],
            "items": len(held_out_survey.items),
            "score": "mean over items of 1 - ordinal Wasserstein (nominal: 1 - total variation)",
            "interval": "95 %, bootstrap over items",
            "matrix": matrix_CxC.tolist(),
            "permutation_test": permutation_test(matrix_CxC, config.seed),
        },
        "constants": known(np.where(used_6, constants_6, np.nan)),
        "dimensions": list(DIMENSIONS),
        "settings": settings_of(config, fixed_only=True),
        "facts": dict(facts),
        "versions": versions(),
    }


def _method(
    scorer: Scorer, answers: Answers, c: int, target_6: np.ndarray, used_6: np.ndarray
) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    for reading in READINGS:
        scores_6 = np.asarray(scorer.scores(answers.log_probs_CxQxO[c], reading))
        distance = float(loss(scores_6, target_6, used_6))
        entry[reading] = {"scores": scores_6.tolist(), "loss": distance}
    entry["valid_mass"] = float(answers.mass_CxQ[c].mean())
    return entry


def known(values: np.ndarray) -> list[float | None]:
    """As JSON has it: null for NaN."""
    return [None if np.isnan(v) else float(v) for v in values]


def write_plots(out: Path, result: Mapping[str, Any]) -> None:
    """`convergence.png` and `radar.png`, from the result and the run's `metrics.jsonl`."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    countries = result["countries"]
    curves = {
        country: tuple(_curve(rows, country, name) for name in ("best_so_far", "median"))
        for country in countries
    }
    shown, reading = ("naive", "persona", "icl"), result["settings"]["reading"]
    lines = {
        country: {name: entry[name][reading]["loss"] for name in shown}
        for country, entry in countries.items()
    }
    keys = {method.key: method.legend().as_line() for method in (NAIVE, PERSONA, ICL, TUNED)}
    minimised = "loss + penalty in points" if result["settings"]["penalty"] else "loss in points"
    panels, legend = figures.convergence(curves, lines, keys, minimised)
    save_png(out / "convergence.png", panels, legend)
    used = [d for d, v in enumerate(next(iter(countries.values()))["target"]) if v is not None]
    profiles = {
        country: {
            "target": [entry["target"][d] for d in used],
            **{
                n: [entry[n][reading]["scores"][d] for d in used] for n in ("naive", "icl", "tuned")
            },
        }
        for country, entry in countries.items()
    }
    if len(used) > 2:  # a radar of fewer axes has no area
        shown = {"target": figures.TARGET, **{n: keys[n] for n in ("naive", "icl", "tuned")}}
        panels = figures.score_radars([DIMENSIONS[d].upper() for d in used], profiles, shown)
        save_png(out / "radar.png", panels, list(shown.values()))


def _curve(rows: Sequence[Mapping[str, Any]], country: str, name: str) -> list[float]:
    """A metric over generations; NaN, a gap in the line, where it was not finite."""
    values = [row[country][name] for row in rows]
    return [float("nan") if value is None else value for value in values]


def show_result(result: Mapping[str, Any]) -> None:
    """Losses and held-out scores as two tables, and what the permutation test says."""
    algorithm, rows = result["settings"]["strategy.algorithm"], []
    tuned = "DE" if algorithm == DIFFERENTIAL_EVOLUTION else algorithm
    reading, other = readings(result)
    for country, entry in result["countries"].items():
        losses = [entry[name][reading]["loss"] if name in entry else None for name in METHODS]
        trivial = result["trivial"][country]
        rows.append(
            [country, *losses, entry["tuned"][other]["loss"],
             trivial["all_middle"], trivial["smallest_integer"]]
        )  # fmt: skip
    gradient = "gradient" if reading == "expected" else "gradient (tuned expected)"
    print_table(
        f"Loss on the tuned survey (sum of score differences; {reading_words(reading)} reading)",
        [*_columns(tuned), gradient, f"{tuned} {reading_words(other)}", "all 3", "best integers"],
        rows,
    )
    _show_held_out(result, tuned)


def _columns(tuned: str) -> list[str]:
    return ["", "naive", "persona", "ICL", "start", tuned]


def _show_held_out(result: Mapping[str, Any], tuned: str) -> None:
    survey = result["held_out"]
    names = ("before", "persona", "icl", "start", "after", "permuted")
    rows = [
        [country, *(_share(entry["held_out"][n]) for n in names), _range(entry["held_out"])]
        for country, entry in result["countries"].items()
    ]
    kind = "simulated" if survey["simulated"] else survey["survey"]
    print_table(
        f"Held-out survey ({kind}, {survey['items']} items; 1 is the country's own answers)",
        [*_columns(tuned), f"others' {tuned}", f"{tuned} - naive [95 %]"],
        rows,
    )
    test = survey["permutation_test"]
    print(
        f"permutation test: own prompts {test['own']:.3f}, others' "
        f"{_number(test['others'])}, p = {test['p_value']:.3f} of {test['assignments']} assignments"
    )


def _share(interval: Mapping[str, float] | None) -> str:
    return "–" if interval is None else f"{interval['mean']:.3f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _range(held_out: Mapping[str, Any]) -> str:
    found = held_out["after_minus_before"]
    if found is None:
        return "–"
    return f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
