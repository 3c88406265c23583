"""Geometric augmentation of a whole batch at once: all of it composed into one affine map and sampled once.

Shape letters: B samples, C channels, H W height and width, 33 a homogeneous 3 x 3 matrix on pixel centres (x, y, 1).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vitral.data.config import AugmentConfig
from vitral.data.keyed import Stream, uniforms
from vitral.structs import View

_STREAMS: tuple[Stream, ...] = (
    Stream.ROTATE, Stream.SCALE, Stream.SHEAR, Stream.FLIP, Stream.CROP_X, Stream.CROP_Y,
    Stream.TRANSLATE_X, Stream.TRANSLATE_Y,
)  # fmt: skip


def augment(
    images_BCHW: Tensor, config: AugmentConfig, seed: int, epoch_B: Tensor, keys_B: Tensor, view: int = 0
) -> View:
    """uint8 or [0,1] images to one augmented [0,1] float32 view, each sample by its own draws (seed, epoch, key).

    View.matrix_B33 takes source pixel centres to view pixel centres. Bilinear; outside lies what `config.fill` says.
    """
    images_BCHW = images_BCHW.float().div(255) if images_BCHW.dtype == torch.uint8 else images_BCHW.float()
    height, width = images_BCHW.shape[-2:]
    if not config.moves:
        return View(images_BCHW, torch.eye(3, device=keys_B.device).expand(len(keys_B), 3, 3))
    matrix_B33 = _draw_matrix(config, height, width, seed, epoch_B, keys_B, view)
    return View(warp(images_BCHW, matrix_B33, config.fill), matrix_B33)


def _draw_matrix(
    config: AugmentConfig, height: int, width: int, seed: int, epoch_B: Tensor, keys_B: Tensor, view: int
) -> Tensor:
    """Source to view: shear, zoom, rotate and flip about the image's centre, then shift."""

    draws: dict[Stream, Tensor] = dict(zip(_STREAMS, uniforms(seed, epoch_B, view, keys_B, _STREAMS), strict=True))

    def centred(stream: Stream, largest: float) -> Tensor:
        return (draws[stream] * 2 - 1) * largest

    angle_B = centred(Stream.ROTATE, math.radians(config.rotate))
    zoom_B = torch.exp(centred(Stream.SCALE, math.log1p(config.scale)))
    shear_B = torch.tan(centred(Stream.SHEAR, math.radians(config.shear)))
    mirror_B = torch.where(draws[Stream.FLIP] < config.flip, -1.0, 1.0)
    span = 2 * config.pad_crop + 1
    shift_x_B = torch.floor(draws[Stream.CROP_X] * span) - config.pad_crop
    shift_y_B = torch.floor(draws[Stream.CROP_Y] * span) - config.pad_crop
    shift_x_B = shift_x_B + centred(Stream.TRANSLATE_X, config.translate * width)
    shift_y_B = shift_y_B + centred(Stream.TRANSLATE_Y, config.translate * height)
    cos_B, sin_B = torch.cos(angle_B) * zoom_B, torch.sin(angle_B) * zoom_B
    a_B, b_B = cos_B * mirror_B, (cos_B * shear_B - sin_B) * mirror_B
    c_B, d_B = sin_B, sin_B * shear_B + cos_B
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    x_B = centre_x + shift_x_B - a_B * centre_x - b_B * centre_y
    y_B = centre_y + shift_y_B - c_B * centre_x - d_B * centre_y
    zero_B, one_B = torch.zeros_like(a_B), torch.ones_like(a_B)
    return torch.stack([a_B, b_B, x_B, c_B, d_B, y_B, zero_B, zero_B, one_B], dim=1).view(-1, 3, 3)


def warp(images_BCHW: Tensor, matrix_B33: Tensor, fill: str) -> Tensor:
    """Images resampled (bilinear) so that source pixel p lands at matrix @ p. [0,1] float32 in and out."""
    height, width = images_BCHW.shape[-2:]
    a_B, b_B, x_B, c_B, d_B, y_B = matrix_B33[:, :2].flatten(1).unbind(1)
    scale_B = 1 / (a_B * d_B - b_B * c_B)
    inverse_B23 = (
        torch.stack([d_B, -b_B, b_B * y_B - d_B * x_B, -c_B, a_B, c_B * x_B - a_B * y_B], dim=1).view(-1, 2, 3)
        * scale_B[:, None, None]
    )
    rows_H = torch.arange(height, device=images_BCHW.device, dtype=torch.float32)
    columns_W = torch.arange(width, device=images_BCHW.device, dtype=torch.float32)
    source_BHW2 = (
        inverse_B23[:, None, None, :, 0] * columns_W[None, None, :, None]
        + inverse_B23[:, None, None, :, 1] * rows_H[None, :, None, None]
        + inverse_B23[:, None, None, :, 2]
    )
    size_2 = torch.tensor([width, height], device=images_BCHW.device, dtype=torch.float32)
    return F.grid_sample(images_BCHW, (source_BHW2 * 2 + 1) / size_2 - 1, padding_mode=fill, align_corners=False)
