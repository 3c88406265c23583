"""Dense head of a detector (FCOS, arXiv 1904.01355): at each cell of each map the classes, a box and its quality.

Shape letters: B batch, F features, h w rows and columns of a map, A cells of all maps ("locations"), C classes, 4 a box
(x0, y0, x1, y1) or the distances of its sides from a point (left, top, right, bottom).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import starmap
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitral.models.pyramid import init_convolutions

PRIOR = 0.01  # probability of each class at each cell before training (RetinaNet, arXiv 1708.02002, section 4.1)


class HeadOutput(NamedTuple):
    """What the head says at each location: logits of the classes, independent of each other; distances of the box's
    sides from the location, positive, in pixels; the logit of the box's quality, its IoU with the object."""

    logits_BAC: Tensor
    distances_BA4: Tensor
    quality_BA: Tensor


class DenseHead(nn.Module):
    """Two towers of 3 x 3 convolutions, group norms and GELUs, shared by all maps: one for classes, one for boxes and
    their quality. strides: pixels between cells of each map."""

    def __init__(self, width: int, depth: int, classes: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.class_tower, self.box_tower = _tower(width, depth), _tower(width, depth)
        self.classes = nn.Conv2d(width, classes, 3, padding=1)
        self.distances = nn.Conv2d(width, 4, 3, padding=1)
        self.quality = nn.Conv2d(width, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.empty(len(self.strides)))

    @torch.no_grad()
    def init_weights(self) -> None:
        """Towers LeCun normal; outputs N(0, 0.01), every class improbable, every box about 1.3 strides to each side."""
        init_convolutions(self)
        for layer, bias in ((self.classes, math.log(PRIOR / (1 - PRIOR))), (self.distances, 1.0), (self.quality, 0.0)):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, bias)  # pyright: ignore[reportArgumentType] - there is one
        nn.init.ones_(self.scales)

    def forward(self, maps: Sequence[Tensor]) -> HeadOutput:
        """Maps [B, F, h, w], one per stride, to all their cells, map by map and row by row. In float32 or better."""
        parts = zip(*starmap(self._of_map, zip(maps, self.scales, self.strides, strict=True)), strict=True)
        logits_BAC, distances_BA4, quality_BA1 = (torch.cat(part, dim=1) for part in parts)
        return HeadOutput(logits_BAC, distances_BA4, quality_BA1[..., 0])

    def _of_map(self, map_BFhw: Tensor, scale: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor]:
        boxes_BFhw = self.box_tower(map_BFhw)
        outputs = self.classes(self.class_tower(map_BFhw)), self.distances(boxes_BFhw), self.quality(boxes_BFhw)
        logits_BAC, raw_BA4, quality_BA1 = (_wide(each.flatten(2).mT) for each in outputs)
        return logits_BAC, F.softplus(raw_BA4 * scale) * stride, quality_BA1


def _tower(width: int, depth: int) -> nn.Sequential:
    layers = (
        layer
        for _ in range(depth)
        for layer in (nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(8, width), nn.GELU())
    )
    return nn.Sequential(*layers)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def cell_centers(maps: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Centers (x, y) in pixels of all cells [A, 2], float32; `maps` are rows and columns of each."""
    parts = [
        torch.stack(torch.meshgrid(_centers(rows, stride, device), _centers(columns, stride, device), indexing="ij"))
        for (rows, columns), stride in zip(maps, strides, strict=True)
    ]
    return torch.cat([yx.flatten(1).mT.flip(1) for yx in parts])


def _centers(count: int, stride: int, device: torch.device | None) -> Tensor:
    return (torch.arange(count, dtype=torch.float32, device=device) + 0.5) * stride


def to_boxes(centers_A2: Tensor, distances_BA4: Tensor) -> Tensor:
    """Boxes [..., A, 4] whose sides have these distances (left, top, right, bottom) from the centers."""
    left_top, right_bottom = distances_BA4.split(2, -1)
    return torch.cat([centers_A2 - left_top, centers_A2 + right_bottom], dim=-1)


def to_distances(centers_A2: Tensor, boxes_BA4: Tensor) -> Tensor:
    """The inverse of `to_boxes`; negative where a center lies outside."""
    low, high = boxes_BA4.split(2, -1)
    return torch.cat([centers_A2 - low, high - centers_A2], dim=-1)
