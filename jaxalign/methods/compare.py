"""Compare runs by what they answered: the same items, the same people, paired item by item.

Every run keeps its answers option by option (`jaxalign.surveys.answer_table`), together with how
people answered, so that runs of any kind can be set beside each other: two models, two seeds, a
soft prompt and an adapter. The score is that of the held-out survey of a soft-prompt run: the mean
over items of 1 - ordinal Wasserstein (nominal: 1 - total variation), 1 where the shares of all
options are the people's own.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.core.json_text import read_object
from jaxalign.stats.distances import item_similarities
from jaxalign.stats.result_warnings import few_items, warning_records
from jaxalign.stats.seeds import crossed_interval
from jaxalign.surveys.answer_table import NAME, PEOPLE

SCORE = "mean over items of 1 - ordinal Wasserstein (nominal: 1 - total variation)"
_Key = tuple[str, str]  # country ("" for none) and item


@dataclasses.dataclass(frozen=True)
class RunAnswers:
    """A run's answers to the survey that says how people answered.

    Attributes:
        name: The run's directory, as it was given.
        survey: Name of the survey.
        scales: By item, "ordinal" or "nominal".
        people: By country and item, the people's shares of the options.
        methods: By method, country ("" for none) and item, the probabilities of the options, mean
            over seeds and the presentations that the run averages.
    """

    name: str
    survey: str
    scales: Mapping[str, str]
    people: Mapping[_Key, np.ndarray]
    methods: Mapping[str, Mapping[_Key, np.ndarray]]


def compare_runs(runs: Sequence[Path | str], seed: int = 0) -> dict[str, Any]:
    """Score the answers of several runs on the items and countries that all of them have.

    Args:
        runs: Directories of finished runs, two or more; the first is what others are compared with.
        seed: Seed of the bootstrap over items.

    Returns:
        `warnings` as of other results; `runs`, `survey`, `countries`, `items` and `score`; `rows`,
        the score of every method of every run; `differences` from the first run, by method, paired
        by item. Each with its 95 % interval over items (`mean`, `low`, `high`; null where nothing
        was answered).

    Raises:
        UserError: Fewer than two runs, a run without answers, nothing in common, or an item of the
            same name that people answered otherwise.
    """
    if len(set(map(str, runs))) < 2:
        raise UserError("`runs`: give two runs or more, each once")
    read = [read_run_answers(Path(run)) for run in runs]
    countries = _common([[country for country, _ in run.people] for run in read])
    items = _common([list(run.scales) for run in read])
    if not countries or not items:
        what = "country" if not countries else "item"
        raise UserError(
            f"`runs` {', '.join(run.name for run in read)}: have no {what} in common, of those "
            "with people's answers"
        )
    _check_people(read, countries, items)
    values = {
        (run.name, method): _similarity(run, given, countries, items)
        for run in read
        for method, given in run.methods.items()
    }
    first = read[0].name
    differences = [
        {"method": method, "a": run.name, "b": first}
        | _interval(values[run.name, method] - values[first, method], seed)
        for run in read[1:]
        for method in run.methods
        if (first, method) in values
    ]
    return {
        "warnings": _warnings([Path(run) for run in runs], len(items)),
        "runs": [run.name for run in read],
        "survey": read[0].survey,
        "countries": countries,
        "items": len(items),
        "score": SCORE,
        "rows": [
            {"run": name, "method": method} | _interval(values_CxQ, seed)
            for (name, method), values_CxQ in values.items()
        ],
        "differences": differences,
    }


def read_run_answers(run: Path) -> RunAnswers:
    """Read a run's `answers_by_option.csv`.

    Raises:
        UserError: There is none, or it does not say how people answered.
    """
    path = run / f"{NAME}.csv"
    if not path.is_file():
        raise UserError(f"`runs` {run}: no {path.name} there; give directories of finished runs")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    surveys = {row["survey"] for row in rows if row["method"] == PEOPLE}
    if not surveys:
        raise UserError(f"`runs` {run}: its survey does not say how people answered")
    survey = sorted(surveys)[0]
    kept = _averaged(run)
    found: dict[str, dict[_Key, dict[tuple[str, str], list[float]]]] = {}
    scales: dict[str, str] = {}
    for row in rows:
        if row["survey"] != survey or row["probability"] == "":
            continue
        if kept and row["presentation"] and row["presentation"] not in kept:
            continue
        scales[row["item"]] = row["scale"]
        under = row["seed"], row["presentation"]
        by_key = found.setdefault(row["method"], {}).setdefault((row["country"], row["item"]), {})
        by_key.setdefault(under, []).append(float(row["probability"]))
    means = {
        method: {key: np.mean(list(by.values()), axis=0) for key, by in by_key.items()}
        for method, by_key in found.items()
    }
    people = means.pop(PEOPLE)
    return RunAnswers(str(run), survey, scales, people, means)


def _warnings(runs: Sequence[Path], items: int) -> list[dict[str, Any]]:
    """Return what the runs say of simulated people and models, each once, and of few items."""
    said = {
        warning["text"]: warning
        for run in runs
        for warning in _result(run).get("warnings", ())
        if warning["kind"] == "simulated"
    }
    return [*said.values(), *warning_records([few_items(items, "comparison")])]


def _result(run: Path) -> dict[str, Any]:
    return read_object(run / "result.json") if (run / "result.json").is_file() else {}


def _averaged(run: Path) -> list[str]:
    """Return the presentations that a run averages over, where it says so."""
    names = _result(run).get("presentations")
    return list(names.get("tuned", ())) if isinstance(names, Mapping) else []


def _common(lists: Sequence[Sequence[str]]) -> list[str]:
    """Return what is in all lists, in the order of the first."""
    return [name for name in dict.fromkeys(lists[0]) if all(name in other for other in lists[1:])]


def _check_people(
    runs: Sequence[RunAnswers], countries: Sequence[str], items: Sequence[str]
) -> None:
    """Refuse items of different surveys that happen to have one name."""
    first = runs[0]
    for run in runs[1:]:
        for key in ((country, item) for country in countries for item in items):
            pair = first.people.get(key), run.people.get(key)
            if all(p is not None for p in pair) and not np.array_equal(*pair):
                raise UserError(
                    f"`runs` {first.name}, {run.name}: people in {key[0]} answered {key[1]} "
                    "differently in each, so it is not the same item; compare runs on one survey"
                )


def _similarity(
    run: RunAnswers,
    given: Mapping[_Key, np.ndarray],
    countries: Sequence[str],
    items: Sequence[str],
) -> np.ndarray:
    """Return how near the answers are to people's, float [C, Q]; NaN where one is missing."""
    most = max(len(shares) for shares in run.people.values())
    shape = len(countries), len(items), most
    answers, people = np.full(shape, np.nan), np.full(shape, np.nan)
    valid = np.zeros(shape, bool)
    for c, country in enumerate(countries):
        for q, item in enumerate(items):
            own = given.get((country, item), given.get(("", item)))
            truth = run.people.get((country, item))
            if own is not None and truth is not None and len(own) == len(truth):
                answers[c, q] = people[c, q] = 0.0
                answers[c, q, : len(own)], people[c, q, : len(truth)] = own, truth
                valid[c, q, : len(own)] = True
    ordinal_Q = np.array([run.scales[item] == "ordinal" for item in items])
    similarity = item_similarities(answers, people, np.broadcast_to(ordinal_Q, shape[:2]), valid)
    return np.where(valid.any(axis=-1), np.asarray(similarity), np.nan)


def _interval(values_CxQ: np.ndarray, seed: int) -> dict[str, float | None]:
    """Return the mean over countries and items, with its interval over items."""
    known_Q = ~np.isnan(values_CxQ).all(axis=0)
    if not known_Q.any():
        return {"mean": None, "low": None, "high": None}
    found = crossed_interval(np.nanmean(values_CxQ[:, known_Q], axis=0), seed)
    return found.record()
