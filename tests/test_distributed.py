"""What launchers say, and torchrun as people start it: one run of two processes, killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from tests.helpers import TINY, VITRAL, assert_equal_tensors, weights
from tests.processes import in_processes
from vitral import distributed
from vitral.data.config import DataConfig
from vitral.data.sources import open_dataset
from vitral.distributed import Launch, launch, slurm_address
from vitral.errors import UserError
from vitral.run import train
from vitral.run.config import load_config

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def tiny(**more: object) -> list[str]:
    """The words of a short run on the digits, with some keys changed."""
    keys = {**TINY, **{key.replace("__", "."): value for key, value in more.items()}}
    words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in keys.items()}
    return ["train", "digits", *(f"{key}={word}" for key, word in words.items())]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Launch(0, 1, 0, 1)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, Launch(5, 8, 1, 4)),
        (
            {"SLURM_PROCID": "6", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "2", "SLURM_TASKS_PER_NODE": "4(x2)"},
            Launch(6, 8, 2, 4),
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, Launch(0, 1, 0, 1)),  # sbatch's own shell: no srun, one process
    ],
)
def test_what_a_launcher_says(environ: dict[str, str], expected: Launch) -> None:
    assert launch(environ) == expected


def slow_check(seconds: float, broken: bool) -> list[str]:
    """In a process whose collectives end after 3 s: the first takes longer."""
    events: list[str] = []
    try:
        with distributed.first_of_machine_first():
            if distributed.is_main():
                time.sleep(seconds)
                if broken:
                    raise UserError("broken data")
            events.append(str(distributed.rank()))
    except UserError as error:
        events.append(error.what)
    return [*events, str(distributed.gather(1))]


@pytest.mark.parametrize("broken", [False, True])
def test_a_check_that_takes_longer_than_the_collectives_wait(broken: bool) -> None:
    found = in_processes(2, "tests.test_distributed:slow_check", 7.0, broken, timeout=4.0)
    assert found == [["broken data" if broken else "0", "[1, 1]"], ["1", "[1, 1]"]]


def silent() -> str:
    """The first process neither works nor comes."""
    distributed.TIMEOUT = timedelta(seconds=1)
    board = distributed._Board()
    if distributed.is_main():
        time.sleep(3)
        board.done("first")
        return "late"
    try:
        board.wait("first", 1)
    except RuntimeError as error:
        return str(error)
    return "in time"


def test_who_is_not_heard_is_not_waited_for() -> None:
    assert in_processes(2, "tests.test_distributed:silent") == ["late", "no other process was heard for 0:00:01"]


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("gpu7", "gpu7"), ("gpu[03-05,09]", "gpu03"), ("gpu[3,7]-ib,login", "gpu3-ib"), ("a1,a2", "a1")],
)
def test_the_first_machine_of_a_slurm_job_is_where_they_meet(nodes: str, host: str) -> None:
    assert slurm_address({"SLURM_STEP_NODELIST": nodes, "SLURM_JOB_ID": "123456"}) == (host, "23456")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"optim.name": "muon"}, "muon needs whole matrices"),
        ({"optim.name": "lars"}, "lars needs whole matrices"),
        ({"precision": "bfloat16_params"}, "keeps whole copies"),
    ],
)
def test_what_cannot_be_cut_is_refused(keys: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config("digits", {**TINY, "train.parallel": "fsdp", **keys})


def test_memory_is_planned_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="memory: memory is estimated for one process only"):
        train.run(load_config("digits", {**TINY, "memory": "1GB"}))


def run(*words: str, start: list[str] = TORCHRUN) -> subprocess.CompletedProcess[str]:
    command = [*start, *(["-m", "vitral"] if start is not VITRAL else []), *words]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=280)


@pytest.mark.slow
def test_torchrun_trains_as_one_process_does() -> None:
    """The same numbers, one log, one model folder, one result on stdout."""
    words = [*tiny(train__steps=10, train__log_every=1, augment__mixup=0.5), "--json"]
    alone, both = run(*words, "out=one", start=VITRAL), run(*words, "out=two")
    assert both.returncode == 0, both.stderr
    mine, theirs = (json.loads(done.stdout) for done in (alone, both))
    assert mine["top1"] == theirs["top1"]
    assert abs(mine["loss"] - theirs["loss"]) < 1e-4
    rows = [(Path(out) / "metrics.jsonl").read_text(encoding="utf-8").splitlines() for out in ("one", "two")]
    losses = [[json.loads(line)["loss"] for line in lines if '"loss"' in line] for lines in rows]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert both.stderr.count("run: 10 steps") == 1
    assert {path.name for path in Path("one").iterdir()} == {path.name for path in Path("two").iterdir()}


@pytest.mark.slow
def test_a_batch_that_does_not_divide_is_refused_in_one_message() -> None:
    done = run(*tiny(train__batch_size=24), "out=a")
    assert done.stderr.count("train.batch_size: every one of 2 processes takes a multiple of 8 images") == 1
    assert not Path("a").exists()


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_killed_worker_ends_torchrun_and_a_restart_goes_on(parallel: str) -> None:
    """With fsdp nearly always while a checkpoint is written beside the run."""
    words = tiny(train__steps=300, train__log_every=1, train__save_seconds=0.1, train__parallel=parallel)
    whole = run(*words, "out=whole")
    assert whole.returncode == 0, whole.stderr
    for restarts in (0, 1):
        command = [*TORCHRUN, f"--max-restarts={restarts}", "-m", "vitral", *words, "out=parts", "resume=true"]
        torchrun = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8")
        rows = Path("parts/metrics.jsonl")
        before = rows.stat().st_ino if rows.exists() else 0
        while not rows.exists() or rows.stat().st_ino == before or rows.read_text(encoding="utf-8").count("\n") < 20:
            assert torchrun.poll() is None, torchrun.stderr.read() if torchrun.stderr else ""
            time.sleep(0.02)
        os.kill(worker_of(torchrun.pid), signal.SIGKILL)
        _, err = torchrun.communicate(timeout=200)
        assert (torchrun.returncode == 0) == (restarts == 1), err
    assert "resuming at step" in err
    assert_equal_tensors(weights("whole"), weights("parts"))


@pytest.mark.slow
def test_doctor_replays_the_batch_that_ended_a_run_of_two_processes() -> None:
    """On one process, from the shards of both: the step, the images of the whole batch, and where it begins."""
    words = tiny(train__steps=9, train__parallel="fsdp", train__max_nonfinite_steps=2, optim__lr=1e30)
    done = run(*words, "out=a")
    assert done.returncode != 0
    assert "2 steps in a row were not finite" in done.stderr
    assert "vitral doctor a" in done.stderr
    found = json.loads(run("doctor", "a", "--json", start=VITRAL).stdout)
    rows = [json.loads(line) for line in Path("a/nonfinite/steps.jsonl").read_text(encoding="utf-8").splitlines()]
    assert found["step"] == rows[-1]["step"] + 1
    assert len(found["images"]) == len(rows[-1]["keys"]) == TINY["train.batch_size"]
    names = open_dataset(DataConfig(source="digits")).splits["train"].names
    assert found["images"] == [str(names[key]) for key in rows[-1]["keys"]]
    assert found["first_not_finite"].startswith("the output of model.blocks.0")


def worker_of(torchrun: int) -> int:
    """The process id of one of its workers."""
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(torchrun)], capture_output=True, encoding="utf-8")
    found = [int(line.split()[0]) for line in listed.stdout.splitlines() if "vitral" in line and " train " in line]
    return found[-1]
