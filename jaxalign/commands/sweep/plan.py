"""The work of a sweep: cells, groups of cells that share a compiled program, batches of a group.

A cell is one search: (model, strategy, prompt length, country, seed). Cells that agree on the first
three form a group. They run side by side as entries of one compiled program, at most
`cells_per_program` at a time. Groups run one after another. Nothing here takes long or writes
anything.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxalign.answering.cost import candidate_flops
from jaxalign.commands.sweep.file import POCKET, NamedStrategy, Sweep
from jaxalign.core.errors import UserError
from jaxalign.lm.model import ModelFiles
from jaxalign.methods.soft_prompt.problem import Problem, file_names, read_problem
from jaxalign.optim.evolve import Entry
from jaxalign.runs.console import print_table


@dataclasses.dataclass(frozen=True)
class Cell:
    """One search: its number in the sweep, and what it searches for."""

    number: int
    group: str
    country: str
    seed: int

    @property
    def id(self) -> str:
        """A readable, stable name that is fit for files, such as pocket-de16-m8-USA-s0."""
        return f"{self.group}-{file_names([self.country])[self.country]}-s{self.seed}"


@dataclasses.dataclass(frozen=True)
class Batch:
    """Cells that run side by side.

    The last batch of a group is filled up with spare searches, whose results are thrown away.
    """

    name: str
    index: int
    count: int
    cells: tuple[Cell, ...]
    entries: tuple[Entry, ...]  # of the cells, then the spare ones

    @property
    def label(self) -> str:
        """The batch in words."""
        return f"{self.cells[0].group}, batch {self.index + 1} of {self.count}"


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """All cells of one model, strategy and prompt length."""

    name: str
    model: str
    strategy: NamedStrategy
    length: int
    problem: Problem
    batches: tuple[Batch, ...]
    searches: int  # cells of the whole sweep; the batches of a shard hold some of them
    cells_per_batch: int  # of the whole sweep

    @property
    def cells(self) -> list[Cell]:
        """The cells of all batches."""
        return [cell for batch in self.batches for cell in batch.cells]

    @property
    def flops_per_cell(self) -> int:
        """Matrix-product operations of one search: what a cell costs, on whatever machine."""
        each = candidate_flops(self.problem.model.config, self.problem.layout).total
        return int(each) * self.candidates_per_cell

    @property
    def candidates_per_cell(self) -> int:
        """Number of candidates that one search evaluates, generation 0 included."""
        return self.strategy.strategy.population * (self.generations + 1)

    @property
    def generations(self) -> int:
        """Number of generations of one search, after the initial population."""
        return self.problem.settings.generations

    def gflop(self, cells: int, generations: int | None = None) -> float:
        """Return the work of matrix products, in 1e9 floating-point operations.

        Args:
            cells: Number of searches.
            generations: How many generations of each are counted; default: all.
        """
        fraction = 1 if generations is None else (generations + 1) / (self.generations + 1)
        return self.flops_per_cell / 1e9 * cells * fraction


def make_plan(
    sweep: Sweep, cells_per_program: int, recorded: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Group, ...]:
    """Return the groups of a sweep, in the order of its file.

    Reads and checks everything that a group names, so that bad input is refused before anything
    runs.

    Args:
        sweep: What the file describes.
        cells_per_program: Largest number of cells in a batch.
        recorded: Facts of the sweep that is continued; models from the hub keep their commits.

    Raises:
        UserError: for the first thing that is wrong.
    """
    if cells_per_program < 1:
        raise UserError(f"`cells_per_program` {cells_per_program} must be at least 1")
    file_names(sweep.countries)
    names, groups = model_names(sweep.models), []
    opened: dict[str, ModelFiles] = {}  # each model is read, and its weights hashed, once
    for (model, strategy, length), cells in zip(_axes(sweep), make_cells(sweep), strict=True):
        name = group_name(names[model], strategy.name, length)
        revision = recorded.get(f"{names[model]}.model_revision")
        settings = sweep.settings(model, strategy.strategy, length)
        problem = read_problem(settings, opened.get(model), revision=revision)
        opened[model] = problem.model
        batches = make_batches(name, cells, cells_per_program, sweep)
        size = len(batches[0].entries)
        groups.append(
            Group(name, names[model], strategy, length, problem, batches, len(cells), size)
        )
    return tuple(groups)


def make_cells(sweep: Sweep) -> list[list[Cell]]:
    """Return the cells of each group, in the order of the file. Reads no model."""
    names, numbers = model_names(sweep.models), itertools.count()
    entries = [(country, seed) for seed in sweep.seeds for country in sweep.countries]
    return [
        [
            Cell(next(numbers), group_name(names[model], strategy.name, length), *entry)
            for entry in entries
        ]
        for model, strategy, length in _axes(sweep)
    ]


def _axes(sweep: Sweep) -> Iterator[tuple[str, NamedStrategy, int]]:
    """Return model, strategy and prompt length of each group."""
    return itertools.product(sweep.models, sweep.strategies, sweep.prompt_lengths)


def group_name(model: str, strategy: str, length: int) -> str:
    """Return the name that the cells of a group share."""
    return f"{model}-{strategy}-m{length}"


def make_batches(
    name: str, cells: Sequence[Cell], cells_per_program: int, sweep: Sweep
) -> tuple[Batch, ...]:
    """Return as few batches as possible, all of one size.

    The last one is filled up with seeds that the sweep does not have, so that it fits the program
    of the others.
    """
    count = -(-len(cells) // cells_per_program)
    size = -(-len(cells) // count)
    unused = (seed for seed in itertools.count() if seed not in set(sweep.seeds))
    batches = []
    for index in range(count):
        batch = tuple(cells[index * size : (index + 1) * size])
        entries = [(cell.country, cell.seed) for cell in batch]
        entries += [(sweep.countries[0], next(unused)) for _ in range(size - len(batch))]
        # The count is part of the name: batches of another size have checkpoints of their own.
        folder = f"{name}-{index + 1}of{count}"
        batches.append(Batch(folder, index, count, batch, tuple(entries)))
    return tuple(batches)


def model_names(models: Sequence[str]) -> dict[str, str]:
    """Return the name that each model's cells carry: that of its folder."""
    names: dict[str, str] = {}
    for model in models:
        name = POCKET if model == POCKET else Path(model).absolute().name
        names[model] = re.sub(r"[^A-Za-z0-9_.]+", "_", name)
        same = [m for m in names if names[m] == names[model]]
        if len(same) > 1:
            raise UserError(
                f"models {same[0]!r} and {model!r} would both be called {names[model]!r}; "
                "rename one, or give a link to it under another name"
            )
    return names


def show_plan(groups: Sequence[Group], finished: Collection[int]) -> None:
    """Print the table of groups that a sweep begins with, and its sums."""
    rows = []
    for group in groups:
        cells = group.cells
        left = sum(cell.number not in finished for cell in cells)
        searches = sum(len(batch.entries) for batch in group.batches)
        rows.append(
            [
                group.name,
                len(cells),
                left,
                len(group.batches),
                len(group.batches[0].entries),
                group.candidates_per_cell,
                group.problem.layout.tokens_computed,
                group.gflop(searches) / 1e3,
            ]
        )
    columns = (
        "group",
        "cells",
        "to do",
        "batches",
        "cells per batch",
        "candidates per cell",
        "tokens per candidate",
        "TFLOP",
    )
    print_table("Plan: one compiled program per group", columns, rows)
    total, left = (sum(row[i] for row in rows) for i in (1, 2))
    print(
        f"{total:,} cells in {len(groups)} groups and {sum(row[3] for row in rows)} batches, "
        f"{left:,} of them to do; about {sum(row[-1] for row in rows):,.1f} TFLOP in all"
    )
