"""The benchmark of predictions: all contestants compute the same, and ours come first."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.oracle, pytest.mark.slow]
SCRIPT = Path(__file__).parents[2] / "benchmarks/infer.py"


@pytest.mark.parametrize(("precision", "apart"), [("float32", 1e-3), ("bfloat16", 1.0)])
def test_all_contestants_compute_the_same(precision: str, apart: float) -> None:
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    row = f"rows=tiny_patch16_224, {precision}, batch 1"
    command = [sys.executable, str(SCRIPT), row, "rounds=2", "threads=1", "compiled=false", "save=a.json"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(Path("a.json").read_text(encoding="utf-8"))["results"]
    peers = {"openvino", "timm eager", "transformers eager"} | ({"onnxruntime"} if precision == "float32" else set())
    assert set(result["outputs"]) == {"vitral auto", "vitral torch", *peers}
    assert set(result["ratio_quartiles"]) == set(result["outputs"]) - {"vitral auto"}
    for said in result["outputs"].values():
        assert said["agreement"] >= (1 if precision == "float32" else 0.8), "random weights: near ties"
        assert said["differs"] < apart
