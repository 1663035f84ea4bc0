"""Scores free-text replies to a survey, from any tool, against how countries answered it.

    python -m experiments.score_replies --survey data/ --replies data/result/*.json
    python -m experiments.score_replies --survey data/ --replies samples_culture_aware_USA.jsonl \\
        --reader strict --json scores.json

`--survey` is a CultureSPA data folder or any other survey with countries' answers; `--replies` are
CultureSPA result files, samples of lm-evaluation-harness or logs of inspect (see
`jaxalign.surveys.reply_files`). Score: the cultural alignment score of Xu et al. 2025 (CultureSPA,
arXiv 2410.12971). On the released folder it gives USA 71.12, CHN 66.54, NGA 61.96 for culture-aware
replies and 68.34, 62.19, 52.05 for unaware ones. Takes about half a minute on two cores.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.commands import reports
from jaxalign.core.errors import UserError
from jaxalign.core.files import check_new_file, write_json
from jaxalign.runs import Run, check_run
from jaxalign.runs.console import print_table
from jaxalign.stats.alignment import LINES
from jaxalign.stats.analysis import analyse
from jaxalign.surveys.formats import read_answered
from jaxalign.surveys.replies import Numbering, ReaderName, read_answers
from jaxalign.surveys.reply_files import Mode, Replies, read_replies
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.survey import Survey


@dataclasses.dataclass(frozen=True)
class Config:
    """Score replies that exist already; write a report."""

    survey: Path
    """CultureSPA data folder, or any other survey with countries' answers (an instrument file,
    World Values Survey, GlobalOpinionQA)."""
    replies: tuple[Path, ...]
    """Files of replies; several of one country and mode are runs."""
    distributions: Path | None = None
    """Of a survey in a CSV of your own: the CSV with country, item, code and share."""
    reader: ReaderName = "first_integer"
    """first_integer: as published, wherever it stands; strict: the reply must be the number."""
    numbering: Numbering = "codes"
    """What a number means: codes, the survey's own, some from 0; positions: options shown as
    1, 2, ..."""
    country: str | None = None
    """ISO 3166 alpha-3 code of every file; default: from the files."""
    mode: Mode | None = None
    """Of every file: asked as a person of the country (aware) or plainly (unaware); default: from
    the files."""
    resamples: int = 10_000
    """Of the question bootstrap."""
    seed: int = 0
    """Of the question bootstrap."""
    json: Path | None = None
    """Also write the scores alone to this file."""
    out: Path | None = None
    """Directory of the report; default runs/score_replies-<date>-<time>."""


def score_replies(config: Config) -> None:
    """The whole experiment; see the module's docstring."""
    _check(config)
    out = config.out or Path("runs") / time.strftime("score_replies-%Y%m%d-%H%M%S")
    check_run(out, config)
    survey = read_targets(config.survey, config.distributions)
    aware, unaware = read_files(config, survey)
    print(f"{survey.name}: {len(survey.items)} items")
    result = analyse(survey, aware, unaware, resamples=config.resamples, seed=config.seed)
    show(result)
    if config.json is not None:
        write_json(config.json, summary(result, config))
    with Run.create(out, config, {"survey": survey.sha256}) as run:
        run.write("result.json", result)
    reports.survey_report(result, out)
    print(f"results in {out}")


def _check(config: Config) -> None:
    if not config.replies:
        raise UserError("--replies: name at least one file")
    if not 1 <= config.resamples <= 1_000_000:
        raise UserError(f"--resamples {config.resamples}: give 1 to 1000000")
    check_new_file(config.json, "json")
    if repeated := {p for p in config.replies if config.replies.count(p) > 1}:
        raise UserError(f"--replies: {sorted(repeated)[0]} is named twice")


def read_targets(path: Path, distributions: Path | None = None) -> Survey:
    """Whatever survey is in `path`. Raises UserError where no country's answers are."""
    return read_answered(path, "survey", distributions, worded=False)


def read_files(
    config: Config, instrument: Survey
) -> tuple[dict[str, list[Responses]], list[Responses]]:
    """Runs by country, in the instrument's order of countries, and those of the unaware model."""
    found: list[Replies] = []
    aware: dict[str, list[Responses]] = {}
    unaware: list[Responses] = []
    for path in config.replies:
        for replies in read_replies(path, config.country, config.mode):
            _refuse_repeated(found, replies)
            _refuse_unknown(replies, instrument)
            answers = read_answers(replies, instrument, config.reader, config.numbering)
            runs = unaware if replies.country is None else aware.setdefault(replies.country, [])
            runs.append(answers)
    _refuse_unreadable(config, [a for runs in (*aware.values(), unaware) for a in runs])
    return {c: aware[c] for c in instrument.distributions if c in aware}, unaware


def _refuse_repeated(found: list[Replies], replies: Replies) -> None:
    """The same replies under the same name are one run copied, not two runs."""
    for other in found:
        if replies == dataclasses.replace(other, source=replies.source):
            raise UserError(f"{replies.source}: holds the same replies as {other.source}")
    found.append(replies)


def _refuse_unreadable(config: Config, found: list[Responses]) -> None:
    """Refuse replies of which none is an answer: there is nothing to score."""
    if all(np.isnan(answers.answers()).all() for answers in found):
        count = sum(answers.counts()["replies"] for answers in found)
        raise UserError(
            f"--replies {config.replies[0]}: no answer in {count} replies to {config.survey}; is "
            f"it the right survey, --reader ({config.reader}) and --numbering ({config.numbering})?"
        )


def _refuse_unknown(replies: Replies, instrument: Survey) -> None:
    known = instrument.distributions
    if replies.country is not None and replies.country not in known:
        raise UserError(
            f"{replies.source}: country {replies.country!r} is not in the survey; it has "
            f"{' '.join(known)}"
        )


def summary(result: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """What `--json` holds: scores in points to two decimals, None where there are no replies."""
    return {
        "scores": {
            country: {mode: _two(row[mode]) for mode in ("aware", "unaware")}
            | {"items": row["items"], "unaware_items": row["unaware_items"]}
            for country, row in result["scores"].items()
        },
        "means": {
            which: {mode: _two(row[mode]) for mode in ("aware", "unaware")}
            | {"countries": row["countries"]}
            for which, row in result["means"].items()
        },
        "lines": {c: {k: _two(v) for k, v in row["lines"].items()}
                  for c, row in result["scores"].items()},
        "unreadable": sum(result["unreadable"]["total"][k] for k in ("unreadable", "out_of_range")),
        "replies": result["unreadable"]["total"]["replies"],
        "unreadable_by": {
            "aware": {c: _lost(part) for c, part in result["unreadable"]["aware"].items()},
            "unaware": _lost(result["unreadable"]["unaware"]),
        },
        "reader": config.reader,
        "numbering": config.numbering,
    }  # fmt: skip


def _lost(part: Mapping[str, Any]) -> int:
    return part["unreadable"] + part["out_of_range"]


def _two(points: float | None) -> float | None:
    return None if points is None else float(np.round(points, 2))


def show(result: Mapping[str, Any]) -> None:
    """Scores per country, what they amount to without a model, and unreadable replies."""
    named = [*result["scores"].items(), ("mean", result["means"]["all"])]
    if 0 < len(result["personas"]) < len(result["countries"]):
        named.append(("mean of personas", result["means"]["personas"]))
    rows = [
        [name, *(_text(row[mode]) for mode in ("aware", "unaware")),
         *(_text(row["lines"][line]) for line in LINES)]
        for name, row in named
    ]  # fmt: skip
    columns = ("", "aware", "unaware", *(name.replace("_", " ") for name in LINES))
    print_table("Cultural alignment score × 100", columns, rows)
    _show_items(result)
    total = result["unreadable"]["total"]
    lost = [f"{country} {_lost(part)}" for country, part in result["unreadable"]["aware"].items()]
    lost.append(f"unaware {_lost(result['unreadable']['unaware'])}")
    print(f"replies without an answer, of {total['replies']}: {', '.join(lost)}")
    for country, row in result["intervals"]["difference"].items():
        d = row["alignment"]
        if d["value"] is not None:
            bounds = f"[{d['low']:+.2f}, {d['high']:+.2f}]"
            said = f"{d['value']:+.2f} {bounds}, {d['verdict']}"
            print(f"{country}: aware − unaware {said} (on items that both answered)")


def _show_items(result: Mapping[str, Any]) -> None:
    """A score of 100 on two items must not look like one on all of them."""
    scores = result["scores"]
    said = [f"{country} {scores[country]['items']}" for country in result["personas"]]
    unaware = sorted(row["unaware_items"] for row in scores.values())
    said.append(f"unaware {unaware[0]} to {unaware[-1]}")
    print(f"items in a score, of {result['instrument']['items']}: {', '.join(said)}")


def _text(points: float | None) -> str:
    return "–" if points is None else f"{points:.2f}"
