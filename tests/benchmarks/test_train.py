"""The benchmark of a training step: peers that are installed do the same first step, and ratios say what they are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.oracle, pytest.mark.slow]
SCRIPT = Path(__file__).parents[2] / "benchmarks/train.py"


def results(rows: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(SCRIPT), "rounds=2", "threads=1", f"rows={rows}", "save=a.json"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "time of the peer / our time" in done.stdout or "time with / time without" in done.stdout
    tree = json.loads(Path("a.json").read_text(encoding="utf-8"))
    assert len(tree["load_averages"]) == len(tree["results"]) + 1
    return tree["results"]


def test_peers_do_the_same_first_step() -> None:
    """Loss, clipped gradient and the weights after a step of AdamW, in their own libraries."""
    (row,) = results("vit_micro_patch2_8, class token")
    assert {"timm", "transformers", "torchvision"} <= row["differences"].keys() == row["ratio_quartiles"].keys()
    for name in ("timm", "transformers", "torchvision"):
        loss, gradient, step = row["differences"][name]
        assert loss < 1e-5
        assert gradient < 1e-5
        assert step < 1e-2
    assert row["ratio"] == "time of the peer / our time"
    assert 0 < row["of_gemm"]["vitral"] < 1.5


def test_a_lever_is_time_with_over_time_without() -> None:
    (row,) = results("lever: last block for the class token alone")
    assert list(row["median_ms"]) == ["without", "with"]
    assert row["ratio"] == "time with / time without"
    with_, without = row["median_processor_ms"]["with"], row["median_processor_ms"]["without"]
    assert row["processor_ratio_quartiles"]["with"][1] == pytest.approx(with_ / without, rel=0.5)
