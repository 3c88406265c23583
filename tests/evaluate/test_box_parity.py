"""Whether two computations of a detector agree."""

from __future__ import annotations

import pytest
import torch

from vitral.config import build
from vitral.evaluate.box_parity import box_parity
from vitral.export.parity import BeyondLimit, check, compare_outputs
from vitral.models.detector_config import DetectorConfig
from vitral.weights.folder import FolderConfig

MINE = torch.tensor([[[0.0, 0, 10, 10, 0.9, 0], [20, 20, 40, 40, 0.4, 1], [0, 0, 0, 0, 0, -1]]])


def test_agreement_is_the_share_of_objects_that_both_find() -> None:
    assert box_parity(MINE, MINE, 0.3, 0.6) == {"agreement": 1.0, "detections": 4}
    moved = MINE.clone()
    moved[0, 1, :2] += 15  # IoU 5 * 5 / 400
    assert box_parity(MINE, moved, 0.3, 0.6)["agreement"] == 0.5
    other = MINE.clone()
    other[0, 0, 5] = 1
    assert box_parity(MINE, other, 0.3, 0.6)["agreement"] == 0.5
    # A score that moves over the threshold is no other object; its detection counts once.
    weaker = MINE.clone()
    weaker[0, 1, 4] = 0.29
    assert box_parity(MINE, weaker, 0.3, 0.6) == {"agreement": 1.0, "detections": 3}
    assert box_parity(MINE, torch.zeros_like(MINE) - 1, 0.3, 0.6) == {"agreement": 0.0, "detections": 2}
    assert box_parity(torch.zeros(2, 0, 6), torch.zeros(2, 0, 6), 0.3, 0.6) == {"agreement": 1.0, "detections": 0}


def folder() -> FolderConfig:
    architecture = DetectorConfig(
        image_size=(64, 64), patch_size=8, width=16, depth=1, heads=2, mlp_dim=16, strides=(8,), pyramid_width=8,
        num_classes=2,
    )  # fmt: skip
    values = {
        "name": "d", "architecture": architecture, "id2label": {"0": "a", "1": "b"}, "task": "detection",
        "preprocessing": {"image_size": (64, 64), "channels": 3, "resize_mode": "pad"}, "provenance": {},
    }  # fmt: skip
    return build(FolderConfig, values)


@pytest.mark.parametrize(("pixels", "score", "fits"), [(0.4, 9e-4, True), (0.6, 0, False), (0, 1.2e-3, False)])
def test_the_limits_are_half_a_pixel_and_a_thousandth(pixels: float, score: float, fits: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    low, more, scores = torch.rand(3, 2, 64, 2, generator=draw)
    mine = torch.cat([low * 40, low * 40 + 10 + more * 10, scores], 2)
    theirs = mine.clone()
    theirs[1, 5, 2] += pixels
    theirs[0, 7, 4] += score
    found = compare_outputs(mine, theirs, folder(), "made up")
    assert found.answers["pixels_apart"] == pytest.approx(pixels, abs=1e-4)
    assert found.answers["scores_apart"] == pytest.approx(score, abs=1e-6)
    if fits:
        check(found, "float32", None, None)
    else:
        with pytest.raises(BeyondLimit, match="differs from the model"):
            check(found, "float32", None, None)
