"""A made-up folder in CultureSPA's layout, for tests: every kind of item, no survey's wording."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.surveys.formats.culturespa import COUNTRIES, QUESTIONS, SHARES

# Number of options by item: yes or no, four points, from 0, ten points, no order, eleven from 0.
OPTIONS = {
    "Q1": 4,
    "Q2": 4,
    "Q7": 2,
    "Q48": 10,
    "Q94": 3,
    "Q106": 10,
    "Q111": 3,
    "Q124": 3,
    "Q164": 10,
    "Q200": 3,
    "Q234A": 5,
    "Q241": 11,
}
NOT_SCORED = {"Q260": 2, "Q290": 0}
FROM_ZERO = ("Q94", "Q124", "Q241")


def questions() -> list[dict[str, Any]]:
    return [
        {"Q_id": i, "question": f"made-up question {i}?", "option_lst": labels(n)}
        for i, n in (OPTIONS | NOT_SCORED).items()
    ]


def labels(options: int) -> list[str]:
    return [f"choice {chr(97 + o)}" for o in range(options)]


def first_code(item: str) -> int:
    return 0 if item in FROM_ZERO else 1


def shares(seed: int = 0) -> dict[str, dict[str, dict[str, float]]]:
    """Return shares that sum to 0.9, as if a tenth had not answered; CHN was not asked Q2."""
    random = np.random.default_rng(seed)
    out: dict[str, Any] = {}
    for country in (*COUNTRIES, "MEX"):
        out[country] = {}
        for item, options in OPTIONS.items():
            drawn = 0.9 * random.dirichlet(np.ones(options))
            codes = range(first_code(item), first_code(item) + options)
            out[country][item] = {str(c): float(s) for c, s in zip(codes, drawn, strict=True)}
    out["CHN"]["Q2"] = {}
    return out


def write_folder(
    folder: Path,
    tables: Mapping[str, Any] | None = None,
    questionnaire: list[dict[str, Any]] | None = None,
) -> Path:
    (folder / "result").mkdir(parents=True, exist_ok=True)
    write(folder / QUESTIONS, questions() if questionnaire is None else questionnaire)
    write(folder / SHARES, shares() if tables is None else tables)
    return folder


def published_similarities(folder: Path) -> dict[str, dict[str, float]]:
    """Return CultureSPA's own table, which our computed similarities are compared with."""
    return json.loads((folder / "country_similarity.json").read_text("utf-8"))


def replies(texts: Mapping[str, str] | str) -> list[dict[str, Any]]:
    """Return the rows of a result file: a text for each item, or the same text for all."""
    return [
        {
            "Q_id": i,
            "question": f"made-up question {i}?",
            "option_lst": labels(n),
            "answer": texts if isinstance(texts, str) else texts.get(i, "no idea"),
        }
        for i, n in OPTIONS.items()
    ]


def write_replies(folder: Path, name: str, texts: Mapping[str, str] | str) -> Path:
    """Write a result file; `name` is such as "aware_USA_0"."""
    path = folder / "result" / f"wvs_result_culture_{name}.json"
    write(path, replies(texts))
    return path


def reply_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of replies that the folder holds."""
    return tuple(sorted(folder.glob("result/wvs_result_culture_*.json")))


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
