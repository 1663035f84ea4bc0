"""A sweep: countries x seeds x strategies x prompt lengths x models, from one file.

    python -m experiments.sweep experiments/sweep/example.toml --out runs/example
    python -m experiments.sweep experiments/sweep/example.toml --out runs/example --status

What shares a program (one model, strategy and prompt length) runs side by side in it; the rest
queues. Every cell is one `experiments.soft_prompt` search without its baselines. Stop a sweep
whenever you like: the same command goes on where it was, repeats no finished cell, and ends with
the bits of a sweep that was never stopped. `jaxalign.commands.sweep.file` says what the file may
hold.

    DIR/cells.jsonl     a line per finished cell: loss, six scores, fitness, candidates evaluated
       /result.json     the table: mean loss of each group, spread over seeds and countries
       /sweep.png       the same as a picture
       /prompts/        with --save-prompts, each cell's tuned prompt
       /programs.json   by group, prompts computed at a time, the kernel of attention, and C
       /status.json     what --status reads, from any terminal

A cell of the pocket Llama takes seconds on two cores; the plan printed first tells the work.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from jaxalign.answering.kernel_choice import KERNEL_OPTIONS
from jaxalign.commands.sweep.file import Sweep, read_sweep, refuse_changed_file
from jaxalign.commands.sweep.group import Program, make_program, run_batch
from jaxalign.commands.sweep.plan import Batch, Cell, Group, make_plan, show_plan
from jaxalign.commands.sweep.result import make_result, show_result, write_plot
from jaxalign.commands.sweep.status import CELLS, Board, show_status
from jaxalign.core.errors import UserError
from jaxalign.lm.checkpoint import load_checkpoint
from jaxalign.lm.mesh import device_mesh
from jaxalign.lm.weights import Params, param_shardings
from jaxalign.methods.soft_prompt.search import choose_how
from jaxalign.methods.soft_prompt.space import prompt_text, save_prompt
from jaxalign.runs import MetricsFile, Run, check_run
from jaxalign.surveys.hofstede import country_name


@dataclasses.dataclass(frozen=True)
class Config:
    """Run or continue the sweep that a file describes; the same command does both."""

    file: tyro.conf.Positional[Path]
    """The sweep file (TOML), such as experiments/sweep/example.toml."""
    out: Path | None = None
    """Directory of the sweep; default runs/sweep-<name of the file>."""
    status: bool = False
    """Only print how the sweep in --out is getting on; needs no device and disturbs nothing."""
    cells_per_program: int = 32
    """Cells that run side by side. More keep the devices busier; memory grows with them."""
    save_prompts: bool = False
    """Keep every cell's tuned prompt, as safetensors."""
    quiet: bool = False
    """No progress bar."""


PROGRAMS = "programs.json"


class Records:
    """The finished cells, a line each. One writer; a torn last line is dropped."""

    def __init__(self, run: Run, cells: Sequence[Cell]) -> None:
        self._file, self._writes = MetricsFile(run.out / CELLS, "cell"), run.writes
        if run.writes:
            self._file.rewind(len(cells))
        self.rows: dict[int, dict[str, Any]] = {}
        for row in self._file.read():
            if row["cell"] >= len(cells) or row.get("id") != cells[row["cell"]].id:
                raise UserError(f"{self._file.path}: cell {row['cell']} is not of this sweep")
            self.rows[row["cell"]] = row

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append those that are not there yet; on disk when this returns."""
        new = [row for row in rows if row["cell"] not in self.rows]
        self.rows |= {row["cell"]: row for row in new}
        if not self._writes or not new:
            return
        for row in new:
            self._file.append(row)
        with self._file.path.open("rb") as file:
            os.fsync(file.fileno())


def sweep(config: Config) -> None:
    """The whole sweep; see the module's docstring."""
    out = config.out or Path("runs") / f"sweep-{config.file.stem}"
    if config.status:
        return show_status(out)
    described = read_sweep(config.file)
    refuse_changed_file(config.file, out, described)
    check_run(out, described, resume=True)
    try:
        groups = make_plan(described, config.cells_per_program)
    except UserError as error:  # from a value of the file
        raise UserError(f"{config.file}: {error}") from None
    with Run.create(out, described, facts(groups), resume=True) as run:
        for note in run.notes:
            print(note)
        cells = [cell for group in groups for batch in group.batches for cell in batch.cells]
        records = Records(run, cells)
        show_plan(groups, records.rows)
        print(f"results go to {out}; stop at any time, the same command goes on")
        programs = run_groups(config, run, groups, records)
        finish(run, described, [records.rows[cell.number] for cell in cells], programs)


def facts(groups: Sequence[Group]) -> dict[str, Any]:
    """Hashes that a continued sweep must find unchanged."""
    found = {}
    for group in groups:
        known = group.study.facts()
        for name in ("model_sha256", "tokenizer_sha256", "instrument_sha256", "prompts"):
            found[f"{group.model}.{name}"] = known[name]
    return found


def run_groups(
    config: Config, run: Run, groups: Sequence[Group], records: Records
) -> dict[str, dict[str, Any]]:
    """Every batch that has unfinished cells, group by group; a model is loaded once in a row.
    Returns what is in `programs.json` then."""
    queue = [(g, [b for b in g.batches if unfinished(b, records)]) for g in groups]
    queue = [(group, batches) for group, batches in queue if batches]
    gflop = sum(g.gflop(len(b.entries)) for g, batches in queue for b in batches)
    board = Board(run, sum(len(b.cells) for g in groups for b in g.batches), gflop, config.quiet)
    mesh, loaded, params, programs = None, None, None, read_programs(run)
    with board.progress:
        for group, batches in queue:
            if loaded != group.model:
                params = program = None  # let go of one model before the next
                mesh = choose(group)
            began, searches = programs.get(group.name, {}), sum(len(b.cells) for b in group.batches)
            how = choose_how(group.config, group.study, mesh, began, searches)
            if loaded != group.model:
                params, loaded = load(group, mesh), group.model
            program = make_program(group, params, mesh, how)
            programs[group.name] = program.how
            run.write(PROGRAMS, programs)
            for batch in batches:
                run_one(config, run, program, batch, records, board)
    if run.writes:
        shutil.rmtree(run.out / "checkpoints", ignore_errors=True)
    board.finish()
    return programs


def unfinished(batch: Batch, records: Records) -> bool:
    return any(cell.number not in records.rows for cell in batch.cells)


def read_programs(run: Run) -> dict[str, dict[str, Any]]:
    """By group, prompts at a time, the kernel of attention, and C. A sweep that goes on keeps to
    the first two, since the last bits depend on them, though what fits or is fastest may be other
    than when it began."""
    path = run.out / PROGRAMS
    if not run.resumed or not path.exists():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
        if all(
            type(of["chunk"]) is int and of["attention"] in KERNEL_OPTIONS for of in found.values()
        ):
            return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(
        f"{path}: not a sweep's; delete it to choose anew (cells to come may differ in their last "
        "bits), or give another --out"
    )


def choose(group: Group) -> jax.sharding.Mesh:
    """The mesh that fits the model and a batch of its cells, with its reason on the screen."""
    candidates = len(group.batches[0].entries) * group.strategy.strategy.population
    llama = group.study.llama
    mesh, choice = device_mesh(
        llama,
        candidates,
        search_dims=group.config.prompt.dims(llama.hidden_size),
        model_parallel=group.config.model_parallel,
    )
    print(f"{group.model}: {choice.describe()}")
    return mesh


def load(group: Group, mesh: jax.sharding.Mesh) -> Params:
    study = group.study
    return load_checkpoint(study.folder, study.llama, param_shardings(study.llama, mesh))


def run_one(
    config: Config, run: Run, program: Program, batch: Batch, records: Records, board: Board
) -> None:
    """One batch from where it was to its cells' records. A cell is recorded last of all, so that
    one on record has all its files."""
    checkpoints = run.out / "checkpoints"
    found = run_batch(
        program, batch, checkpoints,
        lambda generation: board.tell(program.group, batch, generation, len(records.rows)),
    )  # fmt: skip
    if config.save_prompts and run.writes:
        for cell, (_, prompt_MxD) in zip(batch.cells, found, strict=True):
            save(run.out, program.group, cell, prompt_MxD)
    records.add([row for row, _ in found])
    board.over(program.group, batch)
    if run.writes:
        shutil.rmtree(checkpoints / batch.name, ignore_errors=True)


def save(out: Path, group: Group, cell: Cell, prompt_MxD: np.ndarray) -> None:
    """`prompts/<cell>.safetensors`, with what it was tuned for."""
    prompt = group.config.prompt
    metadata = {
        "country": cell.country,
        "placement": prompt.placement,
        "start": prompt_text(prompt, country_name(cell.country)),
        "seed": cell.seed,
        "model_sha256": group.study.facts()["model_sha256"],
    }
    save_prompt(out / "prompts" / f"{cell.id}.safetensors", prompt_MxD, metadata)


def finish(
    run: Run,
    described: Sweep,
    rows: Sequence[dict[str, Any]],
    programs: Mapping[str, Mapping[str, Any]],
) -> None:
    """The table and the picture, from the records alone."""
    constants = {name: found.get("constants") for name, found in programs.items()}
    result = make_result(rows, described.study, constants)
    run.write("result.json", result)
    if run.writes:
        write_plot(run.out / "sweep.png", result)
    show_result(result)
    print(f"everything is in {run.out}")
