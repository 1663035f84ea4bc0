"""Measure this package's programs on the accelerator of this machine, the decisive ones first.

    python -m experiments.bench.device --minutes 12
    python -m experiments.bench.device --model llama3.2-1b --parts kernels chunks population
    python -m experiments.bench.device --size tiny --minutes 3      # a trial on a CPU

Programs have the shapes of `--model` and random weights that are made on the device; they run on
one device, or on as few as one copy of the weights needs. Every result
is printed and appended to a JSON-lines file as soon as it is known. A measurement starts only if it
should end within the time, by what compiling and computing have taken so far; what does not start
is listed as skipped. A part that fails is recorded with its error, and the next one goes on. After
an interrupt (Ctrl-C, SIGTERM), and when a compiler or driver hangs past the end, the file is whole.

facts       the device, its memory, the rate of large matrix products
kernels     attention of the search by every kernel: the same numbers as XLA's? how fast?
chunks      prompts a second by the number of prompts at a time, and, per chunk, the memory that the
            compiler foresees beside the allocator's peak
memory      the error of those estimates, and of the search's whole program
population  generations of the search: candidates a second, share of the device's peak
answers     exact answers in blocks
train       an optimiser step of a low-rank adapter
decode      replies: prefill, and decoding
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax

from experiments.bench.device_parts import PARTS, Bench, PartName
from jaxalign.core.errors import UserError
from jaxalign.core.files import plain, write_text
from jaxalign.lm.config import PRESETS, LlamaConfig
from jaxalign.lm.mesh import device_mesh
from jaxalign.runs.console import main
from jaxalign.runtime.sharding import make_mesh

TINY = LlamaConfig(
    2048, 64, 128, 3, 4, 2, 16, rope_theta=1e4, dtype="bfloat16", param_dtype="bfloat16"
)
_GRACE_SECONDS = 45  # past the end, before a program that hangs is given up


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure this package's programs on this machine's device, within a given time."""

    minutes: float = 12
    """Time for everything, compilation included."""
    model: str = "llama3-8b"
    """Preset whose shapes the programs have: llama3-8b, llama3.2-1b ..."""
    size: Literal["real", "tiny"] = "real"
    """tiny takes a model of 3 layers instead, and little work: a trial of this script itself."""
    parts: tuple[PartName, ...] = tuple(PARTS)
    """Parts to measure, in this order."""
    out: Path = Path("bench_device.jsonl")
    """File that results are appended to, one JSON object a line. A summary (Markdown) is written
    beside it."""

    def __post_init__(self) -> None:
        if not 0 < self.minutes < 24 * 60:
            raise UserError(f"`minutes` {self.minutes}: give a time above 0 and below a day")
        if self.model not in PRESETS:
            raise UserError(f"`model` {self.model!r}: choose from {', '.join(PRESETS)}")


class Record:
    """Results, each printed and appended to a file at once as a whole line."""

    def __init__(self, path: Path):
        """Open the file for appending; a last line without its end is closed first."""
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
        self.path, self.rows, self._began = path, [], time.monotonic()
        self._file = path.open("ab")
        if torn:
            self._file.write(b"\n")

    def __call__(self, part: str, name: str, **figures: Any) -> None:
        """Record one result."""
        seconds = round(time.monotonic() - self._began, 1)
        row = {"part": part, "name": name, "at_seconds": seconds, **plain(figures)}
        self.rows.append(row)
        self._file.write(json.dumps(row, allow_nan=False, default=str).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        print(f"[{seconds:6.1f} s] {part}: {name}: {_text(figures)}", flush=True)


def bench(config: Config) -> list[dict[str, Any]]:
    """Run the parts, write the summary, and return all results."""
    record = Record(config.out)
    ends_at = time.monotonic() + 60 * config.minutes
    summary = config.out.with_suffix(".md")
    with _sigterm_interrupts(), _given_up_at(ends_at + _GRACE_SECONDS, record, summary):
        try:
            llama = TINY if config.size == "tiny" else PRESETS[config.model]
            llama = llama.replace(dtype="bfloat16", param_dtype="bfloat16")
            # One copy of the weights, on as few devices as hold it: what one device does is asked.
            _, choice = device_mesh(llama, None, data_parallel=1)
            mesh = make_mesh(jax.devices()[: choice.model], model=choice.model)
            work = Bench(llama, mesh, record, ends_at, small=config.size == "tiny")
            name = config.model if config.size == "real" else "tiny"
            record("start", name, devices=jax.device_count(), used=choice.model)
            for name in config.parts:
                try:
                    PARTS[name](work)
                except Exception as error:  # whatever a compiler, driver or allocator may raise
                    record(name, "failed", error=f"{type(error).__name__}: {error}"[:2000])
                jax.clear_caches()  # programs of a part hold memory on the device
        except KeyboardInterrupt:
            record("end", "interrupted")
            raise
        finally:
            write_text(summary, summary_text(record.rows))
        record("end", "done")
    print(f"Wrote {config.out} and {summary}")
    return record.rows


def summary_text(rows: list[dict[str, Any]]) -> str:
    """Return the results as Markdown: a table for each part, with the columns that it has."""
    lines = ["# Measured on a device", ""]
    for part in dict.fromkeys(row["part"] for row in rows):
        of_part = [row for row in rows if row["part"] == part]
        columns = list(dict.fromkeys(key for row in of_part for key in row if key != "part"))
        lines += [f"## {part}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for row in of_part:
            cells = (_cell(row.get(column, "")).replace("|", "\\|") for column in columns)
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _text(figures: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_cell(value)}" for key, value in figures.items())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return " ".join(str(value).split())


class _sigterm_interrupts:  # noqa: N801 (used as a function)
    """Raise KeyboardInterrupt on SIGTERM, as on Ctrl-C."""

    def __enter__(self) -> None:
        self._before = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._interrupt)

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    @staticmethod
    def _interrupt(*_: object) -> None:
        raise KeyboardInterrupt


class _given_up_at:  # noqa: N801 (used as a function)
    """End the process at a time, because a compiler or driver that hangs cannot be interrupted."""

    def __init__(self, when: float, record: Record, summary: Path):
        def give_up() -> None:
            record("end", "given up", reason="a program did not end within the time")
            write_text(summary, summary_text(record.rows))
            os._exit(3)

        self._timer = threading.Timer(max(0.0, when - time.monotonic()), give_up)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the results of a file."""
    for line in path.read_text().splitlines():
        yield json.loads(line)


if __name__ == "__main__":
    main(bench, Config)
