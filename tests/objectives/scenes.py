"""Small scenes with boxes, and a small detector for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitral.models.detector import Detector
from vitral.models.detector_config import DetectorConfig

COLORS = {"green": (60, 200, 60), "red": (220, 50, 50)}
SIZES = ((40, 60), (64, 64), (90, 50), (33, 71))  # height, width

# A detector that is trained in a moment: keys of a run.
SMALL: dict[str, Any] = {
    "model.name": "detector_micro_patch8_64", "model.width": 16, "model.depth": 1, "model.heads": 2,
    "model.mlp_dim": 16, "model.pyramid_width": 8, "model.tower_depth": 1, "data.image_size": 32, "train.steps": 3,
    "train.batch_size": 8, "train.ema": None, "train.eval_every": "end", "optim.warmup": 0.0, "check.skip": True,
    "report": False,
}  # fmt: skip


def write_scenes(root: Path, counts: dict[str, int] | None = None) -> Path:
    """Images of several sizes with one to three colored rectangles, in a table of boxes with splits."""
    draw, lines = np.random.default_rng(5), ["path,split,label,xmin,ymin,xmax,ymax"]
    root.mkdir(parents=True, exist_ok=True)
    for split, count in (counts or {"train": 12, "val": 5, "test": 6}).items():
        for number in range(count):
            height, width = SIZES[number % len(SIZES)]
            pixels, name = draw.integers(0, 40, (height, width, 3)).astype(np.uint8), f"{split}{number}.png"
            for place in range(1 + number % 3):
                label = ("green", "red")[(number + place) % 2]
                x0, y0 = 2 + place * width // 3, int(draw.integers(1, height // 2))
                x1, y1 = x0 + int(draw.integers(8, width // 3 - 2)), y0 + int(draw.integers(8, height // 2))
                pixels[y0:y1, x0:x1] = COLORS[label]
                lines.append(f"{name},{split},{label},{x0},{y0},{x1},{y1}")
            Image.fromarray(pixels).save(root / name)
    (root / "boxes.csv").write_text("\n".join(lines), encoding="utf-8")
    return root


def small_detector(**keys: Any) -> Detector:
    """A detector of two classes on gray images."""
    given: dict[str, Any] = {
        "image_size": (64, 64), "in_channels": 1, "num_classes": 2, "patch_size": 8, "width": 16, "depth": 1,
        "heads": 2, "mlp_dim": 16, "strides": (4, 8), "pyramid_width": 8, "tower_depth": 1,
    }  # fmt: skip
    return Detector(DetectorConfig(**{**given, **keys}))
