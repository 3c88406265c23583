"""The loop's stopwatch on a clock that we turn; loggers that get every row and cannot end a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import vitral
from tests.helpers import TINY
from vitral.errors import UserError
from vitral.structs import Batch
from vitral.training import loggers, throughput
from vitral.training.metrics_log import MetricsLog
from vitral.training.throughput import Throughput, peak_flops


def test_waiting_working_and_what_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now)

    def stream() -> Iterator[dict[str, Batch]]:
        nonlocal now
        for _ in range(6):
            now += 0.5  # to make a batch
            yield {"train": Batch((), {}, torch.arange(8))}

    watch = Throughput(8, image_flops=3e9, peak=1e12)
    readings: list[dict[str, float]] = []
    for step, _ in enumerate(watch.batches(stream()), 1):
        now += 1.5  # an update
        if step % 3 == 0:
            readings.append(watch.read().row())
            now += 60  # a validation
        elif step == 4:
            watch.stop()
            now += 60
    expected = {"samples_per_second": 4.0, "step_ms": 2000.0, "data_wait": 0.25, "mfu": 0.012}
    assert readings == [expected, expected]
    assert str(watch.last) == "4 samples/s, 2,000 ms/step, 25% data wait, 1.2% of peak"


def test_the_peak_is_that_of_known_devices_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"NVIDIA H100 PCIe": 756e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA L40S": 362e12, "NVIDIA L4": 121e12,
             "NVIDIA A10G": 70e12, "Some other device": None}  # fmt: skip
    for name, peak in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert peak_flops(torch.device("cuda"), torch.bfloat16) == peak, name
        assert peak_flops(torch.device("cuda"), None) is None
    assert peak_flops(torch.device("cpu"), torch.bfloat16) is None


class Notes:
    """A logger that remembers, and breaks where it is told."""

    def __init__(self, breaks: str = "") -> None:
        self.calls: list[tuple[str, Any]] = []
        self.breaks = breaks

    def _note(self, name: str, what: Any) -> None:
        self.calls.append((name, what))
        if name == self.breaks:
            raise ConnectionError("no network")

    def start(self, config: Mapping[str, Any], step: int) -> None:
        self._note("start", (config["train"]["batch_size"], step))

    def row(self, row: Mapping[str, Any]) -> None:
        self._note("row", dict(row))

    def close(self) -> None:
        self._note("close", None)


def test_loggers_get_the_journals_rows_and_a_broken_one_is_left_out(tmp_path: Path) -> None:
    out = tmp_path / "a"
    good, broken = Notes(), Notes("row")
    vitral.train("digits", {**TINY, "train.log_every": 1}, out=out, loggers=[broken, good])
    assert good.calls == [("start", (16, 0)), *(("row", row) for row in MetricsLog.read(out)), ("close", None)]
    assert [name for name, _ in broken.calls] == ["start", "row"]
    assert "Notes is left out from here on: ConnectionError: no network" in (out / "train.log").read_text(
        encoding="utf-8"
    )


def test_tensorboard_gets_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for its writer: the package itself is optional."""
    written: list[tuple[str, float, int]] = []
    opened: list[tuple[str, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            opened.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def add_text(self, name: str, text: str, step: int) -> None:
            assert "batch_size: 16" in text

        def close(self) -> None:
            opened.append(("closed", 0))

    module = ModuleType("torch.utils.tensorboard.writer")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", ModuleType("torch.utils.tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", module)
    monkeypatch.setattr(loggers, "find_spec", lambda name: SimpleNamespace() if name == "tensorboard" else None)
    out = tmp_path / "a"
    vitral.train("digits", {**TINY, "train.log_every": 2, "train.tensorboard": True}, out=out)
    rows = MetricsLog.read(out)
    assert written == [(name, value, row["step"]) for row in rows for name, value in row.items() if name != "step"]
    assert opened == [(str(out / "tensorboard"), 1), ("closed", 0)]


def test_a_missing_tensorboard_is_said_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r'pip install "vitral\[tensorboard\]"'):
        vitral.train("digits", {"train.tensorboard": True}, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_rows_are_json_that_every_reader_takes(tmp_path: Path) -> None:
    vitral.train("digits", {**TINY, "train.log_every": 1}, out=tmp_path / "a")
    for line in (tmp_path / "a/metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line, parse_constant=lambda name: pytest.fail(name))
        assert "loss" not in row or row["step_ms"] > 0
        assert 0 <= row.get("data_wait", 0) <= 1
        assert "mfu" not in row, "the peak of a CPU is not known"
