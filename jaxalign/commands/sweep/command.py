"""A sweep: countries x seeds x strategies x prompt lengths x models, from one file.

    python -m experiments.sweep experiments/sweep/example.toml --out runs/example
    python -m experiments.sweep experiments/sweep/example.toml --out runs/example --status

In parts, on any machines that share a directory (see `jaxalign.commands.sweep.shards`):

    python -m experiments.sweep experiments/sweep/example.toml --out runs/example --shard 1/2
    python -m experiments.sweep experiments/sweep/example.toml --out runs/example --shard 2/2
    python -m experiments.sweep experiments/sweep/example.toml --out runs/example --collect

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
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tyro

from jaxalign.commands.reports.sweep import sweep_report
from jaxalign.commands.sweep.file import Sweep, check_unchanged, read_sweep
from jaxalign.commands.sweep.group import make_search, program_facts, run_batch
from jaxalign.commands.sweep.picture import write_plot
from jaxalign.commands.sweep.plan import Batch, Cell, Group, make_plan, show_plan
from jaxalign.commands.sweep.programs import PROGRAMS, read_programs
from jaxalign.commands.sweep.result import make_result
from jaxalign.commands.sweep.shards import (
    Shard,
    check_shards,
    collect_shards,
    listed,
    recorded_shards,
    shard_facts,
    show_shards,
    take_shard,
)
from jaxalign.commands.sweep.status import CELLS, StatusBoard, show_status
from jaxalign.commands.sweep.tables import show_result
from jaxalign.core.errors import UserError
from jaxalign.core.seals import change, sealed
from jaxalign.lm.model import LM, load_model
from jaxalign.methods.soft_prompt.problem import recorded_start
from jaxalign.methods.soft_prompt.prompt import SoftPrompt
from jaxalign.methods.soft_prompt.search import Search, choose_execution, choose_search_mesh
from jaxalign.methods.soft_prompt.settings import pocket_defaults
from jaxalign.runs import MetricsFile, Run, check_run
from jaxalign.runs.console import progress_bars
from jaxalign.runtime.mappings import forget_programs_near_limit
from jaxalign.stats.result_warnings import ResultWarning


@dataclasses.dataclass(frozen=True)
class SweepSettings:
    """Run or continue the sweep that a file describes; the same command does both."""

    continues_itself: ClassVar[bool] = True

    file: tyro.conf.Positional[Path]
    """The sweep file (TOML), such as experiments/sweep/example.toml."""
    out: Path | None = None
    """Directory of the sweep; default: runs/sweep-<name of the file>."""
    shard: str | None = None
    """The part of the sweep to run, such as 2/5: the second of five parts of equal cost, which need
    no contact. Any machines may run them, into the same directory."""
    collect: bool = False
    """Whether to make the table from what the shards in --out have done; needs no model, and names
    what is missing."""
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


_RECORD_BYTES = 8192  # of a cell


class Records:
    """The finished cells, one line each, with one writer; a torn last line is dropped."""

    def __init__(self, run: Run, cells: Sequence[Cell]) -> None:
        """Read the cells that are recorded; UserError if one is not of this sweep, or this part."""
        self._file, self._writes = MetricsFile(run.out / CELLS, "cell"), run.writes
        ids = {cell.number: cell.id for cell in cells}
        if run.writes:
            self._file.rewind(sys.maxsize)
        self.rows: dict[int, dict[str, Any]] = {}
        for row in self._file.read():
            if ids.get(row["cell"]) != row.get("id", ""):
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
    """Run or continue a sweep or a part of it, collect parts, or print the status.

    See the module's docstring.
    """
    out = settings.out or Path("runs") / f"sweep-{settings.file.stem}"
    shard = Shard.parse(settings.shard) if settings.shard else None
    if settings.collect and (shard or settings.status):
        raise UserError("`collect` makes a table of all shards; give neither `shard` nor `status`")
    folder = shard.folder(out) if shard else out
    if settings.status:
        return show_shards(out) if recorded_shards(folder) else show_status(folder)
    described = read_sweep(settings.file)
    if settings.collect:
        return collect(settings.file, out, described)
    shared = check_shards(settings.file, out, described, shard)
    check_unchanged(settings.file, folder, described)
    recorded = check_run(folder, described, resume=True)
    try:
        groups = make_plan(described, settings.cells_per_program, recorded or shared)
    except UserError as error:  # from a value of the file
        raise UserError(f"{settings.file}: {error}") from None
    known = facts(groups)
    if shard:
        groups = take_shard(groups, shard, settings.cells_per_program, described)
        known |= shard_facts([cell for group in groups for cell in group.cells])
    written = written_bytes(groups, settings.save_prompts)
    with Run.create(folder, described, known, resume=True, writes_bytes=written) as run:
        for note in run.notes:
            print(note)
        cells = [cell for group in groups for cell in group.cells]
        records = Records(run, cells)
        show_plan(groups, records.rows)
        real = [group.problem.settings for group in groups if not group.problem.model.is_pocket]
        for note in filter(None, dict.fromkeys(map(pocket_defaults, real))):
            print(note)
        print(f"results go to {folder}; stop at any time, the same command continues the sweep")
        programs = run_groups(settings, run, groups, records, out)
        if shard:
            print(f"shard {shard}: all {len(cells)} cells are done; when all shards are:")
            print(f"  jaxalign sweep {settings.file} --out {out} --collect")
        else:
            finish(run, described, [records.rows[cell.number] for cell in cells], programs)


def collect(file: Path, out: Path, described: Sweep) -> None:
    """Write and print the table of all shards' cells.

    Raises:
        UserError: As `collect_shards` does; and, once the table of the others is written, where
            cells are missing.
    """
    found = collect_shards(file, out, described)
    for note in found.notes:
        print(f"note: {note}")
    missing = [cell.id for cell in found.missing]
    total = len(found.rows) + len(missing)
    left = f"{len(missing)} of {total} cells are missing: {'; '.join(found.reasons)}"
    if not found.rows:
        raise UserError(left)
    check_run(out, described, resume=True)
    with Run.create(out, described, found.facts, resume=True) as run:
        if run.writes:
            MetricsFile(run.out / CELLS, "cell").replace(found.rows)
            with sealed(run.out / PROGRAMS):
                run.write(PROGRAMS, found.programs)
        finish(run, described, found.rows, found.programs, missing)
    if missing:
        raise UserError(f"{left}. The table is of the others; the missing are {listed(missing)}")


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
        kept += len(group.cells) * (_RECORD_BYTES + save_prompts * 4 * group.length * width)
        vectors = max(len(batch.entries) for batch in group.batches)
        vectors *= group.strategy.strategy.population
        dims = group.problem.settings.prompt.dims(width)
        # Three checkpoints at a time, each with a few vectors per candidate.
        largest = max(largest, 3 * 3 * 4 * vectors * dims)
    return kept + largest


def run_groups(
    settings: SweepSettings, run: Run, groups: Sequence[Group], records: Records, out: Path
) -> dict[str, dict[str, Any]]:
    """Run every batch that has unfinished cells, group by group; return `programs.json`.

    Groups of one model follow each other, so that it is loaded once. Prompts go to the directory
    `out` of the whole sweep.
    """
    queue = [(g, [b for b in g.batches if is_unfinished(out, b, records)]) for g in groups]
    queue = [(group, batches) for group, batches in queue if batches]
    gflop = sum(g.gflop(len(b.entries)) for g, batches in queue for b in batches)
    cells = sum(len(group.cells) for group in groups)
    mesh, loaded, lm, programs = None, None, None, read_programs(run.out) if run.resumed else {}
    with progress_bars(settings.quiet, every_seconds=10) as on_progress:
        board = StatusBoard(run, cells, gflop, on_progress)
        for group, batches in queue:
            if loaded != group.model:
                lm = search = None  # let go of one model before the next
                candidates = group.cells_per_batch * group.strategy.strategy.population
                mesh = choose_search_mesh(group.problem, candidates, f"{group.model}: ")
            recorded = programs.get(group.name, {})
            execution = choose_execution(group.problem, mesh, recorded, group.searches)
            if loaded != group.model:
                lm, loaded = load_model(group.problem.model, mesh=mesh), group.model
            forget_programs_near_limit()  # of the groups before
            search = make_search(group, lm, execution)
            programs[group.name] = program_facts(search, lm)
            if run.writes:
                with sealed(run.out / PROGRAMS):
                    run.write(PROGRAMS, programs)
            for batch in batches:
                run_one(settings, run, search, lm, group, batch, records, board, out)
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


def run_one(
    settings: SweepSettings,
    run: Run,
    search: Search,
    lm: LM,
    group: Group,
    batch: Batch,
    records: Records,
    board: StatusBoard,
    out: Path,
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
            path = prompt_file(out, cell)
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
    missing: Sequence[str] = (),
) -> None:
    """Write and print the table, the picture and the report, from the records alone.

    Args:
        run: The sweep's run.
        described: What the file describes.
        rows: The records of the cells, in the order of the sweep.
        programs: The content of `programs.json`.
        missing: Cells that no shard has run yet.
    """
    algorithms = {named.name: named.strategy.algorithm for named in described.strategies}
    result = make_result(rows, described.base_config, programs, algorithms)
    if missing:
        total = len(rows) + len(missing)
        said = f"{len(missing)} of {total} cells are missing; this is of the others."
        result["warnings"].insert(0, ResultWarning("missing", said).record())
        result |= {"missing": list(missing)}
    run.write("result.json", result)
    if run.writes:
        write_plot(run.out / "sweep.png", result)
        sweep_report(result, run.out)
    show_result(result)
    print(f"everything is in {run.out}; read {run.out / 'report.html'}")
