"""Stopping a run from outside, as people and machines do, and going on with the command that it prints."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import TINY, VITRAL, assert_equal_tensors, weights
from vitral.training.metrics_log import MetricsLog
from vitral.weights.tensors import load_tensors

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
LONG = [
    "train.steps=150", "train.batch_size=32", "train.log_every=1", "report=false", "model.depth=2", "train.eval_every=3"
]  # fmt: skip


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*VITRAL, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


def finishes(*words: str) -> bool:
    return subprocess.run([*VITRAL, *words], capture_output=True, timeout=250).returncode == 0


def wait_for(path: Path, run: subprocess.Popen[Any], rows: int = 3) -> None:
    """Until the metrics_log of a run holds so many rows."""
    end = time.monotonic() + 120
    while not (path.exists() and path.read_text(encoding="utf-8").count("\n") >= rows):
        assert run.poll() is None, run.stderr.read() if run.stderr else ""
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_prints_the_command_that_goes_on(signum: int, code: int) -> None:
    """The folder's name has a blank: the printed line is one that a shell can read."""
    run = start("train", "digits", "out=my runs/a", *LONG)
    wait_for(Path("my runs/a/metrics.jsonl"), run)
    run.send_signal(signum)
    out, err = run.communicate(timeout=60)
    assert run.returncode == code, err
    assert out == ""
    assert "Traceback" not in err
    command = re.search(r"stopped at step \d+ of 150\. Resume with:\n  (vitral .*)\n$", err)
    assert command is not None, err
    assert not Path("my runs/a/summary.json").exists()
    line = command.group(1).replace("vitral", shlex.join(VITRAL), 1)
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "resuming at step" in done.stderr
    steps = [row["step"] for row in MetricsLog.read(Path("my runs/a")) if "loss" in row]
    assert steps == list(range(1, 151)), "every step once"
    assert Path("my runs/a/model/config.json").is_file()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_it_at_once(signum: int, code: int) -> None:
    run = start("train", "digits", "out=a", "train.steps=1000", "train.batch_size=1000", "train.log_every=1")
    wait_for(Path("a/metrics.jsonl"), run, 1)
    for _ in range(3):
        run.send_signal(signum)
    _, err = run.communicate(timeout=60)
    assert run.returncode == code
    assert "Traceback" not in err
    assert "vitral train a/config.yaml out=a resume=true" in err


def test_two_runs_are_kept_apart() -> None:
    """Started at the same moment into the same new folder: one trains, the other says that it is taken."""
    both = [start("train", "digits", "out=a", "train.steps=30", "report=false") for _ in range(2)]
    ends = [(run.communicate(timeout=200)[1], run.returncode) for run in both]
    assert sorted(code for _, code in ends) == [0, 2], ends
    assert any("another run works in this folder" in err or "is not empty" in err for err, _ in ends)
    assert not Path("a/.lock").exists()


def test_a_lock_that_a_killed_run_left_is_no_obstacle() -> None:
    run = start("train", "digits", "out=a", *LONG)
    wait_for(Path("a/metrics.jsonl"), run)
    run.send_signal(signal.SIGSTOP)  # it must not end meanwhile
    refused = subprocess.run([*VITRAL, "train", "digits", "out=a", "resume=true", *LONG], capture_output=True)
    assert refused.returncode == 2
    assert b"another run works in this folder" in refused.stderr
    run.kill()
    run.communicate()
    assert Path("a/.lock").exists()
    assert finishes("train", "digits", "out=a", "resume=true", *LONG)
    assert not Path("a/.lock").exists()


def untimed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the metrics_log without what depends on the clock."""
    return {key: value for key, value in row.items() if key not in ("samples_per_second", "step_ms", "data_wait")}


# Windows in which a kill could do harm, made wider: a file half written, one micro-batch done, another to come.
WIDENED = """
import sys, time
from pathlib import Path
from vitral.structs import Batch
from vitral.weights import tensors
save, cut = tensors.save_file, Batch.slice

def slow_save(content, path, facts):
    save(content, path, facts)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    time.sleep(0.05)
    path.write_bytes(whole)

def slow_cut(self, start, stop):
    if start:
        Path("accumulating").touch()
        time.sleep(0.01)
        Path("accumulating").unlink()
    return cut(self, start, stop)

tensors.save_file, Batch.slice = slow_save, slow_cut
from vitral.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_killed_at_random_moments_ends_with_the_same_bits() -> None:
    """20 times: inside a save, inside accumulation, at any moment of the loop, at any moment from the start on."""
    sizes = {**TINY, "train.steps": 700, "train.micro_batch": 12, "train.ema": 0.9, "model.dropout": 0.1}
    words = [f"{key}={json.dumps(value)}" for key, value in {**sizes, "train.eval_every": 2.0}.items()]
    words += ["train.log_every=1", "train.save_seconds=0.1"]
    assert finishes("train", "digits", "out=whole", *words)
    dice = random.Random(0)
    for number in range(20):
        Path("accumulating").unlink(missing_ok=True)
        run = subprocess.Popen([sys.executable, "-c", WIDENED, "train", "digits", "out=parts", "resume=true", *words])
        rows = Path("parts/metrics.jsonl")
        before = rows.stat().st_ino if rows.exists() else 0
        if number % 4 < 3:
            wait_for(rows, run, 1)
            while rows.stat().st_ino == before:  # a run that goes on puts a new file there
                time.sleep(0.01)
            time.sleep(dice.uniform(0, 1))
        if number % 4 < 2:
            seen = Path(("parts/checkpoints/.last.safetensors.partial", "accumulating")[number % 4])
            while not seen.exists():
                assert run.poll() is None, "the run was over before the kill"
        elif number % 4 == 3:
            time.sleep(dice.uniform(0, 5))
        assert run.poll() is None, "the run was over before the kill"
        run.kill()
        run.communicate()
    assert not Path("parts/summary.json").exists()
    assert finishes("train", "digits", "out=parts", "resume=true", *words)
    assert_equal_tensors(weights("whole"), weights("parts"))
    for name in ("last", "best"):
        both = [load_tensors(Path(out) / f"checkpoints/{name}.safetensors") for out in ("whole", "parts")]
        assert_equal_tensors(both[0][0], both[1][0])
    rows = [[untimed(row) for row in MetricsLog.read(Path(out))] for out in ("whole", "parts")]
    assert rows[0] == rows[1]
    assert not list(Path("parts").rglob(".*")), "nothing half-written is left"
