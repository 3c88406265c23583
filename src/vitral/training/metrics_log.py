"""Log of a run: metrics files, and a progress bar or plain lines on the console."""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from vitral.atomic_files import whole_file, write_text
from vitral.errors import UserError, shown_lines
from vitral.files import MIB, parse_json, read_bounded

log = logging.getLogger("vitral")
log.setLevel(logging.INFO)
console = Console(stderr=True)


class _ConsoleHandler(logging.Handler):
    """Log lines above the progress bar, as they are."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(shown_lines(self.format(record)), markup=False, highlight=False, soft_wrap=True)


_CONSOLE = _ConsoleHandler()


def console_logging() -> None:
    """Show the log on stderr, once."""
    if _CONSOLE not in log.handlers:
        log.addHandler(_CONSOLE)
        log.propagate = False


@contextmanager
def console_silence() -> Generator[None]:
    """Nothing on stderr for a while, no progress bar either."""
    was_shown = _CONSOLE in log.handlers
    log.removeHandler(_CONSOLE)
    try:
        yield
    finally:
        if was_shown:
            log.addHandler(_CONSOLE)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One line or several, of text that can be written."""
        return shown_lines(super().format(record))


@contextmanager
def log_file(path: Path) -> Generator[None]:
    """Also write the log to a file, with times."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_Lines("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


class MetricsLog:
    """Rows of metrics of one run. On a resume, rows behind `step` (written, but not saved) are dropped first. Every row
    goes to `also`, too."""

    def __init__(
        self, folder: Path, steps: int, step: int, also: Callable[[dict[str, Any]], None] = lambda _: None
    ) -> None:
        self.also = also
        self.path, self.csv_path = folder / "metrics.jsonl", folder / "metrics.csv"
        rows, damaged = read_rows(self.path)
        if damaged:
            log.warning("%s: damaged, left out: line %s", self.path, ", ".join(map(str, damaged)))
        kept = [json.dumps(row) for row in rows if row["step"] <= step]
        write_text(self.path, "".join(line + "\n" for line in kept))
        self.file = self.path.open("a", encoding="utf-8")
        self.bar = progress_bar()
        self.task = self.bar.add_task("training: step", total=steps, completed=step, facts="")

    def __enter__(self) -> MetricsLog:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
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
        if "samples_per_second" in row:
            self.bar.update(self.task, completed=row["step"], facts=_in_short(row))

    def at(self, step: int) -> int:
        """Move the bar to this step; returns it."""
        self.bar.update(self.task, completed=step)
        return step

    @staticmethod
    def read(folder: Path) -> list[dict[str, Any]]:
        """All rows of the run in this folder."""
        return read_rows(folder / "metrics.jsonl")[0]


class NoMetricsLog(MetricsLog):
    """Of the processes beside the main one: writes and shows nothing."""

    def __init__(self) -> None:
        """Opens nothing."""

    def row(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def at(self, step: int) -> int:
        """The step itself."""
        return step


def progress_bar() -> Progress:
    """A bar on a terminal where the log is shown too; else nothing. First what never may be cut: how far it is and the
    time that is left; the task's `facts` take what is left of the line."""
    return Progress(
        TextColumn("{task.description} {task.completed:,}/{task.total:,}"),
        BarColumn(bar_width=12),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[facts]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        console=console,
        expand=True,
        disable=not (sys.stderr.isatty() and _CONSOLE in log.handlers),
    )


@contextmanager
def counted(what: str, total: int) -> Generator[Callable[[int], None]]:
    """A bar for work on so many images; the function that it gives says that some more are done."""
    with progress_bar() as bar:
        task = bar.add_task(what, total=total, facts="")
        yield lambda count: bar.advance(task, count)


def _in_short(row: dict[str, Any]) -> str:
    """What stands behind the bar, the most expected first: shares and rates that are not known are left out."""
    parts = (
        ("loss", "loss {:.4f}"), ("samples_per_second", "{:,.0f} samples/s"), ("epoch", "epoch {:.1f}"),
        ("skipped", "skipped {}"), ("step_ms", "{:,.0f} ms"), ("data_wait", "data wait {:.0%}"), ("mfu", "MFU {:.1%}"),
    )  # fmt: skip
    return "  ".join(text.format(row[key]) for key, text in parts if key in row)


_LARGEST = 4096 * MIB  # bytes of a metrics file


def read_rows(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The rows of a metrics file, and the numbers of the lines, from 1, that are none: damaged, or with a step before
    that of the row above. A last line that a kill cut off is left out and not counted."""
    lines = read_bounded(path, _LARGEST).split(b"\n") if path.exists() else []
    cut_off = len(lines) if lines and lines[-1] else None
    rows, damaged = list[dict[str, Any]](), list[int]()
    for number, line in enumerate(lines, 1):
        row = _row(line)
        if row is not None and (not rows or row["step"] >= rows[-1]["step"]):
            rows.append(row)
        elif line and number != cut_off:
            damaged.append(number)
    return rows, damaged


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line, where="line", constants=True)
    except UserError:
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as a table; the columns are all keys, in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
