"""JAX's compilation cache, with entries that are written whole and checked when they are read.

JAX writes an entry in place and never replaces one. So an entry that a kill has cut short stays,
and every later start warns of it and compiles the program anew. A flipped bit is found only where
zlib packs the entries: with the package `zstandard` it may become other machine code.
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
import zlib

from jax._src import compilation_cache, lru_cache

_log = logging.getLogger("jaxalign")

# Behind what JAX stores, where it does not look: so that it reads our entries without us too.
_MARK = b"jaxalign"
_SUM_BYTES = 4


class CheckedCache(lru_cache.LRUCache):
    """JAX's cache in a folder, each entry with its checksum.

    A damaged entry is named, removed, and compiled again. Entries that JAX wrote without a checksum
    are damaged if they cannot be unpacked.
    """

    def get(self, key: str) -> bytes | None:
        """Return an entry; None if there is none, or only a damaged one."""
        stored = super().get(key)
        if stored is None:
            return None
        entry = _checked(stored)
        if entry is not None:
            return entry
        path = self.path / f"{key}-cache"
        _log.info(f"a compiled program is damaged and is compiled again: {path}")
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def put(self, key: str, value: bytes) -> None:
        """Add an entry, unless there is one."""
        stored = value + _MARK + _sum(value)
        # Elsewhere than on a disk, files appear whole; with a limit on its size, JAX keeps a lock.
        if self.eviction_enabled or "://" in str(self.path):
            super().put(key, stored)
            return
        path = os.path.join(self.path, f"{key}-cache")
        if os.path.exists(path):
            return
        # Not flushed to the disk: 150 programs would wait for it, and the checksum tells.
        temporary = os.path.join(self.path, f".{uuid.uuid4().hex}.tmp")
        try:
            with open(temporary, "xb") as file:
                file.write(stored)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def check_entries() -> None:
    """Let JAX use `CheckedCache` from its next access to a compilation cache on.

    JAX has no public way to give it a cache; this is where it takes its own from.
    """
    compilation_cache.LRUCache = CheckedCache


def _checked(stored: bytes) -> bytes | None:
    """Return the entry among the bytes of a file; None if they are not what was stored."""
    end = len(stored) - len(_MARK) - _SUM_BYTES
    if stored[:-_SUM_BYTES].endswith(_MARK):
        entry = stored[:end]
        return entry if stored[-_SUM_BYTES:] == _sum(entry) else None
    try:
        compilation_cache.decompress_executable(stored)
    except Exception:  # each of the packers has errors of its own
        return None
    return stored


def _sum(entry: bytes) -> bytes:
    return zlib.crc32(entry).to_bytes(_SUM_BYTES, "little")
