"""Ctrl-C and SIGTERM are obeyed in seconds, also while the interpreter waits for a device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")

# In a compiled loop of minutes, during which Python runs no handler.
DEAF = """
import dataclasses, threading
import jax, jax.numpy as jnp
from jaxalign.runs.console import main

@dataclasses.dataclass(frozen=True)
class Settings:
    \"\"\"Wait.\"\"\"
    resume: bool = False
    \"\"\"Continue.\"\"\"

def run(settings):
    loop = jax.jit(lambda x: jax.lax.fori_loop(0, 2**31 - 1, lambda i, x: x * 1.0000001 + i, x))
    step = loop.lower(jnp.ones(64)).compile()
    # Said once the interpreter waits for the loop.
    threading.Timer(1.0, lambda: print("started", flush=True)).start()
    step(jnp.ones(64)).block_until_ready()

main(run, Settings, [])
"""
# Goes on after every interrupt, as a chat does, and ends when it is told to.
GOES_ON = """
import dataclasses, signal, time
from jaxalign.runs.console import main

@dataclasses.dataclass(frozen=True)
class Settings:
    \"\"\"Wait.\"\"\"

def run(settings):
    for _ in range(3):
        try:
            print("started", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            print("went on", flush=True)
    print("ended", flush=True)

main(run, Settings, [])
"""


def _start(source: str) -> subprocess.Popen[str]:
    program = subprocess.Popen(
        [sys.executable, "-c", source],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert program.stdout.readline() == "started\n"
    return program


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_program_that_waits_for_a_device_is_ended_and_says_how_to_go_on(number) -> None:
    with _start(DEAF) as program:
        program.send_signal(number)
        _, said = program.communicate(timeout=60)  # the loop takes far longer
    assert program.returncode == 128 + number
    assert said.split("\n\n") == [
        "\nstopping; once more to stop at once",
        "interrupted; continue with --resume\n",
    ]


def test_a_second_signal_ends_it_at_once() -> None:
    with _start(DEAF) as program:
        program.send_signal(signal.SIGINT)
        assert program.stderr.readline() == "\n"
        assert program.stderr.readline() == "stopping; once more to stop at once\n"
        program.send_signal(signal.SIGTERM)
        program.communicate(timeout=60)
    assert program.returncode == 128 + signal.SIGTERM


def test_a_program_that_handles_interrupts_itself_goes_on() -> None:
    with _start(GOES_ON) as program:
        lines = []
        for _ in range(3):
            program.send_signal(signal.SIGINT)
            lines += [program.stdout.readline(), program.stdout.readline()]
        _, said = program.communicate(timeout=60)
    assert lines == ["went on\n", "started\n"] * 2 + ["went on\n", "ended\n"]
    assert (program.returncode, said) == (0, "")
