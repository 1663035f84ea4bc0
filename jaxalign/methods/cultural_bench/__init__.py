"""CulturalBench under every method: the second table of the soft-prompt paper.

sets.py       the two files, how their rows are worded, and the examples in context
questions.py  what is asked: every item under every method, as token ids
result.py     scores, intervals and the lines that need no model: the content of `result.json`
run.py        the run that `jaxalign cultural-bench` does, and `cultural_bench` for Python
"""

from __future__ import annotations

from jaxalign.methods.cultural_bench.run import (
    CulturalBenchRun,
    cultural_bench,
    run_cultural_bench,
)
from jaxalign.methods.cultural_bench.settings import Settings

__all__ = ["CulturalBenchRun", "Settings", "cultural_bench", "run_cultural_bench"]
