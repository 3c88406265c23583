"""What a run says while it works: metrics files for programs, a progress bar or plain lines for people."""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vitral.errors import printable

log = logging.getLogger("vitral")
log.setLevel(logging.INFO)
console = Console(stderr=True)


class _Printable(logging.Formatter):
    """Lines that are safe to show on a terminal, whatever names they hold."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _ConsoleHandler(logging.Handler):
    """Log lines above the progress bar, as they are."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(printable(self.format(record)), markup=False, highlight=False, soft_wrap=True)


def console_logging() -> None:
    """Show the log on stderr, once."""
    if not _console_handlers():
        log.addHandler(_ConsoleHandler())
        log.propagate = False


@contextmanager
def console_silence() -> Generator[None]:
    """Nothing on stderr for a while, no progress bar either."""
    handlers = _console_handlers()
    for handler in handlers:
        log.removeHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            log.addHandler(handler)


def _console_handlers() -> list[logging.Handler]:
    return [handler for handler in log.handlers if isinstance(handler, _ConsoleHandler)]


@contextmanager
def log_file(path: Path) -> Generator[None]:
    """Also write the log to a file, with times."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_Printable("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


class Journal:
    """Rows of metrics of one run. On a resume, rows behind `step` (written, but not saved) are dropped first. Every row
    goes to `also`, too."""

    def __init__(
        self, folder: Path, steps: int, step: int, also: Callable[[dict[str, Any]], None] = lambda _: None
    ) -> None:
        self.also = also
        self.path, self.csv_path = folder / "metrics.jsonl", folder / "metrics.csv"
        kept = [line for line in _whole_lines(self.path) if json.loads(line)["step"] <= step]
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        partial.replace(self.path)  # a kill in between must not cost the rows of the steps that are saved
        self.file = self.path.open("a", encoding="utf-8")
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        self.bar = Progress(
            *columns,
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not (sys.stderr.isatty() and _console_handlers()),
        )
        self.task = self.bar.add_task("training", total=steps, completed=step)

    def __enter__(self) -> Journal:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        try:
            self.file.close()
            write_csv(self.csv_path, self.read(self.path.parent))
        except OSError as trouble:  # must not hide what ended the run
            log.error("%s is incomplete: %s", self.csv_path, trouble)

    def row(self, row: dict[str, Any]) -> None:
        """One JSON line; also moves the bar to the row's step."""
        try:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
        except OSError as error:
            log.error("a row of %s is lost: %s", self.path, error)
        self.also(row)
        if "images_per_second" in row:
            self.bar.update(self.task, completed=row["step"], description=_in_short(row))

    @staticmethod
    def read(folder: Path) -> list[dict[str, Any]]:
        """All rows of the run in this folder."""
        return [json.loads(line) for line in _whole_lines(folder / "metrics.jsonl")]


class NoJournal(Journal):
    """Of the processes beside the main one: writes and shows nothing."""

    def __init__(self) -> None:
        """Opens nothing."""

    def row(self, row: dict[str, Any]) -> None:
        """Nothing."""


def _in_short(row: dict[str, Any]) -> str:
    """What stands before the bar: shares and rates that are not known are left out."""
    parts = (
        ("epoch", "epoch {:.1f}"), ("loss", "loss {:.4f}"), ("images_per_second", "{:.0f} images/s"),
        ("step_ms", "{:.3g} ms"), ("data_wait", "data wait {:.0%}"), ("mfu", "MFU {:.1%}"), ("skipped", "skipped {}"),
    )  # fmt: skip
    return "  ".join(text.format(row[key]) for key, text in parts if key in row)


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file; a last one that a crash cut off is left out."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return lines[:-1] if lines and not lines[-1].endswith("}") else lines


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as a table; the columns are all keys, in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
