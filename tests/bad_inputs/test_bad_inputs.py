"""Every reader refuses every bad file in one line that names it: no traceback, no endless work."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.core.errors import UserError
from tests.bad_inputs.damage import ANY_FILE, JSON, NO_FILE, TEXT
from tests.bad_inputs.readers import READERS
from tests.bad_inputs.special import SPECIAL

LONGEST_MESSAGE = 500  # characters besides the path
MOST_SECONDS = 5  # of this process's own computing, which other processes do not lengthen

CHANGES = {"json": ANY_FILE | TEXT | JSON, "text": ANY_FILE | TEXT, "binary": ANY_FILE}


@contextlib.contextmanager
def no_endless_work() -> Iterator[None]:
    """Fail where the block computes for longer than a user would wait."""

    def stop(*_: Any) -> None:
        raise AssertionError(f"still at work after {MOST_SECONDS} seconds")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def refusal(read: Callable[[], Any]) -> str | None:
    """Return what a reader says, None where it takes the file; any other error comes through."""
    with no_endless_work():
        try:
            read()
        except UserError as error:
            return str(error)
    return None


def broken(reader: str) -> Iterator[tuple[str, Callable[[Path], Path]]]:
    """Yield what is wrong with a reader's file, and what writes it so."""
    case = READERS[reader]()
    for what, change in CHANGES[case.kind].items():
        if change(case.good) == case.good:
            continue

        def write(folder: Path, change: Callable = change) -> None:
            case.write(folder).write_bytes(change(case.good))

        yield what, write
    for what, content in SPECIAL.get(reader, {}).items():
        yield what, lambda folder, content=content: case.write(folder).write_bytes(content)
    for what, replace in NO_FILE.items():
        yield what, lambda folder, replace=replace: replace(case.write(folder))


@pytest.mark.parametrize("reader", READERS)
def test_a_reader(reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache" / "xla"))
    case, wrong = READERS[reader](), []
    case.write(tmp_path / "good")
    assert refusal(lambda: case.read(tmp_path / "good")) is None
    for n, (what, write) in enumerate(broken(reader)):
        folder = tmp_path / str(n)
        write(folder)
        try:
            said = refusal(lambda folder=folder: case.read(folder))
        except Exception as error:
            wrong.append(f"{what}: {error!r:.300}")
            continue
        if (said is None) != (what in case.takes):
            wrong.append(f"{what}: {'takes it' if said is None else said!r}")
        elif said is not None:
            wrong += [f"{what}: {fault}: {said!r:.300}" for fault in faults(said, case, folder)]
    assert not wrong, "\n".join(["", *wrong])


def faults(said: str, case: Any, folder: Path) -> Iterator[str]:
    """Yield what is wrong with a message."""
    if "\n" in said:
        yield "more than one line"
    if not all(c.isprintable() for c in said):
        yield "control characters"
    if len(said.replace(str(folder), "")) > LONGEST_MESSAGE:
        yield "too long"
    if (case.says or case.file) not in said:
        yield "names no file"


def test_there_are_many() -> None:
    """Hundreds by their own words, and each word of a reader that is there."""
    assert SPECIAL.keys() <= READERS.keys()
    assert sum(map(len, SPECIAL.values())) >= 200


@st.composite
def spoilt(draw: st.DrawFn, good: bytes) -> bytes:
    """Draw a file with a few of its bytes overwritten, inserted, dropped or moved."""
    for _ in range(draw(st.integers(1, 3))):
        at, length = draw(st.integers(0, len(good))), draw(st.integers(0, 40))
        some = draw(st.binary(max_size=8) | st.sampled_from([b"\0", b"[", b'"', b"-1", b"1e999"]))
        start = at if draw(st.booleans()) else min(at, 200)  # headers matter most
        good = good[:start] + some + good[start + length :]
    return good


@pytest.mark.long
@pytest.mark.parametrize("reader", READERS)
def test_whatever_is_spoilt(
    reader: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that nobody thought of: read all the same, or refused in one line."""
    case, folder = READERS[reader](), tmp_path_factory.mktemp("spoilt")
    monkeypatch.setenv("JAXALIGN_CACHE", str(folder / "cache" / "xla"))

    @settings(max_examples=60, derandomize=True, deadline=None, database=None)
    @given(spoilt(case.good))
    def check(content: bytes) -> None:
        case.write(folder).write_bytes(content)
        said = refusal(lambda: case.read(folder))
        assert said is None or ("\n" not in said and said.isprintable()), said

    check()
