"""The server on a Ray cluster: in other processes, with the same answers; what does not start is said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import vitral
from tests.helpers import VITRAL, random_model, write_digits
from tests.processes import free_port

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
# In a process of its own: a cluster starts and ends with it.
FAILS = """
import sys
from functools import partial
from vitral.errors import RunFailed
from vitral.run.options import ServeOptions
from vitral.run.serve import _application
from vitral.serve.many import deployed

make_app = partial(_application, ("nothing",), ("nothing",), ServeOptions(engine="ray"), None)
try:
    with deployed(make_app, replicas=1, device="cpu", host="127.0.0.1", port=int(sys.argv[1]), drain=1.0):
        pass
except RunFailed as error:
    print(error)
"""


@pytest.mark.oracle
@pytest.mark.timeout(600)
def test_the_server_answers_from_a_cluster_and_ends_with_its_signal() -> None:
    pytest.importorskip("ray")
    folder, port = random_model(Path("model")), free_port()
    write_digits(Path("d"), range(1))[0][0].rename("digit.png")
    command = [*VITRAL, "serve", str(folder), "engine=ray", f"port={port}", "ray.workers=1", "drain=5", "names=[model]"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", env=ENVIRONMENT) as server:
        try:
            assert server.stdout is not None
            said = json.loads(server.stdout.readline())
            assert said == {"url": f"http://127.0.0.1:{port}", "models": ["model"]}
            kind = {"Content-Type": "image/png"}
            request = urllib.request.Request(f"{said['url']}/v1/predict", Path("digit.png").read_bytes(), kind)
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert json.load(answer)["predictions"] == vitral.load("model").predict("digit.png")[0]["predictions"]
            again = subprocess.run(command, capture_output=True, encoding="utf-8", env=ENVIRONMENT, timeout=120)
            assert again.returncode == 2
            assert f"127.0.0.1:{port}" in again.stderr
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(120) == 143


@pytest.mark.oracle
@pytest.mark.timeout(600)
def test_an_application_that_does_not_start_is_said() -> None:
    pytest.importorskip("ray")
    done = subprocess.run(
        [sys.executable, "-c", FAILS, str(free_port())], capture_output=True, encoding="utf-8", timeout=500,
        env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "nothing" in done.stdout
