"""Is XLA compiling right now? JAX says when a program is lowered and when it has been compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import jax

_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def watch_compiler() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether a program is being compiled.

    From the end of lowering to the end of compilation: a program that is lowered alone, to be
    looked at, counts until the next one is compiled.
    """
    state = {"compiling": False}

    def hear(event: str, seconds: float, **_: object) -> None:
        if event in (_LOWERED, _COMPILED):
            state["compiling"] = event == _LOWERED

    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
        yield lambda: state["compiling"]
    finally:
        jax.monitoring.unregister_event_duration_listener(hear)
