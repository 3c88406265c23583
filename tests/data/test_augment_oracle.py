"""Augmentation against torchvision v2: every operation on random images, the tables of strengths, the crop's boxes."""

from __future__ import annotations

import importlib
import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vitral.data import color
from vitral.data.affine import warp
from vitral.data.augment_policies import (
    AugmentOps,
    Draws,
    Op,
    motion,
    perform,
    randaugment_table,
    recolor,
    trivial_table,
)
from vitral.data.config import AugmentConfig
from vitral.data.crop import draw_boxes
from vitral.data.erasing import erase

pytestmark = pytest.mark.oracle

SIZES = [(32, 32), (17, 41), (3, 5)]


@pytest.fixture(scope="module")
def v2(torchvision: ModuleType) -> Any:
    return importlib.import_module("torchvision.transforms.v2")


def photo(count: int, channels: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """uint8 noise, smoothed and with ranges of their own, so that histograms and contrasts differ."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, channels, *size, generator=generator)
    images = torch.nn.functional.avg_pool2d(images, 3, 1, 1)
    span = torch.rand(count, channels, 1, 1, generator=generator)
    return (images * span + 0.2 * (1 - span)).mul(300).clamp(0, 255).byte()


def reference(v2: Any, op: Op, image: Tensor, amount: float) -> Tensor:
    f = v2.functional
    bound = 1.0 if image.is_floating_point() else 255.0
    return {
        Op.BRIGHTNESS: lambda: f.adjust_brightness(image, amount),
        Op.SATURATION: lambda: f.adjust_saturation(image, amount),
        Op.CONTRAST: lambda: f.adjust_contrast(image, amount),
        Op.SHARPNESS: lambda: f.adjust_sharpness(image, amount),
        Op.POSTERIZE: lambda: f.posterize(image, int(amount)),
        Op.SOLARIZE: lambda: f.solarize(image, bound * amount),
        Op.AUTOCONTRAST: lambda: f.autocontrast(image),
        Op.EQUALIZE: lambda: f.equalize(image),
        Op.HUE: lambda: f.adjust_hue(image, amount),
        Op.GREY: lambda: f.rgb_to_grayscale(image, image.shape[-3]),
        Op.INVERT: lambda: f.invert(image),
        Op.BLUR: lambda: f.gaussian_blur(image, [2 * radius_of(image) + 1] * 2, [amount, amount]),
    }[op]()


def radius_of(image: Tensor) -> int:
    return min(6, min(image.shape[-2:]) - 1)


AMOUNTS: dict[Op, list[float]] = {
    Op.BRIGHTNESS: [0.0, 0.1, 0.73, 1.0, 1.27, 1.99],
    Op.SATURATION: [0.0, 0.1, 0.73, 1.0, 1.27, 1.99],
    Op.CONTRAST: [0.0, 0.1, 0.73, 1.0, 1.27, 1.99],
    Op.SHARPNESS: [0.0, 0.1, 0.73, 1.0, 1.27, 1.99],
    Op.POSTERIZE: [0, 1, 2, 4, 7, 8],
    Op.SOLARIZE: [0.0, 0.1, 1 / 3, 0.5, 0.7, 1.0],
    Op.AUTOCONTRAST: [0] * 6,
    Op.EQUALIZE: [0] * 6,
    Op.HUE: [-0.5, -0.21, 0.0, 0.03, 0.3, 0.5],
    Op.GREY: [0] * 6,
    Op.INVERT: [0] * 6,
    Op.BLUR: [0.1, 0.5, 0.9, 1.3, 1.7, 2.0],
}


@pytest.mark.parametrize("floating", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("op", AMOUNTS, ids=lambda op: op.name)
def test_pixel_operations(v2: Any, op: Op, channels: int, size: tuple[int, int], floating: bool) -> None:
    images = photo(6, channels, size)
    images[0] = 77  # without contrast, hue and histogram
    images = images.float() / 255 if floating else images
    ours = recolor(op, images, torch.tensor(AMOUNTS[op], dtype=torch.float32))
    assert ours.dtype == images.dtype
    level = 1 / 255 + 1e-6 if floating else 1
    for image, mine, amount in zip(images, ours, AMOUNTS[op], strict=True):
        difference = (mine.float() - reference(v2, op, image, amount).float()).abs()
        assert difference.max() <= level, (amount, difference.max())
        assert (difference > level / 20).float().mean() < 0.06, "most are equal but where the last bit decides"


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (Op.ROTATE, "Rotate"),
        (Op.SHEAR_X, "ShearX"),
        (Op.SHEAR_Y, "ShearY"),
        (Op.TRANSLATE_X, "TranslateX"),
        (Op.TRANSLATE_Y, "TranslateY"),
    ],
)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_geometric_operations(v2: Any, op: Op, name: str, size: tuple[int, int], interpolation: str) -> None:
    """All 31 strengths of TrivialAugment, both ways. Where a source point lies halfway between two pixels, nearest is a
    matter of the last bit: up to 2 % of the pixels may be the neighbor's."""
    images = photo(62, 3, size, seed=int(op))
    strengths = torch.cat([trivial_table(size)[op], -trivial_table(size)[op]])
    ours = warp(images, motion(torch.full((62,), int(op)), strengths.trunc() if "Trans" in name else strengths, size),
                "zeros", interpolation)  # fmt: skip
    policy = v2.TrivialAugmentWide(interpolation=v2.InterpolationMode(interpolation))
    theirs = torch.stack(
        [
            policy._apply_image_or_video_transform(image, name, float(strength), policy.interpolation, policy._fill)
            for image, strength in zip(images, strengths, strict=True)
        ]
    )
    difference = (ours.int() - theirs.int()).abs()
    if interpolation == "bilinear":
        assert difference.max() <= 1
    assert (difference > 1).float().mean() <= 0.02


@pytest.mark.parametrize("size", [(32, 32), (224, 160)])
def test_the_tables_of_strengths(v2: Any, size: tuple[int, int]) -> None:
    names = {"Color": Op.SATURATION, "ShearX": Op.SHEAR_X, "ShearY": Op.SHEAR_Y, "TranslateX": Op.TRANSLATE_X,
             "TranslateY": Op.TRANSLATE_Y, "AutoContrast": Op.AUTOCONTRAST}  # fmt: skip
    for theirs, table in ((v2.RandAugment, randaugment_table(size)), (v2.TrivialAugmentWide, trivial_table(size))):
        space = theirs._AUGMENTATION_SPACE
        assert [names.get(name) or Op[name.upper()] for name in space] == list(range(14))
        for op, (values, signed) in enumerate(space.values()):
            magnitudes = values(31, *size)
            assert signed == (Op.SHEAR_X <= op <= Op.SHARPNESS)
            if magnitudes is not None:
                mine = table[op].round() if op == Op.POSTERIZE else table[op]
                assert torch.equal(mine, magnitudes.to(mine.dtype))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_two_operations_one_after_the_other(v2: Any, channels: int, interpolation: str) -> None:
    """All 196 ordered pairs that RandAugment(2, 9) can draw: grouping and putting back change nothing."""
    names = list(v2.RandAugment._AUGMENTATION_SPACE)
    first, second = (grid.flatten() for grid in torch.meshgrid(torch.arange(14), torch.arange(14), indexing="ij"))
    images = photo(196, channels, (32, 24), seed=5)
    op_RB = torch.stack([first, second])
    table = randaugment_table((32, 24))[:, 9]
    magnitude_RB = table[op_RB]
    natural_RB = torch.where((op_RB >= Op.BRIGHTNESS) & (op_RB <= Op.SHARPNESS), 1 + magnitude_RB, magnitude_RB)
    moves_RB = (op_RB == Op.TRANSLATE_X) | (op_RB == Op.TRANSLATE_Y)
    natural_RB = torch.where(moves_RB, natural_RB.trunc(), natural_RB)
    natural_RB = torch.where(op_RB == Op.POSTERIZE, natural_RB.round(), natural_RB)
    ours, _ = perform(images, AugmentOps(op_RB, natural_RB), "zeros", interpolation)
    policy = v2.RandAugment(2, 9, interpolation=v2.InterpolationMode(interpolation))
    for image, mine, ops, magnitudes in zip(images, ours, op_RB.T.tolist(), magnitude_RB.T.tolist(), strict=True):
        theirs = image
        for op, magnitude in zip(ops, magnitudes, strict=True):
            magnitude = round(magnitude) if op == Op.POSTERIZE else magnitude
            theirs = policy._apply_image_or_video_transform(
                theirs, names[op], float(magnitude), policy.interpolation, policy._fill
            )
        # A level of difference may become more in the second operation: equalize and solarize are steep.
        wrong = ((mine.int() - theirs.int()).abs() > 1).float().mean()
        assert wrong <= 0.02, (names[ops[0]], names[ops[1]], wrong)


def _distances(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """The p value of a two-sample Kolmogorov and Smirnov test."""
    from scipy.stats import ks_2samp

    result: Any = ks_2samp(one, other)
    return float(result.pvalue)


@pytest.mark.parametrize("size", [(375, 500), (40, 40), (30, 200)])
def test_crops_have_the_distribution_of_random_resized_crop(v2: Any, size: tuple[int, int]) -> None:
    scale, ratio, count = (0.08, 1.0), (0.75, 4 / 3), 3000
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(8, scale=scale, ratio=ratio)
    blank = torch.zeros(3, *size)
    theirs = np.array([[p[k] for k in ("top", "left", "height", "width")]
                       for p in (crop.make_params([blank]) for _ in range(count))])  # fmt: skip
    sizes_B2 = torch.tensor(size).expand(count, 2)
    ours = draw_boxes(Draws(0, 0, 0, torch.arange(count)), sizes_B2, scale, ratio).numpy()
    for column in range(4):
        assert _distances(ours[:, column], theirs[:, column]) > 1e-3
    for both in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2], lambda b: 2 * b[:, 0] + b[:, 2]):
        assert _distances(both(ours), both(theirs)) > 1e-3


def test_erased_boxes_have_the_distribution_of_random_erasing(v2: Any) -> None:
    torch.manual_seed(0)
    count, (height, width) = 2000, (24, 40)
    theirs = v2.RandomErasing(p=1.0, scale=(0.02, 0.33), ratio=(0.3, 3.3))
    blank = torch.ones(1, height, width)
    expected = torch.stack([theirs(blank) for _ in range(count)])[:, 0]
    config = AugmentConfig(random_erasing=1.0, erase_scale=(0.02, 0.33), erase_ratio=(0.3, 3.3))
    got = erase(torch.ones(count, 1, height, width), config, Draws(0, 0, 0, torch.arange(count)))[:, 0]
    for measure in (
        lambda m: (1 - m).sum((1, 2)),
        lambda m: (1 - m).amax(2).sum(1),
        lambda m: (1 - m).amax(1).sum(1),
        lambda m: (1 - m).amax(2).argmax(1),
        lambda m: (1 - m).amax(1).argmax(1),
    ):
        assert _distances(measure(got).numpy(), measure(expected).numpy()) > 1e-3


def test_hue_is_a_turn_of_colorsys() -> None:
    """A second implementation of HSV, Python's own."""
    import colorsys

    colors = torch.rand(200, 3, generator=torch.Generator().manual_seed(1))
    turns = torch.linspace(-0.5, 0.5, 200)
    ours = color.hue(colors[:, :, None, None], turns)[:, :, 0, 0]
    for rgb, turn, mine in zip(colors.tolist(), turns.tolist(), ours.tolist(), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*rgb)
        assert all(
            math.isclose(a, b, abs_tol=1e-5)
            for a, b in zip(mine, colorsys.hsv_to_rgb((h + turn) % 1, s, v), strict=True)
        )
