"""`jaxalign score`: score free-text replies to a survey, from any tool, against countries' answers.

    jaxalign score --survey data/ --replies data/result/*.json
    jaxalign score --survey data/ --replies samples_culture_aware_USA.jsonl \\
        --reader strict --json scores.json

`--survey` is a CultureSPA data folder or any other survey with countries' answers. `--replies` are
CultureSPA result files, samples of lm-evaluation-harness or logs of inspect (see
`jaxalign.surveys.reply_files`). The score is the cultural alignment score of Xu et al. 2025
(CultureSPA, arXiv 2410.12971). On the released folder it is 71.12 for USA, 66.54 for CHN and 61.96
for NGA with culture-aware replies, and 68.34, 62.19 and 52.05 with unaware ones. That takes about
half a minute on two cores. `jaxalign.score_replies` does the same in Python.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.commands import reports
from jaxalign.commands.reports.validity import gate_note, judged
from jaxalign.commands.reports.warnings import warning_notes
from jaxalign.core.files import check_new_file, write_json
from jaxalign.runs import Run, check_run
from jaxalign.runs.console import print_notes, print_table
from jaxalign.stats.alignment import LINES
from jaxalign.stats.analysis import score_replies
from jaxalign.stats.metrics import DEFAULT_METRICS
from jaxalign.surveys.options import SurveyOptions
from jaxalign.surveys.replies import Numbering, ReaderName
from jaxalign.surveys.reply_files import Mode
from jaxalign.surveys.responses import NOT_ANSWERS


@dataclasses.dataclass(frozen=True)
class Config(SurveyOptions):
    """Score replies that already exist and write a report."""

    survey: Path
    """CultureSPA data folder, or any other survey with countries' answers (a survey file, World
    Values Survey, GlobalOpinionQA)."""
    replies: tuple[Path, ...]
    """Files of replies; several files of the same country and mode are runs."""
    distributions: Path | None = None
    """CSV file with the columns country, item, code and share, if the survey is a CSV file."""
    reader: ReaderName = "first_integer"
    """How a reply is read. first_integer: the first integer, wherever it stands, as published;
    strict: the reply must be the number."""
    numbering: Numbering = "codes"
    """What a number means. codes: the survey's own codes, some of which start at 0; positions: the
    options were shown as 1, 2, ..."""
    country: str | None = None
    """ISO 3166 alpha-3 code, or another group of the survey, of all files; default: what the files
    say."""
    mode: Mode | None = None
    """Mode of all files: asked as a person of the country (aware) or without a country (unaware);
    default: what the files say."""
    metrics: tuple[str, ...] = DEFAULT_METRICS
    """Names of the metrics to compute; `alignment` is always among them."""
    resamples: int = 10_000
    """Number of resamples of the bootstrap over questions."""
    seed: int = 0
    """Seed of the bootstrap over questions."""
    json: Path | None = None
    """File to which the scores alone are written as well."""
    out: Path | None = None
    """Directory of the report; default: runs/score_replies-<date>-<time>."""


def score(config: Config) -> None:
    """Score the replies, write `result.json` and the report, and print the scores."""
    check_new_file(config.json, "json")
    out = config.out or Path("runs") / time.strftime("score_replies-%Y%m%d-%H%M%S")
    check_run(out, config)
    analysis = score_replies(
        config.survey,
        config.replies,
        distributions=config.distributions,
        wording=config.wording,
        by=config.by,
        min_respondents=config.min_respondents,
        format=config.format,
        reader=config.reader,
        numbering=config.numbering,
        country=config.country,
        mode=config.mode,
        metrics=config.metrics,
        resamples=config.resamples,
        seed=config.seed,
    )
    if config.json is not None:
        write_json(config.json, summary(analysis, config))
    with Run.create(out, config, {"survey": analysis["instrument"]["sha256"]}) as run:
        run.write("result.json", analysis)
    reports.survey_report(analysis, out)
    show(analysis)
    print(f"results in {out}")


def summary(analysis: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Return what `--json` writes: scores in points to two decimals, None where there is none."""
    return {
        "scores": {
            country: {
                "aware": _two_decimals(row["aware"]),
                "unaware": _two_decimals(row["unaware"]),
                "items": row["items"],
                "unaware_items": row["unaware_items"],
            }
            for country, row in analysis["scores"].items()
        },
        "means": {
            group: {
                "aware": _two_decimals(row["aware"]),
                "unaware": _two_decimals(row["unaware"]),
                "countries": row["countries"],
            }
            for group, row in analysis["means"].items()
        },
        "lines": {
            country: {line: _two_decimals(value) for line, value in row["lines"].items()}
            for country, row in analysis["scores"].items()
        },
        "unreadable": _without_answer(analysis["unreadable"]["total"]),
        "replies": analysis["unreadable"]["total"]["replies"],
        "unreadable_by": {
            "aware": {
                country: _without_answer(counts)
                for country, counts in analysis["unreadable"]["aware"].items()
            },
            "unaware": _without_answer(analysis["unreadable"]["unaware"]),
        },
        "reader": config.reader,
        "numbering": config.numbering,
    }


def _without_answer(counts: Mapping[str, Any]) -> int:
    """Return the number of replies that name no option."""
    return sum(counts[reason] for reason in NOT_ANSWERS)


def _two_decimals(points: float | None) -> float | None:
    return None if points is None else float(np.round(points, 2))


def show(analysis: Mapping[str, Any]) -> None:
    """Print the scores beside what needs no model, the differences, and unreadable replies."""
    survey = analysis["instrument"]
    print(f"{survey['name']}: {survey['items']} items")
    print_notes(warning_notes(analysis))
    if analysis["personas"]:
        print_notes([gate_note(analysis["validity"])])
        analysis = judged(analysis, analysis["validity"])
    named = [*analysis["scores"].items(), ("mean", analysis["means"]["all"])]
    if 0 < len(analysis["personas"]) < len(analysis["countries"]):
        named.append(("mean of personas", analysis["means"]["personas"]))
    rows = [
        [
            name,
            _text(row["aware"]),
            _text(row["unaware"]),
            *(_text(row["lines"][line]) for line in LINES),
        ]
        for name, row in named
    ]
    columns = ("", "aware", "unaware", *LINES.values())
    print_table("Cultural alignment score × 100", columns, rows)
    print(
        "aware: asked as a person of the country; unaware: no country named; the other columns "
        "need no model"
    )
    _show_items(analysis)
    _show_unreadable(analysis)
    for country, row in analysis["intervals"]["difference"].items():
        d = row["alignment"]
        if d["value"] is not None:
            bounds = f"[{d['low']:+.2f}, {d['high']:+.2f}]"
            print(
                f"{country}: aware − unaware {d['value']:+.2f} {bounds}, {d['verdict']} "
                "(on items that both answered)"
            )


def _show_items(analysis: Mapping[str, Any]) -> None:
    """Print how many items the scores rest on: 100 on two items is not 100 on all of them."""
    scores = analysis["scores"]
    counts = [f"{country} {scores[country]['items']}" for country in analysis["personas"]]
    unaware = [row["unaware_items"] for row in scores.values()]
    counts.append(f"unaware {min(unaware)} to {max(unaware)}")
    total = analysis["instrument"]["items"]
    print(f"items in a score, of {total}: {', '.join(counts)}")


def _show_unreadable(analysis: Mapping[str, Any]) -> None:
    unreadable = analysis["unreadable"]
    counts = [f"{country} {_without_answer(c)}" for country, c in unreadable["aware"].items()]
    counts.append(f"unaware {_without_answer(unreadable['unaware'])}")
    total = unreadable["total"]["replies"]
    print(f"replies without an answer, of {total}: {', '.join(counts)}")
    if lists := unreadable["total"]["option_lists"]:
        print(f"of these, {lists} repeat the options and take none")
    for note in analysis.get("notes", ()):
        print(f"note: {note}")


def _text(points: float | None) -> str:
    return "–" if points is None else f"{points:.2f}"
