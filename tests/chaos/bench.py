"""What trials share: runs that were never touched, and their directories at many moments."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import shutil
import tempfile
from pathlib import Path

from tests.chaos.jobs import Ended, Job, all_jobs, difference, outcome, run_here
from tests.chaos.moments import Snapshots, watching

_EVERY = 3  # of a run's moments, one is copied


@dataclasses.dataclass(frozen=True)
class Untouched:
    """A run that was never touched.

    Attributes:
        outcome: What it left, by the path of the file.
        moments: How many changes of its files were seen.
        snapshots: Its directory at some of these moments, and at the end.
    """

    outcome: dict[str, str]
    moments: int
    snapshots: tuple[Path, ...]


class Bench:
    """The commands, and a folder for everything that trials write.

    Untouched runs stay in the folder, and are found there by the next bench that uses it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "inputs").mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)  # for trials that lose the right to write, not that to read
        self.jobs = all_jobs(folder / "inputs")

    @functools.cache  # noqa: B019 (there is one bench)
    def untouched(self, name: str) -> Untouched:
        """Return a run of a command that nobody touches, copied at many moments."""
        folder = self.folder / "untouched" / name
        record = folder / "record.json"
        if not record.exists():
            shutil.rmtree(folder, ignore_errors=True)
            copies = Snapshots(folder / "run", folder / "moments", _EVERY)
            with watching(folder / "run", copies):
                self._finish(name, folder / "run")
            record.write_text(json.dumps({"moments": copies.count}), "utf-8")
        snapshots = sorted((folder / "moments").iterdir())
        moments = json.loads(record.read_text("utf-8"))["moments"]
        return Untouched(outcome(folder / "run"), moments, (*snapshots, folder / "run"))

    @functools.cache  # noqa: B019
    def other(self, name: str) -> Path:
        """Return a run of the command with another seed."""
        out = self.folder / "untouched" / f"{name} with another seed"
        if not (out / "finished").exists():
            shutil.rmtree(out, ignore_errors=True)
            self._finish(name, out, other=True)
            (out / "finished").touch()
        return out

    def _finish(self, name: str, out: Path, other: bool = False) -> None:
        ended = run_here(name, self.jobs[name].arguments(out, other=other))
        if ended.code != 0:
            raise AssertionError(f"{name} fails untouched:\n{ended.said}")

    def new_folder(self) -> Path:
        """Return an empty folder for a trial."""
        folder = Path(tempfile.mkdtemp(dir=self.folder, prefix="trial-"))
        folder.chmod(0o755)
        return folder

    def stopped(self, name: str, chance: random.Random, out: Path) -> None:
        """Put a run as some moment left it into a directory."""
        shutil.copytree(chance.choice(self.untouched(name).snapshots), out)

    def resumed(self, job: Job, out: Path) -> tuple[Ended, str]:
        """Resume a run; return how it ended, and the files in which it differs from the untouched
        one."""
        ended = run_here(job.name, job.arguments(out, resume=True))
        return ended, difference(outcome(out), self.untouched(job.name).outcome)
