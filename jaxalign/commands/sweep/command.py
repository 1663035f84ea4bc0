"""A sweep: countries x seeds x strategies x prompt lengths x models, from one file.

    python -m experiments.sweep experiments/sweep/example.toml --out runs/example
    python -m experiments.sweep experiments/sweep/example.toml --out runs/example --status

Every cell is one search of `experiments.soft_prompt`, without the baselines. Cells that share a
compiled program (one model, strategy and prompt length) run side by side in it; the rest wait. Stop
a sweep whenever you like: the same command continues it, repeats no finished cell, and ends with
the bits of a sweep that was never stopped. `jaxalign.commands.sweep.file` documents the file.

    DIR/cells.jsonl     a line per finished cell: losses in every presentation, six scores, the
                        held-out score item by item, fitness, candidates evaluated
       /result.json     the tables: losses and held-out scores of each group with intervals over
                        seeds, beside the plain question and answers that need no model
       /sweep.png       the same as a picture
       /report.html     who wins at equal evaluations and by how much, with figures; also report.md
       /prompts/        with --save-prompts, each cell's tuned prompt
       /programs.json   by group: prompts computed at a time, the attention kernel, C, the plain
                        question's answers and those that need no model
       /status.json     what --status reads, from any terminal

A cell of the pocket Llama takes seconds on two cores; the plan printed first gives the work.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tyro

from jaxalign.answering.kernel_choice import KERNEL_OPTIONS
from jaxalign.commands.reports.sweep import sweep_report
from jaxalign.commands.sweep.file import Sweep, check_unchanged, read_sweep
from jaxalign.commands.sweep.group import make_search, program_facts, run_batch
from jaxalign.commands.sweep.picture import write_plot
from jaxalign.commands.sweep.plan import Batch, Cell, Group, make_plan, show_plan
from jaxalign.commands.sweep.result import make_result
from jaxalign.commands.sweep.status import CELLS, StatusBoard, show_status
from jaxalign.commands.sweep.tables import show_result
from jaxalign.core.errors import UserError
from jaxalign.core.json_text import parse_json
from jaxalign.core.seals import change, check_sealed, sealed
from jaxalign.lm.model import LM, load_model
from jaxalign.methods.soft_prompt.problem import recorded_start
from jaxalign.methods.soft_prompt.prompt import SoftPrompt
from jaxalign.methods.soft_prompt.search import Search, choose_execution, choose_search_mesh
from jaxalign.methods.soft_prompt.settings import pocket_defaults
from jaxalign.runs import MetricsFile, Run, check_run
from jaxalign.runs.console import progress_bars
from jaxalign.runtime.mappings import forget_programs_near_limit


@dataclasses.dataclass(frozen=True)
class SweepSettings:
    """Run or continue the sweep that a file describes; the same command does both."""

    continues_itself: ClassVar[bool] = True

    file: tyro.conf.Positional[Path]
    """The sweep file (TOML), such as experiments/sweep/example.toml."""
    out: Path | None = None
    """Directory of the sweep; default: runs/sweep-<name of the file>."""
    status: bool = False
    """Whether to print only how far the sweep in --out has come; needs no device and disturbs
    nothing."""
    cells_per_program: int = 32
    """Number of cells that run side by side. More keep the devices busier and take more memory."""
    save_prompts: bool = False
    """Whether to keep every cell's tuned prompt, as safetensors."""
    quiet: bool = False
    """Whether to hide the progress bar."""
    verbose: bool = False
    """Whether to show plans, meshes, kernels and memory too; the run's notes.log has them."""


PROGRAMS = "programs.json"
_ANEW = (
    "delete it to choose anew (cells to come may differ in their last bits), or give another `out`"
)
_RECORD_BYTES = 8192  # of a cell


class Records:
    """The finished cells, one line each, with one writer; a torn last line is dropped."""

    def __init__(self, run: Run, cells: Sequence[Cell]) -> None:
        """Read the cells that are recorded; UserError if one is not of this sweep."""
        self._file, self._writes = MetricsFile(run.out / CELLS, "cell"), run.writes
        if run.writes:
            self._file.rewind(len(cells))
        self.rows: dict[int, dict[str, Any]] = {}
        for row in self._file.read():
            if row["cell"] >= len(cells) or row.get("id") != cells[row["cell"]].id:
                raise UserError(f"{self._file.path}: cell {row['cell']} is not of this sweep")
            self.rows[row["cell"]] = row

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append the rows that are not recorded yet; they are on disk when this returns."""
        new = [row for row in rows if row["cell"] not in self.rows]
        self.rows |= {row["cell"]: row for row in new}
        if not self._writes or not new:
            return
        for row in new:
            self._file.append(row)
        with self._file.path.open("rb") as file:
            os.fsync(file.fileno())


def sweep(settings: SweepSettings) -> None:
    """Run or continue a sweep, or print its status; see the module's docstring."""
    out = settings.out or Path("runs") / f"sweep-{settings.file.stem}"
    if settings.status:
        return show_status(out)
    described = read_sweep(settings.file)
    check_unchanged(settings.file, out, described)
    recorded = check_run(out, described, resume=True)
    try:
        groups = make_plan(described, settings.cells_per_program, recorded)
    except UserError as error:  # from a value of the file
        raise UserError(f"{settings.file}: {error}") from None
    written = written_bytes(groups, settings.save_prompts)
    with Run.create(out, described, facts(groups), resume=True, writes_bytes=written) as run:
        for note in run.notes:
            print(note)
        cells = [cell for group in groups for batch in group.batches for cell in batch.cells]
        records = Records(run, cells)
        show_plan(groups, records.rows)
        real = [group.problem.settings for group in groups if not group.problem.model.is_pocket]
        for note in filter(None, dict.fromkeys(map(pocket_defaults, real))):
            print(note)
        print(f"results go to {out}; stop at any time, the same command continues the sweep")
        programs = run_groups(settings, run, groups, records)
        finish(run, described, [records.rows[cell.number] for cell in cells], programs)


def facts(groups: Sequence[Group]) -> dict[str, Any]:
    """Return the hashes that a continued sweep must find unchanged."""
    names = (
        "model_sha256",
        "tokenizer_sha256",
        "model_revision",
        "instrument_sha256",
        "held_out_sha256",
        "prompts",
    )
    return {
        f"{group.model}.{name}": value
        for group in groups
        for name, value in group.problem.facts().items()
        if name in names
    }


def written_bytes(groups: Sequence[Group], save_prompts: bool) -> float:
    """Return about how much a sweep writes: records, prompts, and checkpoints of one batch."""
    kept, largest = 0.0, 0.0
    for group in groups:
        width = group.problem.model.config.hidden_size
        cells = sum(len(batch.cells) for batch in group.batches)
        kept += cells * (_RECORD_BYTES + save_prompts * 4 * group.length * width)
        vectors = max(len(batch.entries) for batch in group.batches)
        vectors *= group.strategy.strategy.population
        dims = group.problem.settings.prompt.dims(width)
        # Three checkpoints at a time, each with a few vectors per candidate.
        largest = max(largest, 3 * 3 * 4 * vectors * dims)
    return kept + largest


def run_groups(
    settings: SweepSettings, run: Run, groups: Sequence[Group], records: Records
) -> dict[str, dict[str, Any]]:
    """Run every batch that has unfinished cells, group by group; return `programs.json`.

    Groups of one model follow each other, so that it is loaded once.
    """
    queue = [(g, [b for b in g.batches if is_unfinished(run.out, b, records)]) for g in groups]
    queue = [(group, batches) for group, batches in queue if batches]
    gflop = sum(g.gflop(len(b.entries)) for g, batches in queue for b in batches)
    cells = sum(len(batch.cells) for group in groups for batch in group.batches)
    mesh, loaded, lm, programs = None, None, None, read_programs(run)
    with progress_bars(settings.quiet, every_seconds=10) as on_progress:
        board = StatusBoard(run, cells, gflop, on_progress)
        for group, batches in queue:
            if loaded != group.model:
                lm = search = None  # let go of one model before the next
                candidates = len(group.batches[0].entries) * group.strategy.strategy.population
                mesh = choose_search_mesh(group.problem, candidates, f"{group.model}: ")
            searches = sum(len(batch.cells) for batch in group.batches)
            recorded = programs.get(group.name, {})
            execution = choose_execution(group.problem, mesh, recorded, searches)
            if loaded != group.model:
                lm, loaded = load_model(group.problem.model, mesh=mesh), group.model
            forget_programs_near_limit()  # of the groups before
            search = make_search(group, lm, execution)
            programs[group.name] = program_facts(search, lm)
            if run.writes:
                with sealed(run.out / PROGRAMS):
                    run.write(PROGRAMS, programs)
            for batch in batches:
                run_one(settings, run, search, lm, group, batch, records, board)
    if run.writes:
        shutil.rmtree(run.out / "checkpoints", ignore_errors=True)
    board.finish()
    return programs


def prompt_file(out: Path, cell: Cell) -> Path:
    """Return where a cell's tuned prompt is kept."""
    return out / "prompts" / f"{cell.id}.safetensors"


def is_unfinished(out: Path, batch: Batch, records: Records) -> bool:
    """Return whether a cell of the batch is not recorded yet, or its prompt is damaged."""
    for cell in batch.cells:
        path = prompt_file(out, cell)
        if (what := change(path)) is not None:
            print(f"{path}: {what}; the search is done again")
            return True
    return any(cell.number not in records.rows for cell in batch.cells)


def read_programs(run: Run) -> dict[str, dict[str, Any]]:
    """Return what `programs.json` records, by group; {} for a new sweep.

    A continued sweep keeps the chunk and the kernel, because the last bits depend on them, although
    what fits or is fastest may have changed since it began.
    """
    path = run.out / PROGRAMS
    if not run.resumed:
        return {}
    check_sealed(path, _ANEW)
    if not path.exists():
        return {}
    try:
        programs = parse_json(path.read_text("utf-8"))
        if all(
            type(program["chunk"]) is int and program["attention"] in KERNEL_OPTIONS
            for program in programs.values()
        ):
            return programs
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(f"{path}: not written by a sweep; {_ANEW}")


def run_one(
    settings: SweepSettings,
    run: Run,
    search: Search,
    lm: LM,
    group: Group,
    batch: Batch,
    records: Records,
    board: StatusBoard,
) -> None:
    """Run one batch from where it was, and record its cells.

    A cell is recorded last of all, so that a recorded cell has all its files.
    """
    checkpoints = run.out / "checkpoints"
    results = run_batch(
        search,
        lm,
        group,
        batch,
        checkpoints,
        lambda progress: board.update(group, batch, progress.done, len(records.rows)),
    )
    if settings.save_prompts and run.writes:
        for cell, (_, prompt_MxD) in zip(batch.cells, results, strict=True):
            prompt = SoftPrompt(
                embeddings_MxD=prompt_MxD,
                placement=group.problem.settings.prompt.placement,
                group=cell.country,
                start=recorded_start(group.problem, cell.country),
                seed=cell.seed,
                model=group.problem.model.name,
                model_sha256=group.problem.model.sha256,
            )
            path = prompt_file(run.out, cell)
            with sealed(path):
                prompt.save(path)
    records.add([record for record, _ in results])
    board.finish_batch(group, batch)
    if run.writes:
        shutil.rmtree(checkpoints / batch.name, ignore_errors=True)


def finish(
    run: Run,
    described: Sweep,
    rows: Sequence[dict[str, Any]],
    programs: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write and print the table, the picture and the report, from the records alone."""
    algorithms = {named.name: named.strategy.algorithm for named in described.strategies}
    result = make_result(rows, described.base_config, programs, algorithms)
    run.write("result.json", result)
    if run.writes:
        write_plot(run.out / "sweep.png", result)
        sweep_report(result, run.out)
    show_result(result)
    print(f"everything is in {run.out}; read {run.out / 'report.html'}")
