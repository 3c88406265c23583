"""Draw and apply augmentation operations per sample: RandAugment, TrivialAugment, 3-Augment, color jitter, single ones.

Operations are drawn in rounds; in each, every sample has one operation (or none) and one amount. `perform` carries it
out: the samples of a round are grouped by operation, so only chosen work is done, and a round's geometric operations
are one resampling. Sources: Cubuk et al. 2020 (arXiv 1909.13719), Mueller and Hutter 2021 (arXiv 2103.10158), Touvron
et al. 2022 (DeiT III, arXiv 2204.07118); operations, ranges and 31 strengths are torchvision v2's. Shape letters: B
samples, C channels, H W height and width, R rounds, G samples of a group, O operations, M strengths, 33 a homogeneous 3
x 3 matrix from source to result.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from vitral.data import color
from vitral.data.affine import about_center, compose, matrices, warp
from vitral.data.config import AugmentConfig
from vitral.data.counter_rng import Draws, Stream

STRENGTHS = 31


class Op(IntEnum):
    """An operation, and what its amount is. The first 14 are RandAugment's and TrivialAugment's, in their order."""

    IDENTITY = 0
    SHEAR_X = 1  # pixels a row
    SHEAR_Y = 2
    TRANSLATE_X = 3  # pixels
    TRANSLATE_Y = 4
    ROTATE = 5  # degrees against the clock
    BRIGHTNESS = 6  # factor
    SATURATION = 7
    CONTRAST = 8
    SHARPNESS = 9
    POSTERIZE = 10  # bits
    SOLARIZE = 11  # threshold in [0,1]
    AUTOCONTRAST = 12
    EQUALIZE = 13
    HUE = 14  # share of the circle
    GREY = 15
    INVERT = 16
    BLUR = 17  # standard deviation, pixels


_CHOICES = 14
_SIGNED = Op.SHARPNESS  # the last one whose amount goes both ways


class AugmentOps(NamedTuple):
    """Operation codes int64 and amounts float32, both [R, B]."""

    op_RB: Tensor
    amount_RB: Tensor


def draw_ops(config: AugmentConfig, draws: Draws, size: tuple[int, int]) -> AugmentOps | None:
    """Return the operations that `config` sets after crop and geometry: the policy, then color jitter, then single
    operations.

    `size` is the images' (height, width). None where none is configured.
    """
    parts: list[AugmentOps] = []
    if config.policy == "randaugment" and config.num_ops:
        parts.append(randaugment(draws, size, config.num_ops, config.magnitude, config.magnitude_std))
    elif config.policy == "trivial":
        parts.append(trivial_augment(draws, size))
    elif config.policy == "three_augment":
        parts.append(three_augment(draws, config.solarize_from, config.blur_sigma))
    if config.jitters:
        parts.append(jitter(config, draws))
    parts += _single(config, draws)
    if not parts:
        return None
    return AugmentOps(torch.cat([part.op_RB for part in parts]), torch.cat([part.amount_RB for part in parts]))


def randaugment(
    draws: Draws, size: tuple[int, int], num_ops: int = 2, magnitude: float = 9.0, magnitude_std: float = 0.0
) -> AugmentOps:
    """RandAugment: `num_ops` >= 1 operations a sample, drawn evenly from 14, all of one strength in 0 to 30.

    With `magnitude_std` the strength of each is normally distributed about `magnitude`, cut off at 0 and 30, which the
    paper does not do. A strength between two whole ones lies between them linearly.
    """
    streams = [Stream.POLICY_OP, Stream.POLICY_SIGN]
    if magnitude_std:
        streams += [Stream.POLICY_SIZE, Stream.POLICY_ANGLE]
    kind_RB, sign_RB, *normal = draws.runs(streams, num_ops)
    strength_RB = torch.full_like(kind_RB, magnitude)
    if magnitude_std:  # Box and Muller
        normal_RB = torch.sqrt(-2 * torch.log(1 - normal[0])) * torch.cos(2 * math.pi * normal[1])
        strength_RB = (magnitude + magnitude_std * normal_RB).clamp(0, STRENGTHS - 1)
    op_RB = (kind_RB * _CHOICES).long()
    return AugmentOps(op_RB, _amounts(randaugment_table(size), op_RB, strength_RB, sign_RB))


def trivial_augment(draws: Draws, size: tuple[int, int]) -> AugmentOps:
    """TrivialAugment (wide): one operation per sample, drawn evenly from 14, its strength from 31."""
    kind_RB, sign_RB, strength_RB = draws.runs((Stream.POLICY_OP, Stream.POLICY_SIGN, Stream.POLICY_SIZE), 1)
    op_RB = (kind_RB * _CHOICES).long()
    return AugmentOps(op_RB, _amounts(trivial_table(size), op_RB, (strength_RB * STRENGTHS).floor(), sign_RB))


def three_augment(draws: Draws, threshold: float = 0.5, sigma: tuple[float, float] = (0.1, 2.0)) -> AugmentOps:
    """DeiT III's 3-Augment: grayscale, solarize (from `threshold`) or Gaussian blur (`sigma` pixels), one of them.

    The paper's recipe adds a flip and color jitter of 0.3; they have keys of their own. Its blur is Pillow's three box
    filters; ours is a Gaussian.
    """
    kind_RB, size_RB = draws.runs((Stream.POLICY_OP, Stream.BLUR_SIGMA), 1)
    choice_RB = (kind_RB * 3).long()
    op_RB = torch.tensor([Op.GREY, Op.SOLARIZE, Op.BLUR], device=choice_RB.device)[choice_RB]
    sigma_RB = sigma[0] + size_RB * (sigma[1] - sigma[0])
    return AugmentOps(op_RB, torch.where(op_RB == Op.BLUR, sigma_RB, threshold))


def jitter(config: AugmentConfig, draws: Draws) -> AugmentOps:
    """Color jitter: brightness, contrast, saturation, hue, in one of the 24 orders, evenly drawn for each sample."""
    kinds = (Op.BRIGHTNESS, Op.CONTRAST, Op.SATURATION, Op.HUE)
    widths = (config.brightness, config.contrast, config.saturation, config.hue)
    streams = (Stream.BRIGHTNESS, Stream.CONTRAST, Stream.SATURATION, Stream.HUE, Stream.JITTER_ORDER, Stream.JITTER)
    *factors, order, chosen = draws.runs(streams, 1)
    device = draws.sample_ids_B.device
    middle_R1 = torch.tensor([1.0, 1.0, 1.0, 0.0], device=device)[:, None]
    width_R1 = torch.tensor(widths, device=device)[:, None]
    amount_KB = middle_R1 + (torch.cat(factors) * 2 - 1) * width_R1
    orders = torch.tensor(list(itertools.permutations(range(4))), device=device)
    kind_RB = orders[(order[0] * len(orders)).long()].T.contiguous()
    code_K = torch.tensor([kind if width else Op.IDENTITY for kind, width in zip(kinds, widths, strict=True)])
    op_RB = torch.where(chosen < config.jitter_prob, code_K.to(device)[kind_RB], int(Op.IDENTITY))
    return AugmentOps(op_RB, amount_KB.gather(0, kind_RB))


def _single(config: AugmentConfig, draws: Draws) -> list[AugmentOps]:
    """One round for each single operation that has a probability, in this order."""
    expected = [
        (Op.GREY, Stream.GREY, config.gray, 0.0),
        (Op.BLUR, Stream.BLUR, config.blur, 0.0),
        (Op.SOLARIZE, Stream.SOLARIZE, config.solarize, config.solarize_from),
        (Op.POSTERIZE, Stream.POSTERIZE, config.posterize, float(config.posterize_bits)),
        (Op.EQUALIZE, Stream.EQUALIZE, config.equalize, 0.0),
        (Op.AUTOCONTRAST, Stream.AUTOCONTRAST, config.autocontrast, 0.0),
        (Op.INVERT, Stream.INVERT, config.invert, 0.0),
        (Op.SHARPNESS, Stream.SHARPEN, config.sharpen, config.sharpen_factor),
    ]
    expected = [row for row in expected if row[2]]
    if not expected:
        return []
    low, high = config.blur_sigma
    *chosen, size_1B = draws.runs([*(stream for _, stream, _, _ in expected), Stream.BLUR_SIGMA], 1)
    ops: list[AugmentOps] = []
    for (op, _, probability, amount), draw_1B in zip(expected, chosen, strict=True):
        amount_1B = low + size_1B * (high - low) if op == Op.BLUR else torch.full_like(draw_1B, amount)
        ops.append(AugmentOps(torch.where(draw_1B < probability, int(op), int(Op.IDENTITY)), amount_1B))
    return ops


def randaugment_table(size: tuple[int, int]) -> Tensor:
    """RandAugment's amounts before sign, [O, M], for images of `size` (height, width), in the units of `Op`."""
    return _table((0.3, 0.3, 150 / 331 * size[1], 150 / 331 * size[0], 30.0, 0.9, 0.9, 0.9, 0.9), 4)


def trivial_table(size: tuple[int, int]) -> Tensor:
    """TrivialAugment's amounts before sign, [O, M]; shifts are in pixels, for images of 224 and of 32 alike."""
    return _table((0.99, 0.99, 32.0, 32.0, 135.0, 0.99, 0.99, 0.99, 0.99), 6)


def _table(largest: Sequence[float], fewer_bits: int) -> Tensor:
    table_OM = torch.zeros(_CHOICES, STRENGTHS)
    for op, top in enumerate(largest, start=int(Op.SHEAR_X)):
        table_OM[op] = torch.linspace(0.0, top, STRENGTHS)
    table_OM[Op.POSTERIZE] = 8 - torch.arange(STRENGTHS) / ((STRENGTHS - 1) / fewer_bits)
    table_OM[Op.SOLARIZE] = torch.linspace(1.0, 0.0, STRENGTHS)
    return table_OM


def _amounts(table_OM: Tensor, op_RB: Tensor, strength_RB: Tensor, sign_RB: Tensor) -> Tensor:
    """What each operation is to be done with: its table at the strength, given a sign, as `Op` says it."""
    table_N = table_OM.to(op_RB.device).flatten()
    low_RB = strength_RB.long().clamp(max=STRENGTHS - 2)
    place_RB = op_RB * STRENGTHS + low_RB
    value_RB = table_N[place_RB].lerp(table_N[place_RB + 1], strength_RB - low_RB)
    value_RB = torch.where((op_RB <= _SIGNED) & (sign_RB < 0.5), -value_RB, value_RB)
    value_RB = torch.where((op_RB == Op.TRANSLATE_X) | (op_RB == Op.TRANSLATE_Y), value_RB.trunc(), value_RB)
    value_RB = torch.where(op_RB == Op.POSTERIZE, value_RB.round(), value_RB)
    return torch.where((op_RB >= Op.BRIGHTNESS) & (op_RB <= Op.SHARPNESS), value_RB + 1, value_RB)


def perform(
    images_BCHW: Tensor, todo: AugmentOps, fill: str = "zeros", interpolation: str = "bilinear", blur_radius: int = 6
) -> tuple[Tensor, Tensor]:
    """uint8 or [0,1] images after all rounds, of the same type, and the map [B,3,3] of where pixels went.

    Of two or four channels the last is taken for opacity: it moves along, its values stay.
    """
    channels, size = images_BCHW.shape[1], (images_BCHW.shape[-2], images_BCHW.shape[-1])
    colors = channels - 1 if channels in (2, 4) else channels
    place_B = torch.arange(len(images_BCHW), device=images_BCHW.device)  # where each sample is now
    matrix_B33 = torch.eye(3, device=images_BCHW.device).repeat(len(images_BCHW), 1, 1)
    order_RB = todo.op_RB.argsort(dim=1, stable=True)
    codes = torch.arange(len(Op), device=images_BCHW.device)
    counts = (todo.op_RB[:, :, None] == codes).sum(1).tolist()  # the one wait for the device
    for op_B, amount_B, order_B, counts_O in zip(*todo, order_RB, counts, strict=True):
        if counts_O[Op.IDENTITY] == len(op_B):
            continue
        # Sorted by operation, each group is a slice, which is read and written without an index.
        images_BCHW = images_BCHW.index_select(0, place_B[order_B])
        place_B = order_B.argsort()
        amount_B, ends = amount_B[order_B], [0, *itertools.accumulate(counts_O)]
        moved = slice(ends[Op.SHEAR_X], ends[Op.ROTATE + 1])
        if moved.stop > moved.start:
            step_G33 = motion(op_B[order_B[moved]], amount_B[moved], size)
            images_BCHW[moved] = warp(images_BCHW[moved], step_G33, fill, interpolation)
            before_G33 = matrix_B33[order_B[moved]]
            matrix_B33.index_copy_(0, order_B[moved], compose(step_G33, before_G33))
        for op in map(Op, range(Op.BRIGHTNESS, len(Op))):
            group = slice(ends[op], ends[op + 1])
            if group.stop > group.start:
                group_GCHW = images_BCHW[group, :colors]
                group_GCHW.copy_(recolor(op, group_GCHW, amount_B[group], blur_radius))
    return images_BCHW.index_select(0, place_B), matrix_B33


def motion(op_G: Tensor, amount_G: Tensor, size: tuple[int, int]) -> Tensor:
    """The maps of geometric operations: shears about the top left corner, rotation about the middle of the image."""

    def of(op: Op) -> Tensor:
        return torch.where(op_G == op, amount_G, 0.0)

    shear_x_G, shear_y_G, angle_G = of(Op.SHEAR_X), of(Op.SHEAR_Y), torch.deg2rad(of(Op.ROTATE))
    one_G = torch.ones_like(amount_G)
    x_G, y_G = of(Op.TRANSLATE_X) - shear_x_G / 2, of(Op.TRANSLATE_Y) - shear_y_G / 2
    slid_G33 = matrices(one_G, -shear_x_G, x_G, -shear_y_G, one_G, y_G)
    cos_G, sin_G = torch.cos(angle_G), torch.sin(angle_G)
    turned_G33 = about_center(cos_G, sin_G, -sin_G, cos_G, size)
    return torch.where((op_G == Op.ROTATE)[:, None, None], turned_G33, slid_G33)


def recolor(op: Op, images_GCHW: Tensor, amount_G: Tensor, blur_radius: int = 6) -> Tensor:
    """One operation on pixel values, each sample by its own amount."""
    if op in _BY_AMOUNT:
        return _BY_AMOUNT[op](images_GCHW, amount_G)
    if op == Op.BLUR:
        return color.gaussian_blur(images_GCHW, amount_G, blur_radius)
    return _PLAIN[op](images_GCHW)


_BY_AMOUNT = {
    Op.BRIGHTNESS: color.brightness, Op.SATURATION: color.saturation, Op.CONTRAST: color.contrast,
    Op.SHARPNESS: color.sharpness, Op.POSTERIZE: color.posterize, Op.SOLARIZE: color.solarize, Op.HUE: color.hue,
}  # fmt: skip
_PLAIN = {
    Op.AUTOCONTRAST: color.autocontrast, Op.EQUALIZE: color.equalize, Op.GREY: color.grayscale,
    Op.INVERT: color.invert,
}  # fmt: skip
