"""Resize one image to the model's size. Evaluation, prediction, export and the server share `fit_image`.

Shape letters: C channels, H height, W width, N boxes, 4 a box (x0, y0, x1, y1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitral.data.image_spec import PADDING, ResizeSpec
from vitral.errors import UserError

Array = np.ndarray[Any, np.dtype[Any]]
Size = tuple[int, int]
Box = tuple[float, float, float, float]  # top, left, height, width in pixels
# Beyond this many times the target's own aspect the ends of a picture are cut off first: the center crop never sees
# them, and a 1 x 10000 strip would otherwise become gigabytes.
LONGEST = 8
_STRIPE = 1 << 22  # pixels that become floats together: 12 bytes each


def fit_image(image_CHW: Tensor, size: Size, spec: ResizeSpec) -> Tensor:
    """A uint8 image [C, H, W] as float32 [C, height, width] in [0,1], size = (height, width) in pixels.

    Resized in float32, clamped to [0,1]; an image that already has the size / crop_pct is exactly image / 255.
    """
    assert image_CHW.dtype == torch.uint8, image_CHW.dtype
    return _fit(image_CHW, size, spec, _resize_exactly).clamp_(0, 1)


def fit_image_fast(image_CHW: Tensor, size: Size, spec: ResizeSpec) -> Tensor:
    """The same in uint8 arithmetic, uint8 in and out: for training only.

    It rounds and clamps between the two passes, and so differs from `fit_image` by up to 0.08 of the range on noise.
    """
    assert image_CHW.dtype == torch.uint8, image_CHW.dtype
    return _fit(image_CHW, size, spec, _resize)


def _fit(image_CHW: Tensor, size: Size, spec: ResizeSpec, resize: Callable[[Tensor, Size, str], Tensor]) -> Tensor:
    (top, left, height, width), resized, start = _layout((image_CHW.shape[1], image_CHW.shape[2]), size, spec)
    resized_CHW = resize(image_CHW[:, top : top + height, left : left + width], resized, spec.interpolation)
    top, left = start
    if resized[0] < size[0] or resized[1] < size[1]:
        return _padded(resized_CHW, size, start)
    return resized_CHW[:, top : top + size[0], left : left + size[1]].contiguous()


def _padded(resized_CHW: Tensor, size: Size, start: tuple[int, int]) -> Tensor:
    """Of an image that is smaller than `size` on one side at least, with gray beside it."""
    gray = PADDING if resized_CHW.dtype == torch.uint8 else PADDING / 255
    result_CHW = torch.full((len(resized_CHW), *size), gray, dtype=resized_CHW.dtype)
    (top, bottom), (left, right) = ((max(first, 0), max(-first, 0)) for first in start)
    part_CHW = resized_CHW[:, top : top + size[0] - bottom, left : left + size[1] - right]
    result_CHW[:, bottom : bottom + part_CHW.shape[1], right : right + part_CHW.shape[2]] = part_CHW
    return result_CHW


def shown_box(source: Size, size: Size, spec: ResizeSpec) -> Box:
    """The box (top, left, height, width, in pixels and their parts) of an image of `source` that `fit_image` shows; it
    is larger than the image where this is padded."""
    (top, left, height, width), resized, start = _layout(source, size, spec)
    down, across = height / resized[0], width / resized[1]
    return top + start[0] * down, left + start[1] * across, size[0] * down, size[1] * across


def to_source(boxes_N4: Array, source: Size, size: Size, spec: ResizeSpec) -> Array:
    """Boxes (x0, y0, x1, y1) in pixels of what `fit_image` made, as those in the image of `source` (height, width), cut
    at its border; float64."""
    top, left, height, width = shown_box(source, size, spec)
    zoom_4, start_4 = np.tile([width / size[1], height / size[0]], 2), np.tile([left, top], 2)
    return np.clip(boxes_N4 * zoom_4 + start_4, 0, np.tile([source[1], source[0]], 2))


def _layout(source: Size, size: Size, spec: ResizeSpec) -> tuple[tuple[int, int, int, int], Size, tuple[int, int]]:
    """The part (top, left, height, width) of an image that is resized, to which size, and where the result is cut; a
    place before 0 is padding."""
    height, width = spec.scaled(size)
    h, w = source
    part, resized = (0, 0, h, w), (height, width)
    if spec.resize_mode == "pad":
        high = h * width > w * height  # the height decides
        resized = (height, max(1, w * height // h)) if high else (max(1, h * width // w), width)
    if spec.resize_mode == "crop":
        # The middle alone of a picture far longer than the target's aspect.
        most_h, most_w = max(1, LONGEST * w * height // width), max(1, LONGEST * h * width // height)
        part = max(0, (h - most_h) // 2), max(0, (w - most_w) // 2), min(h, most_h), min(w, most_w)
        _, _, h, w = part
        high = h * width <= w * height  # the height decides; integers, so that no rounding falls short of the size
        resized = (height, w * height // h) if high else (h * width // w, width)
    return part, resized, (round((resized[0] - size[0]) / 2), round((resized[1] - size[1]) / 2))


def _resize_exactly(image_CHW: Tensor, size: Size, interpolation: str) -> Tensor:
    """uint8 to float32 in [0,1], before clamping. Of a large image some rows at a time become floats and are made as
    wide as expected, then all of them as high: the same two passes, in 12 bytes per pixel less memory."""
    channels, height, width = image_CHW.shape
    rows = max(_STRIPE // width, 1)
    if rows >= height:
        return _resize(image_CHW.float().div_(255), size, interpolation)
    wide_CHW = torch.empty(channels, height, size[1])
    for top in range(0, height, rows):
        part_CHW = image_CHW[:, top : top + rows].float().div_(255)
        wide_CHW[:, top : top + rows] = _resize(part_CHW, (part_CHW.shape[1], size[1]), interpolation)
    return _resize(wide_CHW, size, interpolation)


def _resize(image_CHW: Tensor, size: Size, interpolation: str) -> Tensor:
    if tuple(image_CHW.shape[1:]) == size:
        return image_CHW
    if size[1] == 1 < size[0]:  # torch 2.13 computes the rows of a result of one column wrongly, but not its columns
        return _resize(image_CHW.transpose(1, 2).contiguous(), (1, size[0]), interpolation).transpose(1, 2)
    try:
        return F.interpolate(image_CHW[None], size, mode=interpolation, antialias=True, align_corners=False)[0]
    except NotImplementedError:
        raise UserError(f"this version of torch cannot resize so: {torch.__version__}", got=interpolation) from None
