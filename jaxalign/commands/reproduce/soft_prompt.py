"""What runs of the soft-prompt paper measured, by row of the tables of `published.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxalign.commands.reports.validity import allows_verdicts
from jaxalign.commands.reproduce.runs import FinishedRun, Measured, setup_cells
from jaxalign.methods.soft_prompt.result import reading_words, readings
from jaxalign.report.document import Estimate, is_number
from jaxalign.report.wording import NO_SIGNAL, number

_METHODS = ("naive", "persona", "icl", "start", "tuned", "gradient")


def values(run: FinishedRun) -> dict[str, dict[str, Measured]]:
    """Return what a run measured, by table and row."""
    if run.command == "cultural-bench":
        return {"bench": _accuracies(run.result)}
    if run.command != "soft-prompt" or "dimensions" not in run.result:
        return {}
    result = run.result
    return {
        "loss": _losses(result),
        "claims": _claims(result),
        "setup": _settings(result, run.model),
        "controls": _losses(result) | _controls(result),
    }


def _losses(result: Mapping[str, Any]) -> dict[str, Measured]:
    reading, found = readings(result)[0], {}
    for country, entry in result["countries"].items():
        for method in _METHODS:
            if method in entry:
                found[f"{method}.{country}"] = Measured(entry[method][reading]["loss"])
        seeds = (result["measure"].get("seeds") or {}).get(country)
        if seeds:
            found[f"tuned.{country}"] = Measured(Estimate.read(seeds["loss"]))
    return found


def _claims(result: Mapping[str, Any]) -> dict[str, Measured]:
    reading, found = readings(result)[0], {}
    entries = result["countries"].values()
    for method in ("naive", "icl"):
        below = [e["tuned"][reading]["loss"] < e[method][reading]["loss"] for e in entries]
        said = f"{sum(below)} of {len(below)}"
        if not allows_verdicts(result["measure"].get("validity")):
            said += f"; {NO_SIGNAL}"
        found[f"below.{method}"] = Measured(said)
    return found


def _controls(result: Mapping[str, Any]) -> dict[str, Measured]:
    found = {}
    for country, entry in result["countries"].items():
        if is_number(line := result["trivial"][country].get("all_middle")):
            found[f"all_middle.{country}"] = Measured(line)
        if gain := entry["held_out"].get("after_minus_before"):
            found[f"held_out.{country}"] = Measured(Estimate.read(gain, 100))
    return found


def _settings(result: Mapping[str, Any], model: str) -> dict[str, Measured]:
    settings = result["settings"]
    search = result["facts"].get("search", {})
    reading = settings.get("reading", "expected")
    has_de = settings["strategy.algorithm"] == "DifferentialEvolution"
    variant = f"{'best' if search.get('elitism') else 'rand'}/{search.get('num_diff')}/bin"
    low, high = (search.get(f"differential_weight_{end}") for end in ("min", "max"))
    weight = number(low, 1) if low == high else f"{number(low, 1)} to {number(high, 1)}"
    texts = {
        "model": model,
        "countries": ", ".join(result["countries"]),
        "loss": f"{settings['objective']}, {len(settings['dimensions'])} dimensions, sum",
        "optimizer": settings["strategy.algorithm"],
        "variant": variant if has_de and search else None,
        "weight": weight if has_de and search else None,
        "crossover": search.get("crossover_rate"),
        "population": settings["strategy.population"],
        "generations": settings["generations"],
        "length": settings["prompt.length"],
        "initialisation": settings["prompt.initialisation"],
        "reading": reading_words(reading),
        "replies": settings["replies"] if reading == "sampled" else "none: exact probabilities",
        "presentations": ", ".join(result["presentations"]["tuned"]),
        "icl": settings["icl_examples"],
        "constant": settings["constant"],
        "edition": settings["edition"],
        "seeds": len(result["seeds"]),
    }
    return setup_cells(texts)


def _accuracies(result: Mapping[str, Any]) -> dict[str, Measured]:
    found = {}
    for name, record in result["sets"].items():
        for method, entry in record["methods"].items():
            found[f"{name}.{method}"] = Measured(Estimate.read(entry["accuracy"], 100))
            for country, accuracy in entry["countries"].items():
                found[f"{name}.{method}.{country}"] = Measured(Estimate.read(accuracy, 100))
    return found
