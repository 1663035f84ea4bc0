"""Chunks that keep a device busy and fit into memory; refusals before anything starts."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxalign.core.errors import UserError
from jaxalign.runtime import memory


@pytest.mark.parametrize(
    ("tokens", "cpu", "gpu", "tpu"),
    [(582, 4, 32, 16), (2048, 1, 8, 4), (5000, 1, 4, 2), (1, 2048, 16384, 8192)],
)
def test_busy_chunk(tokens, cpu, gpu, tpu):
    found = [memory.busy_chunk(tokens, platform) for platform in ("cpu", "gpu", "tpu")]
    assert found == [cpu, gpu, tpu]


def test_needed_bytes_are_the_compilers_own():
    compiled = jax.jit(lambda x: x @ x).lower(jnp.ones((256, 256))).compile()
    assert memory.needed_bytes(compiled) >= 2 * 256 * 256 * 4


def program(needed: int) -> SimpleNamespace:
    report = SimpleNamespace(
        argument_size_in_bytes=needed,
        output_size_in_bytes=0,
        alias_size_in_bytes=0,
        temp_size_in_bytes=0,
    )
    return SimpleNamespace(memory_analysis=lambda: report)


def device(available: int | None) -> SimpleNamespace:
    stats = {} if available is None else {"bytes_limit": available}
    return SimpleNamespace(memory_stats=lambda: stats, platform="tpu", device_kind="a chip")


@pytest.mark.parametrize(
    ("available", "expected"),
    [(1000, (8, 800)), (799, (4, 400)), (100, (1, 100)), (None, (8, 800))],
)
def test_a_chunk_that_fits(available, expected):
    """Each candidate needs 100 bytes; eight are wanted."""
    found = memory.fitting_chunk(lambda n: program(100 * n), 8, device(available), "buy more")
    assert found == expected


def test_not_even_one():
    with pytest.raises(UserError, match=r"out of memory foreseen.*a chip.*; buy more"):
        memory.fitting_chunk(lambda n: program(2**30 * n), 8, device(2**29), "buy more")


def test_a_fixed_chunk_is_not_halved():
    build = lambda n: program(100 * n)  # noqa: E731
    assert memory.fitting_chunk(build, 8, device(800), "buy more", fixed=True) == (8, 800)
    with pytest.raises(UserError, match="buy more"):
        memory.fitting_chunk(build, 8, device(799), "buy more", fixed=True)


def test_a_cpu_counts_what_this_process_holds_already():
    """A program's arguments may be loaded already: they are not counted twice."""
    available = memory.available_bytes(jax.local_devices()[0])
    if available is not None:
        assert (
            available * jax.local_device_count()
            >= memory._free_host_bytes(memory.Path("/proc/meminfo")) - 2**28
        )


def test_peak_memory_of_this_process_is_plausible_and_logged(caplog):
    assert 2**26 < memory.peak_host_bytes() < 2**40
    with caplog.at_level("INFO", "jaxalign"):
        memory.log_peak("search")
    assert caplog.messages[0].startswith("search: peak memory so far ")
