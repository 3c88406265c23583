"""What is said of the folder of a run that was stopped, whatever lies in it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.helpers import random_model
from vitral.errors import UserError
from vitral.weights.find_model import load_model
from vitral.weights.stopped_run import refuse_stopped

STATE = json.dumps({"progress": {"step": 3}, "steps": 9})
unix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")


def started() -> Path:
    folder = Path("run")
    (folder / "checkpoints/last.sharded").mkdir(parents=True)
    (folder / "config.yaml").write_text("{}", encoding="utf-8")
    save_file({"a": np.zeros(1)}, folder / "checkpoints/previous.safetensors", {"state": STATE})
    return folder


@unix
@pytest.mark.timeout(20)
def test_a_pipe_is_not_waited_for() -> None:
    folder = started()
    os.mkfifo(folder / "checkpoints/last.safetensors")
    with pytest.raises(UserError, match="stopped at step 3 of 9"):
        refuse_stopped(folder)


@pytest.mark.parametrize(
    "state",
    ["[" * 200_000, "[]", "3", json.dumps({"state": "[" * 200_000}), json.dumps({"state": [1]}),
     json.dumps({"state": '{"progress": {"step": Infinity}, "steps": 9}'})],
)  # fmt: skip
def test_a_state_that_cannot_be_read_is_passed_over(state: str) -> None:
    folder = started()
    (folder / "checkpoints/last.sharded/state.json").write_text(state, encoding="utf-8")
    with pytest.raises(UserError, match="stopped at step 3 of 9"):
        refuse_stopped(folder)


@unix
@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("verify", [True, False])
def test_a_pipe_in_a_model_folder_is_not_waited_for(name: str, verify: bool) -> None:
    random_model(Path("model"))
    Path("model", name).unlink()
    os.mkfifo(Path("model", name))
    with pytest.raises(UserError, match="named pipe"):
        load_model("model", verify=verify)
