"""Test scaling read from compiled programs: even shares, and only the fitness is exchanged."""

from __future__ import annotations

import json

import pytest

from experiments.bench import scaling as s
from jaxalign.core.errors import UserError
from jaxalign.runtime.sharding import make_mesh

TINY = s.SMALL.replace(
    vocab_size=2048,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    dtype="float32",
    param_dtype="float32",
)


@pytest.mark.long
def test_two_devices_share_evenly(devices):
    config, layout = s.Config(generations=2), s.values_layout()
    point = s.scaling_point("weak", TINY, layout, make_mesh(devices[:2]), 8, config)
    assert point.times_perfect == pytest.approx(1, abs=0.02)
    # Four bytes a candidate, and five metrics of the entry from each device.
    assert point.exchanged_bytes == 4 * 8 + 5 * 4 * 2
    assert point.exchanged_bytes <= point.population_bytes == 4 * 8 * 16 * 32
    assert set(point.collectives) == {"all-gather"}
    assert point.temporary_bytes > 0


def test_bench_shows_and_saves(tmp_path, capsys, monkeypatch):
    def point(series, llama, layout, mesh, population, config):
        n = mesh.devices.size
        exchanged = 0 if n == 1 else 4 * population
        kinds = ("all-gather",) * (n > 1)
        return s.Point(series, n, population, 1e9 * population / n, 1.0, exchanged, 100, 5, kinds)

    monkeypatch.setattr(s, "scaling_point", point)
    s.bench(s.Config(plot=tmp_path / "scaling.png", json=tmp_path / "scaling.json"))
    out = capsys.readouterr().out
    assert "weak" in out
    assert "all-gather" in out
    points = json.loads((tmp_path / "scaling.json").read_text())["points"]
    assert [(p["series"], p["devices"], p["population"]) for p in points] == [
        *(("weak", n, 16 * n) for n in (1, 2, 4, 8)),
        *(("strong", n, 128) for n in (1, 2, 4, 8)),
    ]
    assert (tmp_path / "scaling.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"devices": (0,)}, "at least 1"),
        ({"devices": ()}, "at least one"),
        ({"devices": (4096,)}, "--devices 4096: JAX has already started"),
        ({"per_device": 0}, "at least 1"),
        ({"topologies": ("v9:2x2",)}, "`topology` 'v9:2x2' is not known"),
    ],
)
def test_bad_input(devices, change, words):
    with pytest.raises(UserError, match=words):
        s.bench(s.Config(**change))
