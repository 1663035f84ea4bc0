"""Which topics are the selected data about? (CultureSPA's Figure 3.)

    python -m experiments.culturespa.studies.topics runs/culturespa

Shows for every topic of a finished run the share of its pairs that CRQPC selects, mean over
countries and seeds, with Student's interval over seeds, beside what random selection (RDS) takes.
Writes topics.json and topics.png into the run. Takes seconds.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from experiments.culturespa.studies.finished import Finished, RunSettings, read_finished
from jaxalign.commands.reports.culturespa_plots import save
from jaxalign.commands.reports.culturespa_tables import INTERVALS, bounds
from jaxalign.core.files import write_json
from jaxalign.methods.base import CRQPC, RDS
from jaxalign.report.drawing import new_figure
from jaxalign.report.palette import BLUE, LINE, ORANGE
from jaxalign.runs.console import main, print_table
from jaxalign.stats.intervals import seed_interval


def run(settings: RunSettings) -> None:
    """Count the selected pairs by topic, and write, draw and print their shares."""
    finished = read_finished(settings.run)
    record = shares_by_topic(finished)
    write_json(finished.out / "topics.json", record)
    draw(finished.out / "topics.png", record)
    show(record)


def shares_by_topic(finished: Finished) -> dict[str, Any]:
    """Return counts and percentages by topic.

    `questions` counts the written questions over all seeds; `selected` and `random` are the shares
    of a topic's pairs that CRQPC and RDS select; `share_of_data` is the topic's share of the
    selected pairs. Each share has an interval over seeds, cut off at 0 and 100, beyond which the
    interval of two seeds often reaches.
    """
    topics = list(dict.fromkeys(i.topic for q in finished.questions.values() for i in q.items))
    questions_SxT = np.array(
        [
            _count(topics, [item.topic for item in survey.items])
            for survey in finished.questions.values()
        ]
    )
    joint_SxT, random_SxT = (_selected(finished, topics, model) for model in ("joint", "rds"))
    pairs_SxT = questions_SxT * len(finished.groups)
    data_SxT = _percent(joint_SxT, joint_SxT.sum(axis=1, keepdims=True))
    return {
        topic: {
            "questions": int(questions_SxT[:, t].sum()),
            "selected": _estimate(_percent(joint_SxT, pairs_SxT)[:, t]),
            "random": _estimate(_percent(random_SxT, pairs_SxT)[:, t]),
            "share_of_data": _estimate(data_SxT[:, t]),
        }
        for t, topic in enumerate(topics)
    }


def _selected(finished: Finished, topics: list[str], model: str) -> np.ndarray:
    """Return the number of pairs selected for a model, float64 [seeds, topics]."""
    rows = []
    for seed, questions in finished.questions.items():
        topic_of = {item.id: item.topic for item in questions.items}
        pairs = finished.selected[seed][model]
        rows.append(_count(topics, [topic_of[pair.item] for pair in pairs]))
    return np.array(rows)


def _count(topics: list[str], occurrences: list[str]) -> np.ndarray:
    counts = Counter(occurrences)
    return np.array([counts[topic] for topic in topics], np.float64)


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return a share in percent, NaN of nothing."""
    return 100 * np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _estimate(values_S: np.ndarray) -> dict[str, float | None]:
    """Return the mean of a share over seeds and its interval, within 0 and 100."""
    known = values_S[~np.isnan(values_S)]
    interval = seed_interval(known)
    mean = float(known.mean()) if len(known) else None
    return {
        "mean": mean,
        "low": None if interval is None else max(interval.low, 0.0),
        "high": None if interval is None else min(interval.high, 100.0),
    }


def show(record: dict[str, Any]) -> None:
    """Print the shares, the most selected topic first."""
    rows = []
    for topic, row in sorted(record.items(), key=lambda kv: -(kv[1]["selected"]["mean"] or 0)):
        selected = row["selected"]
        interval = None if selected["low"] is None else (selected["low"], selected["high"])
        random, data = row["random"]["mean"], row["share_of_data"]["mean"]
        rows.append([topic, row["questions"], selected["mean"], bounds(interval), random, data])
    columns = (
        "topic",
        "questions",
        "% of its pairs selected",
        INTERVALS[1],
        "% selected at random",
        "% of all selected pairs",
    )
    print_table("Answers that change when a country is named, by topic", columns, rows)


def draw(path: Path, record: dict[str, Any]) -> None:
    """Draw the share of each topic's pairs that is selected, the most selected at the top."""

    topics = sorted(record, key=lambda topic: record[topic]["selected"]["mean"] or 0)
    figure = new_figure((7.6, 0.34 * len(topics) + 1.3))
    axes = figure.add_subplot()
    for y, topic in enumerate(topics):
        selected = record[topic]["selected"]
        if selected["mean"] is None:
            continue
        if selected["low"] is not None:
            axes.plot([selected["low"], selected["high"]], [y, y], color=BLUE, linewidth=2)
        labels = (CRQPC.title, RDS.title) if y == 0 else (None, None)
        axes.plot(selected["mean"], y, "o", color=BLUE, label=labels[0])
        axes.plot(record[topic]["random"]["mean"], y, "x", color=ORANGE, label=labels[1])
    axes.set_yticks(range(len(topics)), topics)
    axes.set_xlabel("% of a topic's pairs that are selected (bar: 95 % over seeds)", fontsize=9)
    axes.grid(axis="x", color=LINE)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path, legend="outside upper center")


if __name__ == "__main__":
    main(run, RunSettings)
