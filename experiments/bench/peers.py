"""What benchmarks against other tools share: worker processes, turns, matmul peaks, spreads.

Each tool works in a process of its own, which blocks on its pipe while another one works and
reports how much processor time it used meanwhile. This module imports neither JAX nor torch, so
that no worker loads another's framework.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from jaxalign.core.errors import UserError

_SETTLE_SECONDS = 0.25  # time for the previous worker's threads to stop polling for work
_BUSY = 0.25  # load average for each core from which a machine counts as busy


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
            return "killed, probably out of memory; take a smaller model or less at a time"
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


def turns(names: Sequence[str], repeats: int, seed: int = 0) -> Iterator[tuple[int, str]]:
    """Yield (repeat, name): each name once per repeat, in an order drawn anew for every repeat.

    So no tool always runs on a machine that another has warmed up.
    """
    shuffle = random.Random(seed).shuffle
    for repeat in range(repeats):
        order = list(names)
        shuffle(order)
        yield from ((repeat, name) for name in order)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the range of some values."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def paired_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Return the ratio of each repeat; both tools of a repeat ran under the same load."""
    return [n / d for n, d in zip(numerators, denominators, strict=True)]


def fastest_peaks(peaks: dict[str, Sequence[float]]) -> list[float]:
    """Return the fastest matrix product of each repeat, whichever framework reached it."""
    return [max(rates) for rates in zip(*peaks.values(), strict=True)]


def torch_matmul_peak(dtype: str, seconds: float = 1.0) -> float:
    """Measure FLOP/s of a large square product in torch, like `answering.cost.matmul_peak`.

    Args:
        dtype: of the matrices, "float32" or "bfloat16".
        seconds: how long to repeat.

    Returns:
        The best of the runs, on the first GPU or the CPU.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    n = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, dtype=getattr(torch, dtype), device=device) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + seconds
    with torch.inference_mode():
        float((a @ b)[0, 0])  # the first product is slower
        while best == float("inf") or time.perf_counter() < until:
            began = time.perf_counter()
            float((a @ b)[0, 0])  # waits for the device
            best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def machine_facts() -> dict[str, Any]:
    """Return the processor, its matrix instructions, cores, memory and load of this machine."""
    model, flags = platform.processor() or platform.machine(), set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            elif name.strip() == "flags":
                flags = set(value.split())
                break
    except OSError:
        pass  # not Linux
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    return {
        "platform": platform.platform(),
        "processor": model,
        "matrix_instructions": [name for name in wanted if name in flags],
        "cores": os.cpu_count(),
        "load_average_before": os.getloadavg()[0],
    }


def warn_if_busy(machine: dict[str, Any]) -> None:
    """Print a warning if the machine of `machine_facts` was not idle before the benchmark."""
    load, cores = machine["load_average_before"], machine["cores"]
    if load > _BUSY * cores:
        print(
            f"warning: the load average was {load:.1f} on {cores} cores before the start. Threads "
            "of one matrix product wait for each other, torch's longest, so these ratios flatter "
            "jaxalign"
        )
