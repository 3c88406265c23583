"""Ctrl-C and SIGTERM at any moment of a command: one line, and 130 or 143; never a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import TINY, VITRAL, random_model

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of Unix")

# Sends itself a signal when the n-th module is asked for, on behalf of somebody who is quick.
AT_IMPORT = """
import builtins, os, sys
from vitral.cli.main import entry
at, signum, plain, seen = int(sys.argv.pop(1)), int(sys.argv.pop(1)), builtins.__import__, set()

def imported(name, *rest, **keys):
    seen.add(name)
    if len(seen) == at:
        seen.add(None)
        os.kill(os.getpid(), signum)
    return plain(name, *rest, **keys)

builtins.__import__ = imported
entry()
"""


def ends(words: list[str]) -> tuple[int, str]:
    found = subprocess.run(words, capture_output=True, text=True, encoding="utf-8", check=False)
    return found.returncode, found.stderr


@pytest.mark.parametrize("at", [1, 10, 40, 100, 250, 500])
def test_a_signal_while_modules_are_imported(at: int) -> None:
    """From the first line of the command on, torch included: 500 modules are about a third of them."""
    signum = (signal.SIGINT, signal.SIGTERM)[at % 4 // 2]
    words = [sys.executable, "-c", AT_IMPORT, str(at), str(int(signum)), "train", "digits", "out=a"]
    code, err = ends(words)
    assert code == 128 + signum, err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 3, err
    assert not Path("a/checkpoints").exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_forty_signals_in_a_row(signum: int) -> None:
    keys = {**TINY, "train.steps": 100_000, "train.log_every": 1}
    words = [f"{key}={json.dumps(value)}" for key, value in keys.items()]
    run = subprocess.Popen(
        [*VITRAL, "train", "digits", "out=a", *words], stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    end = time.monotonic() + 200
    while not Path("a/metrics.jsonl").exists() or Path("a/metrics.jsonl").stat().st_size == 0:
        assert run.poll() is None, run.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)
    for _ in range(40):
        if run.poll() is None:
            run.send_signal(signum)
        time.sleep(0.005)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 128 + signum, err
    assert "Traceback" not in err
    assert "vitral train a/config.yaml out=a resume=true" in err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_works_cleans_up_before_it_ends(signum: int) -> None:
    """`data convert` in the midst of its images: nothing is left of them."""
    code = """
import os, sys
from vitral.data import convert
from vitral.cli.main import entry
plain, signum = convert._write, int(sys.argv[1])

def write(split, index, path):
    if index == 50:
        os.kill(os.getpid(), signum)
    return plain(split, index, path)

convert._write = write
sys.argv = ["vitral", "data", "convert", "digits", "out=images"]
entry()
"""
    returned, err = ends([sys.executable, "-c", code, str(int(signum))])
    assert (returned, err.count("stopped")) == (128 + signum, 1), err
    assert "Traceback" not in err
    assert not list(Path().iterdir())


def test_a_signal_after_the_work_does_not_change_the_exit_code() -> None:
    code = """
import atexit, os, signal, sys
from vitral.cli.main import entry
atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))
sys.argv = ["vitral", "models"]
entry()
"""
    assert ends([sys.executable, "-c", code])[0] == 0


def test_a_signal_between_the_work_and_the_end_gives_its_exit_code() -> None:
    code = """
import atexit, signal, sys
from vitral.training.signals import CommandSignals
register = atexit.register
def interrupted(*arguments):
    atexit.register = register
    signal.raise_signal(signal.SIGTERM)
    return register(*arguments)
with CommandSignals() as signals:
    atexit.register = interrupted
    sys.exit(signals.run(lambda: 130))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=False)
    assert (found.returncode, found.stderr) == (128 + signal.SIGTERM, "stopped\n")


def test_a_signal_that_was_ignored_at_the_start_stays_ignored() -> None:
    """As of a background job in a script."""
    random_model(Path("model"))
    code = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
from vitral.cli import main
plain = main._dispatch
main._dispatch = lambda argv: (os.kill(os.getpid(), signal.SIGINT), plain(argv))[1]
sys.argv = ["vitral", "models"]
main.entry()
"""
    assert ends([sys.executable, "-c", code])[0] == 0


def test_a_signal_that_a_destructor_swallows_is_not_lost() -> None:
    code = """
import os, signal, time
from vitral.cli import main

class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)

def work(argv):
    Last()
    time.sleep(1)
    return 0

main._dispatch = work
main.entry()
"""
    code_, err = ends([sys.executable, "-c", code])
    assert (code_, err) == (143, "stopped\n")
