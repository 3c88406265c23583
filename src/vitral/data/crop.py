"""Draw the boxes of random resized crops for a batch, and their affine maps.

Szegedy et al. 2015 (arXiv 1409.4842), as torchvision's RandomResizedCrop draws it. Shape letters: B samples, 2 height
and width of an image, 4 top, left, height
and width of a box, T tries, 33 a homogeneous 3 x 3 matrix.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vitral.data.counter_rng import Draws, Stream, uniforms

_TRIES = 10


CROP_STREAMS = (Stream.CROP_AREA, Stream.CROP_RATIO, Stream.CROP_TOP, Stream.CROP_LEFT)


def draw_boxes(draws: Draws, sizes_B2: Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """Draw one box per image, int64 [B, 4] (top, left, height, width) in whole pixels, inside the image.

    Up to ten tries of an area, uniform within `scale` shares of the image, and of a width / height, log-uniform within
    `ratio`; a box that does not fit is drawn again, and if none fits, it is the largest centered one whose shape is in
    `ratio`. A pure function of its arguments: `sizes_B2` (height, width) int64 on the device of the draws.
    """
    boxes_B4, found_B = try_boxes(draws, sizes_B2, sizes_B2, scale, ratio, CROP_STREAMS)
    whole_B2 = _largest(sizes_B2, ratio)
    centered_B4 = torch.cat([(sizes_B2 - whole_B2) // 2, whole_B2], dim=1)
    return torch.where(found_B[:, None], boxes_B4, centered_B4)


def try_boxes(
    draws: Draws,
    sizes_B2: Tensor,
    limits_B2: Tensor,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    streams: tuple[Stream, Stream, Stream, Stream],
) -> tuple[Tensor, Tensor]:
    """Boxes [B, 4] as in `draw_boxes`, the first of ten tries that is no larger than `limits_B2`, and whether there was
    one, [B]. `streams` are those of area, shape, top and left."""
    area_TB, ratio_TB = (draw_TB.double() for draw_TB in draws.runs(streams[:2], _TRIES))
    area_TB = sizes_B2.prod(1).double() * (scale[0] + area_TB * (scale[1] - scale[0]))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ratio_TB = torch.exp(low + ratio_TB * (high - low))
    side_TB2 = torch.stack([torch.sqrt(area_TB / ratio_TB), torch.sqrt(area_TB * ratio_TB)], dim=2).round().long()
    fits_TB = ((side_TB2 > 0) & (side_TB2 <= limits_B2)).all(2)
    first_1B2 = fits_TB.int().argmax(0)[None, :, None].expand(1, -1, 2)
    side_B2 = side_TB2.gather(0, first_1B2)[0]
    place_B2 = torch.stack(uniforms(*draws, streams[2:]), dim=1).double()
    start_B2 = (place_B2 * (sizes_B2 - side_B2 + 1)).long()
    return torch.cat([start_B2, side_B2], dim=1), fits_TB.any(0)


def _largest(sizes_B2: Tensor, ratio: tuple[float, float]) -> Tensor:
    """Height and width of the largest box in each image whose width / height lies in `ratio`."""
    height_B, width_B = sizes_B2[:, 0].double(), sizes_B2[:, 1].double()
    whole_B = width_B / height_B
    crop_height_B = torch.where(whole_B < ratio[0], (width_B / ratio[0]).round(), height_B)
    crop_width_B = torch.where(whole_B > ratio[1], (height_B * ratio[1]).round(), width_B)
    return torch.stack([crop_height_B, crop_width_B], dim=1).long().clamp(min=1)


def box_matrix(boxes_B4: Tensor, size: tuple[int, int]) -> Tensor:
    """The map [B, 3, 3] float32 from source pixel centers to those of the boxes resized to `size` (height, width)."""
    top_B, left_B, height_B, width_B = boxes_B4.float().unbind(1)
    zoom_x_B, zoom_y_B = size[1] / width_B, size[0] / height_B
    matrix_B33 = torch.zeros(len(boxes_B4), 3, 3, device=boxes_B4.device)
    matrix_B33[:, 0, 0], matrix_B33[:, 1, 1], matrix_B33[:, 2, 2] = zoom_x_B, zoom_y_B, 1.0
    matrix_B33[:, 0, 2] = (0.5 - left_B) * zoom_x_B - 0.5
    matrix_B33[:, 1, 2] = (0.5 - top_B) * zoom_y_B - 0.5
    return matrix_B33
