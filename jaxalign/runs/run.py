"""The directory of one run: claimed by one process, resumed only with the settings it began with.

    runs/NAME/config.json     every setting, the caller's facts (hashes), versions, devices
             /metrics.jsonl   one line per generation, step or other unit of progress
             /notes.log       what the library said: plans, kernels and memory too
             /...             whatever else the experiment keeps there

Where several processes run one program, process 0 alone touches the disk, and all others act on
its verdict.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import jax
import numpy as np

from jaxalign.core.disk import check_space
from jaxalign.core.errors import UserError
from jaxalign.core.files import MetricsFile, check_path, plain, write_json
from jaxalign.core.json_text import parse_json
from jaxalign.core.seals import check_sealed, sealed
from jaxalign.runs.environment import environment, versions
from jaxalign.runs.notes import keep_notes_in
from jaxalign.runs.settings import check_facts, check_settings, settings_of
from jaxalign.runs.tracking import Tracker, check_tracker, numbers, open_tracker

_log = logging.getLogger("jaxalign")
FORMAT = "jaxalign run 1"
CONFIG = "config.json"
_LOCK = ".lock"
_LOGS = "logs"
_SHARDS = "shards"
_OF_SHARDS = (_SHARDS, "prompts")
_VERDICTS = ("refused", "new", "resumed")


@dataclasses.dataclass
class Run:
    """An open run directory. Use it as a context manager, or call `close`.

    Attributes:
        out: The directory.
        resumed: Whether the directory held this run already.
        writes: Whether this is process 0, the only one where `log`, `rewind` and `write` do
            something.
        notes: Lines worth showing the user, such as package versions that have changed.
        metrics: The file `metrics.jsonl`.
    """

    out: Path
    resumed: bool
    writes: bool
    notes: tuple[str, ...]
    metrics: MetricsFile
    _lock: int | None
    _tracker: Tracker | None = None

    @classmethod
    def create(
        cls,
        out: Path,
        config: Any,
        facts: Mapping[str, Any],
        resume: bool = False,
        step: str = "generation",
        writes_bytes: float = 0,
        sources: Mapping[str, str] | None = None,
    ) -> Run:
        """Claim a directory for a run and write `config.json`.

        Args:
            out: The directory; made if it is missing.
            config: The settings, a dataclass. With a field `track`, metrics go to that tracker too.
            facts: What a result depends on besides (hashes of model and survey). Like settings,
                they must be the same when the run is resumed.
            resume: Whether to continue the run in `out`; where there is none, a new one begins.
            step: The field that orders `metrics.jsonl`.
            writes_bytes: Estimated size of everything that will be in `out` at once.
            sources: Where the values of settings come from, by name; kept beside them.

        Raises:
            UserError: As `check_run` does, and for facts that have changed; and where the disk has
                not as much room as the run will write.
        """
        metrics = MetricsFile(out / "metrics.jsonl", step, gapless=True)
        if jax.process_index() != 0:
            verdict = _share_verdict("refused")
            if verdict == "refused":
                raise UserError("process 0 has refused the output directory; its message says why")
            return cls(out, verdict == "resumed", False, (), metrics, None)
        try:
            check_space(out, writes_bytes, "out")
            lock = _claim(out)
            try:
                resumed, notes = _begin(out, config, facts, resume, sources or {})
                tracker = _tracker_of(out, config, resumed)
            except BaseException:
                os.close(lock)
                raise
        except BaseException:
            _share_verdict("refused")
            raise
        keep_notes_in(out)
        if getattr(config, "resume", False) and not resumed:
            _log.info(f"{out} holds no run to continue: a new one begins")
        _share_verdict("resumed" if resumed else "new")
        return cls(out, resumed, True, notes, metrics, lock, tracker)

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row to `metrics.jsonl`; call it before saving that step's checkpoint."""
        if self.writes:
            self.metrics.append(row)
            self.track(row, self.metrics.step)

    def track(self, row: Mapping[str, Any], axis: str = "step", phase: str = "") -> None:
        """Send a row of metrics to the run's tracker, where it has one.

        Args:
            row: The row; numbers count, also those of inner objects.
            axis: The field that orders the rows.
            phase: The part of the run that counts these steps; "" for the whole run.
        """
        if self._tracker is not None:
            values = {key: value for key, value in row.items() if key != axis}
            self._tracker.log(phase, axis, int(row[axis]), dict(numbers(values)))

    def rewind(self, last: int) -> None:
        """Drop metrics after the checkpointed step `last`; -1 drops all of them."""
        if self.writes:
            self.metrics.rewind(last)

    def write(self, name: str, value: Any) -> None:
        """Write the JSON file `name` of this run, whole or not at all."""
        if self.writes:
            write_json(self.out / name, value)

    def close(self, failed: bool = False) -> None:
        """Release the directory for other processes, and end the tracked run."""
        if self._tracker is not None:
            self._tracker.close(failed)
            self._tracker = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(failed=error is not None)


def check_run(out: Path, config: Any, resume: bool = False) -> dict[str, Any]:
    """Raise now, writing nothing, what `Run.create` would raise once the model is loaded.

    Returns:
        The facts of the run that is continued; an empty dict for a new run, and on processes other
        than 0.

    Raises:
        UserError: The package of a tracker is missing, or the directory cannot be written to, is in
            use by another process, holds a run although `resume` is False, holds something that is
            no run, or holds a run that began with other settings.
    """
    if jax.process_index() != 0:
        return {}
    check_tracker(getattr(config, "track", None))
    check_path(out, "out")
    nearest = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"`out` {out}: {nearest} is no directory to write in; give another `out`")
    if nearest != out:
        return {}
    if (out / _LOCK).exists():
        os.close(_lock_file(out))
    recorded = _recorded(out, resume)
    if recorded is None:
        return {}
    check_settings(out, config, recorded["settings"])
    return recorded["facts"]


def recorded_run(out: Path) -> tuple[str | None, dict[str, Any]]:
    """Return the name of the run in `out` and its settings; (None, {}) where there is no run.

    The name is the SHA-256 of `config.json`, which is written once and holds the time of the start.
    """
    check_path(out, "out")
    fields = _config_fields(out) if out.is_dir() else None
    if fields is None:
        return None, {}
    return hashlib.sha256((out / CONFIG).read_bytes()).hexdigest(), fields["settings"]


def recorded_facts(out: Path, resume: bool) -> dict[str, Any]:
    """Return the facts of the run that is continued in `out`; an empty dict for a new run.

    For what must be known before the settings are complete, such as the commit of a model from the
    hub. `check_run` says what is wrong with the directory.
    """
    check_path(out, "out")
    fields = _config_fields(out) if resume and out.is_dir() else None
    return {} if fields is None else fields["facts"]


def _tracker_of(out: Path, config: Any, resumed: bool) -> Tracker | None:
    name = getattr(config, "track", None)
    if name is None:
        return None
    run_id, _ = recorded_run(out)
    return open_tracker(name, out, run_id[:16], settings_of(config), resumed)


def _claim(out: Path) -> int:
    """Make `out` if need be and lock it. The kernel releases the lock however the process ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"`out` {out}: {error.strerror}; give another `out`") from None
    _config_fields(out)  # before the lock file, so that a foreign directory is left as it was
    return _lock_file(out)


def _lock_file(out: Path) -> int:
    try:
        handle = os.open(out / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"`out` {out}: {error.strerror}; give another `out`") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        busy = isinstance(error, BlockingIOError)
        reason = "in use by another process" if busy else f"cannot be locked ({error.strerror})"
        raise UserError(f"`out` {out}: {reason}; give another `out`") from None
    return handle


def _begin(
    out: Path,
    config: Any,
    facts: Mapping[str, Any],
    resume: bool,
    sources: Mapping[str, str],
) -> tuple[bool, tuple[str, ...]]:
    """Write a new `config.json`, or compare with the one there. Return (resumed, notes)."""
    facts = plain(facts, "facts")
    if recorded := _recorded(out, resume):
        check_settings(out, config, recorded["settings"])
        check_facts(out, facts, recorded["facts"])
        return True, _version_notes(recorded["versions"])
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    fields = {"format": FORMAT, "started": started, "settings": settings_of(config)}
    fields |= {"sources": dict(sources)} if sources else {}
    with sealed(out / CONFIG):
        write_json(out / CONFIG, fields | {"facts": facts} | environment())
    return False, ()


def _recorded(out: Path, resume: bool) -> dict[str, Any] | None:
    """Return the fields of `config.json`; None where there is no run."""
    fields = _config_fields(out)
    if fields is not None and not resume:
        raise UserError(
            f"`out` {out}: holds a run already; continue it with `resume`, or give another `out`"
        )
    return fields


def _config_fields(out: Path) -> dict[str, Any] | None:
    """Return the fields of `config.json`; None in an empty directory.

    Raises:
        UserError: `config.json` is not that of a run, or is missing while other files are there.
    """
    path = out / CONFIG
    if not path.exists():
        names = {path.name for path in out.iterdir()}
        # The shards of a sweep, and the prompts that they save, come before its table.
        of_shards = set(_OF_SHARDS) if _SHARDS in names else set()
        if others := sorted(n for n in names - of_shards if not _may_precede_config(n)):
            raise UserError(
                f"`out` {out}: holds {others[0]!r} but no {CONFIG} of a run; give another `out`"
            )
        return None
    check_sealed(path)
    try:
        fields = parse_json(path.read_text(encoding="utf-8"))
        parts = (fields[name] for name in ("settings", "facts", "versions"))
        if fields["format"] == FORMAT and all(isinstance(part, dict) for part in parts):
            return fields
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"`out` {out}: its {CONFIG} is not a jaxalign run's; give another `out`")


def _may_precede_config(name: str) -> bool:
    """Whether a file may be there before `config.json` is.

    The lock and a half-written file may be left by a kill, and a launcher keeps the output of its
    processes in the folder of logs.
    """
    return name in (_LOCK, _LOGS) or (name.startswith(f".{CONFIG}.") and name.endswith(".tmp"))


def _version_notes(then: Mapping[str, str]) -> tuple[str, ...]:
    """Return a note for each changed version: it may round otherwise, yet the run may go on."""
    now = versions()
    return tuple(
        f"note: {name} was {then.get(name)} when this run began and is {now.get(name)}: "
        "the last bits may differ from an unbroken run's"
        for name in sorted(now.keys() | then.keys())
        if now.get(name) != then.get(name)
    )


def _share_verdict(verdict: Literal["refused", "new", "resumed"]) -> str:
    """Return process 0's verdict on the directory, on every process."""
    if jax.process_count() == 1:
        return verdict
    from jax.experimental import multihost_utils

    code = multihost_utils.broadcast_one_to_all(np.int32(_VERDICTS.index(verdict)))
    return _VERDICTS[int(code)]
