"""One image to the model's size. `fit_image` is the resize that evaluation, prediction, export and the server share.

Shape letters: C channels, H height, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]
# Beyond this many times the target's own aspect the ends of a picture are cut off first: the centre crop never sees
# them, and a 1 x 10000 strip would otherwise become gigabytes.
_LONGEST = 8


def fit_image(image_CHW: Tensor, size: Size, fit: str) -> Tensor:
    """A uint8 image [C, H, W] as float32 [C, height, width] in [0,1], size = (height, width) in pixels.

    fit "crop": scaled until it covers the size, keeping its aspect, then cut at the centre; "squash": each side scaled
    by itself. Antialiased bicubic (a = -0.5, as Pillow's) in float32, clamped to [0,1]; an image that already has the
    size is exactly image / 255.
    """
    assert image_CHW.dtype == torch.uint8, image_CHW.dtype
    return _fit(image_CHW.float() / 255, size, fit).clamp_(0, 1)


def fit_image_fast(image_CHW: Tensor, size: Size, fit: str) -> Tensor:
    """The same in uint8 arithmetic, uint8 in and out: for training only.

    It rounds and clamps between the two passes, and so differs from `fit_image` by up to 0.08 of the range on noise.
    """
    assert image_CHW.dtype == torch.uint8, image_CHW.dtype
    return _fit(image_CHW, size, fit)


def _fit(image_CHW: Tensor, size: Size, fit: str) -> Tensor:
    assert fit in ("crop", "squash"), fit
    if fit == "squash":
        return _resize(image_CHW, size)
    height, width = size
    image_CHW = _shorten(image_CHW, size)
    _, h, w = image_CHW.shape
    if h * width <= w * height:  # the height decides; integers, so that no rounding falls short of the size
        resized_CHW = _resize(image_CHW, (height, w * height // h))
    else:
        resized_CHW = _resize(image_CHW, (h * width // w, width))
    top, left = round((resized_CHW.shape[1] - height) / 2), round((resized_CHW.shape[2] - width) / 2)
    return resized_CHW[:, top : top + height, left : left + width].contiguous()


def _resize(image_CHW: Tensor, size: Size) -> Tensor:
    if tuple(image_CHW.shape[1:]) == size:
        return image_CHW
    return F.interpolate(image_CHW[None], size, mode="bicubic", antialias=True, align_corners=False)[0]


def _shorten(image_CHW: Tensor, size: Size) -> Tensor:
    """The middle of a picture far longer than the target's aspect."""
    _, h, w = image_CHW.shape
    longest_h = max(1, _LONGEST * w * size[0] // size[1])
    longest_w = max(1, _LONGEST * h * size[1] // size[0])
    top, left = max(0, (h - longest_h) // 2), max(0, (w - longest_w) // 2)
    return image_CHW[:, top : top + longest_h, left : left + longest_w]
