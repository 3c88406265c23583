"""Which location of a detector learns which box: by the boxes alone, never by what the network says, so that positives
are counted for the whole batch before it is cut.

Shape letters: B batch, M rows of boxes of an image, A locations, L maps, 4 a box (x0, y0, x1, y1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vitral.data.box_ops import area
from vitral.models.dense_head import to_distances
from vitral.models.roi_align import box_levels


class Locations(NamedTuple):
    """All cells of a detector's maps: their centers (x, y) in pixels, and the strides of their maps."""

    centers_A2: Tensor
    stride_A: Tensor


def level_strides(boxes_BM4: Tensor, strides: Sequence[int], level_side: float) -> Tensor:
    """The stride [B, M] of the map that each box is on; see `box_levels`."""
    stride_L = torch.tensor(strides, dtype=torch.float32, device=boxes_BM4.device)
    return stride_L[box_levels(boxes_BM4, strides, level_side)]


def assign(
    boxes_BM4: Tensor, class_BM: Tensor, locations: Locations, strides: Sequence[int], level_side: float, radius: float
) -> Tensor:
    """The row of the box that each location learns, int64 [B, A], -1 for background.

    A location learns a box of its own map (see `level_strides`) that it lies in, and whose center is less than `radius`
    strides away in both directions (center sampling, as in the released code of FCOS); of several the smallest. A box
    without any location, as those between cell centers, gets the nearest one of its map that is not the only one of
    another box; without such a location it is not learned. Rows of class -1 are no boxes.
    """
    centers_A2, stride_A = locations
    stride_BM = level_strides(boxes_BM4, strides, level_side)
    is_box_BM = class_BM >= 0
    own_BMA = (stride_BM[..., None] == stride_A) & is_box_BM[..., None]
    inside_BMA = to_distances(centers_A2, boxes_BM4[:, :, None]).amin(-1) > 0
    middle_BM2 = (boxes_BM4[..., :2] + boxes_BM4[..., 2:]) / 2
    away_BMA = (centers_A2 - middle_BM2[:, :, None]).abs().amax(-1)
    fits_BMA = own_BMA & inside_BMA & (away_BMA < radius * stride_A)
    area_BM = area(boxes_BM4)
    least_BA, row_BA = torch.where(fits_BMA, area_BM[..., None], torch.inf).min(1)
    row_BA = torch.where(least_BA < torch.inf, row_BA, -1)
    _give_nearest(row_BA, torch.where(own_BMA, away_BMA, torch.inf), is_box_BM, area_BM)
    return row_BA


def unlearned(class_BM: Tensor, row_BA: Tensor) -> Tensor:
    """How many boxes of each image no location learns, int64 [B]."""
    is_learned_BM = torch.zeros(len(class_BM), class_BM.shape[1] + 1, dtype=torch.bool, device=class_BM.device)
    is_learned_BM = is_learned_BM.scatter_(1, row_BA + 1, value=True)[:, 1:]  # the first one is background
    return ((class_BM >= 0) & ~is_learned_BM).sum(1)


def _give_nearest(row_BA: Tensor, away_BMA: Tensor, is_box_BM: Tensor, area_BM: Tensor) -> None:
    """Give boxes without a location the nearest one, in place, the smallest box first."""
    rows_1M1 = torch.arange(is_box_BM.shape[1], device=row_BA.device)[None, :, None]
    count_BM = (row_BA[:, None] == rows_1M1).sum(-1)
    bare = (is_box_BM & (count_BM == 0)).nonzero()
    for b, m in bare[area_BM[bare[:, 0], bare[:, 1]].argsort(stable=True)].tolist():
        owner_A = row_BA[b]
        is_free_A = (owner_A < 0) | (count_BM[b][owner_A.clamp(min=0)] > 1)
        distance_A = torch.where(is_free_A, away_BMA[b, m], torch.inf)
        nearest = int(distance_A.argmin())
        if distance_A[nearest] < torch.inf:
            if owner_A[nearest] >= 0:
                count_BM[b, owner_A[nearest]] -= 1
            row_BA[b, nearest], count_BM[b, m] = m, 1
