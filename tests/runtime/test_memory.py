"""Chunks that keep a device busy and fit into memory; refusals before anything starts."""

from __future__ import annotations

import resource
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


def test_a_cpu_takes_more_than_the_compiler_counts():
    """A GPU or TPU takes what its compiler says."""
    found = memory.Memory(arguments=100, outputs=20, aliased=20, temporaries=400)
    assert [memory.scratch_bytes(found, name) for name in ("cpu", "gpu", "tpu")] == [100, 0, 0]


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
        assert available * jax.local_device_count() >= memory.free_host_bytes() - 2**28


def _host(root, membership, **files):
    """Write the files of a host with 8 GiB available, as Linux has them."""
    files = {
        "proc/meminfo": f"MemTotal: {2**24} kB\nMemAvailable: {2**23} kB\n",
        "proc/self/cgroup": membership,
        "proc/self/statm": "1000 100 10 1 0 500 0\n",
    } | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return memory.free_host_bytes(root)


V1 = "9:cpu,cpuacct:/\n4:memory:/docker/abc\n"
NONE = str(2**63 - 4096)  # what version 1 writes for no limit


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {}, 2**33),
        ("0::/job\n", {"job/memory.max": "max\n", "job/memory.current": "5"}, 2**33),
        # What is kept of files is given back.
        (
            "0::/job\n",
            {
                "job/memory.max": f"{2**30}\n",
                "job/memory.current": f"{2**29}\n",
                "job/memory.stat": f"anon 1\ninactive_file {2**20}\n",
            },
            2**29 + 2**20,
        ),
        # The group above has the lower limit.
        (
            "0::/job/step\n",
            {
                "job/memory.max": "4096",
                "job/memory.current": "96",
                "job/step/memory.max": "8192",
                "job/step/memory.current": "0",
            },
            4000,
        ),
        # A container sees its own group as the top.
        ("0::/host/path\n", {"memory.max": "700", "memory.current": "100"}, 600),
        ("0::/job\n", {"job/memory.max": "100", "job/memory.current": "200"}, 0),
        (
            V1,
            {
                "memory/docker/abc/memory.limit_in_bytes": "1000",
                "memory/docker/abc/memory.usage_in_bytes": "400",
                "memory/docker/abc/memory.stat": "cache 9\ntotal_inactive_file 50\n",
                "memory/memory.limit_in_bytes": NONE,
                "memory/memory.usage_in_bytes": "5",
            },
            650,
        ),
        (V1, {"memory/memory.limit_in_bytes": "90", "memory/memory.usage_in_bytes": "10"}, 80),
        (V1, {"memory/memory.limit_in_bytes": NONE, "memory/memory.usage_in_bytes": "1"}, 2**33),
    ],
)
def test_limits_of_control_groups_count(tmp_path, membership, files, expected):
    assert _host(tmp_path, membership, **files) == expected


def test_limits_of_the_process_count(tmp_path, monkeypatch):
    page = resource.getpagesize()
    infinite = resource.RLIM_INFINITY
    limits = {resource.RLIMIT_AS: 1100 * page, resource.RLIMIT_DATA: infinite}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits[which], infinite))
    assert _host(tmp_path, "0::/\n") == 100 * page
    limits[resource.RLIMIT_DATA] = 520 * page
    assert _host(tmp_path, "0::/\n") == 20 * page


def test_a_system_that_says_nothing_has_no_limit(tmp_path):
    assert memory.free_host_bytes(tmp_path) is None


def test_peak_memory_of_this_process_is_plausible_and_logged(caplog):
    assert 2**26 < memory.peak_host_bytes() < 2**40
    with caplog.at_level("DEBUG", "jaxalign"):
        memory.log_peak("search")
    assert caplog.messages[0].startswith("search: peak memory so far ")
