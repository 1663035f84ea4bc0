"""Strict settings for every test: 8 simulated CPU devices, no silent broadcasting of ranks, and a
compilation cache shared by the workers of one machine."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import jax
import pytest

# Also of the commands that tests start.
CACHE = os.environ.setdefault(
    "JAXALIGN_CACHE", str(Path(tempfile.gettempdir()) / "jaxalign-test-cache" / "xla")
)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture
def devices() -> list[jax.Device]:
    """The 8 simulated devices. Fails, never skips, when they are missing."""
    found = jax.devices()
    assert len(found) == 8, f"sharding tests need 8 simulated devices, found {len(found)}"
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first, so that no worker is left with one while the others are done;
    a file stays whole, so that what its tests share is made once."""
    long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in long)
