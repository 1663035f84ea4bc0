"""Start one command as several processes of a job on this machine, with simulated devices."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxalign.runtime.hosts import VARIABLE

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(args: Sequence[str], processes: int, devices: int) -> list[subprocess.Popen]:
    """`python args` as `processes` processes of `devices` devices each."""
    address = f"127.0.0.1:{free_port()}"
    return [
        subprocess.Popen(
            [sys.executable, *args],
            env=os.environ
            | {"PYTHONPATH": str(ROOT)}
            | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
            | {"JAX_COMPILATION_CACHE_DIR": os.environ["JAXALIGN_CACHE"]}
            | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
            | ({VARIABLE: f"{address}/{processes}/{i}"} if processes > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(processes)
    ]


def finish(started: Sequence[subprocess.Popen], seconds: float = 240) -> str:
    """Wait for all; the output of the first. AssertionError with the output where one failed."""
    said = [process.communicate(timeout=seconds)[0] for process in started]
    for process, text in zip(started, said, strict=True):
        assert process.returncode == 0, text[-3000:]
    return said[0]


def run(args: Sequence[str], processes: int, devices: int) -> str:
    return finish(start(args, processes, devices))
