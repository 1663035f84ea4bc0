"""Whether models differ from each other as countries do (CultureSPA's Figure 5).

    python -m experiments.culturespa.studies.matrices runs/culturespa

Of a finished run: the alignment of every two countries' majority answers, and of the model's
answers in the name of the same two countries, under P1 and after fine-tuning; and how well the
second follows the first over pairs of countries (Pearson, Spearman). p-values are Mantel's (1967):
pairs that share a country are not independent, so countries are permuted, not pairs. Writes
matrices.json and matrices.png into the run. Takes seconds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import pearsonr, spearmanr

from experiments.culturespa.studies.finished import Finished, RunConfig, read_config, read_finished
from jaxalign.commands.reports.culturespa_plots import save
from jaxalign.core.errors import UserError
from jaxalign.methods.culturespa.result import METHODS
from jaxalign.report.palette import HEAT
from jaxalign.runs import finite_or_none, write_json
from jaxalign.runs.console import main, print_table
from jaxalign.stats.alignment import alignment, between_countries
from jaxalign.stats.intervals import seed_interval

SHOWN = ("p1", "p2", "joint", "specific", "cct")
_MOST_PERMUTATIONS = 10_000


def run(config: RunConfig) -> None:
    """The whole study; see the module's docstring."""
    finished = read_finished(config.run)
    if len(finished.countries) < 4:
        raise UserError(f"{config.run}: a correlation over pairs needs four countries or more")
    found = finite_or_none(matrices(finished))
    write_json(finished.out / "matrices.json", found)
    draw(finished, found)
    show(found)


def matrices(finished: Finished) -> dict[str, Any]:
    """Matrices in points, mean over seeds, and their correlations with the human one."""
    _, study = read_config(finished)
    human_CxC = 100 * between_countries(study.tables)
    answers = finished.answers()
    methods = {}
    for name in (m for m in SHOWN if m not in finished.untrained):
        each_RxCxC = np.stack([
            100 * alignment(a[0][:, None], a[0][None], study.tables) for a in answers[name]
        ])  # fmt: skip
        methods[name] = {
            "matrix": each_RxCxC.mean(axis=0),
            "agreement": float(_off(each_RxCxC.mean(axis=0)).mean()),
            **_correlations(each_RxCxC, human_CxC),
        }
    return {
        "countries": finished.countries,
        "humans": {"matrix": human_CxC, "agreement": float(_off(human_CxC).mean())},
        "methods": methods,
    }


def _correlations(each_RxCxC: np.ndarray, human_CxC: np.ndarray) -> dict[str, Any]:
    """Of each seed's matrix; None where a matrix is constant or not known everywhere."""
    out: dict[str, Any] = {}
    for name, correlate in (("pearson", pearsonr), ("spearman", spearmanr)):
        values = [_correlation(correlate, m, human_CxC) for m in each_RxCxC]
        known = np.array([v for v in values if v is not None])
        bounds = seed_interval(known) if len(known) and np.ptp(known) > 0 else None
        out[name] = {
            "mean": float(known.mean()) if len(known) else None,
            "seed_interval": None if bounds is None else bounds.bounds,
            "by_seed": values,
        }
    out["mantel_p"] = mantel(each_RxCxC.mean(axis=0), human_CxC)
    return out


def _correlation(correlate: Any, a_CxC: np.ndarray, b_CxC: np.ndarray) -> float | None:
    a, b = _off(a_CxC), _off(b_CxC)
    if not _varies(a) or not _varies(b):
        return None
    return float(correlate(a, b).statistic)


def _varies(values: np.ndarray) -> bool:
    """False too where a value is NaN: two countries without an item that both answered."""
    return bool(np.ptp(values) > 0)


def _off(matrix_CxC: np.ndarray) -> np.ndarray:
    """Each pair of countries once."""
    return matrix_CxC[np.triu_indices(len(matrix_CxC), k=1)]


def mantel(a_CxC: np.ndarray, b_CxC: np.ndarray, seed: int = 0) -> float | None:
    """Share of the permutations of countries (all of them, or 10,000 drawn and the one at hand)
    whose Pearson correlation is no less than the one at hand. None for a constant matrix, and for
    one that is not known everywhere."""
    if not _varies(_off(a_CxC)) or not _varies(_off(b_CxC)):
        return None
    b = _off(b_CxC)
    here = np.corrcoef(_off(a_CxC), b)[0, 1]
    found = [np.corrcoef(_off(a_CxC[np.ix_(p, p)]), b)[0, 1] for p in _orders(len(a_CxC), seed)]
    return float(np.mean(np.array(found) >= here - 1e-12))


def _orders(count: int, seed: int) -> Iterable[np.ndarray]:
    if math.factorial(count) <= _MOST_PERMUTATIONS:
        return map(np.array, itertools.permutations(range(count)))
    random = np.random.default_rng(seed)
    return [np.arange(count), *(random.permutation(count) for _ in range(_MOST_PERMUTATIONS))]


def show(found: dict[str, Any]) -> None:
    rows: list[list[object]] = [["humans", found["humans"]["agreement"], "–", "–", "–", "–"]]
    for name, row in found["methods"].items():
        rows.append([
            METHODS[name], row["agreement"], _number(row["pearson"]["mean"]),
            _bounds(row["pearson"]["seed_interval"]), _number(row["spearman"]["mean"]),
            _number(row["mantel_p"]),
        ])  # fmt: skip
    columns = ("", "two countries agree", "Pearson", "seeds [95 %]", "Spearman", "Mantel's p")
    print_table("Pairs of countries: models against humans", columns, rows)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _bounds(interval: Any) -> str:
    return "–" if interval is None else f"[{interval[0]:.3f}, {interval[1]:.3f}]"


def draw(finished: Finished, found: dict[str, Any]) -> None:
    """`matrices.png`: humans and every method on one scale."""
    panels = {"humans": found["humans"]} | found["methods"]
    values = np.concatenate([np.ravel(np.array(p["matrix"], float)) for p in panels.values()])
    low = np.nanmin(values)
    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    for i, (name, panel) in enumerate(panels.items()):
        axes = figure.add_subplot(2, 3, i + 1)
        image = _matrix(axes, np.array(panel["matrix"], float), finished.countries, low)
        r = "" if name == "humans" else f", r = {_number(panel['pearson']['mean'])}"
        axes.set_title(METHODS.get(name, name) + r, fontsize=9)
    figure.colorbar(image, ax=figure.axes, shrink=0.6, label="alignment × 100")
    save(figure, finished.out / "matrices.png")


def _matrix(axes: Axes, matrix: np.ndarray, countries: tuple[str, ...], low: float):
    image = axes.imshow(matrix, cmap=HEAT, vmin=low, vmax=100)
    axes.set_xticks(range(len(countries)), countries, fontsize=7, rotation=90)
    axes.set_yticks(range(len(countries)), countries, fontsize=7)
    return image


if __name__ == "__main__":
    main(run, RunConfig)
