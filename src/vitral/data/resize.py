"""One image to the model's size. `fit_image` is the resize that evaluation, prediction, export and the server share.

Shape letters: C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vitral.data.image_spec import ResizeSpec
from vitral.errors import UserError

Size = tuple[int, int]
# Beyond this many times the target's own aspect the ends of a picture are cut off first: the centre crop never sees
# them, and a 1 x 10000 strip would otherwise become gigabytes.
LONGEST = 8
_STRIPE = 1 << 22  # pixels that become floats together: 12 bytes each


def fit_image(image_CHW: Tensor, size: Size, spec: ResizeSpec) -> Tensor:
    """A uint8 image [C, H, W] as float32 [C, height, width] in [0,1], size = (height, width) in pixels.

    Resized in float32, clamped to [0,1]; an image that already has the size / crop_ratio is exactly image / 255.
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
    height, width = spec.scaled(size)
    if spec.fit == "squash":
        resized_CHW = resize(image_CHW, (height, width), spec.interpolation)
    else:
        image_CHW = _shorten(image_CHW, (height, width))
        _, h, w = image_CHW.shape
        high = h * width <= w * height  # the height decides; integers, so that no rounding falls short of the size
        covering = (height, w * height // h) if high else (h * width // w, width)
        resized_CHW = resize(image_CHW, covering, spec.interpolation)
    top, left = (round((have - want) / 2) for have, want in zip(resized_CHW.shape[1:], size, strict=True))
    return resized_CHW[:, top : top + size[0], left : left + size[1]].contiguous()


def _resize_exactly(image_CHW: Tensor, size: Size, interpolation: str) -> Tensor:
    """uint8 to float32 in [0,1], before clamping. Of a large image some rows at a time become floats and are made as
    wide as wanted, then all of them as high: the same two passes, in 12 bytes per pixel less memory."""
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
    try:
        return F.interpolate(image_CHW[None], size, mode=interpolation, antialias=True, align_corners=False)[0]
    except NotImplementedError:
        raise UserError(f"this version of torch cannot resize so: {torch.__version__}", got=interpolation) from None


def _shorten(image_CHW: Tensor, size: Size) -> Tensor:
    """The middle of a picture far longer than the target's aspect."""
    _, h, w = image_CHW.shape
    longest_h = max(1, LONGEST * w * size[0] // size[1])
    longest_w = max(1, LONGEST * h * size[1] // size[0])
    top, left = max(0, (h - longest_h) // 2), max(0, (w - longest_w) // 2)
    return image_CHW[:, top : top + longest_h, left : left + longest_w]
