"""Affine maps per sample of a batch, and resampling of images by them.

Shape letters: B samples, C channels, H W height and width, 2 the coordinates (x, y), 33 a homogeneous 3 x 3 matrix on
pixel centers (x, y, 1), from the source to the result.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def matrices(a_B: Tensor, b_B: Tensor, x_B: Tensor, c_B: Tensor, d_B: Tensor, y_B: Tensor) -> Tensor:
    """The maps x' = a x + b y + x0, y' = c x + d y + y0 as [B, 3, 3]."""
    zero_B, one_B = torch.zeros_like(a_B), torch.ones_like(a_B)
    return torch.stack([a_B, b_B, x_B, c_B, d_B, y_B, zero_B, zero_B, one_B], dim=1).view(-1, 3, 3)


def about_center(a_B: Tensor, b_B: Tensor, c_B: Tensor, d_B: Tensor, size: tuple[int, int]) -> Tensor:
    """The linear maps (a b; c d) that leave the middle of an image of `size` (height, width) where it is."""
    center_x, center_y = (size[1] - 1) / 2, (size[0] - 1) / 2
    x_B = center_x - a_B * center_x - b_B * center_y
    y_B = center_y - c_B * center_x - d_B * center_y
    return matrices(a_B, b_B, x_B, c_B, d_B, y_B)


def compose(second_B33: Tensor, first_B33: Tensor) -> Tensor:
    """second @ first, summed in one order whatever the size of the batch."""
    parts = [second_B33[:, :, i, None] * first_B33[:, i, None, :] for i in range(3)]
    return parts[0] + parts[1] + parts[2]


def warp(
    images_BCHW: Tensor, matrix_B33: Tensor, fill: str, interpolation: str = "bilinear",
    size: tuple[int, int] | None = None,
) -> Tensor:  # fmt: skip
    """Images resampled so that source pixel p lands at matrix @ p; float32 or uint8 (rounded) in and out, of `size`
    (height, width), by default their own. Nothing is smoothed: a map that shrinks much aliases.

    `fill` is what lies outside: "zeros", "gray" (half of white, 128 of 255), "border" or "reflection"; `interpolation`
    is "bilinear" or "nearest". As torchvision's affine with fill=None for "zeros"; its bilinear mixes any other color
    in twice at the border, ours once.
    """
    if images_BCHW.dtype == torch.uint8:
        middle = 128.0 if fill == "gray" else 0.0
        images_BCHW = images_BCHW.float().sub_(middle) if middle else images_BCHW.float()
        return (
            warp(images_BCHW, matrix_B33, "zeros" if middle else fill, interpolation, size).add_(middle).round_().byte()
        )
    if fill == "gray":
        return warp(images_BCHW - 0.5, matrix_B33, "zeros", interpolation, size).add_(0.5)
    source = (images_BCHW.shape[-2], images_BCHW.shape[-1])
    grid_BHW2 = _source_grid(matrix_B33, source, size or source)
    return F.grid_sample(images_BCHW, grid_BHW2, interpolation, fill, align_corners=False)


def _source_grid(matrix_B33: Tensor, source: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Where each pixel of the result of `size` lies in the source, in grid_sample's coordinates: the edges are -1 and
    1."""
    height, width = size
    a_B, b_B, x_B, c_B, d_B, y_B = matrix_B33[:, :2].flatten(1).unbind(1)
    area_B = a_B * d_B - b_B * c_B
    columns_W = torch.arange(width, device=matrix_B33.device, dtype=torch.float32)
    rows_H = torch.arange(height, device=matrix_B33.device, dtype=torch.float32)
    grid_BHW2 = torch.empty(len(matrix_B33), height, width, 2, device=matrix_B33.device)
    for axis, side, along_x_B, along_y_B, start_B in (
        (0, source[1], d_B, -b_B, b_B * y_B - d_B * x_B),
        (1, source[0], -c_B, a_B, c_B * x_B - a_B * y_B),
    ):
        scale_B = 2 / (side * area_B)
        start_B1 = (start_B * scale_B + (1 / side - 1))[:, None]
        from_y_BH = rows_H * (along_y_B * scale_B)[:, None] + start_B1
        from_x_BW = columns_W * (along_x_B * scale_B)[:, None]
        torch.add(from_y_BH[:, :, None], from_x_BW[:, None, :], out=grid_BHW2[..., axis])
    return grid_BHW2
