"""The server on a Ray cluster: in other processes, with the same answers; what does not start is said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import vitral
from tests.helpers import VITRAL, assert_same_answers, random_model, write_digits
from tests.processes import free_port
from vitral.errors import UserError
from vitral.serve import ray_deployment

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
# In a process of its own: a cluster starts and ends with it.
FAILS = """
import sys
from functools import partial
from vitral.errors import RunFailed
from vitral.run.command_options import ServeOptions
from vitral.run.serve import _application
from vitral.serve.ray_deployment import deployed

make_app = partial(_application, ("nothing",), ("nothing",), ServeOptions(engine="ray"), None)
try:
    with deployed(make_app, replicas=1, device="cpu", host="127.0.0.1", port=int(sys.argv[1]), drain=1.0):
        pass
except RunFailed as error:
    print(error)
"""
BESIDE = """
import sys, urllib.request
import ray
from fastapi import FastAPI
from ray import serve
from vitral.errors import UserError
from vitral.serve.ray_deployment import deployed

@serve.deployment(ray_actor_options={"num_cpus": 0})
def theirs(request):
    return "still here"

def make_app(device):
    return FastAPI()

ports = [int(port) for port in sys.argv[1:]]
where = {"replicas": 1, "device": "cpu", "host": "127.0.0.1", "drain": 1.0}
ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
with deployed(make_app, port=ports[0], **where) as url:
    serve.run(theirs.bind(), name="theirs", route_prefix="/theirs")
    try:
        with deployed(make_app, port=ports[1], **where):
            pass
    except UserError as error:
        print(error)
print(urllib.request.urlopen(f"{url}/theirs").read().decode(), list(serve.status().applications))
serve.shutdown()
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
                found = [{**json.load(answer), "image": "digit.png"}]
                assert_same_answers(found, vitral.load("model").predict("digit.png"))
            again = subprocess.run(command, capture_output=True, encoding="utf-8", env=ENVIRONMENT, timeout=120)
            assert again.returncode == 2
            assert f"127.0.0.1:{port}" in again.stderr
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(120) == 143


class FakeServe:
    """Ray Serve, as far as ours asks it, with these applications."""

    def __init__(self, *applications: str, listens: bool = True) -> None:
        self.applications, self.proxies = list(applications), ["node"] * listens

    def status(self) -> Any:
        return SimpleNamespace(applications=dict.fromkeys(self.applications), proxies=dict.fromkeys(self.proxies))

    def delete(self, name: str) -> None:
        self.applications.remove(name)

    def shutdown(self) -> None:
        self.applications, self.proxies = [], []


def test_what_others_run_on_the_cluster_stays() -> None:
    for others in (["theirs"], []):
        ours = FakeServe(ray_deployment.NAME, *others)
        ray_deployment._end(ours)
        assert ours.applications == others
        assert bool(ours.proxies) == bool(others)
    ray_deployment._check_none_runs(FakeServe(listens=False))
    for theirs in (FakeServe("a", "b"), FakeServe()):
        with pytest.raises(UserError, match=r"already\n  got:    applications: (a, b|none)"):
            ray_deployment._check_none_runs(theirs)


@pytest.mark.oracle
@pytest.mark.timeout(600)
def test_another_application_outlives_ours() -> None:
    pytest.importorskip("ray")
    done = subprocess.run(
        [sys.executable, "-c", BESIDE, *(str(free_port()) for _ in range(2))], capture_output=True, encoding="utf-8",
        timeout=500, env={**ENVIRONMENT, "RAY_USAGE_STATS_ENABLED": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "RAY_ADDRESS: Ray Serve runs on this cluster already"
    assert "still here ['theirs']" in done.stdout.splitlines()


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
