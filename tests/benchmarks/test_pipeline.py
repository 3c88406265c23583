"""The benchmark from files to classes: both contestants give the same classes, and ours come first."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.oracle, pytest.mark.slow]
SCRIPT = Path(__file__).parents[2] / "benchmarks/pipeline.py"


def test_both_give_the_same_classes() -> None:
    command = [sys.executable, str(SCRIPT), "rows=tiny_patch16_224, float32", "rounds=2", "threads=1", "files=16"]
    done = subprocess.run(
        [*command, "save=a.json"], capture_output=True, text=True, encoding="utf-8", check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(Path("a.json").read_text(encoding="utf-8"))["results"]
    assert list(result["agreement"]) == [
        "vitral auto", "vitral torch", "transformers, batch_size=1", "transformers, batch_size=8"
    ]  # fmt: skip
    assert result["agreement"]["vitral torch"] == 1
    assert min(result["agreement"].values()) >= 0.9, "their resize rounds to 8 bits between two passes"
