"""The learning curve's benchmark: runs are not repeated, tables and curves count seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import few_labels


def test_a_stopped_benchmark_continues_and_counts_seeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[dict[str, Any]] = []

    def measure(row: dict[str, Any]) -> dict[str, Any]:
        done.append(row)
        better = {"supervised": 0.7, "vat": 0.9}[row["method"]]
        return {"top1": better + 0.01 * row["seed"] + row["labels_per_class"] / 1000}

    monkeypatch.setattr(few_labels, "measure", measure)
    words = ["few_labels.py", "methods=supervised,vat", "labels=1,4", "save=found.json", "picture=curve.svg"]
    for seeds, runs in (("seeds=0", 4), ("seeds=0,1,2", 12)):
        monkeypatch.setattr("sys.argv", [*words, seeds])
        few_labels.main()
        assert len(done) == runs
    lines = capsys.readouterr().out.splitlines()
    assert "| 4 | vat | 0.003 | 3 | 91.40 | 1.00 | 90.40 to 92.40 |" in lines
    assert len(json.loads(Path("found.json").read_text(encoding="utf-8"))["results"]) == 12
    assert b"<svg" in Path("curve.svg").read_bytes()


def test_the_best_rate_of_the_most_seeds_is_drawn() -> None:
    rows = [
        {"method": "supervised", "labels_per_class": 4, "seed": seed, "lr": lr, "top1": top1}
        for seed, lr, top1 in ((0, 1e-3, 0.99), (0, 3e-3, 0.7), (1, 3e-3, 0.8), (0, 1e-2, 0.6), (1, 1e-2, 0.7))
    ]
    ((point,),) = few_labels.curves(rows).values()
    assert point == (4, pytest.approx(0.75), 0.7, 0.8)
