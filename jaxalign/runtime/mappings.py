"""The memory mappings of this process, which compiled CPU programs use up.

On a CPU, every compiled program takes several mappings, and JAX keeps each program for as long as
the function that it was compiled from is alive. Linux ends a process that asks for more mappings
than `vm.max_map_count` (65,530 as a rule): the compiler fails to get memory of which there is
plenty, and aborts or crashes. A tuning run of the pocket model takes 5,000 of them, so a sweep over
a dozen models and settings, a day in a notebook and a test suite all get there.
"""

from __future__ import annotations

import gc
import logging
from pathlib import Path

import jax

_log = logging.getLogger("jaxalign")
_OWN = Path("/proc/self/maps")
_LIMIT = Path("/proc/sys/vm/max_map_count")


def mapping_count() -> int:
    """Return the number of memory mappings that this process has; 0 where none are told."""
    try:
        return _OWN.read_bytes().count(b"\n")
    except OSError:
        return 0


def mapping_limit() -> int | None:
    """Return the number of memory mappings that a process may have; None where it is not told."""
    try:
        return int(_LIMIT.read_text())
    except (OSError, ValueError):
        return None


def forget_programs_near_limit(share: float = 0.5) -> bool:
    """Let JAX forget all compiled programs if this process is near the limit of its mappings.

    Called before a series of programs is compiled. A program that is used again is compiled again,
    or read from the compilation cache: results do not change.

    Args:
        share: Share of the limit from which on the programs are forgotten.

    Returns:
        Whether they were forgotten.
    """
    limit, count = mapping_limit(), mapping_count()
    if limit is None or count < share * limit:
        return False
    jax.clear_caches()
    gc.collect()  # programs are held in cycles with the functions that they were compiled from
    _log.info(
        f"{count:,} of {limit:,} memory mappings were in use, most by programs compiled earlier in "
        f"this process; they were dropped, which leaves {mapping_count():,}"
    )
    return True
