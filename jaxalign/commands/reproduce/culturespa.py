"""What runs of CultureSPA measured, by row of the tables of `published.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from jaxalign.commands.reproduce.runs import FinishedRun, Measured, setup_cells
from jaxalign.report.document import Estimate

_PROMPTED = ("joint", "specific")  # models that can be asked under every prompt style
# Topics of the released survey, as those of the simulated society are called.
_TOPICS = {
    "trust and membership": "trust",
    "science and technology": "science",
    "religious values": "religion",
    "ethical values": "ethics",
}


def values(run: FinishedRun) -> dict[str, dict[str, Measured]]:
    """Return what a run and the studies of it measured, by table and row."""
    if run.command != "culturespa":
        return {}
    result = run.result
    topics, cultures = _selected(result)
    return {
        "countries": {
            f"{method}.{country}": Measured(_points(score, row["country_intervals"].get(country)))
            for method, row in result["methods"].items()
            for country, score in row["countries"].items()
            if score is not None
        },
        "main": _main(run),
        "topics": topics,
        "cultures": cultures,
        "selection": _selection(result),
        "correlations": _correlations(run),
        "quantity": _quantity(run),
        "abilities": _abilities(result["guard"]),
        "questions": _questions(result["questions"]),
        "setup": _settings(result, run.model),
        "lines": {
            name: Measured(line["mean"])
            for name, line in result["lines"].items()
            if line["mean"] is not None
        },
    }


def _points(value: float | None, bounds: Any = None) -> Estimate:
    low, high = bounds or (None, None)
    return Estimate(value, low, high)


def _score(row: Mapping[str, Any], file: str = "") -> dict[str, Measured]:
    """Return {"": the mean} of a method's record, nothing where it has none."""
    known = row["mean"] is not None
    return {"": Measured(_points(row["mean"], row["interval"]), file)} if known else {}


def _main(run: FinishedRun) -> dict[str, Measured]:
    found = {name: m for name, row in run.result["methods"].items() for m in _score(row).values()}
    prompting, file = run.result.get("prompting"), ""
    if not prompting:
        prompting, file = run.study("prompting.json"), "prompting.json"
    for model, by_style in prompting.get("scores", {}).items():
        if model in _PROMPTED:
            for style, row in by_style.items():
                found |= {f"{model}.{style}": m for m in _score(row, file).values()}
    return found


def _selected(
    result: Mapping[str, Any],
) -> tuple[dict[str, Measured], dict[str, Measured]]:
    """Return the shares of the topics and of the countries among the selected pairs."""
    topics: Counter[str] = Counter()
    # A country of which nothing was selected has a share too: none.
    cultures = Counter(dict.fromkeys(result["settings"]["countries"], 0))
    for seed in result["selected"].values():
        for topic, row in seed["topics"].items():
            topics[_TOPICS.get(topic, topic)] += sum(row["pairs"].values())
        cultures.update(seed["pairs"]["joint"])
    shares = []
    for name, counts in (("topic", topics), ("culture", cultures)):
        total = sum(counts.values())
        shares.append(
            {f"{name}.{k}": Measured(100 * n / total) for k, n in counts.items() if total}
        )
    return shares[0], shares[1]


def _selection(result: Mapping[str, Any]) -> dict[str, Measured]:
    """Return each selection's difference to P1: paired where the run has that."""
    found, p1 = {}, result["methods"]["p1"]["mean"]
    paired = {"crqpc": "joint_minus_p1", "rds": "rds_minus_p1", "cds": "cds_minus_p1"}
    for name, row in result["selection"].items():
        difference = result["differences"].get(paired[name])
        if difference and difference["value"] is not None:
            found[name] = Measured(_points(difference["value"], difference["interval"]))
        elif None not in (row["mean"], p1):
            found[name] = Measured(row["mean"] - p1)
    return found


def _correlations(run: FinishedRun) -> dict[str, Measured]:
    methods = run.study("matrices.json").get("methods", {})
    return {
        name: Measured(
            _points(row["pearson"]["mean"], row["pearson"]["seed_interval"]), "matrices.json"
        )
        for name, row in methods.items()
        if row["pearson"]["mean"] is not None
    }


def _quantity(run: FinishedRun) -> dict[str, Measured]:
    rows = run.study("fractions.json")
    found = {
        f"share.{share}": Measured(_points(row["mean"], row["seed_interval"]), "fractions.json")
        for share, row in rows.items()
        if row["mean"] is not None
    }
    whole = run.result["selection"].get("crqpc")
    if "share.1" not in found and whole and whole["mean"] is not None:
        found["share.1"] = Measured(_points(whole["mean"], whole["seed_interval"]))
    return found


def _abilities(guard: Mapping[str, Any]) -> dict[str, Measured]:
    found = {"before": Measured(guard["before"])}
    return found | {name: Measured(row["mean"]) for name, row in guard["after"].items()}


def _questions(questions: Mapping[str, Any]) -> dict[str, Measured]:
    removed, parsed = questions["removed"], questions["parsed"]
    unique = parsed - removed.get("duplicates", 0)
    defined = unique - removed.get("undefined_scales", 0)
    return {
        "written": Measured(parsed),
        "duplicates": Measured(unique),
        "undefined": Measured(defined),
        "left": Measured(defined - removed.get("half_labelled", 0)),
    }


def _settings(result: Mapping[str, Any], model: str) -> dict[str, Measured]:
    settings, survey = result["settings"], result["survey"]
    reading = settings["reading"]
    sampled = f"sampled, {settings['runs']} runs"
    texts = {
        "model": model,
        "countries": len(settings["countries"]),
        "items": survey["items"],
        "per_topic": settings["per_topic"],
        "reading": sampled if reading == "sampled" else "exact: the most likely option",
        "rank": settings["lora.rank"],
        "alpha": settings["lora.alpha"],
        "rate": settings["train.learning_rate"],
        "epochs": settings["train.epochs"],
        "batch": settings["train.batch"],
        "specific_batch": settings["specific_batch"],
        "warm_up": settings["train.warm_up"],
        "presentations": ", ".join(result["presentations"]["averaged"]),
        "p3": f"chosen by {settings['p3_choice']}, of the tested survey"
        if settings["examples"] == "paper"
        else f"chosen by {settings['p3_choice']}, of another survey",
        "seeds": settings["seeds"],
        "guard": f"{result['guard']['questions']}: {result['guard']['test'].split(' ')[0]}"
        if result["guard"]["test"] != "pocket tasks"
        else f"{result['guard']['questions']}: pocket tasks",
    }
    return setup_cells(texts)
