"""How a cluster is shared out, and what is said where there is none."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from tests.helpers import random_model, write_digits
from vitral.cli.main import main
from vitral.errors import UserError
from vitral.serve.ray_cluster import share_out

SMALL, LARGE, GPUS = {"CPU": 2.0}, {"CPU": 16.0}, {"CPU": 32.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("nodes", "device", "workers", "share"),
    [
        ([SMALL], "auto", None, (1, 2, 0)),
        ([LARGE], "auto", None, (4, 4, 0)),
        ([SMALL, LARGE], "cpu", None, (4, 4, 0)),  # none fits on the small machine
        ([SMALL, LARGE], "cpu", 9, (9, 2, 0)),
        ([SMALL, LARGE], "cpu", 18, (18, 1, 0)),
        ([GPUS], "auto", None, (4, 8, 1)),
        ([GPUS, LARGE], "cuda", 3, (3, 8, 1)),
        ([GPUS], "cpu", None, (8, 4, 0)),
    ],
)
def test_workers_get_what_fits(nodes, device, workers, share) -> None:
    assert share_out(nodes, device, workers) == share


@pytest.mark.parametrize(
    ("nodes", "device", "workers", "message"),
    [
        ([SMALL], "auto", 3, "ray.workers: .*no room(.|\n)*expected: 2 at most, its processors"),
        ([GPUS], "cuda", 5, "4 at most, its GPUs"),
        ([LARGE], "cuda", None, "no GPU"),
        ([GPUS], "cuda:1", None, "each worker a GPU"),
    ],
)
def test_what_does_not_fit_is_refused(nodes, device, workers, message: str) -> None:
    with pytest.raises(UserError, match=message):
        share_out(nodes, device, workers)


@pytest.fixture
def command() -> list[str]:
    random_model(model := Path("model"))
    return ["predict", str(model), str(write_digits(model.parent / "d", range(1))[0][0]), "engine=ray"]


def test_without_the_extra_it_is_said_how_to_get_it(command, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert 'pip install "vitral[ray]"' in err


def test_a_cluster_that_does_not_answer(command, monkeypatch, capsys) -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free.getsockname()[1]}")
        assert main(command) == 2
    assert "no Ray cluster answers" in capsys.readouterr().err
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    assert main(command) == 2
    assert "RAY_ADDRESS: not an address" in capsys.readouterr().err


def test_keys_of_ray_without_ray_are_refused(command, capsys) -> None:
    assert main([*command[:-1], "ray.workers=1"]) == 2
    assert "no effect without engine=ray" in capsys.readouterr().err
    assert main(["embed", *command[1:-1], "ray.workers=1"]) == 2
    assert main(["eval", "model", "engine=ray"]) == 2
