"""Ctrl-C and SIGTERM are obeyed in seconds, also while the interpreter waits for a device."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxalign.runtime.hosts import VARIABLE
from tests.support.processes import free_port

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
# Does nothing, as what its place among processes does to signals is asked.
WAITS = """
import dataclasses, time
from jaxalign.runs.console import main

@dataclasses.dataclass(frozen=True)
class Settings:
    \"\"\"Wait.\"\"\"
    resume: bool = False
    \"\"\"Continue.\"\"\"

def run(settings):
    check()
    print("started", flush=True)
    time.sleep(60)

"""
AS_PROCESS_1 = """
def check():
    import os
    assert os.getpid() == 1
main(run, Settings, [])
"""
AS_ONE_OF_TWO = """
def check():
    import sys
    from jaxalign.runtime.hosts import agreed, joined
    assert joined() and agreed(5) == 5  # both have come this far
    sys.stdout = sys.__stdout__  # all but process 0 are silent
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


def _popen(*command: str, hosts: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | ({VARIABLE: hosts} if hosts else {}),
    )


def _start(source: str) -> subprocess.Popen[str]:
    program = _popen(sys.executable, "-c", source)
    assert program.stdout.readline() == "started\n"
    return program


def _can_be_process_1() -> bool:
    """Whether this user may start a process that is number 1 where it lives, as a container's."""
    if shutil.which("unshare") is None:
        return False
    return (
        subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True).returncode == 0
    )


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


@pytest.mark.long
@pytest.mark.skipif(not _can_be_process_1(), reason="a process of number 1 needs unshare")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_1_of_a_container_is_ended_too(number) -> None:
    """The kernel gives process 1 no signal that it has no handler for."""
    source = WAITS + AS_PROCESS_1
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", source]
    with _popen(*command) as outside:
        assert outside.stdout.readline() == "started\n"
        [inside] = Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text().split()
        os.kill(int(inside), number)
        _, said = outside.communicate(timeout=60)
    assert (outside.returncode, said) == (128 + number, "interrupted; continue with --resume\n")


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_each_of_two_processes_is_ended(number) -> None:
    """Joining the others makes JAX take SIGTERM for itself, and it would only note it."""
    address, source = f"127.0.0.1:{free_port()}", WAITS + AS_ONE_OF_TWO
    programs = [
        _popen(sys.executable, "-c", source, hosts=f"{address}/2/{process}") for process in (0, 1)
    ]
    try:
        for program in programs:
            said = iter(program.stdout.readline, "")  # Gloo speaks there as well
            assert "started\n" in said
        for program in reversed(programs):  # the one that the other listens to leaves last
            program.send_signal(number)
            _, said = program.communicate(timeout=60)
            assert program.returncode == 128 + number, said
            assert said.endswith("interrupted; continue with --resume\n"), said
    finally:
        for program in programs:
            program.kill()


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
