"""The table of trials, on the screen and as a page of the documentation."""

from __future__ import annotations

import collections
import importlib.metadata
import tomllib
from collections.abc import Sequence
from pathlib import Path

from jaxalign.core.files import write_text
from tests.chaos.faults import FAULTS, LOST, NAMED, SURVIVED
from tests.chaos.trials import COMMANDS, Trial

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
TEXT = Path(__file__).with_name("page.md")

_WHAT = {
    "kill -9": "a process is killed at a random change of its files or up to 0.3 s later, up to "
    "three times",
    "SIGTERM": "the same with the signal of schedulers",
    "Ctrl-C": "the same with Ctrl-C",
    "flipped bit": "one bit of one file of a stopped or finished run",
    "cut file": "the end of one file is cut off",
    "removed file": "one file is removed",
    "renamed step": "a checkpoint's step gets another number",
    "another seed's file": "a file or a step is replaced by that of a run with another seed",
    "full disk": "a disk of 64 MiB is filled up at a random change of the run's files",
    "file size limit": "files of more than 0 to 50,000 bytes are refused from a random change on",
    "read-only directory": "the right to write is taken away at a random change",
    "odd directory name": "wildcards, spaces, line breaks, control characters, symlinks, 255 bytes",
    "code in files": "templates, tokenizers, modules, pickles and records of runs that would run "
    "code",
}


def table(trials: Sequence[Trial]) -> str:
    """Return the table of faults as Markdown."""
    counts = collections.Counter((t.fault, t.verdict) for t in trials)
    rows = [
        "| fault | what is done | tried | survived | named | lost |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for fault in FAULTS:
        of = [counts[fault, verdict] for verdict in (SURVIVED, NAMED, LOST)]
        if sum(of):
            rows.append(
                f"| {fault} | {_WHAT[fault]} | {sum(of)} | " + " | ".join(map(str, of)) + " |"
            )
    of = [sum(t.verdict == verdict for t in trials) for verdict in (SURVIVED, NAMED, LOST)]
    rows.append(f"| **all** | | **{sum(of)}** | " + " | ".join(f"**{n}**" for n in of) + " |")
    return "\n".join(rows)


def lost_list(trials: Sequence[Trial]) -> str:
    """Return a line for each trial that was lost; "" if none was."""
    lost = [t for t in trials if t.verdict == LOST]
    if not lost:
        return ""
    head = "Lost, each with the command that repeats it:"
    repeat = "python -m tests.chaos --repeat"
    lines = [f"- `{repeat} {_quoted(t.fault)} {t.command} {t.seed}`" for t in lost]
    return "\n".join([head, "", *lines, ""])


def _quoted(name: str) -> str:
    return f'"{name}"' if " " in name else name


def commands_table(trials: Sequence[Trial]) -> str:
    """Return the table of commands as Markdown."""
    rows = ["| command | tried | survived | named | lost |", "|---|--:|--:|--:|--:|"]
    for command in dict.fromkeys(t.command for t in trials):
        of = [
            sum(t.verdict == verdict for t in trials if t.command == command)
            for verdict in (SURVIVED, NAMED, LOST)
        ]
        rows.append(f"| `jaxalign {command}` | {sum(of)} | " + " | ".join(map(str, of)) + " |")
    tried = {(t.fault, t.command) for t in trials}
    missing = [
        f"`{command}`: {', '.join(faults)}"
        for command in COMMANDS
        if (faults := [fault for fault in FAULTS if (fault, command) not in tried])
        and len(faults) < len(FAULTS)
    ]
    untried = [f"`{c}`" for c in COMMANDS if all((f, c) not in tried for f in FAULTS)]
    if untried:
        rows += ["", f"Not in this table, though the command can try them: {', '.join(untried)}."]
    if missing:
        rows += ["", f"Not tried in this table: {'; '.join(missing)}."]
    return "\n".join(rows)


def write_page(trials: Sequence[Trial], command: str) -> None:
    """Write the page from `page.md`, whose blanks are filled in."""
    days = sorted({t.date for t in trials})
    blanks = {
        "TABLE": table(trials),
        "COMMANDS": commands_table(trials),
        "LOST": lost_list(trials),
        "DATE": days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}",
        "VERSIONS": _versions(),
        "COMMAND": command,
        "TRIALS": str(len(trials)),
    }
    text = TEXT.read_text("utf-8")
    for name, value in blanks.items():
        text = text.replace("{" + name + "}", value)
    write_text(PAGE, text)


def _versions() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found = {"jaxalign": project["version"]}
    found |= {name: importlib.metadata.version(name) for name in ("jax", "orbax-checkpoint")}
    return ", ".join(f"{name} {version}" for name, version in found.items())
