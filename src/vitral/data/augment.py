"""Augment a batch at once: crop and geometry as one affine map, then policy, color operations and erasing.

Shape letters: B samples, C channels, H W height and width, 33 a homogeneous 3 x 3 matrix on pixel centers (x, y, 1).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vitral.data.affine import about_center, compose, warp
from vitral.data.augment_policies import draw_ops, perform
from vitral.data.config import AugmentConfig
from vitral.data.counter_rng import Draws, Stream, uniforms
from vitral.data.crop import box_matrix, draw_boxes
from vitral.data.erasing import erase
from vitral.structs import View

_STREAMS: tuple[Stream, ...] = (
    Stream.ROTATE, Stream.SCALE, Stream.SHEAR, Stream.FLIP, Stream.FLIP_VERTICAL, Stream.CROP_X, Stream.CROP_Y,
    Stream.TRANSLATE_X, Stream.TRANSLATE_Y,
)  # fmt: skip


def augment(
    images_BCHW: Tensor,
    config: AugmentConfig,
    seed: int,
    epoch_B: Tensor,
    sample_ids_B: Tensor,
    view: int | Tensor = 0,
    *,
    source_B33: Tensor | None = None,
    size: tuple[int, int] | None = None,
) -> View:
    """uint8 or [0,1] images to one augmented [0,1] float32 view, each sample by its own draws (seed, epoch, view, key).

    The order is crop and geometry (one resampling, bilinear), policy, color jitter, single operations, erasing. Where
    the images are uint8 and colors are changed, all of it up to there is in whole levels, as torchvision's is. `view`
    may be a number for each sample, int64 [B]: repeats of a sample with different numbers are varied differently.
    `source_B33` is how the images came from their sources (resize, crop at decoding), where they are no sources
    themselves. `size` is that of the view, (height, width), where it is another one than the images'.
    View.matrix_B33 takes source pixel centers to view pixel centers; outside the image lies what `config.fill` says.
    Colors and erasing change no place.
    """
    draws = Draws(seed, epoch_B, view, sample_ids_B)
    source = (images_BCHW.shape[-2], images_BCHW.shape[-1])
    size = size or source
    todo = draw_ops(config, draws, size)
    if todo is None:
        images_BCHW = _unit(images_BCHW)
    crop = config.crop == "random_resized"
    matrix_B33 = torch.eye(3, device=sample_ids_B.device).expand(len(sample_ids_B), 3, 3)
    if crop or config.moves or size != source:
        if crop:
            sizes_B2 = torch.tensor(source, device=sample_ids_B.device).expand(len(sample_ids_B), 2)
            matrix_B33 = box_matrix(draw_boxes(draws, sizes_B2, config.crop_scale, config.aspect_ratio), size)
        elif size != source:
            whole_B4 = torch.tensor((0, 0, *source), device=sample_ids_B.device).expand(len(sample_ids_B), 4)
            matrix_B33 = box_matrix(whole_B4, size)
        if config.moves:
            matrix_B33 = compose(_draw_matrix(config, size, draws), matrix_B33)
        images_BCHW = warp(images_BCHW, matrix_B33, config.fill, size=size)
    if todo is not None:
        radius = math.ceil(3 * config.blur_sigma[1])
        images_BCHW, moved_B33 = perform(images_BCHW, todo, config.fill, config.interpolation, radius)
        matrix_B33 = compose(moved_B33, matrix_B33)
        images_BCHW = _unit(images_BCHW)
    if config.random_erasing:
        images_BCHW = erase(images_BCHW, config, draws)
    return View(images_BCHW, matrix_B33 if source_B33 is None else compose(matrix_B33, source_B33))


def _unit(images_BCHW: Tensor) -> Tensor:
    return images_BCHW.float().div_(255) if images_BCHW.dtype == torch.uint8 else images_BCHW.float()


def _draw_matrix(config: AugmentConfig, size: tuple[int, int], draws: Draws) -> Tensor:
    """Shear, zoom, rotate and flip about the image's center, then shift."""
    numbers: dict[Stream, Any] = dict(zip(_STREAMS, uniforms(*draws, _STREAMS), strict=True))

    def centered(stream: Stream, largest: float) -> Tensor:
        return (numbers[stream] * 2 - 1) * largest

    angle_B = centered(Stream.ROTATE, math.radians(config.rotate))
    zoom_B = torch.exp(centered(Stream.SCALE, math.log1p(config.scale)))
    shear_B = torch.tan(centered(Stream.SHEAR, math.radians(config.shear)))
    mirror_B = torch.where(numbers[Stream.FLIP] < config.flip, -1.0, 1.0)
    upset_B = torch.where(numbers[Stream.FLIP_VERTICAL] < config.flip_vertical, -1.0, 1.0)
    cos_B, sin_B = torch.cos(angle_B) * zoom_B, torch.sin(angle_B) * zoom_B
    matrix_B33 = about_center(
        cos_B * mirror_B,
        (cos_B * shear_B - sin_B) * mirror_B,
        sin_B * upset_B,
        (sin_B * shear_B + cos_B) * upset_B,
        size,
    )
    span = 2 * config.pad_crop + 1
    for axis, whole, part in ((0, Stream.CROP_X, Stream.TRANSLATE_X), (1, Stream.CROP_Y, Stream.TRANSLATE_Y)):
        shift_B = torch.floor(numbers[whole] * span) - config.pad_crop
        matrix_B33[:, axis, 2] += shift_B + centered(part, config.translate * size[1 - axis])
    return matrix_B33
