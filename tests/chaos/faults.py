"""What is done to runs, by name. Each is a function of the bench, a command and a random source."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.chaos.bench import Bench
from tests.chaos.jobs import Ended, Job, files_of, run_here
from tests.chaos.kills import kill
from tests.chaos.moments import Counter, watching

SURVIVED, NAMED, LOST = "survived", "named", "lost"
_DISK_MIB = 64
_NOBODY = 65534


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How a trial ended, and what there is to say of it."""

    verdict: str
    detail: str


Trial = Callable[[Bench, Job, random.Random], Verdict]


def _resumed(bench: Bench, job: Job, out: Path, done: str) -> Verdict:
    """Resume a run that must end as if nothing had been."""
    ended, differs = bench.resumed(job, out)
    if ended.code != 0:
        return Verdict(LOST, f"{done}; then cannot be resumed: {ended.said[-2000:]}")
    return Verdict(LOST, f"{done}; differs in {differs}") if differs else Verdict(SURVIVED, done)


# Signals


def killed(number: int) -> Trial:
    """Return a trial that ends a process by a signal, up to three times."""

    def trial(bench: Bench, job: Job, chance: random.Random) -> Verdict:
        out, said = bench.new_folder() / "run", []
        for attempt in range(chance.choice((1, 1, 2, 3))):
            at = chance.randrange(1, bench.untouched(job.name).moments + 1)
            delay_seconds = chance.choice((0.0, chance.uniform(0, 0.3)))
            arguments = job.arguments(out, resume=attempt > 0)
            code, words = kill(job.name, arguments, out, at, delay_seconds, number)
            said.append(f"{signal.Signals(number).name} at change {at} + {delay_seconds:.2f} s")
            allowed = {-number, 0} if number == signal.SIGKILL else {128 + number, 0}
            if code not in allowed:
                return Verdict(LOST, f"{'; '.join(said)}: exit code {code}: {words[-2000:]}")
            if code == 128 + number and "interrupted" not in words:
                return Verdict(LOST, f"{'; '.join(said)}: does not say so: {words[-500:]}")
        return _resumed(bench, job, out, "; ".join(said))

    return trial


# Damage


def damaged(change: Callable[[Bench, Job, random.Random, Path], Path | None]) -> Trial:
    """Return a trial that damages a run as it was at some moment.

    Args:
        change: Does the damage, and returns the file or folder that it was done to; None where the
            run holds nothing that could be damaged so.
    """

    def trial(bench: Bench, job: Job, chance: random.Random) -> Verdict:
        for _ in range(20):
            out = bench.new_folder() / "run"
            bench.stopped(job.name, chance, out)
            target = change(bench, job, chance, out)
            if target is not None:
                break
            shutil.rmtree(out.parent)
        else:
            return Verdict("", "nothing to damage")
        ended, differs = bench.resumed(job, out)
        what = str(target.relative_to(out))
        if ended.code == 0 and not differs:
            return Verdict(SURVIVED, what)
        if _names(ended, target, out) and (ended.code == 0 or ended.in_one_line):
            return Verdict(NAMED, f"{what}: {_line_about(ended, target, out)}")
        how = f"differs in {differs}" if ended.code == 0 else f"exit code {ended.code}"
        return Verdict(LOST, f"{what}: {how}: {ended.said[-1500:]}")

    return trial


def _names(ended: Ended, target: Path, out: Path) -> bool:
    return bool(_line_about(ended, target, out))


def _line_about(ended: Ended, target: Path, out: Path) -> str:
    """Return the line of output that names a file of a run, or a folder that it is in.

    A file with another's checksums is told by the name of that file.
    """
    if checksums := re.fullmatch(r"\.(.+)\.sums?", target.name):
        target = target.with_name(checksums[1])
    parts = target.relative_to(out).parts
    for depth in range(len(parts), 0, -1):
        name = "/".join(parts[:depth])
        before = "/ '" if set(name) & {".", "/"} else "/'"  # "training" alone may be any word
        for line in ended.said.splitlines():
            if re.search(rf"(^|[{before}]){re.escape(name)}($|[ ':;,)])", line):
                return line
    return ""


def _some_file(chance: random.Random, out: Path) -> Path | None:
    """Choose a file of a run; those that hold little are as likely as large ones."""
    files = [path for path in sorted(files_of(out)) if path.stat().st_size]
    # Left by a write that was under way; nobody reads them.
    files = [path for path in files if path.suffix != ".tmp"]
    return chance.choice(files) if files else None


def flip_a_bit(bench: Bench, job: Job, chance: random.Random, out: Path) -> Path | None:
    """Flip one bit of one file."""
    path = _some_file(chance, out)
    if path is not None:
        content = bytearray(path.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
    return path


def cut_a_file(bench: Bench, job: Job, chance: random.Random, out: Path) -> Path | None:
    """Cut the end off one file."""
    path = _some_file(chance, out)
    if path is not None:
        os.truncate(path, chance.randrange(path.stat().st_size))
    return path


def remove_a_file(bench: Bench, job: Job, chance: random.Random, out: Path) -> Path | None:
    """Remove one file."""
    path = _some_file(chance, out)
    if path is not None:
        path.unlink()
    return path


def rename_a_step(bench: Bench, job: Job, chance: random.Random, out: Path) -> Path | None:
    """Give a step of a checkpoint another number."""
    steps = [p for p in sorted(out.rglob("*")) if p.is_dir() and p.name.isdigit()]
    if not steps:
        return None
    step = chance.choice(steps)
    number = max(0, int(step.name) + chance.choice((-1, 1, 2, 5)))
    if step.with_name(str(number)).exists():
        return None
    return step.rename(step.with_name(str(number)))


def from_another_seed(bench: Bench, job: Job, chance: random.Random, out: Path) -> Path | None:
    """Put a file or a step of a run with another seed in the place of this run's."""
    other = bench.other(job.name)
    found = []
    for theirs in sorted([other / "config.json", *other.rglob("*")]):
        mine = out / str(theirs.relative_to(other)).replace("seed7", "seed0")
        step = theirs.is_dir() and theirs.name.isdigit()
        if not mine.exists() or not (step or theirs.is_file()) or theirs.name == ".lock":
            continue
        if step or theirs.read_bytes() != mine.read_bytes():
            found.append((theirs, mine))
    if not found:
        return None
    theirs, mine = chance.choice(found)
    if theirs.is_dir():
        shutil.rmtree(mine)
        shutil.copytree(theirs, mine)
    else:
        shutil.copy(theirs, mine)
    return mine


# Disks


def can_mount() -> bool:
    """Whether this process may mount a small disk."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with _small_disk(Path(folder)):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    options = ["-t", "tmpfs", "-o", f"size={_DISK_MIB}m", "tmpfs", str(folder)]
    subprocess.run(["mount", *options], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


def full_disk(bench: Bench, job: Job, chance: random.Random) -> Verdict:
    """Fill a small disk at some moment, up to a few bytes; then make room and resume."""
    folder = bench.new_folder()
    with _small_disk(folder):
        out, filler = folder / "run", folder / "filler"
        left = chance.choice((0, 0, 4096, 20_000, 200_000))

        def fill() -> None:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * 65536)
            os.truncate(filler, max(0, filler.stat().st_size - left))

        return _starved(bench, job, chance, out, fill, filler.unlink, f"{left} bytes left")


def file_size_limit(bench: Bench, job: Job, chance: random.Random) -> Verdict:
    """Limit the size of files at some moment, as `ulimit -f` does; then lift it and resume."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = chance.choice((0, 100, 1000, 10_000, 50_000))
    return _starved(
        bench,
        job,
        chance,
        bench.new_folder() / "run",
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard)),
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard)),
        f"files of at most {limit} bytes",
    )


def read_only(bench: Bench, job: Job, chance: random.Random) -> Verdict:
    """Take away the right to write at some moment; then give it back and resume."""
    out = bench.new_folder() / "run"

    def folders() -> list[Path]:
        return [out.parent, *(Path(where) for where, _, _ in os.walk(out))]

    def forbid() -> None:
        if os.geteuid() == 0:  # whom no mode stops
            os.seteuid(_NOBODY)
        else:
            for folder in folders():
                folder.chmod(0o555)

    def allow() -> None:
        if os.getuid() == 0:
            os.seteuid(0)
        else:
            for folder in folders():
                folder.chmod(0o755)

    return _starved(bench, job, chance, out, forbid, allow, "not allowed to write")


def _starved(
    bench: Bench,
    job: Job,
    chance: random.Random,
    out: Path,
    begin: Callable[[], object],
    end: Callable[[], object],
    what: str,
) -> Verdict:
    """Run a command that cannot write from some moment on, and resume it when it can again."""
    at = chance.randrange(1, bench.untouched(job.name).moments + 1)
    counter, done = Counter(at, begin), f"{what} from change {at}"
    with watching(out, counter):
        try:
            ended = run_here(job.name, job.arguments(out))
        finally:
            if counter.reached:
                end()
    if ended.code != 0 and not ended.in_one_line:
        return Verdict(LOST, f"{done}: not one line: {ended.said[-2000:]}")
    if ended.code != 0:
        done += f": {ended.errors.strip()}"
    return _resumed(bench, job, out, done)


# Names


NAMES = (
    "[a-z]",
    "[!x] *? {a,b}",
    "two  words ",
    "new\nline",
    "tab\there",
    "ünï ☃ 你好",
    "%s {} {0} $HOME `id` ; & | 'q' \"q\"",
    "\x1b[31mred",
    "n" * 255,
    "é" * 127,
    "run.orbax-checkpoint-tmp",
    "7",
    "symlink",
)


def odd_names(bench: Bench, job: Job, chance: random.Random) -> Verdict:
    """Run in a directory with an odd name, stopped half-way; or resume a run that is moved there.

    A name may also be refused, as long as it is before anything is written.
    """
    name = chance.choice(NAMES)
    out = bench.new_folder() / name
    if name == "symlink":
        (out.parent / "elsewhere").mkdir()
        out.symlink_to("elsewhere", target_is_directory=True)
    if chance.random() < 0.5 and name != "symlink":
        bench.stopped(job.name, chance, out)
        return _resumed(bench, job, out, f"moved to {name!r}")
    at = chance.randrange(1, bench.untouched(job.name).moments + 1)

    def stop() -> None:
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt(signal.SIGINT)

    with watching(out, Counter(at, stop)):
        ended = run_here(job.name, job.arguments(out))
    if ended.code not in (0, 128 + signal.SIGINT):
        if ended.in_one_line and not files_of(out.parent):
            return Verdict(NAMED, f"{name!r}: {ended.errors.strip()}")
        return Verdict(LOST, f"begun in {name!r}: {ended.said[-2000:]}")
    return _resumed(bench, job, out, f"begun in {name!r}, stopped at change {at}")


# Code in files


def hostile_files(bench: Bench, job: Job, chance: random.Random) -> Verdict:
    """Give a command files that try to run code: none may run, and none may end in a traceback."""
    from tests.chaos.hostile import FILES

    folder = bench.new_folder()
    canary, out = folder / "canary", folder / "run"
    kind = chance.choice([k for k in sorted(FILES) if k != "prompt texts" or job.texts])
    job = FILES[kind](bench, job, folder, canary, chance)
    begun = (out / "config.json").exists()
    ended = run_here(job.name, job.arguments(out, resume=begun))
    if canary.exists():
        return Verdict(LOST, f"{kind}: the code ran: {ended.said[-2000:]}")
    if ended.code != 0 and not ended.in_one_line:
        return Verdict(LOST, f"{kind}: exit code {ended.code}: {ended.said[-2000:]}")
    said = ended.errors.strip() if ended.code else "used as text, or not at all"
    return Verdict(NAMED if ended.code else SURVIVED, f"{kind}: {said}")


FAULTS: dict[str, Trial] = {
    "kill -9": killed(signal.SIGKILL),
    "SIGTERM": killed(signal.SIGTERM),
    "Ctrl-C": killed(signal.SIGINT),
    "flipped bit": damaged(flip_a_bit),
    "cut file": damaged(cut_a_file),
    "removed file": damaged(remove_a_file),
    "renamed step": damaged(rename_a_step),
    "another seed's file": damaged(from_another_seed),
    "full disk": full_disk,
    "file size limit": file_size_limit,
    "read-only directory": read_only,
    "odd directory name": odd_names,
    "code in files": hostile_files,
}


def possible(fault: str) -> bool:
    """Whether this machine can do a fault to a run."""
    if fault == "full disk":
        return sys.platform == "linux" and can_mount()
    return True
