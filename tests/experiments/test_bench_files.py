"""Test that every benchmark refuses files it cannot write at the start, not after its work."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from experiments.bench import evolve as bench_evolve
from experiments.bench import growth as bench_growth
from experiments.bench import scaling as bench_scaling
from experiments.bench.decode.__main__ import Config as Decode
from experiments.bench.population.__main__ import Config as Population
from experiments.bench.survey.__main__ import Config as Survey
from jaxalign.core.errors import UserError

CONFIGS = [
    Decode,
    bench_evolve.Config,
    bench_growth.Config,
    bench_scaling.Config,
    Population,
    Survey,
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__module__)
def test_files_that_cannot_be_written_are_refused_at_once(config, tmp_path):
    for name in {"json", "plot"} & {field.name for field in dataclasses.fields(config)}:
        with pytest.raises(UserError, match=f"`{name}` /nowhere/file: no such folder"):
            config(**{name: Path("/nowhere/file")})
        with pytest.raises(UserError, match=f"`{name}` .*: a folder; name a file in it"):
            config(**{name: tmp_path})
