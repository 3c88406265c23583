"""The server's application on a Ray cluster: in other processes, with the same answers; what does not start is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vitral
from tests.helpers import random_model, write_digits

ROOT = Path(__file__).parents[2]
# In a process of its own: a cluster starts and ends with it.
SCRIPT = """
import json, os, sys, urllib.request
from functools import partial
from tests.processes import free_port
from tests.serve.stand_in import make_app
from vitral.errors import RunFailed, UserError
from vitral.serve.cluster import cluster
from vitral.serve.many import deployed

port, said = int(free_port()), {}
place = {"replicas": 1, "device": "auto", "host": "127.0.0.1", "port": port}
with cluster():
    with deployed(partial(make_app, "model"), **place) as address:
        for number in range(3):
            data = open("digit.png", "rb").read()
            request = urllib.request.Request(f"{address}/predict", data=data, method="POST")
            said["answer"] = json.load(urllib.request.urlopen(request, timeout=60))
        try:
            with deployed(partial(make_app, "model"), **place):
                pass
        except UserError as error:
            said["taken"] = str(error)
    try:
        with deployed(partial(make_app, "nothing"), **place):
            pass
    except RunFailed as error:
        said["failed"] = str(error)
print(json.dumps({**said, "process": os.getpid(), "port": port}))
"""


@pytest.mark.oracle
@pytest.mark.timeout(600)  # minutes on a busy machine: Ray tries three times what does not start
def test_the_application_answers_from_another_process() -> None:
    pytest.importorskip("ray")
    random_model(Path("model"))
    write_digits(Path("d"), range(1))[0][0].rename("digit.png")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, encoding="utf-8", timeout=500,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["answer"]["process"] != said["process"]
    assert said["answer"]["device"] == "cpu"
    assert said["answer"]["predictions"] == vitral.load("model").predict("digit.png")[0]["predictions"]
    assert f"127.0.0.1:{said['port']}" in said["taken"]
    assert said["failed"].startswith("Ray Serve: nothing: no such model")
    assert "Traceback" not in said["failed"]
