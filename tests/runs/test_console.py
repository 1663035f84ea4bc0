"""Exit codes, one-line errors, notes, progress with and without a terminal, tables."""

from __future__ import annotations

import dataclasses
import errno
import functools
import io
import logging
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import pytest

from jaxalign.core.errors import UserError
from jaxalign.core.progress import Progress
from jaxalign.runs import Run
from jaxalign.runs.console import (
    enable_compilation_cache,
    main,
    notes_to_stdout,
    print_table,
    progress_bars,
)


@dataclasses.dataclass(frozen=True)
class Strategy:
    population: int = 64

    def __post_init__(self) -> None:
        if self.population < 4:
            raise UserError(f"`population` {self.population}: give at least 4")


@dataclasses.dataclass(frozen=True)
class Config:
    """Tune soft prompts."""

    country: str = "USA"
    """ISO code of a country."""
    strategy: Strategy = Strategy()
    resume: bool = False


def run(config: Config) -> None:
    if config.country == "XXX":
        raise UserError("`country` XXX: no published scores;\n  known: USA, CHN")
    if config.country == "FULL":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.getcwd())
    if config.country == "BUG":
        raise ValueError("a bug")
    if config.country == "WAIT":
        print("waiting", flush=True)
        signal.pause()
    if config.country == "DEAF":
        try:
            run(Config("WAIT"))
        except KeyboardInterrupt:
            time.sleep(30)
    if config.country == "NOTE":
        logging.getLogger("jaxalign.lm").info("mesh: %d devices [/x]", 8)
        logging.getLogger("jaxalign").debug("not shown")
    print("done", config.country)


def call(*args: str) -> int | str | None:
    try:
        main(run, Config, args)
    except SystemExit as leaving:
        return leaving.code
    return 0


# --- command line


def test_good_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--country", "CHN") == 0
    assert capsys.readouterr() == ("done CHN\n", "")


def test_bad_input_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--country", "XXX") == 2
    said = "error: --country XXX: no published scores; known: USA, CHN\n"
    assert capsys.readouterr() == ("", said)


def test_a_full_disk_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--country", "FULL") == 2
    said, errors = capsys.readouterr()
    assert said == ""
    assert errors.startswith(f"error: {os.getcwd()} cannot be written (no space left on device, ")
    assert errors.endswith(" are free); free some space, then continue with --resume\n")


def test_writes_that_end_after_a_failed_save_are_not_told(capfd) -> None:
    """Tensorstore's come from threads, as errors that nobody can catch, and after the error too."""
    told, before = [], sys.unraisablehook
    try:
        sys.unraisablehook = told.append

        def fail(config: Config) -> None:
            raise UserError("no space")

        with pytest.raises(SystemExit):
            main(fail, Config, ["--country", "CHN"])
        for text in ("Event loop is closed", "another"):
            failure = types.SimpleNamespace(exc_value=RuntimeError(text))
            sys.unraisablehook(failure)
        assert [str(each.exc_value) for each in told] == ["another"]
    finally:
        sys.unraisablehook = before
    assert capfd.readouterr().err == "error: no space\n"


def test_a_configs_own_check_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--strategy.population", "3") == 2
    assert capsys.readouterr() == ("", "error: --strategy.population 3: give at least 4\n")


def test_plans_are_shown_on_request_and_kept_in_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("jaxalign")
    with notes_to_stdout() as screen:
        logger.debug("mesh")
        logger.info("model")
        Run.create(tmp_path / "run", Config(), {}).close()
        screen.setLevel(logging.DEBUG)  # --verbose
        logger.debug("kernel")
    logger.debug("after the run")
    assert capsys.readouterr().out == "model\nkernel\n"
    kept = (tmp_path / "run" / "notes.log").read_text("utf-8").splitlines()
    assert [line.split("  ")[1] for line in kept] == ["mesh", "model", "kernel"]


def test_notes_of_the_library_are_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("jaxalign")
    before = logger.level, logger.propagate, list(logger.handlers)
    assert call("--country", "NOTE") == 0
    assert capsys.readouterr() == ("mesh: 8 devices [/x]\ndone NOTE\n", "")
    assert (logger.level, logger.propagate, logger.handlers) == before


@pytest.mark.parametrize(
    "args", [("--strategy.population", "many"), ("--colour", "red"), ("--country",)]
)
def test_what_tyro_cannot_read_is_exit_2(
    args: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*args) == 2
    out, said = capsys.readouterr()
    assert out == ""
    assert args[-1] in said


def test_help_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    out, said = capsys.readouterr()
    assert "Tune soft prompts." in out
    assert "ISO code of a country." in out
    assert said == ""


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="a bug"):
        call("--country", "BUG")


PROGRAM = """
from jaxalign.runs.console import main
from tests.runs.test_console import Config, run
main(run, Config)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return os.environ | {"JAXALIGN_CACHE": str(tmp_path / "xla"), "JAX_PLATFORMS": "cpu"}


def program(environment: dict[str, str], *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=environment,
    )


def test_exit_code_of_a_process(environment: dict[str, str]) -> None:
    process = program(environment, "--country", "XXX")
    out, said = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert said == "error: --country XXX: no published scores; known: USA, CHN\n"


def test_help_says_how_to_call_and_may_be_cut_short() -> None:
    command = f"{sys.executable} -m experiments.sweep --help | head -1"
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.startswith("usage: python -m experiments.sweep [-h]")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("country", "sent"),
    [("WAIT", signal.SIGINT), ("DEAF", signal.SIGINT), ("WAIT", signal.SIGTERM)],
)
def test_interrupt_is_one_line(environment: dict[str, str], country: str, sent: int) -> None:
    """Also if the first interrupt is swallowed, as in a callback of the garbage collector."""
    process = program(environment, "--country", country)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(sent)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 128 + sent  # 130 for Ctrl-C, 143 for SIGTERM
    acknowledged = "\nstopping; once more to stop at once\n" if country == "DEAF" else ""
    assert said == f"{acknowledged}interrupted; continue with --resume\n"


# --- compilation cache


def test_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = jax.config.jax_compilation_cache_dir
    try:
        assert enable_compilation_cache() == Path(given)  # JAX's own setting goes first
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "here"))
        assert enable_compilation_cache() == tmp_path / "here"
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "here")
        jax.config.update("jax_compilation_cache_dir", None)
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "file" / "below"))
        assert enable_compilation_cache() is None
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", given)


# --- progress


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_in_a_file_are_a_line_every_few_seconds() -> None:
    file, clock = io.StringIO(), Clock()
    with progress_bars(file=file, clock=clock) as on_progress:
        event = functools.partial(
            Progress, "generation", total=20, unit="candidates", units_per_step=1000
        )
        on_progress(event(done=0))
        assert file.getvalue() == ""
        clock.now += 30  # compilation: no part of the speed
        for done in range(1, 21):
            clock.now += 2
            fields = {"USA": f"{20 - done}.0 (median 40.1)", "CHN": "8.0"}
            on_progress(event(done=done, fields=fields))
    lines = file.getvalue().splitlines()
    assert lines[0] == "generation 1/20  measuring  USA 19.0 (median 40.1)  CHN 8.0"
    assert lines[1] == (
        "generation 4/20  500 candidates/s  0:32 left  USA 16.0 (median 40.1)  CHN 8.0"
    )
    assert lines[-1].startswith("generation 20/20  500 candidates/s  0:00 left")
    assert len(lines) == 8


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    file, clock = Terminal(), Clock()
    with progress_bars(file=file, clock=clock) as on_progress:
        on_progress(Progress("generation", 100, 200))  # a resumed run
        on_progress(Progress("generation", 110, 200, fields={"USA": "12.3 (median 40.1)"}))
        clock.now += 10
        on_progress(Progress("reply", 0, 7))  # within a generation
        on_progress(Progress("generation", 120, 200, fields={"USA": "11.9 (median 39.0)"}))
    shown = file.getvalue()
    for text in ("━", "generation 100/200", "starting", "120/200", "1:20 left", "11.9 (median"):
        assert text in shown
    assert "reply 0/7" in shown


def test_a_task_of_the_same_name_begins_anew() -> None:
    file, clock = io.StringIO(), Clock()
    with progress_bars(file=file, clock=clock, every_seconds=0.0) as on_progress:
        for _ in range(2):
            on_progress(Progress("reply", 0, 2))
            clock.now += 100
            for done in (1, 2):
                clock.now += 1
                on_progress(Progress("reply", done, 2))
    once = ["reply 1/2  measuring", "reply 2/2  1 steps/s  0:00 left"]
    assert file.getvalue().splitlines() == once * 2


def test_bars_can_be_quiet_and_an_error_comes_through() -> None:
    for file in (io.StringIO(), Terminal()):
        with progress_bars(quiet=True, file=file) as on_progress:
            on_progress(Progress("step", 0, 2))
            on_progress(Progress("step", 2, 2))
        assert file.getvalue() == ""

    def fail() -> None:
        with progress_bars(file=Terminal()) as on_progress:
            on_progress(Progress("step", 0, 2))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def test_table_rounds_and_aligns() -> None:
    file = io.StringIO()
    print_table("Loss", ["country", "naive", "de"], [["USA", 81.26, 9], ["CHN", None, 12]], file)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert lines[0].strip() == "Loss"
    assert "  USA        81.3    9" in lines
    assert "  CHN           –   12" in lines


def test_a_table_that_nearly_fits_is_not_cut_off() -> None:
    """Columns that can be broken into lines make room for the last one."""
    names = ["model", "strategy", "algorithm", "tokens"]
    columns = [*names, "A (tuned)", "B", "C", "D", "untuned, averaged", "most likely reading"]
    row = ["pocket", "snes", "DifferentialEvolution", 4, 121.7, 151.3, 125.9, 147.3, 137.9, 201.0]
    file = io.StringIO()
    print_table("Loss by presentation", columns, [row], file, names=4)
    said = file.getvalue()
    assert max(map(len, said.splitlines())) <= 120
    for word in ("averaged", "most", "likely", "reading", "137.9", "201.0"):
        assert word in said


def test_square_brackets_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Topics, countries and paths of users may hold them; rich would fail on a stray [/tag]."""
    print_table("runs [/a]", ["topic [b]"], [["[bold]A[/bold]"], ["x [/tmp/m] y"]])
    with progress_bars() as on_progress:
        on_progress(Progress("step", 0, 1))
        on_progress(Progress("step", 1, 1, fields={"a[/b]": "[red]"}))
    said = capsys.readouterr().out
    for text in ("runs [/a]", "topic [b]", "[bold]A[/bold]", "x [/tmp/m] y", "a[/b] [red]"):
        assert text in said
