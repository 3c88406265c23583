"""Reference implementations for tests marked `oracle`: imported on demand, and only here.

torchvision's wheel holds operators built for CUDA. Beside a CPU build of torch they do not load, and importing
torchvision (as timm and transformers do) ends in "operator torchvision::nms does not exist". Declaring the operators,
without ever running them, is enough for the import. The package itself needs none of this.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

_declared: list[torch.library.Library] = []  # a library that is collected takes its operators along


def stub_torchvision() -> None:
    """Make torchvision importable: load its operators or, where that fails, declare the two that its import needs."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _declared:
        return
    for library in Path(spec.origin).parent.glob("_C*"):
        with contextlib.suppress(OSError):
            torch.ops.load_library(library)
    if hasattr(torch.ops.torchvision, "nms"):
        return
    _declared.append(torch.library.Library("torchvision", "DEF"))
    for name in ("nms", "qnms"):
        _declared[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def load_oracle(name: str) -> ModuleType:
    """The named reference package. Skips the test where it is not installed: `make test-all` installs it."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f'needs {name}: pip install -e ".[oracle]"')
    stub_torchvision()
    return importlib.import_module(name)
