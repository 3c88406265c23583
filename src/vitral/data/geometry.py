"""Map points and boxes of a source image to a view of it.

Shape letters: B samples, M points or boxes of each, 2 the coordinates (x, y), 4 a box (x0, y0, x1, y1), 33 a
homogeneous 3 x 3 matrix on pixel centers (x, y, 1), as `View.matrix_B33`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def transform_points(matrix_B33: Tensor, points_BM2: Tensor) -> Tensor:
    """Points [B, M, 2] of the source as points of the view; (0, 0) is the center of an image's first pixel."""
    x_BM1, y_BM1 = points_BM2.split(1, dim=2)
    across_B12, down_B12, start_B12 = (matrix_B33[:, None, :2, column] for column in range(3))
    return x_BM1 * across_B12 + y_BM1 * down_B12 + start_B12


def transform_boxes(matrix_B33: Tensor, boxes_BM4: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Boxes [B, M, 4] of the source as boxes of a view of `size` (height, width), and their visible shares [B, M].

    Coordinates are those of edges: the box of the first pixel alone is (0, 0, 1, 1), and its center is (0.5, 0.5). A
    turned or sheared box becomes the smallest upright one about it, which is then clipped to the view. Visible is what
    clipping leaves of that box's area, in [0,1]; 0 for a box without area.
    """
    whole_4 = torch.tensor([0.0, 0.0, size[1], size[0]], dtype=boxes_BM4.dtype, device=boxes_BM4.device)
    return boxes_within(matrix_B33, boxes_BM4, whole_4.expand(len(boxes_BM4), 4))


def boxes_within(matrix_B33: Tensor, boxes_BM4: Tensor, window_B4: Tensor) -> tuple[Tensor, Tensor]:
    """`transform_boxes` for a part of a view that shows the source, itself a box."""
    corners_BX2 = boxes_BM4[:, :, [0, 1, 2, 1, 0, 3, 2, 3]].unflatten(2, (4, 2)).flatten(1, 2)
    moved_BM42 = (transform_points(matrix_B33, corners_BX2 - 0.5) + 0.5).unflatten(1, (-1, 4))
    hull_BM4 = torch.cat([moved_BM42.amin(2), moved_BM42.amax(2)], dim=2)
    low_B14, high_B14 = (window_B4[:, None, part].repeat(1, 1, 2) for part in (slice(2), slice(2, 4)))
    clipped_BM4 = torch.minimum(torch.maximum(hull_BM4, low_B14), high_B14)
    area_BM, left_BM = ((box[..., 2:] - box[..., :2]).prod(2) for box in (hull_BM4, clipped_BM4))
    return clipped_BM4, torch.where(area_BM > 0, left_BM / area_BM, 0.0)
