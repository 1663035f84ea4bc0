"""What a sweep has to do: cells, groups of cells that share a compiled program, batches of a group.

A cell is (model, strategy, prompt length, country, seed). Cells that agree on the first three run
side by side as entries of one compiled program, `cells_per_program` or fewer at a time; groups
queue. Nothing here takes long or writes anything.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from jaxalign.answering.cost import candidate_flops
from jaxalign.commands.sweep.file import POCKET, Named, Sweep
from jaxalign.core.errors import UserError
from jaxalign.methods.soft_prompt.study import Config, Study, read_study
from jaxalign.runs.console import print_table

Entry = tuple[str, int]  # country, seed


@dataclasses.dataclass(frozen=True)
class Cell:
    """One search: its place in the sweep, and what it is called."""

    number: int
    group: str
    country: str
    seed: int

    @property
    def id(self) -> str:
        """Readable, stable and fit for a file name: pocket-de16-m8-USA-s0."""
        return f"{self.group}-{self.country}-s{self.seed}"


@dataclasses.dataclass(frozen=True)
class Batch:
    """Cells of one dispatch, and spare searches that fill the program up; their results are
    thrown away."""

    name: str
    index: int
    count: int
    cells: tuple[Cell, ...]
    entries: tuple[Entry, ...]  # those of the cells first

    @property
    def shown(self) -> str:
        return f"{self.cells[0].group}, batch {self.index + 1} of {self.count}"


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """All cells of one model, strategy and prompt length."""

    name: str
    model: str
    strategy: Named
    length: int
    config: Config
    study: Study
    batches: tuple[Batch, ...]

    @property
    def candidates_per_cell(self) -> int:
        """Evaluated by one search, generation 0 included."""
        return self.strategy.strategy.population * (self.config.generations + 1)

    @property
    def gflop_per_candidate(self) -> float:
        """Of matrix products, in 1e9."""
        return candidate_flops(self.study.llama, self.study.layout).total / 1e9

    def gflop(self, cells: int, generations: int | None = None) -> float:
        """Work of so many cells, of one whole search each or of its first generations alone."""
        of_all = 1 if generations is None else (generations + 1) / (self.config.generations + 1)
        return self.gflop_per_candidate * self.candidates_per_cell * cells * of_all


def make_plan(sweep: Sweep, cells_per_program: int) -> tuple[Group, ...]:
    """Every group of the sweep in the order of its file. Reads and checks all that a group names
    (`soft_prompt.study.read_study`), so that bad input is refused before anything runs."""
    if cells_per_program < 1:
        raise UserError(f"--cells-per-program {cells_per_program} must be at least 1")
    names = model_names(sweep.models)
    entries = [(country, seed) for seed in sweep.seeds for country in sweep.countries]
    groups, numbers = [], itertools.count()
    axes = itertools.product(sweep.models, sweep.strategies, sweep.prompt_lengths)
    for model, strategy, length in axes:
        name = group_name(names[model], strategy.name, length)
        config = sweep.config(model, strategy.strategy, length)
        cells = [Cell(next(numbers), name, *entry) for entry in entries]
        batches = make_batches(name, cells, cells_per_program, sweep)
        study = read_study(config)
        groups.append(Group(name, names[model], strategy, length, config, study, batches))
    return tuple(groups)


def group_name(model: str, strategy: str, length: int) -> str:
    return f"{model}-{strategy}-m{length}"


def make_batches(
    name: str, cells: Sequence[Cell], cells_per_program: int, sweep: Sweep
) -> tuple[Batch, ...]:
    """As few batches as will do, all of one size; the last is filled up with seeds that the sweep
    does not have, so that it fits the program of the others."""
    count = -(-len(cells) // cells_per_program)
    size = -(-len(cells) // count)
    unused = (seed for seed in itertools.count() if seed not in set(sweep.seeds))
    batches = []
    for index in range(count):
        mine = tuple(cells[index * size : (index + 1) * size])
        entries = [(cell.country, cell.seed) for cell in mine]
        entries += [(sweep.countries[0], next(unused)) for _ in range(size - len(mine))]
        # The count is in the name: other batches, so other checkpoints.
        folder = f"{name}-{index + 1}of{count}"
        batches.append(Batch(folder, index, count, mine, tuple(entries)))
    return tuple(batches)


def model_names(models: Sequence[str]) -> dict[str, str]:
    """What each model's cells are called by: its folder's name."""
    names: dict[str, str] = {}
    for model in models:
        name = POCKET if model == POCKET else Path(model).absolute().name
        names[model] = re.sub(r"[^A-Za-z0-9_.]+", "_", name)
        same = [m for m in names if names[m] == names[model]]
        if len(same) > 1:
            raise UserError(
                f"models {same[0]!r} and {model!r} would both be called {names[model]!r}; "
                "rename one, or give a link to it"
            )
    return names


def show_plan(groups: Sequence[Group], finished: Collection[int]) -> None:
    """The table of groups, and the sums, that a sweep begins with."""
    rows = []
    for group in groups:
        cells = [cell for batch in group.batches for cell in batch.cells]
        left = sum(cell.number not in finished for cell in cells)
        searches = sum(len(batch.entries) for batch in group.batches)
        rows.append(
            [
                group.name, len(cells), left, len(group.batches), len(group.batches[0].entries),
                group.candidates_per_cell, group.study.layout.tokens_computed,
                group.gflop(searches) / 1e3,
            ]
        )  # fmt: skip
    columns = (
        "group", "cells", "to do", "batches", "in a batch", "candidates a cell",
        "tokens each", "TFLOP",
    )  # fmt: skip
    print_table("Plan: one compiled program per group", columns, rows)
    total, left = (sum(row[i] for row in rows) for i in (1, 2))
    print(
        f"{total:,} cells in {len(groups)} groups and {sum(row[3] for row in rows)} batches, "
        f"{left:,} of them to do; about {sum(row[-1] for row in rows):,.1f} TFLOP in all"
    )
