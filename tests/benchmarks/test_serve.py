"""The benchmarks of the server: everybody answers alike, and memory stays flat under good and bad requests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(name: str, *words: str) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARKS / name), *words, "save=a.json"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(Path("a.json").read_text(encoding="utf-8"))


@pytest.mark.oracle
def test_served_and_offline_rates_stand_side_by_side() -> None:
    pytest.importorskip("litserve", reason="the extra `bench` is not installed")
    tree = run("serve.py", "rows=digits", "rounds=2", "seconds=2", "threads=1", "clients=[2]")
    (result,) = tree["results"]
    assert set(result["servers"]) == {"vitral", "litserve"}
    for said in result["servers"].values():
        assert 0 < said["p50"] <= said["p99"]
        assert 0 < said["efficiency"] < 2
    assert result["offline_rate"] > 0


def test_a_soak_leaves_memory_flat_and_every_answer_right() -> None:
    """1,500 requests, a tenth of them bad."""
    found = run("soak.py", "requests=1500")
    assert found["wrong"] == 0
    assert found["statuses"]["200"] == 1350
    assert set(found["statuses"]) == {"200", "0", "400", "408", "413", "415", "422"}
    memory = found["memory_mb"]
    assert memory["last"] - memory["after_a_fifth"] < 15
