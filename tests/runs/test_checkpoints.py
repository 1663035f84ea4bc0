"""Checkpoints come back with the same bits on any devices and after a kill in the middle of a save;
those that do not fit are refused with the reason."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxalign.core.errors import UserError
from jaxalign.runs import checkpoints
from jaxalign.runs.checkpoints import Checkpoints, abstract_tree, latest_step
from jaxalign.runtime.sharding import POPULATION, make_mesh, named_sharding, replicated


class Pair(NamedTuple):
    left: jax.Array
    right: dict


def tree(sharding, scale=1):
    """Return nested containers of several dtypes, with an empty and a missing part."""
    arrays = Pair(
        scale * jnp.arange(16.0), {"b": jnp.ones((8, 2), jnp.bfloat16), "n": jnp.int32(scale)}
    )
    return {"pair": jax.device_put(arrays, sharding), "empty": (), "none": None}


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype and (x == y).all(), a, b))


def test_a_tree_comes_back_on_other_devices(devices, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, tree(replicated(make_mesh(devices))))
        two = make_mesh(devices[:2])
        abstract = abstract_tree(tree(replicated(two)))
        split = named_sharding(two, ("members",), (16,))
        left = jax.ShapeDtypeStruct((16,), jnp.float32, sharding=split)
        abstract["pair"] = abstract["pair"]._replace(left=left)
        step, got = checkpoints.restore(abstract)
    assert step == 3
    assert isinstance(got["pair"], Pair)
    assert got["pair"].left.sharding.spec == PartitionSpec(POPULATION)
    assert equal(got, tree(replicated(two)))


def test_the_last_two_stay(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3, 7):
            checkpoints.save(step, {"x": jnp.float32(step)})
        assert checkpoints.steps == [3, 7]
        _, got = checkpoints.restore(abstract_tree({"x": jnp.float32(0)}), 3)
        assert got["x"] == 3
    assert latest_step(tmp_path) == 7


def test_asynchronous_saves_hold_what_the_buffers_held(tmp_path):
    """The next step reuses the buffers (donation) while the save before it is being written."""
    advance = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros(2_000_000)
    with Checkpoints(tmp_path, keep=4, asynchronous=True) as checkpoints:
        for step in range(1, 5):
            x = advance(x)
            checkpoints.save(step, {"x": x})
        x = advance(advance(x))
        assert checkpoints.steps == [1, 2, 3, 4]
        for step in range(1, 5):
            _, got = checkpoints.restore(abstract_tree({"x": x}), step)
            np.testing.assert_array_equal(got["x"], np.float32(step))
        with pytest.raises(UserError, match="already holds step 4"):
            checkpoints.save(4, {"x": x})


def test_closing_waits_for_an_asynchronous_save(tmp_path):
    with Checkpoints(tmp_path, asynchronous=True) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(2_000_000)})
    assert latest_step(tmp_path) == 1


def test_an_asynchronous_save_that_fails_says_so(tmp_path, monkeypatch):
    class Failing:
        def result(self):
            raise OSError("disk full")

    checkpoints = Checkpoints(tmp_path, asynchronous=True)
    monkeypatch.setattr(checkpoints._checkpointer, "save_async", lambda *_: Failing())
    checkpoints.save(1, {"x": jnp.ones(2)})
    with pytest.raises(OSError, match="disk full"):
        checkpoints.close()


def test_a_relative_directory_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoints("here") as checkpoints:
        checkpoints.save(1, {"x": jnp.float32(1)})
    assert latest_step("here") == 1


@pytest.mark.parametrize("name", ["[a-z]", "run[1]", "[!x] *? {a,b}", "**", "new\nline", "%s é"])
def test_a_name_that_reads_as_a_pattern_is_a_name(name, tmp_path):
    """Orbax looks for files by a pattern that the directory's own name is part of."""
    saved = {"x": jnp.arange(4.0), "n": jnp.int32(3)}
    with Checkpoints(tmp_path / name) as checkpoints:
        checkpoints.save(1, saved)
        with checkpoints.part(name) as part:
            part.save(2, saved)
    assert latest_step(tmp_path / name) == 1
    with Checkpoints(tmp_path / name) as again:  # nothing is remembered from the save
        assert again.restore(abstract_tree(saved))[0] == 1
        with again.part(name) as part:
            step, found = part.restore(abstract_tree(saved))
    assert step == 2
    assert equal(found, saved)


def test_looking_for_a_step_makes_nothing(tmp_path):
    assert latest_step(tmp_path) is None
    assert latest_step(tmp_path / "missing") is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"x": jnp.zeros((3, 2))}, "x is float32[2, 3] there and float32[3, 2] here"),
        ({"x": jnp.zeros((2, 3), jnp.bfloat16)}, "float32[2, 3] there and bfloat16[2, 3] here"),
        ({"y": jnp.zeros((2, 3))}, "x is float32[2, 3] there and absent here"),
        ({"x": jnp.zeros((2, 3)), "y": {"z": jnp.int32(0)}}, "y/z is absent there and int32[]"),
    ],
)
def test_a_tree_that_does_not_fit_is_refused_in_words(tmp_path, other, words):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.zeros((2, 3))})
        with pytest.raises(UserError) as error:
            checkpoints.restore(abstract_tree(other))
    assert words in str(error.value)
    assert str(tmp_path / "1") in str(error.value)


def test_missing_and_old_steps_are_refused(tmp_path):
    abstract = abstract_tree({"x": jnp.float32(0)})
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match="no checkpoint in"):
            checkpoints.restore(abstract)
        checkpoints.save(4, {"x": jnp.float32(4)})
        with pytest.raises(UserError, match=r"no step 9 .*\[4\]"):
            checkpoints.restore(abstract, 9)
        with pytest.raises(UserError, match="already holds step 4"):
            checkpoints.save(4, {"x": jnp.float32(4)})


SAVER = """
import sys, jax.numpy as jnp
from jaxalign.runs.checkpoints import Checkpoints, latest_step
first = (latest_step(sys.argv[1]) or 0) + 1
with Checkpoints(sys.argv[1]) as checkpoints:
    for step in range(first, first + 10_000):
        print("saving", step, flush=True)
        tree = {"x": jnp.full((1_000_000,), step, jnp.float32), "n": jnp.int32(step)}
        checkpoints.save(step, tree)
        print("saved", step, flush=True)
"""


def test_kill_9_in_the_middle_of_a_save_leaves_the_step_before(tmp_path):
    """Killed at four moments of a save; each process continues from what the last one left."""
    abstract = abstract_tree({"x": jnp.zeros(1_000_000), "n": jnp.int32(0)})
    interrupted = []
    for wait_seconds in (0.0, 0.005, 0.015, 0.03):
        began, safe = _save_until_killed(tmp_path, wait_seconds)
        latest = latest_step(tmp_path)
        # The kill may fall between the rename and the word "saved".
        assert latest in (safe, safe + 1)
        interrupted.append(latest < began)
        with Checkpoints(tmp_path) as checkpoints:
            step, got = checkpoints.restore(abstract)
        # A step whose files had not been listed yet is put aside.
        assert step == int(got["n"])
        assert step in (latest, latest - 1)
        assert step >= safe
        np.testing.assert_array_equal(got["x"], np.float32(step))
    assert any(interrupted), "every kill came after its save was whole: the test shows nothing"


def _save_until_killed(directory, wait_seconds):
    """Run a process and kill it soon after its second save began.

    Return the last step that it began to save, and the last that it finished.
    """
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SAVER, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        lines = [process.stdout.readline() for _ in range(3)]
        time.sleep(wait_seconds)
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.read().splitlines()
    words = [line.split() for line in lines if line.strip()]
    assert len(words) >= 3, "the saver ended before it could be killed"
    return tuple(max(int(n) for word, n in words if word == which) for which in ("saving", "saved"))


def test_buckets_are_left_as_they_are(monkeypatch):
    """Without a bucket: its address is not made a local path, and a missing package is named."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gs://runs/a: .* gcsfs"):
        Checkpoints("gs://runs/a")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert checkpoints.location("gs://runs/a") == "gs://runs/a"
    assert checkpoints.location("a") == Path("a").absolute()
