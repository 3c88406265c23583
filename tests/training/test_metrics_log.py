"""What a run writes down: rows for programs, a table, plain lines or a bar for people."""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vitral.training import metrics_log
from vitral.training.metrics_log import MetricsLog, console_logging, log, log_file, write_csv


def row(step: int, **more: float) -> dict[str, Any]:
    return {"step": step, "epoch": step / 10, **more}


def trained(step: int, loss: float) -> dict[str, Any]:
    return row(step, loss=loss, samples_per_second=123.4)


def write(folder: Path, first: int, last: int, at: int = 0) -> None:
    with MetricsLog(folder, 10, at) as open_journal:
        for step in range(first, last + 1):
            open_journal.row(trained(step, 1 / step))


def test_rows_are_there_at_once_and_come_back_the_same(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 10, 0) as open_journal:
        open_journal.row(trained(1, 0.1 + 0.2))
        open_journal.row(row(2, val_loss=0.5))
        assert MetricsLog.read(tmp_path) == [trained(1, 0.1 + 0.2), row(2, val_loss=0.5)]
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_rows_behind_the_saved_step_are_dropped_on_a_resume(tmp_path: Path) -> None:
    write(tmp_path, 1, 7)
    write(tmp_path, 5, 6, at=4)
    assert [found["step"] for found in MetricsLog.read(tmp_path)] == [1, 2, 3, 4, 5, 6]
    with (tmp_path / "metrics.csv").open(encoding="utf-8", newline="") as file:
        assert [int(found["step"]) for found in csv.DictReader(file)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("rest", ['{"step": 4, "ep', '{"step": 4', "{", '{"step": 4, "epoch": 0.4, "x": {'])
def test_a_line_that_a_crash_cut_off_is_dropped(tmp_path: Path, rest: str) -> None:
    write(tmp_path, 1, 3)
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(rest)
    assert [found["step"] for found in MetricsLog.read(tmp_path)] == [1, 2, 3]
    write(tmp_path, 4, 5, at=3)
    assert [found["step"] for found in MetricsLog.read(tmp_path)] == [1, 2, 3, 4, 5]


def test_the_table_has_every_key_as_a_column_in_order_of_appearance(tmp_path: Path) -> None:
    rows = [row(1, loss=0.5), row(2, loss=0.25, lr=1e-3), row(2, val_loss=1.0)]
    write_csv(tmp_path / "x.csv", rows)
    text = (tmp_path / "x.csv").read_text(encoding="utf-8").splitlines()
    assert text == ["step,epoch,loss,lr,val_loss", "1,0.1,0.5,,", "2,0.2,0.25,0.001,", "2,0.2,,,1.0"]


def test_the_table_is_written_also_where_the_run_fails(tmp_path: Path) -> None:
    def fails() -> None:
        with MetricsLog(tmp_path, 10, 0) as open_journal:
            open_journal.row(row(1))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert len((tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()) == 2


def test_no_bar_and_plain_lines_where_stderr_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console_logging()
    console_logging()
    with MetricsLog(tmp_path, 10, 0) as open_journal:
        open_journal.row(trained(1, 0.5))
        log.info("[bold]a line[/bold] as it is, %s long", "x" * 200)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"[bold]a line[/bold] as it is, {'x' * 200} long\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_with_the_loss_where_stderr_is_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(metrics_log, "console", Console(file=screen, force_terminal=True, width=100))
    with MetricsLog(tmp_path, 10, 3) as open_journal:
        open_journal.row(trained(4, 0.5))
    assert "loss 0.5000" in screen.getvalue()
    assert "4/10" in screen.getvalue()


def test_the_log_file_gets_times_and_is_closed(tmp_path: Path) -> None:
    handlers = list(log.handlers)
    with log_file(tmp_path / "train.log"):
        log.info("größer")
    log.info("after")
    text = (tmp_path / "train.log").read_text(encoding="utf-8")
    assert text.endswith(" größer\n")
    assert logging.Formatter("%(asctime)s", "%Y").format(logging.makeLogRecord({}))[:4] == text[:4]
    assert log.handlers == handlers
