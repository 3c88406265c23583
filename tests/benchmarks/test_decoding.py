"""The benchmark of decoding: it stops unless all peers write the same tokens, and its ratios say what they are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.oracle, pytest.mark.slow]
SCRIPT = Path(__file__).parents[2] / "benchmarks/decoding.py"


def test_peers_write_the_same_tokens() -> None:
    pytest.importorskip("transformers")
    command = [
        sys.executable,
        str(SCRIPT),
        "rounds=2",
        "tokens=5",
        "source=4",
        "beams=3",
        "vocabulary=50",
        "save=a.json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    rows = {row["row"]: row for row in json.loads(Path("a.json").read_text(encoding="utf-8"))["results"]}
    assert list(rows) == ["cache", "beams 1", "beams 3"]
    assert list(rows["beams 3"]["median_ms"]) == ["vitral", "transformers"]
    low, middle, high = rows["cache"]["ratio_quartiles"]["no cache"]
    assert 0 < low <= middle <= high
