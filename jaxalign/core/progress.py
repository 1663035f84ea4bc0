"""Progress of long functions, reported through a callback.

A long function has a parameter `on_progress: OnProgress = ignore`. It calls it once before the
first step, with the number of steps that are already done, and then after each step::

    def train(data, on_progress: OnProgress = ignore):
        on_progress(Progress("step", 0, len(data)))
        for done, batch in enumerate(data, start=1):
            ...
            on_progress(Progress("step", done, len(data), fields={"loss": f"{loss:.3f}"}))

Commands draw these events as bars (`jaxalign.runs.console.progress_bars`); a notebook may do
anything else with them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

_log = logging.getLogger("jaxalign")


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a task has come.

    Attributes:
        task: What one step is, in a word or two, such as "generation".
        done: Number of steps that are done.
        total: Number of steps of the whole task.
        unit: Plural name of what the speed is measured in, such as "candidates".
        units_per_step: Number of units in one step.
        fields: Short texts to show, by name, such as {"loss": "0.31"}.
    """

    task: str
    done: int
    total: int
    unit: str = "steps"
    units_per_step: int = 1
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict, kw_only=True)


OnProgress = Callable[[Progress], None]


@contextlib.contextmanager
def one_step(task: str, on_progress: OnProgress) -> Iterator[None]:
    """Report the `with` block as a task of one step, of which nobody knows how far it has come."""
    on_progress(Progress(task, 0, 1))
    yield
    on_progress(Progress(task, 1, 1))


def ignore(progress: Progress) -> None:
    """Do nothing: the default callback of functions that report progress."""


class Stages:
    """The numbered stages of a run, each a note to the user when it begins.

    >>> stages = Stages("model", "answers")
    >>> stages.begin("answers", "1,390 questions")
    '2/2 answers: 1,390 questions'
    """

    def __init__(self, *names: str) -> None:
        """Number the stages in the order in which they follow each other."""
        self._names = names

    def begin(self, name: str, detail: str = "") -> str:
        """Log that a stage begins, and return what was logged.

        Args:
            name: Name of the stage.
            detail: What is to be done in it, such as "1,390 questions".
        """
        number = self._names.index(name) + 1
        line = f"{number}/{len(self._names)} {name}{f': {detail}' if detail else ''}"
        _log.info(line)
        return line


class Speed:
    """Steps per second over the last updates.

    Time counts from the first update on, so that whatever precedes it (compilation) is left out.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, window: int = 50) -> None:
        """Start without updates; `window` is the number of updates that are averaged over."""
        self._clock = clock
        self._updates: deque[tuple[float, int]] = deque(maxlen=window)  # (seconds, steps done)

    def update(self, done: int) -> None:
        """Record that `done` steps are done by now."""
        self._updates.append((self._clock(), done))

    @property
    def updates(self) -> int:
        """Number of updates that are remembered."""
        return len(self._updates)

    def per_second(self) -> float | None:
        """Return the steps per second; None before there are two updates."""
        if len(self._updates) < 2:
            return None
        (first, steps), (last, more) = self._updates[0], self._updates[-1]
        return (more - steps) / (last - first) if last > first and more > steps else None

    def seconds_left(self, total: int) -> float | None:
        """Return the estimated seconds until `total` steps are done; None without a speed.

        The estimate counts down between updates and never falls below zero.
        """
        speed = self.per_second()
        if speed is None:
            return None
        last, done = self._updates[-1]
        return max(0.0, (total - done) / speed - (self._clock() - last))
