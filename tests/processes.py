"""Runs a function of a test module in several processes that form one group, as a launcher would start them."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def in_processes(world: int, function: str, *arguments: Any, timeout: float | None = None) -> list[Any]:
    """What `function`, "tests.module:name", returns in each of `world` processes of one thread, whose collectives wait
    `timeout` seconds for each other."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join([root, str(Path(root) / "src"), os.environ.get("PYTHONPATH", "")])
    started: list[subprocess.Popen[bytes]] = []
    for rank in range(world):
        names = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world), "PYTHONPATH": paths}
        code = f"from tests.processes import work; work({function!r}, {timeout!r})"
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code, json.dumps(arguments)],
                env={**os.environ, **address, **names}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    try:
        ends = [one.communicate(timeout=240) for one in started]
    finally:
        for one in started:
            one.kill()
    for one, (_, err) in zip(started, ends, strict=True):
        assert one.returncode == 0, err.decode()
    return [pickle.loads(out) for out, _ in ends]


def work(function: str, timeout: float | None) -> None:
    """In such a process: call the function with the arguments of the command line, pickle what it returns to stdout."""
    from vitral import distributed

    if timeout is not None:
        distributed.TIMEOUT = timedelta(seconds=timeout)
    module, _, name = function.partition(":")
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with distributed.processes("cpu", alone=True):
        result = getattr(importlib.import_module(module), name)(*json.loads(sys.argv[1]))
    pickle.dump(result, out)
    out.close()
