"""Optional packages look up no host and leave no identity behind: their telemetry is off before they are imported."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import random_model
from vitral.cli.main import main
from vitral.optional_imports import NO_TELEMETRY

# Looked-up hosts of Python's own resolver; those of native code would find none and write their stores all the same.
WATCHED = """
import socket, sys, time
real = socket.getaddrinfo
def refuse(host, *more, **options):
    print("LOOKUP", host, file=sys.stderr)
    raise OSError("no network")
socket.getaddrinfo = refuse
from vitral.cli.main import main
code = main(sys.argv[1:])
time.sleep(1)
sys.exit(code)
"""


def watched(*words: str, **more: str) -> tuple[int, str, list[str]]:
    """Exit code and stderr of a command with a home of its own, and the files that it left there."""
    home = Path("home").absolute()
    home.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if name not in (*NO_TELEMETRY, "XDG_CACHE_HOME", "CI")}
    environment = {**kept, "HOME": str(home), "HF_HUB_OFFLINE": "0", **more}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *words], capture_output=True, encoding="utf-8", env=environment, timeout=300
    )
    return done.returncode, done.stderr, sorted(str(path.relative_to(home)) for path in home.rglob("*"))


@pytest.mark.parametrize(("kind", "module"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_runtimes_report_nothing(kind: str, module: str) -> None:
    for name in {"onnx", "onnxscript", module}:
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    random_model(Path("model"))
    assert main(["export", "model", f"format={kind}", "out=there", "images=1"]) == 0
    Image.new("L", (8, 8)).save("gray.png")
    code, said, left = watched("predict", "there", "gray.png")
    assert (code, [line for line in said.splitlines() if "LOOKUP" in line]) == (0, [])
    assert [path for path in left if "vitral" not in path and path != ".cache"] == []


def test_local_shards_are_read_without_a_network() -> None:
    pytest.importorskip("datasets", reason="the extra datasets is not installed")
    with tarfile.open("pets-000.tar", "w") as shard:
        for number in range(4):
            stream = io.BytesIO()
            Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(stream, "PNG")
            for name, data in ((f"{number}.png", stream.getvalue()), (f"{number}.cls", b"%d" % (number % 2))):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                shard.addfile(entry, io.BytesIO(data))
    code, said, _ = watched("data", "stats", "pets-000.tar")
    assert (code, [line for line in said.splitlines() if "LOOKUP" in line]) == (0, [])


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitral.optional_imports import optional

    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    assert optional("json").loads("1") == 1
    assert (os.environ["ORT_DISABLE_TELEMETRY"], os.environ["RAY_USAGE_STATS_ENABLED"]) == ("0", "0")
