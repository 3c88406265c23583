"""Kills a piece of work before each of its writes in turn, in forked processes: what a kill can leave, all of it."""

from __future__ import annotations

import builtins
import io
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

KILLED = 137
_WRITES = ("replace", "rename", "unlink", "remove", "rmdir", "mkdir", "fsync", "link", "symlink")


def after_each_kill(template: Path, place: Path, work: Callable[[], object]) -> Iterator[int]:
    """For n = 1, 2, ... until the work gets through: `place` is a copy of `template` (nothing, where there is none) in
    which the work was killed before its n-th write, without a chance to clean up."""
    number = 0
    while True:
        number += 1
        for path in (place, *place.parent.glob(f".{place.name}.*")):
            shutil.rmtree(path, ignore_errors=True)
        if template.exists():
            shutil.copytree(template, place, symlinks=True)
        code = run_killed(work, number)
        assert code in (0, KILLED), f"the work failed before write {number}"
        if code == 0:
            assert number > 3, "hardly any write was seen"
            return
        yield number


def run_killed(work: Callable[[], object], number: int) -> int:
    """The exit code of the work in a forked process: KILLED where it got to its `number`-th write."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, which the child does not use
        child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        _arm(number)
        work()
        code = 0
    finally:
        os._exit(code)


def _arm(number: int) -> None:
    left = [number]

    def write() -> None:
        left[0] -= 1
        if left[0] == 0:
            os._exit(KILLED)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keys: Any) -> Any:
            write()
            return function(*args, **keys)

        return call

    for name in _WRITES:
        setattr(os, name, counted(getattr(os, name)))
    plain, low = builtins.open, os.open

    def opened(file: Any, mode: str = "r", *args: Any, **keys: Any) -> Any:
        if not set(mode) & set("wax+"):
            return plain(file, mode, *args, **keys)
        write()
        found = plain(file, mode, *args, **keys)
        write()  # the file is there, and empty
        return found

    def low_opened(path: Any, flags: int, *args: Any, **keys: Any) -> int:
        if flags & os.O_CREAT:
            write()
        return low(path, flags, *args, **keys)

    builtins.open = io.open = opened
    os.open = low_opened
