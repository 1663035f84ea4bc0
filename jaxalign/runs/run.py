"""The directory of one run: claimed by one process, resumed only with the settings it began with.

    runs/NAME/config.json     every setting, the caller's facts (hashes), versions, devices
             /metrics.jsonl   one line per generation
             /...             whatever else the experiment keeps there

On a mesh of several processes, process 0 alone touches the disk and its verdict reaches the rest.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxalign.core.errors import UserError
from jaxalign.runs.environment import environment, versions
from jaxalign.core.files import MetricsFile, plain, write_json
from jaxalign.runs.settings import refuse_changed_facts, refuse_changed_settings, settings_of

_FORMAT = "jaxalign run 1"
_CONFIG = "config.json"
_LOCK = ".lock"
_LOGS = "logs"
_VERDICTS = ("refused", "new", "resumed")


@dataclasses.dataclass
class Run:
    """An open run directory. Use as a context manager, or call `close`.

    `resumed` says that a run was found there; `writes` is True on process 0 only, where `log`,
    `rewind` and `write` do something; `notes` are lines worth showing the user.
    """

    out: Path
    resumed: bool
    writes: bool
    notes: tuple[str, ...]
    metrics: MetricsFile
    _lock: int | None

    @classmethod
    def create(
        cls,
        out: Path,
        config: Any,
        facts: Mapping[str, Any],
        resume: bool = False,
        step: str = "generation",
    ) -> Run:
        """Claim `out` for a run of `config`, a dataclass, and write `config.json`.

        `facts` holds what else a result depends on (hashes of model and survey); like settings,
        they must be the same when resumed. `resume` of a missing or empty directory begins anew.
        `step` is the field that orders `metrics.jsonl`. Raises UserError as `check` does.
        """
        metrics = MetricsFile(out / "metrics.jsonl", step)
        if jax.process_index() != 0:
            verdict = _hear("refused")
            if verdict == "refused":
                raise UserError("process 0 has refused the output directory; its message says why")
            return cls(out, verdict == "resumed", False, (), metrics, None)
        try:
            lock = _claim(out)
            try:
                resumed, notes = _begin(out, config, facts, resume)
            except BaseException:
                os.close(lock)
                raise
        except BaseException:
            _hear("refused")
            raise
        _hear("resumed" if resumed else "new")
        return cls(out, resumed, True, notes, metrics, lock)

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row to `metrics.jsonl`; do so before saving its generation's checkpoint."""
        if self.writes:
            self.metrics.append(row)

    def rewind(self, last: int) -> None:
        """Forget metrics past the checkpointed generation `last`; -1 forgets all of them."""
        if self.writes:
            self.metrics.rewind(last)

    def write(self, name: str, value: Any) -> None:
        """Write the JSON file `name` of this run, whole or not at all."""
        if self.writes:
            write_json(self.out / name, value)

    def close(self) -> None:
        """Let other processes have the directory."""
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
        self.close()


def check(out: Path, config: Any, resume: bool = False) -> dict[str, Any]:
    """Raise now, writing nothing, what `Run.create` would raise once the model is loaded.

    Returns the facts of a run that goes on, none of a new one and on processes other than 0.

    UserError for: a directory in use by another process; one that holds a run, without `resume`;
    one that holds something else; a setting other than the one the run began with.
    """
    if jax.process_index() != 0:
        return {}
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
    refuse_changed_settings(out, config, recorded["settings"])
    return recorded["facts"]


def begun(out: Path) -> tuple[str | None, dict[str, Any]]:
    """What names the run in `out`, and the settings it began with; (None, {}) where there is none.

    The name is the SHA-256 of `config.json`, which is written once and tells when it was.
    """
    fields = _config_fields(out) if out.is_dir() else None
    if fields is None:
        return None, {}
    return hashlib.sha256((out / _CONFIG).read_bytes()).hexdigest(), fields["settings"]


def _claim(out: Path) -> int:
    """Make `out` if need be and lock it. The kernel lets go when the process dies, however."""
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
    out: Path, config: Any, facts: Mapping[str, Any], resume: bool
) -> tuple[bool, tuple[str, ...]]:
    """Write a new `config.json`, or compare with the one there. Returns (resumed, notes)."""
    facts = plain(facts, "facts")
    if recorded := _recorded(out, resume):
        refuse_changed_settings(out, config, recorded["settings"])
        refuse_changed_facts(out, facts, recorded["facts"])
        return True, _version_notes(recorded["versions"])
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    fields = {"format": _FORMAT, "started": started, "settings": settings_of(config)}
    write_json(out / _CONFIG, fields | {"facts": facts} | environment())
    return False, ()


def _recorded(out: Path, resume: bool) -> dict[str, Any] | None:
    """The fields of `config.json`; None where no run has begun. UserError without `resume`."""
    fields = _config_fields(out)
    if fields is not None and not resume:
        raise UserError(
            f"`out` {out}: holds a run already; continue it with `resume`, or give another `out`"
        )
    return fields


def _config_fields(out: Path) -> dict[str, Any] | None:
    """The fields of `config.json` in `out`, None where nothing is. UserError if it is not ours."""
    path = out / _CONFIG
    if not path.exists():
        if others := sorted(p.name for p in out.iterdir() if not _is_scrap(p.name)):
            raise UserError(
                f"`out` {out}: holds {others[0]!r} but no {_CONFIG} of a run; give another `out`"
            )
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        parts = (fields[name] for name in ("settings", "facts", "versions"))
        if fields["format"] == _FORMAT and all(isinstance(part, dict) for part in parts):
            return fields
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"`out` {out}: its {_CONFIG} is not a jaxalign run's; give another `out`")


def _is_scrap(name: str) -> bool:
    """What may be there before `config.json`: the lock and a half-written file, which a kill
    leaves, and the folder that a launcher keeps the output of its processes in."""
    return name in (_LOCK, _LOGS) or (name.startswith(f".{_CONFIG}.") and name.endswith(".tmp"))


def _version_notes(then: Mapping[str, str]) -> tuple[str, ...]:
    """Other versions may round otherwise, yet the user may want the run to go on."""
    now = versions()
    return tuple(
        f"note: {name} was {then.get(name)} when this run began and is {now.get(name)}: "
        "the last bits may differ from an unbroken run's"
        for name in sorted(now.keys() | then.keys())
        if now.get(name) != then.get(name)
    )


def _hear(verdict: Literal["refused", "new", "resumed"]) -> str:
    """Process 0's verdict on the directory, on every process of the mesh."""
    if jax.process_count() == 1:
        return verdict
    code = multihost_utils.broadcast_one_to_all(np.int32(_VERDICTS.index(verdict)))
    return _VERDICTS[int(code)]
