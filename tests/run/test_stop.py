"""Stopping a run from outside, as people and machines do, and going on with the command that it prints."""

from __future__ import annotations

import os
import random
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers import VITRAL, assert_equal_tensors, weights
from vitral.training.journal import Journal

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


def wait_for(path: Path, run: subprocess.Popen[str], rows: int = 3) -> None:
    """Until the journal of a run holds so many rows."""
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
    command = re.search(r"stopped at step \d+ of 150\. Go on with:\n  (vitral .*)\n$", err)
    assert command is not None, err
    assert not Path("my runs/a/summary.json").exists()
    line = command.group(1).replace("vitral", shlex.join(VITRAL), 1)
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "going on at step" in done.stderr
    steps = [row["step"] for row in Journal.read(Path("my runs/a")) if "loss" in row]
    assert steps == list(range(1, 151)), "every step once"
    assert Path("my runs/a/model/config.json").is_file()


def test_a_second_signal_ends_it_at_once() -> None:
    run = start("train", "digits", "out=a", "train.steps=1000", "train.batch_size=1000", "train.log_every=1")
    wait_for(Path("a/metrics.jsonl"), run, 1)
    run.send_signal(signal.SIGINT)
    run.send_signal(signal.SIGINT)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_bits() -> None:
    words = ["train.steps=400" if word.startswith("train.steps") else word for word in LONG] + [
        "train.save_seconds=0.2"
    ]
    assert finishes("train", "digits", "out=whole", *words)
    dice, kills = random.Random(0), 0
    while kills < 5:
        run = start("train", "digits", "out=parts", "resume=true", *words)
        wait_for(Path("parts/metrics.jsonl"), run, 1)
        time.sleep(dice.uniform(0, 1))
        assert run.poll() is None, "the run was over before the kill"
        run.kill()
        run.communicate()
        kills += 1
    assert not Path("parts/summary.json").exists()
    assert finishes("train", "digits", "out=parts", "resume=true", *words)
    assert_equal_tensors(weights("whole"), weights("parts"))
    assert [row["step"] for row in Journal.read(Path("parts")) if "loss" in row] == list(range(1, 401))
