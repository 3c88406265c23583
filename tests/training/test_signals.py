"""Signals are noted, a second one interrupts, and the handlers of the program around come back."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from vitral.training.signals import Stopped, StopSignal

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("signum", BOTH)
def test_the_first_is_noted_and_the_second_interrupts(signum: int) -> None:
    with StopSignal() as stop:
        assert stop.signum is None
        os.kill(os.getpid(), signum)
        assert stop.signum == signum
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.signum == signum


@pytest.mark.parametrize("signum", BOTH)
def test_at_once_the_first_interrupts_and_says_which(signum: int) -> None:
    with pytest.raises(Stopped) as caught, StopSignal(at_once=True):
        os.kill(os.getpid(), signum)
    assert caught.value.signum == signum


@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.SIG_DFL, lambda *_: None])
def test_also_where_the_signal_was_ignored_and_put_back_afterwards(before: object) -> None:
    kept = [signal.getsignal(signum) for signum in BOTH]
    try:
        for signum in BOTH:
            signal.signal(signum, before)  # pyright: ignore[reportArgumentType]
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signum == signal.SIGINT
        assert [signal.getsignal(signum) for signum in BOTH] == [before, before]
    finally:
        for signum, handler in zip(BOTH, kept, strict=True):
            signal.signal(signum, handler)


def test_handlers_come_back_after_an_error() -> None:
    before = [signal.getsignal(signum) for signum in BOTH]
    with pytest.raises(RuntimeError), StopSignal():
        raise RuntimeError
    assert [signal.getsignal(signum) for signum in BOTH] == before


def test_outside_the_main_thread_nothing_is_installed() -> None:
    before = [signal.getsignal(signum) for signum in BOTH]
    seen: list[object] = []

    def inside() -> None:
        with StopSignal() as stop:
            seen.extend([stop.signum, *map(signal.getsignal, BOTH)])

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [None, *before]
