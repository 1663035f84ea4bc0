"""Processes of their own, ended by a signal at a chosen moment.

They are forks of a server that has the modules imported but has started no device, so that many
starts do not cost many imports.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from jaxalign.cli import run_command
from tests.chaos.moments import Counter, watching

_MOST_SECONDS = 240


def kill(
    name: str, arguments: Sequence[str], out: Path, at: int, delay_seconds: float, number: int
) -> tuple[int, str]:
    """Run a command in a process that gets a signal some time after the `at`-th change of its
    files.

    Returns:
        Its exit code, negative for a signal, and what it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "said.txt"
        arguments = (name, list(arguments), str(out), at, delay_seconds, number, str(log))
        process = _server().Process(target=_child, args=arguments)
        process.start()
        process.join(_MOST_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
            return 1, f"still running after {_MOST_SECONDS} seconds"
        said = log.read_text("utf-8", errors="replace") if log.exists() else ""
    assert process.exitcode is not None
    return process.exitcode, said


@functools.cache
def _server() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    commands = ("soft_prompt", "fine_tune", "ask", "sweep.command", "culturespa")
    context.set_forkserver_preload(
        [
            *(f"jaxalign.commands.{name}" for name in commands),
            "transformers.models.auto.tokenization_auto",
            "orbax.checkpoint.v1",
            __name__,
        ]
    )
    return context


def _child(
    name: str, arguments: list[str], out: str, at: int, delay_seconds: float, number: int, log: str
) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    # Whatever started the tests may have left these ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def send() -> None:
        def later() -> None:
            time.sleep(delay_seconds)
            os.kill(os.getpid(), number)

        threading.Thread(target=later, daemon=True).start() if delay_seconds else os.kill(
            os.getpid(), number
        )

    with contextlib.ExitStack() as stack:
        stack.enter_context(watching(Path(out), Counter(at, send)))
        run_command(name, arguments, program=f"jaxalign {name}")
    sys.stdout.flush()
