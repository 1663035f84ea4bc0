"""Run one worker process per framework, driven over a pipe, and define what they share.

Part of `experiments.bench.population`. A worker blocks on its pipe while the other one works, and
reports how much processor time it used meanwhile. This module imports neither JAX nor torch, so
that neither worker loads the other's framework.
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
_SETTLE_SECONDS = 0.25  # time for the previous worker's threads to stop polling for work


@dataclasses.dataclass(frozen=True)
class Work:
    """Description of the computation: the same token ids, weights and prompts for every method.

    Attributes:
        llama: Shape of the model.
        folder: Folder of the weights in the Hugging Face layout.
        before: Token ids before the soft prompt.
        items: Token ids of each item after the soft prompt.
        options_QxOxS: int32 token ids of the spellings of each option; -1 where there is none.
        prompt_length: Number of soft prompt tokens.
        population: Number of soft prompts.
        chunk: Number of prompts that JAX computes at a time; None lets it choose.
        attention: Attention kernel of jaxalign, or "auto".
        seed: Seed of weights, prompts and the order of turns.
        threads: Number of threads for torch.
    """

    llama: LlamaConfig
    folder: Path
    before: tuple[int, ...]
    items: tuple[tuple[int, ...], ...]
    options_QxOxS: np.ndarray
    prompt_length: int
    population: int
    chunk: int | None
    attention: str
    seed: int
    threads: int

    def padded_items(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the items padded at the end by token 0, int32 [Q, T], and their lengths [Q]."""
        lengths_Q = np.array([len(item) for item in self.items], np.int32)
        tokens_QxT = np.zeros((len(self.items), lengths_Q.max()), np.int32)
        for row, item in zip(tokens_QxT, self.items, strict=True):
            row[: len(item)] = item
        return tokens_QxT, lengths_Q

    def spellings(self) -> list[list[list[tuple[int]]]]:
        """Return the option table in the form that `jaxalign.answering.plan` takes."""
        table = self.options_QxOxS.tolist()
        return [[[(t,) for t in o if t >= 0] for o in item if o[0] >= 0] for item in table]


@dataclasses.dataclass(frozen=True)
class Answer:
    """Result of one call of a worker.

    Attributes:
        value: Return value of the called method.
        idle_cpu_seconds: Processor time that the worker used while it waited for this call.
        peak_bytes: Peak resident memory during the call.
    """

    value: Any
    idle_cpu_seconds: float
    peak_bytes: int


class Worker:
    """A process `python -m MODULE FD` that answers calls by name; use it as a context manager."""

    def __init__(self, module: str, log: Path) -> None:
        """Start the process.

        Args:
            module: Module to run.
            log: File for the output of the process; its last line is shown if the process dies.
        """
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
            self._process.wait(5)  # an idle worker exits when its pipe closes
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, name: str, *arguments: Any) -> Answer:
        """Call a method of the worker and return its answer.

        Raises:
            UserError: If the worker raised one, or died (with the last line of its log).
        """
        time.sleep(_SETTLE_SECONDS)
        try:
            self._pipe.send((name, arguments))
            answer = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise UserError(f"{self._module} died in {name}: {self._cause_of_death()}") from None
        if isinstance(answer, UserError):
            raise answer
        return answer

    def _cause_of_death(self) -> str:
        """Return the last line of the log, or what the exit code means."""
        code = self._process.wait()
        if code == -9:
            return "killed, probably out of memory; take a smaller --size or --population"
        return (self._log.read_text().strip().splitlines() or [f"exit code {code}"])[-1]


def _environment() -> dict[str, str]:
    """Return this process's environment, adjusted so that two frameworks can share a machine."""
    # These variables would let the threads of an idle worker spin.
    spinning = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
    kept = {name: value for name, value in os.environ.items() if name not in spinning}
    # Without the next one JAX would reserve most of a device's memory for itself.
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
    """Restart the kernel's measurement of peak resident memory (Linux only)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # not Linux: the peak is then that of the whole process


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process.

    On Linux this is VmHWM, because getrusage also counts the process that started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
