"""Which topics the selected data are about (CultureSPA's Figure 3).

    python -m experiments.culturespa.studies.topics runs/culturespa

Of a finished run, for every topic: the share of its questions that CRQPC selects for a country,
mean over countries and seeds, with Student's interval over seeds, beside what random selection
(RDS) takes. Writes topics.json and topics.png into the run. Takes seconds.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.culturespa.studies.finished import Finished, RunConfig, read_finished
from jaxalign.commands.reports.culturespa_plots import save
from jaxalign.report.palette import BLUE, LINE, ORANGE
from jaxalign.runs import write_json
from jaxalign.runs.console import main, print_table
from jaxalign.stats.intervals import seed_interval


def run(config: RunConfig) -> None:
    """The whole study; see the module's docstring."""
    finished = read_finished(config.run)
    found = topics(finished)
    write_json(finished.out / "topics.json", found)
    draw(finished, found)
    show(found)


def topics(finished: Finished) -> dict[str, Any]:
    """By topic: questions over all seeds, the share of its pairs that is selected (percent), and
    its share of the selected data. Intervals end where shares do: from two seeds they reach far."""
    names = list(dict.fromkeys(i.topic for q in finished.questions.values() for i in q.items))
    asked_SxT, joint_SxT, rds_SxT = (_counts(finished, names, m) for m in (None, "joint", "rds"))
    pairs_SxT = asked_SxT * len(finished.countries)
    data_SxT = _percent(joint_SxT, joint_SxT.sum(axis=1, keepdims=True))
    return {
        name: {
            "questions": int(asked_SxT[:, t].sum()),
            "selected": _estimate(_percent(joint_SxT, pairs_SxT)[:, t]),
            "random": _estimate(_percent(rds_SxT, pairs_SxT)[:, t]),
            "share_of_data": _estimate(data_SxT[:, t]),
        }
        for t, name in enumerate(names)
    }


def _counts(finished: Finished, names: list[str], method: str | None) -> np.ndarray:
    """float64 [seeds, topics]: questions, or the pairs that a selection holds."""
    rows = []
    for seed, questions in finished.questions.items():
        topic = {item.id: item.topic for item in questions.items}
        pairs = finished.selected[seed][method].pairs if method else ()
        ids = [pair.item for pair in pairs] if method else list(topic)
        count = Counter(topic[i] for i in ids)
        rows.append([count[name] for name in names])
    return np.array(rows, np.float64)


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return 100 * np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _estimate(values_S: np.ndarray) -> dict[str, float | None]:
    known = values_S[~np.isnan(values_S)]
    bounds = seed_interval(known)
    mean = float(known.mean()) if len(known) else None
    return {
        "mean": mean,
        "low": None if bounds is None else max(bounds.low, 0.0),
        "high": None if bounds is None else min(bounds.high, 100.0),
    }


def show(found: dict[str, Any]) -> None:
    rows = [
        [name, row["questions"], row["selected"]["mean"], _bounds(row["selected"]),
         row["random"]["mean"], row["share_of_data"]["mean"]]
        for name, row in sorted(found.items(), key=lambda kv: -(kv[1]["selected"]["mean"] or 0))
    ]  # fmt: skip
    columns = ("topic", "questions", "selected, %", "seeds [95 %]", "at random, %", "% of data")
    print_table("What naming a country changes, by topic", columns, rows)


def _bounds(row: dict[str, float | None]) -> str:
    return "–" if row["low"] is None else f"[{row['low']:.1f}, {row['high']:.1f}]"


def draw(finished: Finished, found: dict[str, Any]) -> None:
    """`topics.png`."""
    names = sorted(found, key=lambda n: found[n]["selected"]["mean"] or 0)
    figure = Figure(figsize=(7.6, 0.34 * len(names) + 1.3), layout="constrained")
    axes = figure.add_subplot()
    for y, name in enumerate(names):
        row = found[name]["selected"]
        if row["mean"] is None:
            continue
        if row["low"] is not None:
            axes.plot([row["low"], row["high"]], [y, y], color=BLUE, linewidth=2)
        axes.plot(row["mean"], y, "o", color=BLUE, label="CRQPC" if y == 0 else None)
        axes.plot(found[name]["random"]["mean"], y, "x", color=ORANGE,
                  label="RDS" if y == 0 else None)  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("% of a topic's pairs that are selected (bar: 95 % over seeds)", fontsize=9)
    axes.grid(axis="x", color=LINE)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2,
                  frameon=False)  # fmt: skip
    save(figure, finished.out / "topics.png")


if __name__ == "__main__":
    main(run, RunConfig)
