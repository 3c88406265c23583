"""predict and embed spread over Ray: the same lines, arrays, mistakes and exit codes as without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import VITRAL, assert_same_answers, random_model, write_colors, write_digits
from vitral.cli.main import main
from vitral.serve.ray_cluster import cluster

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore:::ray")]
SOURCES = str(Path(__file__).parents[2] / "src")
# In a process of its own, since Ray leaves the processes that it starts to the collector.
START = """
import ray, sys
found = ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000)
print(found.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def _connected() -> Iterator[None]:
    """To a cluster of two processors on this machine, as RAY_ADDRESS says; the commands use the connection."""
    pytest.importorskip("ray")
    names = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": SOURCES}  # its processes import what is tested
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, value)
        with subprocess.Popen(
            [sys.executable, "-c", START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            encoding="utf-8",
        ) as process:  # fmt: skip
            assert process.stdout is not None
            patch.setenv("RAY_ADDRESS", process.stdout.readline().strip())
            with cluster():
                yield
            process.communicate()


def both(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[list[str], list[str]]:
    """What a command says, here and spread: exit code, lines and messages."""
    said: list[list[str]] = []
    for more in ((), ("engine=ray", "ray.workers=2")):
        code = main([*words, *more])
        out, err = capsys.readouterr()
        said.append([str(code), *out.splitlines(), err])
    return said[0], said[1]


def assert_same_lines(one: list[str], many: list[str]) -> None:
    """Equal code, messages and answers, and scores but for rounding: processes have other threads."""
    assert (one[0], one[-1]) == (many[0], many[-1])
    assert_same_answers([json.loads(line) for line in one[1:-1]], [json.loads(line) for line in many[1:-1]])


@pytest.mark.usefixtures("_connected")
def test_predictions_are_those_of_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    random_model(Path("model"))
    write_digits(Path("digits"), range(41))
    one, many = both(capsys, "predict", "model", "digits", "batch_size=4", "topk=2", "reduce=none")
    assert_same_lines(one, many)
    assert len(one) == 43


@pytest.mark.usefixtures("_connected")
def test_an_image_that_cannot_be_read_is_named_in_both_at_the_same_place(capsys: pytest.CaptureFixture[str]) -> None:
    random_model(Path("model"))
    paths = [str(path) for path, _, _ in write_digits(Path("digits"), range(30))]
    Path(paths[17]).write_bytes(b"not an image")
    one, many = both(capsys, "predict", "model", *paths, "batch_size=5")
    assert_same_lines(one, many)
    assert one[0] == "2"
    rows = [json.loads(line) for line in one[1:31]]
    assert [row["image"] for row in rows] == paths
    assert [row["image"] for row in rows if "error" in row] == [paths[17]]
    assert "1 of 30 images cannot be read" in one[-1]


@pytest.mark.usefixtures("_connected")
def test_features_of_files_and_of_data(capsys: pytest.CaptureFixture[str]) -> None:
    random_model(Path("model"))
    write_colors(Path("data/train"), "ant bee", count=9)
    write_colors(Path("data/test"), "ant bee", count=5, first=9)
    for words in (["data"], ["data=data", "split=all"]):
        for name, more in (("one", []), ("many", ["engine=ray"])):
            assert main(["embed", "model", *words, "batch_size=4", f"out={name}.npz", "overwrite=true", *more]) == 0
        with np.load("one.npz") as one, np.load("many.npz") as many:
            assert set(one.files) == set(many.files)
            for key in one.files:
                if one[key].dtype.kind == "f":
                    np.testing.assert_allclose(one[key], many[key], rtol=0, atol=1e-5)
                else:
                    np.testing.assert_array_equal(one[key], many[key])
            assert len(one["images"]) == 28
    capsys.readouterr()


def test_stdout_is_data_alone_of_a_cluster_that_ends_with_the_command() -> None:
    pytest.importorskip("ray")
    random_model(Path("model"))
    write_digits(Path("digits"), range(7))
    done = subprocess.run(
        [*VITRAL, "predict", "model", "digits", "engine=ray"], capture_output=True, encoding="utf-8",
        env={**os.environ, "PYTHONPATH": SOURCES},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["image"] for line in done.stdout.splitlines()] == [
        str(path) for path in sorted(Path("digits").rglob("*.png"))
    ]
    assert "Traceback" not in done.stderr
