"""What every test gets: one thread a process, no network, no colors, a folder of its own to write in."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# Read when torch, matplotlib, Ray and the hub clients are imported, so set before any test module is.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", NO_COLOR="1", MPLBACKEND="Agg")
os.environ["RAY_AUTH_MODE"] = "disabled"  # a test's cluster hands no token to the test
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts background jobs with Ctrl-C ignored, and commands that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What a shell, a launcher of distributed jobs or `make test` may leave behind and a command would react to.
FOREIGN = (
    "FORCE_COLOR", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "PYTHONWARNDEFAULTENCODING", "RAY_ADDRESS",
)  # fmt: skip


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Captured text with lone surrogates, as in names of files that are not UTF-8, is escaped: xdist cannot send it."""
    report = yield
    report.sections = [(title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections]
    return report


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Under xdist, processes share the cores: one thread each."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test starts in an empty folder, and so do the commands it runs; no setting of the caller reaches them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    for name in FOREIGN:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def digits_png(tmp_path: Path) -> Path:
    """A gray 8 x 8 PNG of a handwritten zero: the first of scikit-learn's digits."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    path = tmp_path / "digit.png"
    Image.fromarray(np.round(digits.images[0] * 255 / 16).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def cifar_pack() -> Path:
    """The folder shared/data beside the checkout: CIFAR-10 packs and unpack.py, which writes the known layouts."""
    folder = (Path(__file__).parents[1] / "../shared/data").resolve()
    if not (folder / "unpack.py").is_file():
        pytest.skip("no CIFAR-10 packs in ../shared/data beside the checkout")
    return folder


@pytest.fixture(scope="session")
def timm() -> ModuleType:
    """timm, for tests marked `oracle`."""
    from tests.oracles import load_oracle

    return load_oracle("timm")


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    """transformers, for tests marked `oracle`."""
    from tests.oracles import load_oracle

    return load_oracle("transformers")


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """torchvision, for tests marked `oracle`."""
    from tests.oracles import load_oracle

    return load_oracle("torchvision")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished short run on the digits, right on over 80 % of the test images. Not to be changed."""
    from tests.helpers import LEARNS
    from vitral.run.config import load_config
    from vitral.run.train import run

    folder = tmp_path_factory.mktemp("trained") / "run"
    assert run(load_config("digits", {**LEARNS, "out": str(folder)}))["top1"] > 0.8
    return folder


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 color images of each of three shapes, of different sizes: one folder a class. Not to be changed."""
    from tests.helpers import write_shapes

    return write_shapes(tmp_path_factory.mktemp("data") / "shapes")
