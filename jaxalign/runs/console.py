"""The command line: arguments, errors on one line, notes, progress bars, tables."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TextIO, TypeVar

import jax

from jaxalign.core.disk import cannot_write
from jaxalign.core.errors import UserError
from jaxalign.core.files import cache_folder
from jaxalign.core.progress import OnProgress, Progress, Speed, ignore
from jaxalign.core.streams import drawing_stream, replace_what_cannot_be_printed, visible
from jaxalign.core.terms import abbreviations
from jaxalign.runs.interrupts import insistent_interrupts
from jaxalign.runs.notes import RunNotes
from jaxalign.runs.settings import with_flags
from jaxalign.runs.settings_file import FLAG, split_arguments
from jaxalign.runtime import hosts
from jaxalign.runtime.compilation_cache import check_entries
from jaxalign.runtime.compiling import watch_compiler

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress as Display
    from rich.progress import Task

Config = TypeVar("Config")


def main(
    run: Callable[[Config], Any],
    config_class: type[Config],
    args: Sequence[str] | None = None,
    program: str | None = None,
) -> None:
    """Read settings from the command line and call `run` with them.

    Notes that the library logs are printed to standard output (where a field or class attribute
    `verbose` is true, plans and kernels too); characters that it cannot show are replaced. The
    process exits with code 2 for bad input and for files that cannot be written, which is explained
    in one line on standard error, and with 130 (Ctrl-C) or 143 (SIGTERM) if it is interrupted
    (`jaxalign.runs.interrupts`). Any other exception is a bug and keeps its traceback.

    Args:
        run: What the program does.
        config_class: Dataclass of the settings. Its docstring and those of its fields are the help
            text. With a field `resume`, or a class attribute `continues_itself`, an interrupted
            program says how it is continued.
        args: Command-line arguments; default: those of the process. `--config FILE` among them
            reads settings from a file.
        program: How the help text names the program; default: how the process was started.
    """
    replace_what_cannot_be_printed()
    resumable = "resume" in {field.name for field in dataclasses.fields(config_class)}
    hint = "; continue with --resume" if resumable else ""
    if getattr(config_class, "continues_itself", False):
        hint = "; the same command continues"
    try:
        with (
            insistent_interrupts(hint) as set_handlers,
            notes_to_stdout(config_class) as screen,
            _quiet_libraries(),
        ):
            config = _parse(config_class, args, program or _program())
            if getattr(config, "verbose", False):
                screen.setLevel(logging.DEBUG)
            hosts.join()
            set_handlers()  # again: joining other processes sets one that ignores SIGTERM
            enable_compilation_cache()
            run(config)
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a reader that has left is no error
    except UserError as error:
        _print_error(with_flags(str(error), config_class))
        _leave(2)
    except KeyboardInterrupt as stopped:
        print(f"interrupted{hint}", file=sys.stderr)
        _leave(128 + next(iter(stopped.args), signal.SIGINT))
    except BrokenPipeError:  # ... | head: whoever read the output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _leave(1)
    except Exception as error:
        if (reason := cannot_write(error)) is not None:
            again = "continue with --resume" if resumable else "start the same command again"
            _print_error(f"{reason}, then {again}")
            _leave(2)
        if not hosts.joined():
            raise
        traceback.print_exc()
        _leave(1)


def _print_error(line: str) -> None:
    """Print a line to standard error. Either stream may be a file on the disk that is full."""
    with contextlib.suppress(OSError):
        print("error:", visible(" ".join(line.split())), file=sys.stderr, flush=True)
    try:
        if sys.stdout is not None:  # it may have been closed before the program began
            sys.stdout.flush()
    except OSError:  # or Python would try once more when it ends, and say so in several lines
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep libraries from printing the tracebacks of errors that they raise as well.

    Orbax prints one from each of its threads, hundreds of lines for one full disk, and JAX a
    warning for each of 150 programs that it cannot keep, without which a run does as well. Each
    write of tensorstore that ends after a save has failed prints that orbax's event loop is closed.
    After an error both stay quiet: their threads go on until the process ends.
    """
    orbax, hook = logging.getLogger("absl"), sys.unraisablehook
    level = orbax.level

    def tell(failure: sys.UnraisableHookArgs) -> None:
        if str(failure.exc_value) != "Event loop is closed":
            hook(failure)

    orbax.setLevel(logging.CRITICAL)
    sys.unraisablehook = tell
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Error writing persistent compilation cache")
        yield
    orbax.setLevel(level)
    sys.unraisablehook = hook


def _leave(code: int) -> NoReturn:
    """Exit; one of several processes leaves at once, as an orderly exit would wait for the rest."""
    if hosts.joined():
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _parse(config_class: type[Config], args: Sequence[str] | None, program: str | None) -> Config:
    """Return the settings on the command line, and those of the file that it names by --config.

    A positional argument of the file counts where the command line has none, which tyro alone can
    tell: it is asked with the file's, and then without.
    """
    args = list(sys.argv[1:] if args is None else args)
    positional, rest = split_arguments(config_class, args)
    if not positional:
        return _parse_words(config_class, rest, program)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return _parse_words(config_class, [*positional, *rest], program)
    except SystemExit as leaving:
        if leaving.code != 2:
            raise
    return _parse_words(config_class, rest, program)


def _parse_words(config_class: type[Config], args: Sequence[str], program: str | None) -> Config:
    """Return the settings that tyro reads from words.

    A UserError that a dataclass raises itself comes through unchanged; tyro would draw it in a box.
    """
    import tyro

    complaint = io.StringIO()
    description = f"{inspect.getdoc(config_class) or ''}\n\n{_ABOUT_FILES}"
    try:
        # Help texts are coloured.
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(drawing_stream()):
            return tyro.cli(config_class, prog=program, args=args, description=description)
    except SystemExit as leaving:
        cause: BaseException | None = leaving
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause from None
            cause = cause.__context__
        sys.stderr.write(complaint.getvalue())
        raise
    except BrokenPipeError:  # --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


_ABOUT_FILES = (
    f"{FLAG} FILE reads settings from a TOML, YAML or JSON file, such as the config.json of a run; "
    "those on the command line go first."
)


def _program() -> str | None:
    """Return how the running program is started, such as `python -m experiments.sweep`."""
    module = sys.modules["__main__"].__spec__
    return module and f"python -m {module.name.removesuffix('.__main__')}"


def enable_compilation_cache() -> Path | None:
    """Keep compiled programs from one run to the next, and check them when they are read.

    The directory is the one JAX has been given already, else $JAXALIGN_CACHE, else `xla` in the
    user's cache (`core.files.cache_folder`).

    Returns:
        The directory; None if it cannot be written to, and nothing is kept.
    """
    check_entries()
    if given := jax.config.jax_compilation_cache_dir:
        return Path(given)
    folder = Path(os.environ.get("JAXALIGN_CACHE") or cache_folder("xla"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # A run has some 150 small programs, and together they take as long as a large one.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder


# Notes


class _Screen(logging.Handler):
    """Prints the message alone, to whatever standard output is by then."""

    def __init__(self, config_class: type | None):
        super().__init__(logging.INFO)
        self._config_class = config_class

    def emit(self, record: logging.LogRecord) -> None:
        note = self.format(record)
        note = with_flags(note, self._config_class) if self._config_class else note
        print(visible(note), flush=True)


@contextlib.contextmanager
def notes_to_stdout(config_class: type | None = None) -> Iterator[logging.Handler]:
    """Print what the library logs at level INFO or above to standard output, as plain lines.

    Settings of `config_class` that a note names in backticks are spelled as flags. A run that
    begins meanwhile keeps all notes in its directory.

    Yields:
        The handler that prints; at level DEBUG it prints everything.
    """
    logger, screen, kept = logging.getLogger("jaxalign"), _Screen(config_class), RunNotes()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(screen)
    logger.addHandler(kept)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False  # other packages may have given the root logger a handler
    try:
        yield screen
    finally:
        logger.removeHandler(screen)
        logger.removeHandler(kept)
        logger.setLevel(level)
        logger.propagate = propagate


# Progress


@contextlib.contextmanager
def progress_bars(
    quiet: bool = False,
    every_seconds: float = 5.0,
    file: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[OnProgress]:
    """Yield a callback that draws progress: bars on a terminal, otherwise a line now and then.

        generation ━━━━━━━━━━━━━━━━━╸━━━━━━━━━  120/200   1,850 candidates/s   0:31 left
        USA 12.3 (median 40.1)   CHN 8.0 (median 22.7)

    Each task has a bar of its own, opened by its first event. Speed and time left are measured
    from the second event on, which leaves out compilation.

    Args:
        quiet: Whether to show nothing.
        every_seconds: Least time between two lines where the output is not a terminal.
        file: Where to draw; default: standard output.
        clock: Returns the time in seconds.
    """
    if quiet:
        yield ignore
        return
    with watch_compiler() as is_compiling:
        bars = _Bars(every_seconds, file, clock, is_compiling)
        try:
            yield bars
        finally:
            bars.close()


@dataclasses.dataclass
class _Task:
    """A task in progress: its latest event, and its speed from the second event on."""

    progress: Progress
    speed: Speed

    @property
    def finished(self) -> bool:
        return self.progress.done >= self.progress.total

    def is_continued_by(self, event: Progress) -> bool:
        """Whether `event` belongs to this task, rather than beginning another of its name."""
        return not self.finished and 0 < event.done >= self.progress.done

    def counts(self, is_compiling: bool) -> list[str]:
        """Return the count, the speed and the time left as short texts."""
        event = self.progress
        count = f"{event.task} {event.done}/{event.total}"
        rate, left = self.speed.per_second(), self.speed.seconds_left(event.total)
        if is_compiling and not self.finished:
            return [count, "compiling"]
        if self.finished and rate is None:
            return [count]
        if rate is None or left is None:
            return [count, "measuring" if self.speed.updates else "starting"]
        speed = rate * event.units_per_step
        shown = f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"
        return [count, f"{shown} {event.unit}/s", f"{_clock_text(round(left))} left"]


class _Bars:
    """The callback that `progress_bars` yields."""

    def __init__(
        self,
        every_seconds: float,
        file: TextIO | None,
        clock: Callable[[], float],
        is_compiling: Callable[[], bool],
    ) -> None:
        from rich.console import Console

        self._every_seconds, self._clock = every_seconds, clock
        self._is_compiling = is_compiling
        self._console = Console(file=file or drawing_stream(), highlight=False, markup=False)
        self._tasks: dict[str, _Task] = {}
        self._last_line = -float("inf")
        self._display: Display | None = None

    def __call__(self, event: Progress) -> None:
        """Show an event. The first of a task only opens its bar."""
        task = self._tasks.get(event.task)
        if task is None or not task.is_continued_by(event):
            self._tasks[event.task] = _Task(event, Speed(self._clock))
            self._open(event)
        else:
            task.progress = event
            task.speed.update(event.done)
            if self._display is None:
                self._print_line(task)
        if self._display is not None:
            for row in self._display.tasks:
                if row.description == event.task:
                    self._display.update(row.id, total=event.total, completed=event.done)
        if all(task.finished for task in self._tasks.values()):
            self.close()

    def close(self) -> None:
        """Leave the bars as they are and forget the tasks."""
        if self._display is not None:
            self._display.stop()
            self._display = None
        self._tasks = {}

    def _open(self, event: Progress) -> None:
        if not self._console.is_terminal:
            return
        if self._display is None:
            self._display = _make_display(self._console, self._lines_of)
            self._display.start()
        if event.task not in [row.description for row in self._display.tasks]:
            self._display.add_task(event.task)

    def _print_line(self, task: _Task) -> None:
        now = self._clock()
        if task.finished or now - self._last_line >= self._every_seconds:
            self._last_line = now
            fields = [f"{name} {text}" for name, text in task.progress.fields.items()]
            line = "  ".join([*task.counts(self._is_compiling()), *fields])
            self._console.print(visible(line), soft_wrap=True)

    def _lines_of(self, name: str) -> tuple[str, list[tuple[str, str]]]:
        """Return what stands beside a task's bar, and the pairs of texts below it."""
        task = self._tasks.get(name)  # rich draws from a thread of its own
        if task is None:
            return "", []
        pairs = task.progress.fields.items()
        beside = visible("   ".join(task.counts(self._is_compiling())))
        return beside, [(visible(label), visible(text)) for label, text in pairs]


def _make_display(
    console: Console, lines_of: Callable[[str], tuple[str, list[tuple[str, str]]]]
) -> Display:
    """Return bars of rich, each with the texts that `lines_of` returns for the task's name."""
    from rich.columns import Columns
    from rich.progress import BarColumn, ProgressColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Beside(ProgressColumn):
        def render(self, task: Task) -> RenderableType:
            return Text(lines_of(task.description)[0])

    class WithFields(RichProgress):
        def get_renderables(self) -> Iterator[RenderableType]:
            for task in self.tasks:
                yield self.make_tasks_table([task])
                if pairs := lines_of(task.description)[1]:
                    fields = [Text.assemble((name, "bold"), " ", text) for name, text in pairs]
                    yield Columns(fields, padding=(0, 3))

    return WithFields(BarColumn(bar_width=24), Beside(), console=console, refresh_per_second=4)


def _clock_text(seconds: int) -> str:
    """Return 83 as "1:23" and 3723 as "1:02:03"."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


# Notes of a result, and tables


class _Note(Protocol):
    """What a report puts first: `jaxalign.report.document.Note`."""

    lead: str
    text: str
    kind: str


_STYLES = {"warning": "bold red", "label": "bold yellow"}


def print_notes(notes: Iterable[_Note], file: TextIO | None = None) -> None:
    """Print what must be read before any number; on a terminal, the first words in colour.

    Args:
        notes: The notes, in order.
        file: Where to print; default: standard output.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(file=file or drawing_stream(), highlight=False)
    for note in notes:
        lead = (visible(note.lead), _STYLES.get(note.kind, "bold"))
        text = Text.assemble(lead, " ", visible(note.text))
        console.print(text, soft_wrap=not console.is_terminal)


def print_abbreviations(texts: Iterable[str], file: TextIO | None = None) -> None:
    """Print what the texts of a result abbreviate; nothing if they abbreviate nothing."""
    if line := abbreviations(texts):
        print_wrapped(line, file)


def print_wrapped(text: str, file: TextIO | None = None) -> None:
    """Print a paragraph; on a terminal, broken between words."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=file or drawing_stream(), highlight=False)
    console.print(Text(visible(text)), soft_wrap=not console.is_terminal)


_NAME_WIDTH = 24  # characters of a row's name that are shown whatever the width
_UNBROKEN = 28  # characters of a cell that is not broken into lines


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    file: TextIO | None = None,
    names: int = 1,
) -> None:
    """Print a table: numbers to the right, floats with one decimal, None as a dash.

    A table that is wider than the terminal is printed in parts, one below the other, each with the
    names of its rows.

    Args:
        title: Line above the table.
        columns: Names of the columns.
        rows: Cells of each row.
        file: Where to print; default: standard output.
        names: Number of columns at the left that name a row.
    """
    import rich.box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=file or drawing_stream(), highlight=False)
    if not console.is_terminal:
        console.width = 120  # a file has no width; 80 would fold the columns
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [
        _least_width(visible(name), [row[i] for row in cells]) for i, name in enumerate(columns)
    ]
    # The first column says what a row is, so it is not cut where a table is wide.
    widths[0] = min(max((len(row[0]) for row in cells), default=0), _NAME_WIDTH)
    for k, part in enumerate(_parts(widths, console.width, names)):
        # Text, not str: names and paths may hold [brackets], which would be read as markup.
        caption = Text(visible(title)) if k == 0 else None
        table = Table(title=caption, title_justify="left", box=rich.box.SIMPLE_HEAD)
        texts = [[visible(columns[i]), *(row[i] for row in cells)] for i in part]
        wanted = [max(map(cell_len, column)) for column in texts]
        room = console.width - 3 * len(part) - 1
        fitted = _fitted([widths[i] for i in part], wanted, room)
        for i, width in zip(part, fitted, strict=True):
            numbers = all(isinstance(row[i], int | float | None) for row in rows)
            justify = "right" if numbers and rows else "left"
            table.add_column(Text(visible(columns[i])), justify=justify, width=width)
        for row in cells:
            table.add_row(*(Text(row[i]) for i in part))
        console.print(table)


def _least_width(name: str, cells: Sequence[str]) -> int:
    """Return how many characters a column needs: its words, and short cells in one piece."""
    pieces = [name.split(), *([cell] if len(cell) <= _UNBROKEN else cell.split() for cell in cells)]
    longest = max((len(piece) for words in pieces for piece in words), default=0)
    return min(longest, _UNBROKEN)


def _fitted(least: Sequence[int], wanted: Sequence[int], room: int) -> list[int]:
    """Return the widths of columns: what they want, or what they need and a share of the rest.

    rich would cut off the last column of a table in which others could still be broken into lines.

    >>> _fitted([4, 7, 5], [4, 20, 12], 24)
    [4, 15, 5]
    """
    if min(room, sum(wanted)) < sum(least):  # a single column may be wider than the terminal
        return list(least)
    widths, rest = list(least), room - sum(least)
    for i, most in enumerate(wanted):
        more = min(rest, max(most - widths[i], 0))
        widths[i], rest = widths[i] + more, rest - more
    return widths


def _parts(widths: Sequence[int], most: int, names: int = 1) -> list[list[int]]:
    """Return the columns of each part of a table, those that name a row in all of them.

    >>> _parts([3, 30, 30, 30], 80)
    [[0, 1, 2], [0, 3]]
    """
    parts = [list(range(names))]
    for column in range(names, len(widths)):
        tried = [*parts[-1], column]
        # Each column has a space at either side, and there is one more between two columns.
        if len(tried) > names + 1 and sum(widths[i] + 3 for i in tried) + 1 > most:
            parts.append([*range(names), column])
        else:
            parts[-1] = tried
    return parts


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if isinstance(value, float) else visible(str(value))
