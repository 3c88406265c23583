"""The progress bar on a terminal of 80 columns: step and time left are whole, whatever else there is to say."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from vitral.errors import Interrupted, RunFailed, UserError
from vitral.training import metrics_log


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_bar_keeps_step_and_time_left(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(metrics_log, "console", terminal)
    monkeypatch.setattr(metrics_log.sys.stderr, "isatty", lambda: True)
    metrics_log.console_logging()
    row = {"step": 40, "loss": 0.6733, "epoch": 7.3, "samples_per_second": 40.2, "step_ms": 1090.0, "data_wait": 0.04}
    bar = metrics_log.progress_bar()
    task = bar.add_task("training: step", total=4000, completed=0, facts="")
    bar.update(task, completed=1)
    terminal.print(bar)
    assert "1/4,000" in screen.getvalue(), "before the first row of numbers"
    bar.update(task, completed=40, facts=metrics_log._in_short(row))
    terminal.print(bar)
    line = screen.getvalue().splitlines()[-1]
    assert len(line) <= width
    assert "step 40/4,000" in line
    assert "--:--" in line or ":" in line.partition("left")[2]
    if width >= 80:
        assert "loss 0.6733" in line
    assert "1.09e+03" not in line
    if width == 120:
        assert "1,090 ms" in line


@pytest.mark.parametrize("error", [UserError("wrong", hint="do that"), RunFailed("full"), Interrupted(2, "stopped")])
def test_a_notebook_shows_the_message_alone(error: BaseException) -> None:
    shown = "\n".join(error._render_traceback_())  # type: ignore[attr-defined]
    assert shown == f"{type(error).__name__}: {error}"
