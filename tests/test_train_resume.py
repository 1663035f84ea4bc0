"""A run killed with `kill -9`, anywhere, and resumed ends with the bits of an unbroken one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

RUN = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jaxalign.checkpoints import Checkpoints
from jaxalign.llama.config import LlamaConfig
from jaxalign.llama.weights import init_params
from jaxalign.lora import LoraConfig
from jaxalign.packing import Example
from jaxalign.records.files import MetricsFile
from jaxalign.sharding import make_mesh
from jaxalign.train import TrainConfig, Trainer, fit
from pathlib import Path

jax.config.update("jax_compilation_cache_dir", sys.argv[2])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
config = LlamaConfig(61, 32, 48, 3, 4, 2, 8, dtype="float32", param_dtype="float32",
                     initializer_range=0.15)
random = np.random.default_rng(0)
def examples(count):
    return [Example(tuple(random.integers(0, 61, int(n)).tolist()), int(n) - 1)
            for n in random.integers(4, 20, count)]
data = {"USA": examples(60), "CHN": examples(36)}
out = Path(sys.argv[1])
train = TrainConfig(batch=4, epochs=2, learning_rate=1e-2, row_length=32, tokens_per_pass=64)
trainer = Trainer(config, train, LoraConfig(), data, make_mesh(jax.devices()[:1]))
metrics = MetricsFile(out / "metrics.jsonl", "step")
def log(row):
    metrics.append(row)
    print("step", row["step"], flush=True)
params = init_params(config, jax.random.key(0))
with Checkpoints(out / "checkpoints", asynchronous=True) as checkpoints:
    begin = lambda done: (metrics.rewind(done or -1), print("begin", done, flush=True))
    state = fit(trainer, params, checkpoints, save_every=3, begin=begin, log=log, quiet=True)
leaves, _ = jax.tree.flatten(state)
np.savez(out / "final.npz", *[np.asarray(x) for x in leaves])
"""
STEPS = 30


def start(out, cache) -> subprocess.Popen:
    out.mkdir(exist_ok=True)
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", RUN, str(out), str(cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def run_until(out, cache, step: int | None) -> int:
    """Kill after `step` has been logged (None: let it end). Returns the step it began after."""
    with start(out, cache) as process:
        began = int(process.stdout.readline().split()[1])
        for line in process.stdout:
            if step is not None and int(line.split()[1]) >= step:
                os.kill(process.pid, signal.SIGKILL)
                break
        process.stdout.read()
    assert (process.returncode == 0) == (step is None)
    return began


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    assert run_until(out, cache, None) == 0
    return out, cache


def test_killed_twice_and_resumed_ends_with_the_same_bits(unbroken, tmp_path):
    whole, cache = unbroken
    out = tmp_path / "killed"
    assert run_until(out, cache, 8) == 0
    second = run_until(out, cache, 20)
    third = run_until(out, cache, None)
    assert 0 < second < third < STEPS
    assert second % 3 == third % 3 == 0
    assert (out / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    with np.load(out / "final.npz") as mine, np.load(whole / "final.npz") as theirs:
        assert mine.files == theirs.files
        for name in mine.files:
            np.testing.assert_array_equal(mine[name], theirs[name])


def test_a_finished_run_is_left_as_it_is(unbroken):
    whole, cache = unbroken
    before = (whole / "metrics.jsonl").read_bytes()
    assert run_until(whole, cache, None) == STEPS
    assert (whole / "metrics.jsonl").read_bytes() == before
