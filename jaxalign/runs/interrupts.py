"""Ctrl-C and SIGTERM: acknowledged at once, and obeyed within seconds whatever the program does.

Schedulers and `kill` send SIGTERM and soon afterwards SIGKILL. Python runs a signal's handler only
between two of its own instructions, so a program that waits for a compiler or for a device does not
hear it for minutes; and a KeyboardInterrupt that is raised inside a callback of JAX or of the
garbage collector is printed and forgotten. So the handler raises again and again until the program
reacts, and a thread that hears of signals at once says so, and ends the process where the handler
has not run in time. Nothing is lost by that: whatever a run keeps is written so that it is whole or
not there, as for SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

PATIENCE_SECONDS = 6.0  # from a signal to the end of a program that does not hear it
_REPEAT_SECONDS = 2.0
_MOMENT_SECONDS = 0.2  # most programs stop within it, and need no announcement
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def insistent_interrupts(hint: str = "") -> Iterator[Callable[[], None]]:
    """Take SIGTERM for Ctrl-C and repeat either until the program reacts, inside the `with` block.

    A second signal ends the process at once, as does a first one after `PATIENCE_SECONDS`. A
    program that goes on after a KeyboardInterrupt stops the repetition with
    `signal.setitimer(signal.ITIMER_REAL, 0)`.

    Args:
        hint: Text behind "interrupted" where the process is ended: how to continue.

    Yields:
        A function that sets the handlers again, for use after a library has set its own.
    """
    if threading.current_thread() is not threading.main_thread() or os.name != "posix":
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in (*_SIGNALS, signal.SIGALRM)}
    interrupts = _Interrupts(hint)
    interrupts.install()
    try:
        yield interrupts.install
    finally:
        interrupts.close()
        for number, handler in before.items():
            signal.signal(number, handler)


class _Interrupts:
    """The handler of the signals, and the thread that watches whether it is run."""

    def __init__(self, hint: str) -> None:
        self._hint = hint
        self._sent = signal.SIGINT
        self._raised = False  # whether the handler has run since the last signal
        self._closed = False
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        # The interpreter writes a signal's number there as soon as it comes.
        self._earlier = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._watch, name="interrupts", daemon=True)
        self._watcher.start()

    def install(self) -> None:
        """Set the handlers."""
        for number in (*_SIGNALS, signal.SIGALRM):
            signal.signal(number, self._interrupt)

    def close(self) -> None:
        """Stop the repetition and the thread."""
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.set_wakeup_fd(self._earlier)
        self._closed = True
        self._writer.send(b"\0")  # wakes the thread
        self._watcher.join()
        self._reader.close()
        self._writer.close()

    def _interrupt(self, number: int, _: object) -> NoReturn:
        if number != signal.SIGALRM:  # which only repeats what was sent
            self._sent = number
        self._raised = True
        signal.setitimer(signal.ITIMER_REAL, _REPEAT_SECONDS)
        raise KeyboardInterrupt(self._sent)

    def _obeyed(self) -> bool:
        """Return whether the program has seen the signal and gone on."""
        return self._raised and signal.getitimer(signal.ITIMER_REAL)[0] == 0.0

    def _watch(self) -> None:
        while not self._closed:
            number = self._next_signal(None)
            if number is None:
                continue
            self._raised = False
            deadline = time.monotonic() + PATIENCE_SECONDS
            again = self._next_signal(_MOMENT_SECONDS)
            if again is None and not self._obeyed() and not self._closed:
                _say("stopping; once more to stop at once")
            while again is None and not self._obeyed() and not self._closed:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                again = self._next_signal(min(left, _MOMENT_SECONDS))
            if not self._obeyed() and not self._closed:
                _say(f"interrupted{self._hint}")
                os._exit(128 + (number if again is None else again))

    def _next_signal(self, timeout_seconds: float | None) -> int | None:
        """Wait for a signal that this handler takes; the program may take some itself."""
        heard, _, _ = select.select([self._reader], [], [], timeout_seconds)
        numbers = self._reader.recv(64) if heard else b""
        mine = [n for n in numbers if n in _SIGNALS and signal.getsignal(n) == self._interrupt]
        return mine[-1] if mine else None


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.write(sys.__stderr__.fileno(), f"\n{text}\n".encode())
