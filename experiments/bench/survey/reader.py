"""Read one survey file with one tool in a separate process and print the cost as JSON.

    python -m experiments.bench.survey.reader ours|pandas FILE MOST_ITEMS

Part of `experiments.bench.survey`. Seconds count from the start of `main` and include importing the
tool; memory is the peak of the process. `check` is a sum over all shares and must be the same for
both tools.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any


def main(tool: str, path: Path, most_items: int) -> dict[str, Any]:
    """Read the file and return seconds, CPU seconds, peak memory and a check of the content."""
    wall, cpu = time.perf_counter(), time.process_time()
    shares = {"ours": _ours, "pandas": _pandas}[tool](path, most_items)
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": _peak_mb(),
        "cells": len(shares),
        # A sum of squares: equal for both tools only if they read the same shares.
        "check": sum(sum(s * s for s in cell) for cell in shares),
    }


def _ours(path: Path, most_items: int) -> list[tuple[float, ...]]:
    """Read the shares with jaxalign."""
    from jaxalign.surveys.formats.wvs import ITEMS, read_wvs

    read = read_wvs(path, items=ITEMS[:most_items], min_respondents=1, use_cache=False)
    return [cell for answers in read.distributions.values() for cell in answers.values()]


def _pandas(path: Path, most_items: int) -> list[tuple[float, ...]]:
    """Read the shares with pandas as one would write it, given the needed columns."""
    import pandas as pd

    from jaxalign.surveys.formats.wvs import ITEMS

    items = ITEMS[:most_items]
    columns = ["B_COUNTRY_ALPHA", "W_WEIGHT", *items]
    if path.suffix == ".sav":
        import pyreadstat

        table, _ = pyreadstat.read_sav(path, usecols=columns)
    else:
        table = pd.read_csv(path, usecols=columns)
    # Weighted shares of each answer by country; negative codes are missing answers.
    cells = []
    for item in items:
        asked = table.loc[table[item] >= 0, ["B_COUNTRY_ALPHA", item, "W_WEIGHT"]]
        weights = asked.groupby(["B_COUNTRY_ALPHA", item])["W_WEIGHT"].sum().unstack(fill_value=0)
        shares = weights.div(weights.sum(axis=1), axis=0).to_numpy()
        cells += [tuple(row) for row in shares.tolist()]
    return cells


def _peak_mb() -> float:
    """Return the peak resident memory in MB.

    On Linux this is VmHWM, because getrusage also counts the process that started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1.024e-3
    except (OSError, StopIteration):
        unit = 1e6 if sys.platform == "darwin" else 1e3
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
