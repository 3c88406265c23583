"""Ctrl-C and SIGTERM: a wish that the loop grants between two steps, an exception around it."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM, `signum`, where it takes effect at once."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(signum)


class StopSignal:
    """A context in which the first SIGINT or SIGTERM is only noted in `signum`, and a second one raises Stopped; with
    `at_once` the first one does.

    Handlers are set also where the signal was ignored at start (a background job's Ctrl-C). Outside the main thread
    nothing can be installed, and `signum` stays None.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.signum: int | None = None
        self._at_once = at_once
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        if self._at_once or self.signum is not None:
            raise Stopped(signum)
        self.signum = signum
