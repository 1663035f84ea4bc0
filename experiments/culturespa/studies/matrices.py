"""Do models differ from each other as countries do? (CultureSPA's Figure 5.)

    python -m experiments.culturespa.studies.matrices runs/culturespa

Compares two matrices of a finished run: the alignment of every two countries' majority answers, and
the alignment of the model's answers in the name of the same two countries, under P1 and after
fine-tuning. Shows how well the second follows the first over pairs of countries (Pearson,
Spearman). p-values are Mantel's (1967): pairs that share a country are not independent, so
countries are permuted, not pairs. Writes matrices.json and matrices.png into the run. Takes
seconds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.culturespa.studies.finished import (
    Finished,
    RunSettings,
    read_finished,
    read_settings,
)
from jaxalign.commands.reports.culturespa_plots import save
from jaxalign.commands.reports.culturespa_tables import INTERVALS, bounds
from jaxalign.core.errors import UserError
from jaxalign.core.files import finite_or_none, write_json
from jaxalign.methods.base import METHODS
from jaxalign.methods.culturespa.result import PERSONAS
from jaxalign.report.drawing import new_figure
from jaxalign.report.palette import HEAT
from jaxalign.runs.console import main, print_table
from jaxalign.stats.alignment import alignment, between_countries
from jaxalign.stats.intervals import seed_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

_MOST_PERMUTATIONS = 10_000


def run(settings: RunSettings) -> None:
    """Compare the matrices, and write, draw and print them."""
    finished = read_finished(settings.run)
    if len(finished.groups) < 4:
        raise UserError(f"{settings.run}: a correlation over pairs needs four countries or more")
    record = finite_or_none(matrices(finished))
    write_json(finished.out / "matrices.json", record)
    draw(finished.out / "matrices.png", record)
    show(record)


def matrices(finished: Finished) -> dict[str, Any]:
    """Return the matrices in points, mean over seeds, and their correlations with the humans'."""
    _, inputs = read_settings(finished)
    human_CxC = 100 * between_countries(inputs.tables)
    answers = finished.answers()
    methods = {}
    for name in (method for method in PERSONAS if method not in finished.untrained):
        # The first run of each seed: every two personas against each other.
        first_RxCxQ = answers[name][:, 0]
        by_seed_RxCxC = np.stack(
            [100 * alignment(a[:, None], a[None], inputs.tables) for a in first_RxCxQ]
        )
        methods[name] = {
            "matrix": by_seed_RxCxC.mean(axis=0),
            "agreement": float(_pairs(by_seed_RxCxC.mean(axis=0)).mean()),
            **correlations(by_seed_RxCxC, human_CxC),
        }
    return {
        "countries": finished.groups,
        "humans": {"matrix": human_CxC, "agreement": float(_pairs(human_CxC).mean())},
        "methods": methods,
    }


def correlations(by_seed_RxCxC: np.ndarray, human_CxC: np.ndarray) -> dict[str, Any]:
    """Return each seed's correlations with the human matrix, and the p-value of their mean.

    A correlation is None where a matrix is constant or has an unknown entry.
    """
    from scipy.stats import pearsonr, spearmanr

    record: dict[str, Any] = {}
    for name, correlate in (("pearson", pearsonr), ("spearman", spearmanr)):
        values = [_correlation(correlate, m, human_CxC) for m in by_seed_RxCxC]
        known = np.array([v for v in values if v is not None])
        interval = seed_interval(known) if len(known) and np.ptp(known) > 0 else None
        record[name] = {
            "mean": float(known.mean()) if len(known) else None,
            "seed_interval": None if interval is None else interval.bounds,
            "by_seed": values,
        }
    record["mantel_p"] = mantel(by_seed_RxCxC.mean(axis=0), human_CxC)
    return record


def _correlation(correlate: Any, a_CxC: np.ndarray, b_CxC: np.ndarray) -> float | None:
    a, b = _pairs(a_CxC), _pairs(b_CxC)
    if not _varies(a) or not _varies(b):
        return None
    return float(correlate(a, b).statistic)


def _varies(values: np.ndarray) -> bool:
    """Return whether the values differ; false if one is NaN, as for two countries that have
    answered no item in common."""
    return bool(np.ptp(values) > 0)


def _pairs(matrix_CxC: np.ndarray) -> np.ndarray:
    """Return the entries above the diagonal: each pair of countries once."""
    return matrix_CxC[np.triu_indices(len(matrix_CxC), k=1)]


def mantel(a_CxC: np.ndarray, b_CxC: np.ndarray, seed: int = 0) -> float | None:
    """Compute the one-sided p-value of Mantel's test of two matrices.

    Args:
        a_CxC: A symmetric matrix.
        b_CxC: Another of the same countries.
        seed: Seed of the permutations, if not all are tried.

    Returns:
        The share of permutations of the countries (all, or the identity and 10,000 drawn ones)
        whose Pearson correlation is at least the observed one; None if a matrix is constant or has
        an unknown entry.
    """
    if not _varies(_pairs(a_CxC)) or not _varies(_pairs(b_CxC)):
        return None
    b = _pairs(b_CxC)
    observed = np.corrcoef(_pairs(a_CxC), b)[0, 1]
    permuted = [
        np.corrcoef(_pairs(a_CxC[np.ix_(p, p)]), b)[0, 1] for p in _permutations(len(a_CxC), seed)
    ]
    return float(np.mean(np.array(permuted) >= observed - 1e-12))


def _permutations(count: int, seed: int) -> Iterable[np.ndarray]:
    if math.factorial(count) <= _MOST_PERMUTATIONS:
        return map(np.array, itertools.permutations(range(count)))
    random = np.random.default_rng(seed)
    return [np.arange(count), *(random.permutation(count) for _ in range(_MOST_PERMUTATIONS))]


def show(record: dict[str, Any]) -> None:
    """Print how alike countries and personas are, and how well the two matrices correlate."""
    rows: list[list[object]] = [["humans", record["humans"]["agreement"], "–", "–", "–", "–"]]
    for name, row in record["methods"].items():
        rows.append(
            [
                METHODS[name].title,
                row["agreement"],
                _number(row["pearson"]["mean"]),
                bounds(row["pearson"]["seed_interval"], digits=3),
                _number(row["spearman"]["mean"]),
                _number(row["mantel_p"]),
            ]
        )
    columns = (
        "method",
        "alignment of two countries",
        "Pearson's r",
        INTERVALS[1],
        "Spearman's rho",
        "Mantel's p",
    )
    print_table("Pairs of countries: personas against humans", columns, rows)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def draw(path: Path, record: dict[str, Any]) -> None:
    """Draw the matrices of humans and of every method on one scale."""

    panels = {"humans": record["humans"]} | record["methods"]
    values = np.concatenate([np.ravel(np.array(p["matrix"], float)) for p in panels.values()])
    lowest = np.nanmin(values)
    figure = new_figure((9.6, 6.4))
    for i, (name, panel) in enumerate(panels.items()):
        axes = figure.add_subplot(2, 3, i + 1)
        matrix_CxC = np.array(panel["matrix"], float)
        image = _draw_matrix(axes, matrix_CxC, record["countries"], lowest)
        title = name
        if name in METHODS:
            title = f"{METHODS[name].title}, r = {_number(panel['pearson']['mean'])}"
        axes.set_title(title, fontsize=9)
    figure.colorbar(image, ax=figure.axes, shrink=0.6, label="alignment × 100")
    save(figure, path)


def _draw_matrix(
    axes: Axes, matrix_CxC: np.ndarray, groups: tuple[str, ...], lowest: float
) -> AxesImage:
    image = axes.imshow(matrix_CxC, cmap=HEAT, vmin=lowest, vmax=100)
    axes.set_xticks(range(len(groups)), groups, fontsize=7, rotation=90)
    axes.set_yticks(range(len(groups)), groups, fontsize=7)
    return image


if __name__ == "__main__":
    main(run, RunSettings)
