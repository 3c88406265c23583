"""The resize of `data.resize` as two matrix products, for graphs with open image sizes.

An antialiased resize is linear and acts on rows and columns apart: out = R image C^T, where each row of R holds the
filter's weights for one row of the result. R and C follow from the image's height and width by arithmetic that every
format has, so that nothing depends on how a runtime understands "antialias". Only the rows that the center crop keeps
are made, and so the result has a fixed size.

Shape letters: B batch, C channels, H W height and width of the image, h w those of the model, N positions along a
side of the image, K positions along a side of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitral.data.image_spec import PADDING, ResizeSpec
from vitral.data.resize import LONGEST, Size


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp_min(0)


def _bicubic(x: Tensor) -> Tensor:
    """Keys' cubic with a = -0.5, as Pillow's."""
    x, a = x.abs(), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _lanczos(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 3, _sinc(x) * _sinc(x / 3), torch.zeros_like(x))


def _sinc(x: Tensor) -> Tensor:
    safe = torch.where(x == 0, torch.ones_like(x), x) * math.pi
    return torch.where(x == 0, torch.ones_like(x), safe.sin() / safe)


_FILTERS: dict[str, Callable[[Tensor], Tensor]] = {"bilinear": _bilinear, "bicubic": _bicubic, "lanczos": _lanczos}


class _Side(NamedTuple):
    """One side of an image, all int64 scalars: the part low..low+have of it becomes `scaled` pixels, of which the
    result begins at `start`."""

    low: Tensor
    have: Tensor
    scaled: Tensor
    start: Tensor


class FitAnySize(nn.Module):
    """`data.resize.fit_image` of a batch of images of one size, which a graph may leave open.

    Of uint8 [B, H, W, C] it makes float32 [B, C, h, w] in [0,1], within 3e-6 of `fit_image`.
    """

    def __init__(self, size: Size, spec: ResizeSpec) -> None:
        super().__init__()
        self.size, self.spec = size, spec

    def forward(self, images_BHWC: Tensor) -> Tensor:
        """See the class."""
        B, H, W, C = images_BHWC.shape
        h, w = self.size
        down, across = self._sides(torch.full((), H, dtype=torch.int64), torch.full((), W, dtype=torch.int64))
        rows_hH, columns_wW = self._weights(H, down, h), self._weights(W, across, w)
        flat_BHX = (images_BHWC.float() / 255).reshape(B, H, W * C)
        lower_BChW = (rows_hH @ flat_BHX).reshape(B, h, W, C).permute(0, 3, 1, 2)
        fitted_BChw = lower_BChW @ columns_wW.T
        if self.spec.resize_mode == "pad":
            fitted_BChw = fitted_BChw + PADDING / 255 * (1 - rows_hH.sum(1)[:, None] * columns_wW.sum(1))
        return fitted_BChw.clamp(0, 1)

    def _sides(self, H: Tensor, W: Tensor) -> tuple[_Side, _Side]:
        """What becomes of height and width; the integers of `data.resize`."""
        height, width = self.spec.scaled(self.size)
        high, wide = torch.full_like(H, height), torch.full_like(W, width)
        zero = torch.zeros_like(H)
        if self.spec.resize_mode == "squash":
            top, left, tall, broad, scaled = zero, zero, H, W, (high, wide)
        elif self.spec.resize_mode == "pad":
            top, left, tall, broad, by_height = zero, zero, H, W, H * width > W * height
            contained = (H * width // W).clamp_min(1), (W * height // H).clamp_min(1)
            scaled = torch.where(by_height, high, contained[0]), torch.where(by_height, contained[1], wide)
        else:
            most_H = (LONGEST * W * height // width).clamp_min(1)
            most_W = (LONGEST * H * width // height).clamp_min(1)
            top, left = ((H - most_H) // 2).clamp_min(0), ((W - most_W) // 2).clamp_min(0)
            tall, broad = torch.minimum(H, most_H), torch.minimum(W, most_W)
            by_height = tall * width <= broad * height
            covering = tall * width // broad, broad * height // tall
            scaled = torch.where(by_height, high, covering[0]), torch.where(by_height, covering[1], wide)
        starts = [((have - want).float() / 2).round().long() for have, want in zip(scaled, self.size, strict=True)]
        return _Side(top, tall, scaled[0], starts[0]), _Side(left, broad, scaled[1], starts[1])

    def _weights(self, length: int, side: _Side, want: int) -> Tensor:
        """The matrix [K, N] of one side; each row sums to 1, or to 0 where it is padding."""
        ratio = side.have.float() / side.scaled.float()
        center_K1 = ((torch.arange(want) + side.start + 0.5) * ratio)[:, None]
        place_1N = (torch.arange(length) - side.low)[None]
        weights_KN = _FILTERS[self.spec.interpolation]((place_1N + 0.5 - center_K1) / ratio.clamp_min(1))
        inside_1N = (place_1N >= 0) & (place_1N < side.have)
        weights_KN = torch.where(inside_1N, weights_KN, torch.zeros_like(weights_KN))
        weights_KN = weights_KN / weights_KN.sum(1, keepdim=True)
        if self.spec.resize_mode != "pad":
            return weights_KN
        place_K1 = (torch.arange(want) + side.start)[:, None]
        return torch.where((place_K1 >= 0) & (place_K1 < side.scaled), weights_KN, torch.zeros_like(weights_KN))
