"""tools/install.py against stand-ins of both package indexes: which build of PyTorch is taken, and what is said."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import venv
import zipfile
from collections.abc import Generator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the usual build is for CPUs")


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, says nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    """A wheel that holds one empty module, in a folder of its name."""
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {each}\n" for each in requires)
    place = folder / name.replace("_", "-")
    place.mkdir(exist_ok=True)
    with zipfile.ZipFile(place / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", "")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        rows = [f"{name}.py,,0", f"{info}/METADATA,,", f"{info}/WHEEL,,", f"{info}/RECORD,,"]
        file.writestr(f"{info}/RECORD", "\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Path, str]]:
    """A folder with `usual`, `cpu` and `local`, and where it is served. `app` needs torch, as Vitral does."""
    root = tmp_path_factory.mktemp("indexes")
    for name in ("usual", "cpu", "local", "empty"):
        (root / name).mkdir()
    wheel(root / "usual", "app", "1.0", "torch>=2.11")
    wheel(root / "usual", "torch", "2.13.0", "nvidia_blas")
    wheel(root / "usual", "torch", "2.14.0", "nvidia_blas")
    wheel(root / "usual", "nvidia_blas", "13.0")
    for name in ("cpu", "local"):
        wheel(root / name, "torch", "2.13.0+cpu")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=root)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield root, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment that holds pip alone."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=True, symlinks=True)
    return folder / "bin/python"


def install(python: Path, index: str, cpu: str, gpu: bool = False, **environment: str) -> tuple[str, str]:
    """What tools/install.py says, and which torch is there afterwards; the environment is bare again then."""
    driver = Path("bin/nvidia-smi")
    driver.parent.mkdir()
    driver.write_text(f"#!/bin/sh\nexit {int(not gpu)}\n", encoding="utf-8")
    driver.chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    settings = {
        "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": f"{index}/usual", "PIP_NO_CACHE_DIR": "1",
        "TORCH_CPU_INDEX": cpu, "PATH": f"{driver.parent.absolute()}{os.pathsep}{clean['PATH']}", "NO_PROXY": "*",
    }  # fmt: skip
    words = [python, ROOT / "tools/install.py", "app"]
    done = subprocess.run(
        words, env={**clean, **settings, **environment}, capture_output=True, encoding="utf-8", timeout=200
    )
    assert done.returncode == 0, done.stderr
    shown = subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, encoding="utf-8", check=True).stdout
    names = [line.partition("==")[0] for line in shown.splitlines()]
    subprocess.run([python, "-m", "pip", "uninstall", "-qqy", *names], check=True)
    (torch,) = [line for line in shown.splitlines() if line.startswith("torch==")]
    return done.stdout, torch


def test_without_a_gpu_the_cpu_build_comes_from_its_own_index(indexes: tuple[Path, str], python: Path) -> None:
    _, url = indexes
    said, torch = install(python, url, f"{url}/cpu")
    assert torch == "torch==2.13.0+cpu"
    assert "torch 2.13.0+cpu: CPU build, 0 MB on disk" in said


def test_without_that_index_the_cpu_build_comes_from_local_wheels(indexes: tuple[Path, str], python: Path) -> None:
    root, url = indexes
    said, torch = install(python, url, "http://127.0.0.1:9/cpu", PIP_FIND_LINKS=str(root / "local/torch"))
    assert torch == "torch==2.13.0+cpu"
    assert "CPU build" in said


@pytest.mark.parametrize("cpu", ["http://127.0.0.1:9/cpu", "empty"])
def test_where_no_cpu_build_is_found_it_is_said_and_pip_decides(
    cpu: str, indexes: tuple[Path, str], python: Path
) -> None:
    _, url = indexes
    said, torch = install(python, url, cpu if ":" in cpu else f"{url}/{cpu}")
    assert torch == "torch==2.13.0"  # the version that is pinned
    assert "No torch==2.13.0+cpu in " in said
    assert "torch 2.13.0: CUDA build" in said


def test_with_a_gpu_it_is_the_usual_build_of_any_version(indexes: tuple[Path, str], python: Path) -> None:
    _, url = indexes
    said, torch = install(python, url, f"{url}/cpu", gpu=True)
    assert torch == "torch==2.14.0"
    assert "torch 2.14.0: CUDA build" in said
