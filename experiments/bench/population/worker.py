"""One process per framework, driven over a pipe; what the parent and the workers share.

Part of `experiments.bench.population`. A worker is blocked on its pipe while the other one works,
and says how much processor time it used meanwhile. Knows neither JAX nor torch, so that neither
worker loads the other's framework.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig

Method = Literal["ours", "hf_per_item", "hf_padded", "hf_prefix_cache", "jax_vmap"]
_SETTLE_SECONDS = 0.25  # for the threads of the worker before to stop looking for work


@dataclasses.dataclass(frozen=True)
class Work:
    """What is asked: the same token ids, weights and prompts for every method."""

    llama: LlamaConfig
    folder: Path  # the weights, in Hugging Face layout
    before: tuple[int, ...]  # token ids before the soft prompt
    items: tuple[tuple[int, ...], ...]  # [Q]: token ids after it
    options_QxOxS: np.ndarray  # int32: spellings of each option, one token each; -1: none
    prompt_length: int
    population: int
    chunk: int | None  # prompts that JAX computes at a time; None: as it finds best
    attention: str  # kernel of ours, or "auto"
    seed: int
    threads: int

    def padded_items(self) -> tuple[np.ndarray, np.ndarray]:
        """Items padded at the end by token 0, int32 [Q, T], and their lengths, int32 [Q]."""
        lengths_Q = np.array([len(item) for item in self.items], np.int32)
        tokens_QxT = np.zeros((len(self.items), lengths_Q.max()), np.int32)
        for row, item in zip(tokens_QxT, self.items, strict=True):
            row[: len(item)] = item
        return tokens_QxT, lengths_Q

    def spellings(self) -> list[list[list[tuple[int]]]]:
        """The option table as `jaxalign.answering.plan` takes it."""
        table = self.options_QxOxS.tolist()
        return [[[(t,) for t in o if t >= 0] for o in item if o[0] >= 0] for item in table]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one call of a worker gave."""

    value: Any
    idle_cpu_seconds: float  # processor time while waiting for this call
    peak_bytes: int  # resident memory at its highest during the call


class Worker:
    """A process `python -m MODULE FD` that answers calls by name; used as a context."""

    def __init__(self, module: str, log: Path) -> None:
        """`log` is where the process writes what nobody reads unless it dies."""
        self._module, self._log = module, log
        self._pipe, theirs = Pipe()
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdout=file,
                stderr=file,
                env=_environment(),
            )
        theirs.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pipe.close()
        try:
            self._process.wait(5)  # an idle worker leaves when its pipe closes
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, name: str, *arguments: Any) -> Answer:
        """The worker's answer. UserError for one it raised itself, and with the last line of its
        log where it died."""
        time.sleep(_SETTLE_SECONDS)
        try:
            self._pipe.send((name, arguments))
            answer = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise UserError(f"{self._module} died in {name}: {self._last_words()}") from None
        if isinstance(answer, UserError):
            raise answer
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        if code == -9:
            return "killed, most likely for want of memory; take a smaller --size or --population"
        return (self._log.read_text().strip().splitlines() or [f"exit code {code}"])[-1]


def _environment() -> dict[str, str]:
    """Ours, without what would keep idle threads busy or take all of a device's memory."""
    busy = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
    kept = {name: value for name, value in os.environ.items() if name not in busy}
    return kept | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "HF_HUB_OFFLINE": "1"}


def serve(side: object, arguments: Sequence[str]) -> None:
    """Answer calls with the methods of `side` until the parent closes the pipe."""
    pipe = Connection(int(arguments[1]))
    while True:
        before = time.process_time()
        try:
            name, values = pipe.recv()
        except EOFError:
            return
        idle = time.process_time() - before
        reset_peak_memory()
        try:
            value = getattr(side, name)(*values)
        except UserError as error:
            pipe.send(error)
        else:
            pipe.send(Answer(value, idle, peak_memory_bytes()))


def reset_peak_memory() -> None:
    """Let the kernel measure the peak of resident memory from here on, where it can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # not Linux: the peak is the process's


def peak_memory_bytes() -> int:
    """Peak of resident memory: the kernel's own figure where it gives one, as getrusage also
    counts the process that started this one."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
