"""Color operations on batches with a strength per sample, equal to torchvision v2's functions on single images.

Images are uint8 or floats in [0,1], with one channel (gray) or three (RGB), and come back in the same type and range.
Floats on the way to uint8 are cut off, not rounded, as torchvision and Pillow do. No result depends on the other
samples of the batch, not in a single bit: sums are of whole numbers, everything else is per pixel.
Shape letters: B samples, C channels, H W height and width, L levels, R rows, N pixels, 1 a broadcast axis.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601, in torchvision's rounding
_TO_BYTE = 255.999  # [0,1] times this, cut off, is the nearest thing to equal bins (torchvision's to_dtype)


def _factor(value_B: Tensor) -> Tensor:
    return value_B.float()[:, None, None, None]


def _bound(images_BCHW: Tensor) -> float:
    return 1.0 if images_BCHW.is_floating_point() else 255.0


def _gray(images_BCHW: Tensor) -> Tensor:
    """Luma [B,1,H,W] float32, of uint8 images a whole number."""
    if images_BCHW.shape[1] == 1:
        return images_BCHW.float()
    red_BHW, green_BHW, blue_BHW = images_BCHW.float().unbind(1)
    gray_BHW = (red_BHW * _LUMA[0]).add_(green_BHW, alpha=_LUMA[1]).add_(blue_BHW, alpha=_LUMA[2])
    return (gray_BHW if images_BCHW.is_floating_point() else gray_BHW.floor_())[:, None]


def _blend(images_BCHW: Tensor, other: Tensor, factor_B: Tensor) -> Tensor:
    """images * factor + other * (1 - factor), cut off at black and white."""
    factor_B111 = _factor(factor_B)
    blended_BCHW = (images_BCHW.float() * factor_B111).add_(other * (1 - factor_B111)).clamp_(0, _bound(images_BCHW))
    return blended_BCHW.to(images_BCHW.dtype)


def brightness(images_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Every pixel times `factor_B` >= 0: 0 is black, 1 the image."""
    return (images_BCHW.float() * _factor(factor_B)).clamp_(0, _bound(images_BCHW)).to(images_BCHW.dtype)


def contrast(images_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Away from the image's mean luma by `factor_B` >= 0: 0 is plain gray, 1 the image."""
    gray_B1HW = _gray(images_BCHW)
    if images_BCHW.is_floating_point():  # in whole steps, so that the sum is the same in any order
        total_B = (gray_B1HW * 2**24).long().sum((1, 2, 3)) * 2.0**-24
    else:
        total_B = gray_B1HW.int().sum((1, 2, 3))
    mean_B = total_B.double() / gray_B1HW[0].numel()
    return _blend(images_BCHW, mean_B.float()[:, None, None, None], factor_B)


def saturation(images_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Away from grayscale by `factor_B` >= 0: 0 is gray, 1 the image. One channel: unchanged."""
    return images_BCHW if images_BCHW.shape[1] == 1 else _blend(images_BCHW, _gray(images_BCHW), factor_B)


def hue(images_BCHW: Tensor, turn_B: Tensor) -> Tensor:
    """Hue turned by `turn_B` in [-0.5, 0.5] of the circle (red 0, green 1/3, blue 2/3). One channel: unchanged.

    HSV written without cases: channel = value - range * clamp(min(k, 4 - k), 0, 1), k = (n + 6 hue) mod 6, n = 5, 3, 1.
    """
    if images_BCHW.shape[1] == 1:
        return images_BCHW
    red_BHW, green_BHW, blue_BHW = images_BCHW.float().unbind(1)
    high_BHW = torch.maximum(torch.maximum(red_BHW, green_BHW), blue_BHW)
    range_BHW = high_BHW - torch.minimum(torch.minimum(red_BHW, green_BHW), blue_BHW)
    inverse_BHW = 1 / range_BHW.clamp(min=1e-12)  # a gray pixel has no hue, and no range to color
    sector_BHW = torch.where(
        high_BHW == red_BHW,
        green_BHW - blue_BHW,
        torch.where(high_BHW == green_BHW, blue_BHW - red_BHW, red_BHW - green_BHW),
    ).mul_(inverse_BHW)
    sector_BHW += torch.where(high_BHW == red_BHW, 0.0, torch.where(high_BHW == green_BHW, 2.0, 4.0))
    sector_BHW += (turn_B.float() * 6)[:, None, None]
    turned_BCHW = torch.empty_like(images_BCHW)
    for channel, start in enumerate((5, 3, 1)):
        k_BHW = (sector_BHW + start).remainder_(6)
        share_BHW = torch.minimum(k_BHW, 4 - k_BHW).clamp_(0, 1)
        plane_BHW = high_BHW - range_BHW * share_BHW
        turned_BCHW[:, channel] = (
            plane_BHW if images_BCHW.is_floating_point() else plane_BHW * (_TO_BYTE / 255)
        )  # fmt: skip
    return turned_BCHW


def grayscale(images_BCHW: Tensor) -> Tensor:
    """Luma in every channel."""
    return _gray(images_BCHW).to(images_BCHW.dtype).expand_as(images_BCHW)


def invert(images_BCHW: Tensor) -> Tensor:
    """The negative."""
    return 1 - images_BCHW if images_BCHW.is_floating_point() else ~images_BCHW


def solarize(images_BCHW: Tensor, threshold_B: Tensor) -> Tensor:
    """The negative of every value from `threshold_B` in [0,1] (share of white) upwards."""
    threshold_B111 = _factor(threshold_B) * _bound(images_BCHW)
    if images_BCHW.is_floating_point():
        return torch.where(images_BCHW >= threshold_B111, 1 - images_BCHW, images_BCHW)
    above_BCHW = images_BCHW >= threshold_B111.ceil().to(torch.uint8)
    return images_BCHW ^ above_BCHW.view(torch.uint8).neg()  # 0 or 255


def posterize(images_BCHW: Tensor, bits_B: Tensor) -> Tensor:
    """The `bits_B` in 0 to 8 highest bits of each value; floats: the lower end of one of 2^bits equal bins."""
    bits_B111 = bits_B.long()[:, None, None, None]
    if images_BCHW.is_floating_point():
        levels_B111 = (1 << bits_B111).float()
        return torch.minimum((images_BCHW * levels_B111).floor_(), levels_B111 - 1).clamp_(min=0).div_(levels_B111)
    return images_BCHW & (0xFF << (8 - bits_B111) & 0xFF).to(torch.uint8)


def autocontrast(images_BCHW: Tensor) -> Tensor:
    """Each channel stretched linearly until its darkest value is black and its brightest white."""
    bound = _bound(images_BCHW)
    flat_BCN = images_BCHW.flatten(2)
    low_BC11 = flat_BCN.amin(2).float()[..., None, None]
    range_BC11 = flat_BCN.amax(2).float()[..., None, None] - low_BC11
    plain_BC11 = range_BC11 == 0
    low_BC11 = low_BC11.masked_fill(plain_BC11, 0.0)
    scale_BC11 = (range_BC11 * (1 / bound)).masked_fill(plain_BC11, 1.0)
    return (images_BCHW.float() - low_BC11).div_(scale_BC11).clamp_(0, bound).to(images_BCHW.dtype)


def equalize(images_BCHW: Tensor) -> Tensor:
    """Each channel through the table that evens out its histogram, by Pillow's rule; floats go through 256 levels."""
    if images_BCHW.is_floating_point():
        return equalize((images_BCHW * _TO_BYTE).to(torch.uint8)).float().div_(255)
    pixels_RN = images_BCHW.flatten(2).flatten(0, 1).long()
    rows, pixels = pixels_RN.shape
    place_RN = pixels_RN + torch.arange(0, rows * 256, 256, device=images_BCHW.device)[:, None]
    counts_RL = torch.zeros(rows * 256, dtype=torch.int32, device=images_BCHW.device)
    counts_RL.scatter_add_(0, place_RN.flatten(), counts_RL.new_ones(1).expand(rows * pixels))
    counts_RL = counts_RL.view(rows, 256)
    below_RL = counts_RL.cumsum(1, dtype=torch.int32) - counts_RL  # pixels darker than the level
    brightest_R1 = pixels_RN.amax(1, keepdim=True)
    step_R1 = (pixels - counts_RL.gather(1, brightest_R1)) // 255
    table_RL = (below_RL + step_R1 // 2).div_(step_R1.clamp(min=1), rounding_mode="floor").clamp_(0, 255)
    levels_L = torch.arange(256, dtype=torch.int32, device=images_BCHW.device)
    table_RL = torch.where(step_R1 == 0, levels_L, table_RL).to(torch.uint8)
    return table_RL.flatten()[place_RN].view_as(images_BCHW)


def sharpness(images_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Away from a 3 x 3 smoothing (center 5, others 1, of 13) by `factor_B` >= 0: 0 is smooth, 1 the image.

    The outermost pixels stay; images under 3 pixels a side are returned as they are.
    """
    if min(images_BCHW.shape[-2:]) < 3:
        return images_BCHW
    width = images_BCHW.shape[3]
    values_BCHW = images_BCHW.float()
    rows_BCHW = values_BCHW[..., :-2, :] + values_BCHW[..., 1:-1, :] + values_BCHW[..., 2:, :]
    # Rows end to end are fast to add; the sums across their ends belong to the outermost columns, and are not used.
    rows_BCN, inner_BCN = rows_BCHW.flatten(2), values_BCHW.flatten(2)[..., width + 1 : -width - 1]
    smooth_BCN = (
        (rows_BCN[..., :-2] + rows_BCN[..., 1:-1]).add_(rows_BCN[..., 2:]).add_(inner_BCN, alpha=4).mul_(1 / 13)
    )
    if not images_BCHW.is_floating_point():
        smooth_BCN.round_()
    changed_BCN = smooth_BCN.sub_(inner_BCN).mul_(1 - factor_B.float()[:, None, None]).add_(inner_BCN)
    result_BCHW = images_BCHW.clone(memory_format=torch.contiguous_format)
    result_BCHW.flatten(2)[..., width + 1 : -width - 1] = changed_BCN.clamp_(0, _bound(images_BCHW))
    result_BCHW[..., 0] = images_BCHW[..., 0]
    result_BCHW[..., -1] = images_BCHW[..., -1]
    return result_BCHW


def gaussian_blur(images_BCHW: Tensor, sigma_B: Tensor, radius: int) -> Tensor:
    """Gaussian blur with standard deviation `sigma_B` > 0 pixels by 2 * `radius` + 1 taps a side, edges mirrored.

    The radius is at most the smaller side minus 1.
    """
    radius = min(radius, min(images_BCHW.shape[-2:]) - 1)
    if radius < 1:
        return images_BCHW
    offset_K = torch.arange(-radius, radius + 1, device=images_BCHW.device)
    # exp of differences of squares, each tap separately: the sum over the taps is in a fixed order too.
    taps_KB = torch.exp(-0.5 * (offset_K[:, None] / sigma_B.float()) ** 2)
    total_B = taps_KB[radius]
    for step in range(1, radius + 1):
        total_B = total_B + 2 * taps_KB[radius + step]
    taps_KB = taps_KB / total_B
    blurred_BCHW = images_BCHW.float()
    for axis, pad in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        padded_BCHW = F.pad(blurred_BCHW, pad, mode="reflect")
        size = blurred_BCHW.shape[axis]
        blurred_BCHW = blurred_BCHW * _factor(taps_KB[radius])
        for step in range(1, radius + 1):
            pair_BCHW = padded_BCHW.narrow(axis, radius - step, size) + padded_BCHW.narrow(axis, radius + step, size)
            blurred_BCHW.addcmul_(pair_BCHW, _factor(taps_KB[radius + step]))
    bound = _bound(images_BCHW)
    if not images_BCHW.is_floating_point():
        blurred_BCHW.round_()
    return blurred_BCHW.clamp_(0, bound).to(images_BCHW.dtype)
