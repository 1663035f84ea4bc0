"""The commands under test: small settings, and what a run of each leaves behind."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import traceback
from collections.abc import Sequence
from pathlib import Path

from jaxalign.cli import run_command
from jaxalign.pocket.society import held_out_survey
from jaxalign.surveys.survey import to_json

# Of another kind in every run: times of day, what was said, and what only a resumed run reads.
_NOT_COMPARED = ("config.json", "status.json", "notes.log")
_STEPS = r"\d+$|\d+\.orbax|damaged-\d"


@dataclasses.dataclass(frozen=True)
class Job:
    """A command with its settings.

    Attributes:
        name: Name of the sub-command.
        settings: Its arguments, but for the directory of the run.
        other: Arguments of a run with another seed, whose files are of no use to this one.
        resume: What continues a run.
        texts: The option that takes a folder of prompt texts, if there is one.
    """

    name: str
    settings: tuple[str, ...]
    other: tuple[str, ...]
    resume: tuple[str, ...] = ("--resume",)
    texts: str | None = None

    def arguments(self, out: Path, resume: bool = False, other: bool = False) -> list[str]:
        """Return the command line of a run in a directory."""
        settings = self.other if other else self.settings
        return [*settings, "--out", str(out), *(self.resume if resume else ())]


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Its exit code; 1 where it raised.
        said: Everything that it printed, errors last.
        errors: What it printed to standard error.
    """

    code: int
    said: str
    errors: str

    @property
    def in_one_line(self) -> bool:
        """Whether it stopped as for bad input: code 2, and one line that says why."""
        lines = self.errors.strip().splitlines()
        return self.code == 2 and len(lines) == 1 and lines[0].startswith("error: ")


def all_jobs(folder: Path) -> dict[str, Job]:
    """Write the input files of the commands to a folder; return the commands by name."""
    sweep = 'seeds = {}\ncountries = ["USA", "CHN"]\nprompt_lengths = [2]\ngenerations = 4\n'
    sweep += 'test_presentations = []\n[[strategies]]\nname = "de4"\npopulation = 4\n'
    files = {}
    for seed in (0, 7):
        files[seed] = folder / f"seed{seed}.toml"
        files[seed].write_text(sweep.format([seed]), "utf-8")
    lines = []
    for n in range(12):
        question, reply = f"Which number comes after {n}?", f"It is {n + 1}."
        said = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
        lines.append(json.dumps({"messages": said}))
    (folder / "talks.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    rows = [f"Which number is the largest?,{n},{n + 20},{n + 3},{n + 1},B" for n in range(4)]
    (folder / "guard.csv").write_text("\n".join(["question,A,B,C,D,answer", *rows]), "utf-8")

    items = held_out_survey().items[::12]
    survey = dataclasses.replace(held_out_survey(), name="a few items")
    survey = survey.subset({item.id for item in items})
    (folder / "survey.json").write_text(json.dumps(to_json(survey)), "utf-8")
    asked = [
        "--styles",
        "unaware",
        "p1",
        "--resamples",
        "20",
        "--block-tokens",
        "128",
        "--quiet",
        "--survey",
    ]
    asked.append(str(folder / "survey.json"))

    def seeded(name: str, option: str, settings: str, texts: str | None = None) -> Job:
        common = (*settings.split(), "--quiet")
        return Job(name, (*common, option, "0"), (*common, option, "7"), texts=texts)

    jobs = (
        seeded(
            "soft-prompt",
            "--seeds",
            "--countries USA CHN --population 4 --generations 6 --save-every 1 --prompt.length 2 "
            "--gradient-steps 2 --icl-examples 1 --held-out-points 3 "
            f"--held-out {folder / 'survey.json'}",
            texts="--prompts",
        ),
        seeded(
            "fine-tune",
            "--train.seed",
            f"--data {folder / 'talks.jsonl'} --save-every 1 --train.batch 4 --train.epochs 2 "
            "--lora.rank 2",
        ),
        Job(
            "ask",
            ("--countries", "USA", "CHN", *asked),
            ("--countries", "USA", "NGA", *asked),
            texts="--texts",
        ),
        Job(
            "sweep",
            (str(files[0]), "--cells-per-program", "1", "--save-prompts", "--quiet"),
            (str(files[7]), "--cells-per-program", "1", "--save-prompts", "--quiet"),
            resume=(),
        ),
        seeded(
            "culturespa",
            "--first-seed",
            f"--countries USA CHN --per-topic 2 --seeds 1 --resamples 20 --presentations A "
            f"--survey {folder / 'survey.json'} "
            f"--guard {folder / 'guard.csv'} --writing.max-new-tokens 64 --save-every 1 "
            "--train.batch 2 --specific-batch 2 --lora.rank 2 --train.unroll False --batch-size 4 "
            "--block-tokens 1024",
            texts="--texts",
        ),
    )
    return {job.name: job for job in jobs}


def run_here(name: str, arguments: Sequence[str]) -> Ended:
    """Run a command in this process."""
    said, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        try:
            run_command(name, arguments, program=f"jaxalign {name}")
            code = 0
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        except Exception:  # as the interpreter would do
            traceback.print_exc()
            code = 1
    return Ended(code, said.getvalue() + errors.getvalue(), errors.getvalue())


def outcome(out: Path) -> dict[str, str]:
    """Return a hash of every file that a finished run leaves, by its path in the run."""
    found = {}
    for path in sorted(files_of(out)):
        name = path.relative_to(out)
        if path.name in _NOT_COMPARED or path.name.startswith("."):
            continue
        # Checkpoints hold what only a resumed run reads, and the number of a step is its folder.
        if "checkpoints" in name.parts or any(re.match(_STEPS, part) for part in name.parts[:-1]):
            continue
        found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def files_of(folder: Path) -> list[Path]:
    """Return the files below a folder."""
    return [Path(where) / name for where, _, names in os.walk(folder) for name in names]


def difference(found: dict[str, str], expected: dict[str, str]) -> str:
    """Say which files differ, empty for none."""
    names = [n for n in sorted(found.keys() | expected.keys()) if found.get(n) != expected.get(n)]
    return ", ".join(names)
