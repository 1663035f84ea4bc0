"""Run a real model's shapes on this machine with random weights: time and memory of every task.

    python -m experiments.bench.shapes --layers 2    # a trial of a few minutes
    python -m experiments.bench.shapes               # Llama-3-8B: 16 GB of disk, 20 GB of memory

Random bfloat16 weights are written as Hugging Face shards, which the real reader loads again for
every task, in bfloat16 and in 8 bits: a search of 4 candidates x 2 generations on the 24 items,
exact answers to them, a step of a low-rank adapter, and 8 decoded tokens. Each task has a process
of its own, so its peak is that of loading and of the task itself, compiling included; the folder
is deleted afterwards. The table (Markdown, JSON) gives the peak of resident memory as a multiple
of the weights as they are held.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from experiments.bench.models import SHAPES
from experiments.bench.peers import Worker, machine_facts
from experiments.bench.shapes.worker import Stage
from jaxalign.core.disk import check_space
from jaxalign.core.errors import UserError
from jaxalign.core.files import check_new_file, write_text
from jaxalign.core.progress import Progress
from jaxalign.lm.checkpoint import write_weights
from jaxalign.lm.config import LlamaConfig, config_to_hf
from jaxalign.lm.mesh import weight_bytes
from jaxalign.lm.safetensors_io import write_json as write_fields
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.runs import plain, versions, write_json
from jaxalign.runs.console import main, print_table, progress_bars
from jaxalign.runtime.memory import PROCESS_BASE_BYTES, free_host_bytes

Weights = Literal["bfloat16", "int8"]
STAGES: tuple[Stage, ...] = get_args(Stage)
ALLOWED = 1.25  # times the weights as held
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
_ROWS = 2048  # of a tensor that are drawn at a time


@dataclasses.dataclass(frozen=True)
class Config:
    """Load a model of real shapes with random weights; search, answer, train and decode."""

    model: str = "llama3-8b"
    """Shape of the model: llama3-8b, llama3.2-1b, smollm2-135m ..."""
    layers: int | None = None
    """Number of layers, for a trial. Default: the model's own."""
    weights: tuple[Weights, ...] = ("bfloat16", "int8")
    """How the weights are held."""
    stages: tuple[Stage, ...] = STAGES
    """What is done, each in a process of its own."""
    scratch: Path = Path(tempfile.gettempdir())
    """Folder in which the weights are written for the time of the run."""
    out: Path = Path("bench_shapes")
    """Name of the result's files, without .md and .json."""

    def __post_init__(self) -> None:
        if self.model not in SHAPES:
            raise UserError(f"`model` {self.model!r}: choose from {', '.join(SHAPES)}")
        if self.layers is not None and self.layers < 2:
            raise UserError(f"`layers` {self.layers}: must be at least 2")
        for name in ("weights", "stages"):
            if not getattr(self, name):
                raise UserError(f"`{name}`: name at least one")
        if not self.scratch.is_dir():
            raise UserError(f"`scratch` {self.scratch}: no such folder")
        check_new_file(self.out.with_suffix(".json"), "out")

    @property
    def llama(self) -> LlamaConfig:
        """The model's shape in bfloat16."""
        shape = SHAPES[self.model].replace(dtype="bfloat16", param_dtype="bfloat16")
        return shape if self.layers is None else shape.replace(num_hidden_layers=self.layers)


def bench(config: Config) -> dict[str, Any]:
    """Write the weights, do every stage with them, print the table and write it.

    Raises:
        UserError: If disk or memory do not suffice, before anything is written.
    """
    llama = config.llama
    check_space(config.scratch, weight_bytes(llama), "scratch")
    refuse_short_memory(llama, config.weights, free_host_bytes())
    machine, rows = machine_facts(), []
    with tempfile.TemporaryDirectory(prefix="jaxalign-shapes-", dir=config.scratch) as scratch:
        folder = Path(scratch) / "model"
        started = time.perf_counter()
        write_model(folder, llama)
        written = time.perf_counter() - started
        steps = [(weights, stage) for weights in config.weights for stage in config.stages]
        with progress_bars() as on_progress:
            for done, (weights, stage) in enumerate(steps):
                now = {"now": f"{weights}, {stage}"}
                on_progress(Progress("stage", done, len(steps), "stages", fields=now))
                rows.append(measure(folder, weights, stage, Path(scratch)))
                # At 8B a stage takes many minutes: what is known is kept if a later one fails.
                write_result(config, machine, written, rows)
            on_progress(Progress("stage", len(steps), len(steps), "stages"))
    show(config, rows)
    print(f"Wrote {config.out.with_suffix('.md')} and {config.out.with_suffix('.json')}")
    return write_result(config, machine, written, rows)


def write_result(
    config: Config, machine: dict[str, Any], seconds_to_write: float, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Write the stages that are done, as JSON and Markdown; return what is in the JSON file."""
    result = {
        "settings": plain(config) | {"shape": plain(config.llama)},
        "machine": machine | {"versions": versions()},
        "seconds_to_write": seconds_to_write,
        "allowed_times_weights": ALLOWED,
        "rows": rows,
    }
    write_json(config.out.with_suffix(".json"), result)
    write_text(config.out.with_suffix(".md"), markdown(config, machine, rows))
    return result


def refuse_short_memory(
    llama: LlamaConfig, weights: tuple[Weights, ...], available: int | None
) -> None:
    """Raise UserError if the largest stage does not fit into `available` bytes."""
    held = max(weight_bytes(llama, 1, stored(name)) for name in weights)
    needed = int(ALLOWED * held) + PROCESS_BASE_BYTES
    if available is not None and needed > available:
        raise UserError(
            f"{needed / 2**30:.1f} GiB of memory are needed, but {available / 2**30:.1f} are free; "
            "take `weights` int8, fewer `layers` or a smaller `model`"
        )


def stored(weights: Weights) -> str:
    """Return what `load_model` calls the format."""
    return "int8" if weights == "int8" else "stored"


def write_model(folder: Path, llama: LlamaConfig) -> None:
    """Write random weights, `config.json` and the pocket model's tokenizer as a model's folder."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    # The same random numbers from another offset for each block: as good, and fast to write.
    pool = llama.initializer_range * rng.standard_normal(2**24 + 1, np.float32)

    def blocks(place: Any) -> Iterator[np.ndarray]:
        shape = place.weight.hf_shape
        if len(shape) == 1:
            yield np.ones(shape, _bfloat16())
            return
        rows, columns = shape
        for start in range(0, rows, _ROWS):
            count = min(_ROWS, rows - start)
            offset = int(rng.integers(0, len(pool)))
            block = np.resize(np.roll(pool[: count * columns], offset), (count, columns))
            yield np.ascontiguousarray(block.astype(_bfloat16()))

    write_weights(folder, llama, blocks)
    write_fields(folder / "config.json", config_to_hf(llama))
    for name in _TOKENIZER:
        (folder / name).write_bytes((MODEL_FOLDER / name).read_bytes())


def _bfloat16() -> Any:
    import ml_dtypes

    return ml_dtypes.bfloat16


def measure(folder: Path, weights: Weights, stage: Stage, scratch: Path) -> dict[str, Any]:
    """Load the weights in a new process, do one stage there, and return its figures."""
    with Worker("experiments.bench.shapes.worker", scratch / f"{weights}-{stage}.log") as worker:
        loading = worker.call("load", folder, stored(weights))
        run = worker.call("run", stage)
    held, peaks = loading.value["weight_bytes"], (loading.peak_bytes, run.peak_bytes)
    return {
        "weights": weights,
        "stage": stage,
        "weight_bytes": held,
        "seconds_to_load": loading.value["seconds"],
        "peak_bytes_to_load": peaks[0],
        "peak_bytes": max(peaks),
        "times_weights": max(peaks) / held,
        "within": max(peaks) <= ALLOWED * held,
        **run.value,
    }


COLUMNS = ("weights", "task", "held, GiB", "load, s", "task, s", "peak, GiB", "peak / held")


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["weights"],
        f"{row['stage']}: {row['work']}",
        f"{row['weight_bytes'] / 2**30:.2f}",
        f"{row['seconds_to_load']:.1f}",
        f"{row['seconds']:.1f}",
        f"{row['peak_bytes'] / 2**30:.2f}",
        f"{row['times_weights']:.2f}" + ("" if row["within"] else f" (above {ALLOWED})"),
    ]


def _title(config: Config) -> str:
    layers = config.llama.num_hidden_layers
    return f"Random weights of {config.model}, {layers} layers, each task in its own process"


def show(config: Config, rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    print_table(_title(config), COLUMNS, [_cells(row) for row in rows])


def markdown(config: Config, machine: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Return the table as Markdown, with the machine it is from."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *map(_cells, rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    where = f"{machine['processor']}, {machine['cores']} cores"
    return (
        f"# {_title(config)}\n\nOn {where}. Compiling is included in a task's seconds.\n\n{table}\n"
    )


if __name__ == "__main__":
    main(bench, Config)
