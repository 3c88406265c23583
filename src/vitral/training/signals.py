"""Ctrl-C and SIGTERM: a wish that the loop grants between two steps, an exception around it, and an exit code, 128 plus
the signal's number, from the first line of a command to its last."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

_BOTH = (signal.SIGINT, signal.SIGTERM)
_GRACE = 5.0  # seconds that an interrupted program has to clean up before a further signal interrupts it again
_interrupted_at: float | None = None  # when Stopped was raised, until the outermost StopSignal has ended
_raised: int | None = None  # the signal that was last raised as Stopped
_depth = 0  # of StopSignal contexts inside each other


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM, `signum`, where it takes effect at once."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(signum)


def signum_of(stop: BaseException) -> int:
    """The signal that this exception is of: SIGINT where it does not say."""
    return int(getattr(stop, "signum", signal.SIGINT))


class StopSignal:
    """A context in which the first SIGINT or SIGTERM is only noted in `signum`, and a second one raises Stopped; with
    `at_once` the first one does. While that is handled, further ones are ignored for some seconds: forty in a row end a
    run as two do.

    Handlers are set also where the signal was ignored at start (a background job's Ctrl-C). Outside the main thread
    nothing can be installed, and `signum` stays None.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.signum: int | None = None
        self._at_once = at_once
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        global _depth
        if threading.current_thread() is threading.main_thread():
            _depth += 1
            for signum in _BOTH:
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        global _depth, _interrupted_at
        for signum, handler in self._before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
        if self._before:
            _depth -= 1
            if _depth == 0:
                _interrupted_at = None

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        if self._at_once or self.signum is not None:
            _interrupt(signum)
        self.signum = signum


def _interrupt(signum: int) -> None:
    global _interrupted_at, _raised
    now = time.monotonic()
    if _interrupted_at is None or now - _interrupted_at > _GRACE:
        _interrupted_at, _raised = now, signum
        raise Stopped(signum)


class CommandSignals(StopSignal):
    """The same for a whole command, from its first line until the process has ended: a signal ends it with the exit
    code 128 + `signum`, never with a traceback.

    While modules are imported, the process ends at once, since an exception in the midst of a compiled module becomes
    an error of another kind; nothing is being written then. A SIGINT that was ignored at start (a background job of a
    script) stays ignored.
    """

    def __init__(self) -> None:
        super().__init__(at_once=True)

    def __enter__(self) -> CommandSignals:
        ignored = [signum for signum in _BOTH if signal.getsignal(signum) == signal.SIG_IGN]
        super().__enter__()
        for signum in ignored:
            signal.signal(signum, signal.SIG_IGN)
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._swallowed
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the handlers: they hold as long as the process lives."""

    def run(self, main: Callable[[], int]) -> int:
        """The exit code of the command; of whatever a signal has made of it, that of the signal."""
        try:
            return self._ended(main())
        except BaseException:
            if _raised is None:
                raise
            _print_stopped()
            return self._ended(128 + _raised)

    def _ended(self, code: int) -> int:
        """The exit code; from here on a signal ends the process at once. One before that raises Stopped as ever."""
        if _raised is not None and 0 < code < 128:
            code = 128 + _raised
        # The interpreter resets handlers before its last steps, but not these; until then a signal ends what lingers.
        atexit.register(_set_both, signal.SIG_IGN)
        _set_both(lambda *_: os._exit(code))
        return code

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if _raised is None and _is_importing(frame):
            _print_stopped()
            os._exit(128 + signum)
        _interrupt(signum)

    def _swallowed(self, error: Any) -> None:
        """Python drops exceptions of destructors and callbacks: a signal that is lost there is raised again."""
        global _interrupted_at
        if isinstance(error.exc_value, Stopped):
            _interrupted_at = None  # not from in here, where the exception would be dropped again
            threading.Timer(0.01, signal.raise_signal, (error.exc_value.signum,)).start()
        else:
            self._unraisable(error)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _print_stopped() -> None:
    os.write(2, b"stopped\n")


def _set_both(handler: Any) -> None:
    for signum in _BOTH:
        signal.signal(signum, handler)
