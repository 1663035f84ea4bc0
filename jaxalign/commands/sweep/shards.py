"""A sweep in parts that run anywhere, with no contact: who runs which cell, and what came of it.

    DIR/shards/2-of-5/     the second of five parts: a run like that of a whole sweep
       /prompts/           with --save-prompts, the prompts of all parts
       /cells.jsonl, ...   what `--collect` writes: the files of a whole sweep

The cells stand in the order of the sweep, each as wide as its cost, and are cut into parts of equal
cost. So a part has cells that lie side by side: it compiles few programs and loads few models. No
part costs more than an equal share and one cell. Nothing enters the cut but the sweep's file and
its models, and a cell has the same bits in any part; so neither the number of parts nor the machine
that runs one changes the table.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.commands.sweep.file import Sweep, check_unchanged
from jaxalign.commands.sweep.plan import Cell, Group, make_batches, make_cells
from jaxalign.commands.sweep.programs import read_programs
from jaxalign.commands.sweep.status import CELLS, show_status
from jaxalign.core.errors import UserError
from jaxalign.runs import MetricsFile
from jaxalign.runs.run import recorded_facts

SHARDS = "shards"
_CELLS_FACT = "cells of the shard"
_NAMED = 5  # cells or shards that a message names, at most


@dataclasses.dataclass(frozen=True, order=True)
class Shard:
    """One of several parts of a sweep, counted from 1."""

    count: int
    index: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read a part as the command line has it, such as 2/5."""
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if match and 1 <= int(match[1]) <= int(match[2]):
            return cls(int(match[2]), int(match[1]))
        raise UserError(
            f"`shard` {text}: give I/N for the I-th of N parts, from 1/N to N/N, such as 2/5"
        )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def folder(self, out: Path) -> Path:
        """Return where the part is kept in the directory of the sweep."""
        return out / SHARDS / f"{self.index}-of-{self.count}"


def recorded_shards(out: Path) -> list[Shard]:
    """Return the parts of a sweep that were started, in order of number and index."""
    found = []
    for path in (out / SHARDS).glob("*-of-*/config.json"):
        index, _, count = path.parent.name.partition("-of-")
        found.append(Shard.parse(f"{index}/{count}"))
    return sorted(found)


# Who runs what


def cut(costs: Sequence[int], count: int) -> list[int]:
    """Return which of `count` parts, counted from 0, each cell belongs to.

    A cell belongs to the part in which its middle lies.

    Args:
        costs: What each cell costs, in the order of the sweep; 1 or more.
        count: Number of parts.
    """
    total, before, parts = sum(costs), 0, []
    for cost in costs:
        parts.append((2 * before + cost) * count // (2 * total))
        before += cost
    return parts


def take_shard(
    groups: Sequence[Group], shard: Shard, cells_per_program: int, sweep: Sweep
) -> tuple[Group, ...]:
    """Return the groups of a part of the sweep, with batches of its own cells alone."""
    costs = [group.flops_per_cell for group in groups for _ in group.cells]
    part_of = dict(enumerate(cut(costs, shard.count)))
    taken = []
    for group in groups:
        cells = [cell for cell in group.cells if part_of[cell.number] == shard.index - 1]
        if cells:
            batches = make_batches(group.name, cells, cells_per_program, sweep)
            taken.append(dataclasses.replace(group, batches=batches))
    return tuple(taken)


def shard_facts(cells: Sequence[Cell]) -> dict[str, Any]:
    """Return what a part records: the numbers of its cells, such as "0-15"; "" if it has none.

    A part that is continued must find it unchanged.
    """
    numbers = sorted(cell.number for cell in cells)
    return {_CELLS_FACT: f"{numbers[0]}-{numbers[-1]}" if numbers else ""}


def check_shards(file: Path, out: Path, sweep: Sweep, shard: Shard | None) -> dict[str, Any]:
    """Check that a sweep, or a part of it, suits what is in its directory.

    Args:
        file: The sweep file.
        out: The directory.
        sweep: What the file describes.
        shard: The part; None for a whole sweep.

    Returns:
        The facts of a part that was started, which all parts share; {} if none was.

    Raises:
        UserError: A whole sweep meets parts, or a part meets a whole one; or the file has changed
            since a part began.
    """
    others = recorded_shards(out)
    if shard is None:
        if others:
            raise UserError(
                f"`out` {out}: holds the shards of a sweep; go on with `shard`, make the table "
                "with `collect`, or give another `out`"
            )
        return {}
    if not others and (out / "config.json").exists():
        raise UserError(
            f"`out` {out}: holds a run that is not in shards; continue it without `shard`, or give "
            "another `out`"
        )
    for other in others:
        check_unchanged(file, other.folder(out), sweep)
    return _common_facts(recorded_facts(others[0].folder(out), resume=True)) if others else {}


def _common_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name != _CELLS_FACT}


# What came of it


@dataclasses.dataclass(frozen=True)
class Collected:
    """Everything that the parts of a sweep have recorded.

    Attributes:
        rows: The records of the cells that are done, in the order of the sweep.
        programs: The content of `programs.json`, of all parts.
        facts: What all parts share: hashes of models and surveys.
        missing: The cells that are not done.
        reasons: Why they are not, in words: the parts that were never started, or have not ended.
        notes: Lines worth showing the user.
    """

    rows: tuple[dict[str, Any], ...]
    programs: dict[str, dict[str, Any]]
    facts: dict[str, Any]
    missing: tuple[Cell, ...]
    reasons: tuple[str, ...]
    notes: tuple[str, ...]


def collect_shards(file: Path, out: Path, sweep: Sweep) -> Collected:
    """Read what the parts of a sweep have recorded; needs neither models nor devices.

    Args:
        file: The sweep file.
        out: The directory of the sweep.
        sweep: What the file describes.

    Raises:
        UserError: There is no part; parts began with other settings or models than the file or each
            other; a record is damaged or of another sweep; or two parts have run one cell with
            different results.
    """
    shards = recorded_shards(out)
    if not shards:
        raise UserError(f"`out` {out}: holds no shards to collect; run them first, with `shard`")
    check_shards(file, out, sweep, shards[0])
    cells = {cell.number: cell for group in make_cells(sweep) for cell in group}
    facts = {shard: recorded_facts(shard.folder(out), resume=True) for shard in shards}
    for shard in shards[1:]:
        _check_same_facts(out, shards[0], shard, facts)
    rows, owners, doubled = {}, {}, []
    for shard in shards:
        for row in MetricsFile(shard.folder(out) / CELLS, "cell").read():
            number = row["cell"]
            if number not in cells or row.get("id") != cells[number].id:
                raise UserError(
                    f"{shard.folder(out) / CELLS}: cell {number} is not of this sweep; remove "
                    f"{shard.folder(out)} and run the shard again"
                )
            if number not in rows:
                rows[number], owners[number] = row, shard
            elif json.dumps(row) == json.dumps(rows[number]):
                doubled.append((cells[number].id, owners[number], shard))
            else:
                raise UserError(_different(out, rows[number], row, owners[number], shard))
    programs, notes = _merged_programs(out, shards)
    if doubled:
        ids = listed(list(dict.fromkeys(name for name, *_ in doubled)))
        by = listed([str(s) for s in sorted({s for _, *two in doubled for s in two})])
        notes.append(f"run by more than one shard ({by}), with the same results: {ids}")
    missing = tuple(cell for number, cell in cells.items() if number not in rows)
    return Collected(
        rows=tuple(rows[number] for number in cells if number in rows),
        programs=programs,
        facts=_common_facts(facts[shards[0]]),
        missing=missing,
        reasons=tuple(_reasons(facts, missing)) if missing else (),
        notes=tuple(notes),
    )


def _check_same_facts(
    out: Path, first: Shard, shard: Shard, facts: Mapping[Shard, Mapping[str, Any]]
) -> None:
    then, now = _common_facts(facts[first]), _common_facts(facts[shard])
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            raise UserError(
                f"{first.folder(out)} and {shard.folder(out)}: {name} is {then.get(name)!r} in the "
                f"one and {now.get(name)!r} in the other; remove the shard that is wrong, and run "
                "it again"
            )


def _different(
    out: Path, then: Mapping[str, Any], now: Mapping[str, Any], first: Shard, second: Shard
) -> str:
    name = next(n for n in then.keys() | now.keys() if then.get(n) != now.get(n))
    if then.get("fitness") != now.get("fitness"):
        name = "fitness"
    values = "" if name != "fitness" else f" ({then.get(name)} and {now.get(name)})"
    return (
        f"{first.folder(out)} and {second.folder(out)}: both have run cell {then['id']}, with "
        f"different results: {name}{values}; remove one of the two"
    )


def _merged_programs(
    out: Path, shards: Sequence[Shard]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the programs of all parts by group, and a note for each that parts disagree on."""
    programs: dict[str, dict[str, Any]] = {}
    owners: dict[str, Shard] = {}
    notes = []
    for shard in shards:
        for group, found in read_programs(shard.folder(out)).items():
            known = programs.setdefault(group, found)
            owner = owners.setdefault(group, shard)
            names = [n for n in known.keys() | found.keys() if known.get(n) != found.get(n)]
            if names:
                notes.append(
                    f"{group}: shards {owner} and {shard} differ in {', '.join(sorted(names))}, so "
                    "their cells may differ in the last bits; the table shows the plain question "
                    f"as {owner} has it. Give `chunk` and `attention` in the file to avoid this"
                )
    return programs, notes


def _reasons(facts: Mapping[Shard, Mapping[str, Any]], missing: Sequence[Cell]) -> list[str]:
    """Return why cells are missing: parts that have stopped, and parts that are not there."""
    reasons = []
    left = {cell.number for cell in missing}
    for shard in facts:
        first, _, last = facts[shard][_CELLS_FACT].partition("-")
        own = set(range(int(first), int(last) + 1)) if first else set()
        if lost := own & left:
            reasons.append(f"{len(lost)} of the {len(own)} cells of shard {shard}")
            left -= own
    if left:
        absent = listed(_absent(list(facts)))
        reasons.append(f"{len(left)} of shards that were never started ({absent})")
    return reasons


def _absent(shards: Sequence[Shard]) -> list[str]:
    """Return the parts that were never started, of each number of parts that is in use."""
    known = [Shard(n, i + 1) for n in sorted({s.count for s in shards}) for i in range(n)]
    return [str(shard) for shard in known if shard not in shards]


def show_shards(out: Path) -> None:
    """Print how far the parts of a sweep have come."""
    shards = recorded_shards(out)
    done: set[int] = set()
    for shard in shards:
        show_status(shard.folder(out), last=0)
        done |= {row["cell"] for row in MetricsFile(shard.folder(out) / CELLS, "cell").read()}
    absent = _absent(shards)
    print(
        f"together {len(done)} cells; shards never started: {listed(absent) if absent else 'none'}"
    )


def listed(names: Sequence[str]) -> str:
    """Return names, of many only the first few."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
