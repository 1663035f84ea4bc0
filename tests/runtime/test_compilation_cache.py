"""Compiled programs that were kept: a damaged one is named, removed and compiled again."""

from __future__ import annotations

import logging
import warnings
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from jaxalign.runtime.compilation_cache import CheckedCache, check_entries

ENTRY = zlib.compress(bytes(range(256)) * 4)


def _flipped(content: bytes, byte: int) -> bytes:
    return content[:byte] + bytes([content[byte] ^ 16]) + content[byte + 1 :]


@pytest.fixture
def cache(tmp_path: Path) -> CheckedCache:
    return CheckedCache(str(tmp_path), max_size=-1)


def test_an_entry_is_what_was_put(cache: CheckedCache, tmp_path: Path) -> None:
    assert cache.get("a") is None
    cache.put("a", ENTRY)
    cache.put("a", b"another")  # as JAX's own does, it keeps the first
    assert cache.get("a") == ENTRY
    assert [path.name for path in tmp_path.iterdir()] == ["a-cache"]
    # JAX alone unpacks it as well, although more stands behind it.
    assert zlib.decompress((tmp_path / "a-cache").read_bytes()) == zlib.decompress(ENTRY)


@pytest.mark.parametrize("with_checksum", [True, False])
def test_damage_is_named_once_and_mended(
    with_checksum: bool,
    cache: CheckedCache,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Cut anywhere, or with a flipped bit; an entry that JAX wrote alone, too."""
    path = tmp_path / "a-cache"
    cache.put("a", ENTRY)
    stored = path.read_bytes() if with_checksum else ENTRY
    some = range(0, len(ENTRY), 23)
    damaged = [stored[:end] for end in some] + [_flipped(stored, byte) for byte in some]
    for content in damaged:
        path.write_bytes(content)
        caplog.clear()
        with caplog.at_level(logging.INFO, "jaxalign"):
            assert cache.get("a") is None
            assert cache.get("a") is None
        assert [str(path) in record.getMessage() for record in caplog.records] == [True]
        cache.put("a", ENTRY)
        assert cache.get("a") == ENTRY
    path.write_bytes(ENTRY)
    assert cache.get("a") == ENTRY


def test_a_write_that_fails_leaves_nothing(
    cache: CheckedCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="full"):
        cache.put("a", ENTRY)
    assert not list(tmp_path.iterdir())


def test_jax_reads_and_writes_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """This fails where a new version of JAX takes its cache from elsewhere."""
    monkeypatch.setattr("jax._src.compilation_cache.LRUCache", None)  # put back when all is done
    settings = {
        "jax_enable_compilation_cache": True,  # plans turn it off
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    given = {name: getattr(jax.config, name) for name in settings}

    def compiled() -> list[Path]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert jax.jit(lambda x: 3 * x + 1)(jnp.float32(2)) == 7
        return list(tmp_path.glob("jit__lambda-*-cache"))

    try:
        reset_cache()
        for name, value in settings.items():
            jax.config.update(name, value)
        check_entries()
        (path,) = compiled()
        whole = path.read_bytes()
        path.write_bytes(whole[:100])
        with caplog.at_level(logging.INFO, "jaxalign"):
            assert compiled() == [path]
        assert str(path) in caplog.text
        assert CheckedCache(str(tmp_path), max_size=-1).get(path.name.removesuffix("-cache"))
        assert len(path.read_bytes()) > 100
    finally:
        for name, value in given.items():
            jax.config.update(name, value)
        reset_cache()
