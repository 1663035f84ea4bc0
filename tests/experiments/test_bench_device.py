"""The device benchmark: what is recorded when parts fail, time runs short, or it is interrupted."""

from __future__ import annotations

import dataclasses
import os
import signal
import time

import jax
import numpy as np
import pytest

from experiments.bench import device, device_parts
from experiments.bench.device import TINY, Config, Record, bench, read_rows, summary_text
from experiments.bench.device_parts import Bench, random_params
from jaxalign.core.errors import UserError
from jaxalign.lm.weights import abstract_params
from jaxalign.runtime.sharding import make_mesh


@pytest.fixture
def parts(monkeypatch):
    """The benchmark's parts, to be replaced by others."""
    replaced = {}
    monkeypatch.setattr(device, "PARTS", replaced)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # other tests need them
    return replaced


def config(tmp_path, *names: str) -> Config:
    return Config(size="tiny", parts=names, out=tmp_path / "out" / "device.jsonl")


def test_a_part_that_fails_is_recorded_and_the_next_goes_on(parts, tmp_path):
    def fails(work):
        raise MemoryError("no room\nfor this")

    parts |= {"first": fails, "second": lambda work: work.record("second", "fine", rate=2.5)}
    bench(config(tmp_path, "first", "second"))
    rows = list(read_rows(tmp_path / "out" / "device.jsonl"))
    assert [(row["part"], row["name"]) for row in rows] == [
        ("start", "tiny"),
        ("first", "failed"),
        ("second", "fine"),
        ("end", "done"),
    ]
    assert rows[1]["error"] == "MemoryError: no room\nfor this"
    assert "| fine |" in (tmp_path / "out" / "device.md").read_text()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_whole_files(parts, tmp_path, sent):
    def interrupted(work):
        work.record("first", "before", rate=1.0)
        os.kill(os.getpid(), sent)
        time.sleep(5)

    parts |= {"first": interrupted}
    with pytest.raises(KeyboardInterrupt):
        bench(config(tmp_path, "first"))
    rows = list(read_rows(tmp_path / "out" / "device.jsonl"))
    assert [row["name"] for row in rows] == ["tiny", "before", "interrupted"]
    assert "interrupted" in (tmp_path / "out" / "device.md").read_text()


def test_results_are_appended_behind_a_torn_line(tmp_path):
    path = tmp_path / "device.jsonl"
    path.write_bytes(b'{"part": "facts"}\n{"part": "ker')
    Record(path)("kernels", "xla", ms=np.float32(0.5))
    last = path.read_text().splitlines()[-1]
    assert '"name": "xla"' in last
    assert '"ms": 0.5' in last


def test_what_does_not_fit_into_the_time_is_skipped_and_said():
    rows = []
    record = lambda part, name, **figures: rows.append((part, name, figures))  # noqa: E731
    work = Bench(TINY, make_mesh(), record, time.monotonic() + 100, peak=1e12, compile_seconds=10)
    per_second = 0.3 * work.devices * 1e12  # what a program is taken to reach
    assert work.fits("train", "one", flops=60 * per_second)
    assert not work.fits("train", "two", flops=60 * per_second, programs=5)
    assert not work.fits("train", "three", flops=95 * per_second)
    assert [(part, name) for part, name, _ in rows] == [("train", "two"), ("train", "three")]
    assert rows[0][2]["skipped"] == "about 120 s for 100 s that are left"


def test_a_summary_has_a_table_for_each_part():
    rows = [
        {"part": "chunks", "name": "4", "rate": 1234.5},
        {"part": "chunks", "name": "8", "failure": "a | b"},
    ]
    text = summary_text(rows)
    assert "| name | rate | failure |" in text
    assert "| 4 | 1,234 |  |" in text
    assert "| 8 |  | a \\| b |" in text


@pytest.mark.parametrize("changes", [{"minutes": 0}, {"model": "llama9"}])
def test_settings_that_make_no_sense_are_refused(changes):
    with pytest.raises(UserError, match=f"`{next(iter(changes))}`"):
        dataclasses.replace(Config(), **changes)


@pytest.mark.long
def test_every_part_runs_on_a_cpu(tmp_path):
    rows = bench(Config(size="tiny", minutes=10, out=tmp_path / "device.jsonl"))
    assert not [row for row in rows if "error" in row or "skipped" in row]
    assert {row["part"] for row in rows} >= set(device_parts.PARTS)
    generations = [row for row in rows if row["part"] == "population"]
    assert all(row["candidates_a_s"] > 0 and row["failed"] == 0 for row in generations)


@pytest.mark.long
def test_weights_made_on_the_device_have_the_model_s_shapes():
    params = random_params(TINY, make_mesh())
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract_params(TINY)
    )
    layers = np.asarray(params["layers"]["q"], np.float32)
    assert layers.std() == pytest.approx(TINY.initializer_range, rel=0.1)
    assert not np.array_equal(layers[0], layers[1])
