"""Run a model as a fixed function of its input: evaluation mode, float32, without a trace in the model."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def quiet(model: Any, device: torch.device | str = "cpu") -> Generator[None]:
    """Put all modules of `model` into evaluation mode (no dropout, no drop-path, frozen statistics) and turn autocast
    off; restore the mode of each module afterwards, also after an exception.

    A gradient of an input must come from `torch.autograd.grad`, which leaves the gradients of parameters as they are.
    `model` may be any callable; one that is no module has no mode.
    """
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        with torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        for module in training:
            module.training = True
