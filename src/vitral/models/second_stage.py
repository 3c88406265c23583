"""Second stage of a detector (Fast R-CNN, arXiv 1504.08083): classes of any boxes, and better boxes.

Shape letters: B batch, R boxes of an image, F features, S bins along a side, C classes, 4 a box (x0, y0, x1, y1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitral.models.layers import lecun_normal
from vitral.models.roi_align import box_levels, roi_align

BINS = 7
SIDE = 8.0  # strides: boxes up to this longer side are read from a map, so that a bin has about one cell
_CENTER, _SIDE = 10.0, 5.0  # offsets times these have variances near 1
_MOST = math.log(1000 / 16)  # largest factor of a side, as a logarithm


class SecondOutput(NamedTuple):
    """What the second stage says of boxes: logits of the classes and, last, of the background, [B, R, C + 1]; offsets
    [B, R, 4] that refine the boxes, see `refine`."""

    logits_BRK: Tensor
    offsets_BR4: Tensor


class SecondStage(nn.Module):
    """RoIAlign, two linear layers of `width` with GELUs, then classes and offsets. strides: those of the maps."""

    def __init__(self, features: int, width: int, classes: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.fc1, self.fc2 = nn.Linear(features * BINS * BINS, width), nn.Linear(width, width)
        self.classes, self.offsets = nn.Linear(width, classes + 1), nn.Linear(width, 4)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Layers LeCun normal; outputs N(0, 0.01) and N(0, 0.001), as in Fast R-CNN."""
        for layer in (self.fc1, self.fc2):
            lecun_normal(layer.weight, layer.bias)
        for layer, std in ((self.classes, 0.01), (self.offsets, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor], boxes_BR4: Tensor) -> SecondOutput:
        """Maps [B, F, h, w] of the pyramid, and boxes in pixels. In float32 or better."""
        level_BR = box_levels(boxes_BR4, self.strides, SIDE)
        x = roi_align(maps, self.strides, boxes_BR4, level_BR, BINS).flatten(2)
        x = F.gelu(self.fc2(F.gelu(self.fc1(x))))
        found = self.classes(x), self.offsets(x)
        return SecondOutput(*(each if each.dtype == torch.float64 else each.float() for each in found))


def offsets_to(boxes_BR4: Tensor, target_BR4: Tensor) -> Tensor:
    """Offsets [..., 4] that refine boxes to targets: of the center in sides of the box, and logarithms of the factors
    of its sides (R-CNN, arXiv 1311.2524, appendix C), times 10, 10, 5 and 5. Sides below a hundredth of a pixel count
    as that."""
    center_R2, side_R2 = _center_and_side(boxes_BR4)
    to_center_R2, to_side_R2 = _center_and_side(target_BR4)
    return torch.cat([_CENTER * (to_center_R2 - center_R2) / side_R2, _SIDE * (to_side_R2 / side_R2).log()], dim=-1)


def refine(boxes_BR4: Tensor, offsets_BR4: Tensor) -> Tensor:
    """The inverse of `offsets_to`; a side becomes at most 62.5 times as long."""
    center_R2, side_R2 = _center_and_side(boxes_BR4)
    move_R2, factor_R2 = offsets_BR4.split(2, -1)
    center_R2 = center_R2 + move_R2 / _CENTER * side_R2
    half_R2 = side_R2 * (factor_R2 / _SIDE).clamp(max=_MOST).exp() / 2
    return torch.cat([center_R2 - half_R2, center_R2 + half_R2], dim=-1)


def _center_and_side(boxes_BR4: Tensor) -> tuple[Tensor, Tensor]:
    low_R2, high_R2 = boxes_BR4.split(2, -1)
    return (low_R2 + high_R2) / 2, (high_R2 - low_R2).clamp(min=0.01)
