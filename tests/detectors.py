"""Folders of detectors, and a detector in closed form.

Shape letters: B batch, C channels, H W height and width, X = 4 + classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.objectives.scenes import small_detector
from vitral.config import build
from vitral.data.image_spec import ImageSpec
from vitral.tasks.detection import DetectionState
from vitral.weights.folder import FolderConfig, save_folder


def detector_folder(path: Path, *, sure: float = 0.0, mode: str = "pad", **keys: Any) -> Path:
    """A small detector of cats and dogs with random weights. sure: is added to the logits, so that boxes are found."""
    torch.manual_seed(0)
    model = small_detector(**keys)
    with torch.no_grad():
        model.dense_head.classes.weight.normal_(std=0.5)
        model.dense_head.distances.weight.normal_(std=0.2)
        model.get_parameter("dense_head.classes.bias").add_(sure)
    c = model.config
    spec = ImageSpec(image_size=c.image_size, channels=c.in_channels, resize_mode=mode)  # type: ignore[arg-type]
    values = {
        "name": "detector_micro_patch8_64", "architecture": c, "id2label": {"0": "cat", "1": "dog"},
        "preprocessing": spec, "task": "detection", "task_state": DetectionState().model_dump(), "provenance": {},
    }  # fmt: skip
    save_folder(path, model, build(FolderConfig, values), "a card\n")
    return path


def bright(_: Any, images_BCHW: Tensor) -> Tensor:
    """In place of a detector's `forward`: a dog of score 0.75 around all that is bright, and a cat of 0.2 around the
    whole image, [B, 2, X]."""
    rows: list[Tensor] = []
    for image_CHW in images_BCHW:
        ys, xs = (image_CHW.mean(0) > 0.75).nonzero().unbind(1)
        box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else [0, 0, 0, 0]
        height, width = image_CHW.shape[1:]
        rows.append(torch.tensor([[*box, 0, 0.75], [0, 0, width, height, 0.2, 0]]))
    return torch.stack(rows)
