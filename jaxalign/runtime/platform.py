"""The platform that programs are traced for: this machine's, unless a plan says otherwise.

Some code is written differently for a CPU, a GPU and a TPU: the result type of a matrix product,
or the form in which stacked weights enter a loop. It asks `target_platform`, so that a plan for a
chip that is not here (`lowering_for`) is traced exactly as on that chip. JAX counts the target
among the things that a compiled function depends on, so a function that was traced for one
platform is traced again for another.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import jax

Platform = Literal["cpu", "gpu", "tpu"]

_NAMES = {"cuda": "gpu", "rocm": "gpu"}  # what some parts of JAX call a platform -> its back end
_target = jax.make_user_context(default_value=None)


def target_platform() -> str:
    """Return the platform that is traced for: "cpu", "gpu" or "tpu".

    >>> with lowering_for("tpu"):
    ...     target_platform()
    'tpu'
    """
    return _target.value or jax.default_backend()


def lowering_for(platform: str) -> AbstractContextManager[None]:
    """Return a context in which programs are traced and lowered for another platform.

    Args:
        platform: "cpu", "gpu" or "tpu"; "cuda" and "rocm" mean "gpu".
    """
    return _target(_NAMES.get(platform, platform))
