"""The command line: `python -m tests.chaos --help`."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.bench import Bench
from tests.chaos.faults import FAULTS, LOST
from tests.chaos.report import PAGE, table, write_page
from tests.chaos.trials import (
    COMMANDS,
    Trial,
    add_to_record,
    prepare,
    read_record,
    run_trial,
    trials,
)


def main() -> int:
    """Run trials; return 1 if a run was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--trials", type=int, help="stop after so many trials")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes")
    parser.add_argument("--seed", type=int, help="seed of the trials' seeds; default: a new one")
    parser.add_argument("--faults", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument(
        "--record", type=Path, help="file of JSON lines that trials are added to, and counted from"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="where runs are made; runs that nobody touches stay there, and are used again",
    )
    parser.add_argument(
        "--report", action="store_true", help=f"write {PAGE.name} from all trials on record"
    )
    parser.add_argument(
        "--repeat",
        nargs=3,
        metavar=("FAULT", "COMMAND", "SEED"),
        help="run one trial again, as it was printed",
    )
    settings = parser.parse_args()
    prepare()
    folder = settings.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    bench = Bench(folder)
    if settings.repeat:
        fault, command, seed = settings.repeat
        trial = run_trial(bench, fault, command, int(seed))
        show(trial, folder, whole=True)
        return int(trial.verdict == LOST)
    earlier = read_record(settings.record) if settings.record else []
    began = time.process_time()
    found = run(settings, bench, earlier)
    print(f"{time.process_time() - began:.0f} CPU seconds, without those of killed processes")
    print(table([*earlier, *found]))
    if settings.report:
        limits = [
            f"--{name} {value:g}"
            for name in ("minutes", "trials")
            if (value := getattr(settings, name)) is not None
        ]
        words = ["python -m tests.chaos", *limits, "--record runs/chaos.jsonl --report"]
        command = " ".join(words)
        write_page([*earlier, *found], command)
        print(f"{PAGE} is written")
    lost = [trial for trial in found if trial.verdict == LOST]
    if not lost and not settings.folder:
        shutil.rmtree(folder, ignore_errors=True)
    return int(bool(lost))


def run(settings: argparse.Namespace, bench: Bench, earlier: list[Trial]) -> list[Trial]:
    """Run trials until there are enough, or time is over."""
    seed = random.randrange(2**32) if settings.seed is None else settings.seed
    print(f"python -m tests.chaos --seed {seed}", flush=True)
    began, found = time.monotonic(), []
    most = settings.trials if settings.trials is not None else 10**9
    if settings.trials is None and settings.minutes is None:
        most = 1 if not settings.report else 0
    if most == 0:
        return found
    source = random.Random(seed)
    for trial in trials(bench, settings.faults, settings.commands, earlier, source):
        found.append(trial)
        show(trial, bench.folder)
        if settings.record:
            add_to_record(settings.record, trial)
        over = settings.minutes is not None and time.monotonic() - began > 60 * settings.minutes
        if len(found) >= most or over:
            break
    return found


def show(trial: Trial, folder: Path, whole: bool = False) -> None:
    """Print how a trial ended."""
    detail = trial.detail if whole or trial.verdict == LOST else trial.detail[:300]
    print(f"{trial.verdict:8} {trial.fault}, {trial.command}, seed {trial.seed}: {detail}")
    if trial.verdict == LOST:
        print(
            f"         its files are in {folder}; repeat it with: python -m tests.chaos --repeat "
            f"'{trial.fault}' {trial.command} {trial.seed}"
        )
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
