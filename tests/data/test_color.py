"""Pixel operations: closed forms, the identity, and samples that don't know of each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitral.data import color
from vitral.data.augment_policies import Op, recolor

OPS = [op for op in Op if op >= Op.BRIGHTNESS]
LARGEST = {Op.POSTERIZE: 8.0, Op.SOLARIZE: 1.0, Op.HUE: 0.5, Op.BLUR: 2.0}


def images(count: int = 40, channels: int = 3, size: tuple[int, int] = (13, 10), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, *size), dtype=torch.uint8, generator=generator)


def amounts(op: Op, count: int = 40) -> Tensor:
    return torch.linspace(0, 1, count) * LARGEST.get(op, 2.0) + (0.1 if op == Op.BLUR else 0.0)


@pytest.mark.parametrize(("op", "amount"), [
    (Op.BRIGHTNESS, 1.0), (Op.SATURATION, 1.0), (Op.CONTRAST, 1.0), (Op.SHARPNESS, 1.0), (Op.POSTERIZE, 8.0),
    (Op.HUE, 0.0), (Op.HUE, 1.0), (Op.BLUR, 1e-3),
])  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3])
def test_the_amount_that_changes_nothing(op: Op, amount: float, channels: int) -> None:
    x = images(channels=channels)
    assert torch.equal(recolor(op, x, torch.full((40,), amount)), x)


@pytest.mark.parametrize("floating", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_a_sample_alone_is_the_sample_in_a_batch_bit_for_bit(op: Op, channels: int, floating: bool) -> None:
    x = images(channels=channels).float() / 255 if floating else images(channels=channels)
    before, amount = x.clone(), amounts(op)
    whole = recolor(op, x, amount)
    alone = torch.cat([recolor(op, x[i : i + 1], amount[i : i + 1]) for i in range(len(x))])
    assert torch.equal(whole, alone)
    assert torch.equal(x, before), "and what was given is untouched"
    assert whole.dtype == x.dtype
    assert whole.min() >= 0
    assert whole.max() <= (1 if floating else 255)


def test_extremes_have_closed_forms() -> None:
    x, none = images().float() / 255, torch.zeros(40)
    gray = 0.2989 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    assert torch.equal(color.brightness(x, none), torch.zeros_like(x))
    torch.testing.assert_close(color.saturation(x, none), gray[:, None].expand_as(x), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        color.contrast(x, none), gray.mean((1, 2))[:, None, None, None].expand_as(x), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(color.grayscale(x), gray[:, None].expand_as(x), atol=1e-6, rtol=0)
    assert torch.equal(color.solarize(images(), none), 255 - images())
    assert torch.equal(color.invert(color.invert(images())), images())
    assert torch.equal(color.posterize(images(), torch.full((40,), 3.0)), images() // 32 * 32)


def test_a_third_of_the_circle_moves_the_channels_on() -> None:
    x = images().float() / 255
    third = torch.full((40,), 1 / 3)
    torch.testing.assert_close(color.hue(x, third), x.roll(1, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(color.hue(x, -third), x.roll(-1, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(color.hue(x, third / 2).amax(1), x.amax(1))


def test_autocontrast_reaches_both_ends_and_leaves_plain_channels() -> None:
    x = images() // 3 + 40
    x[0, 1] = 99
    stretched = color.autocontrast(x)
    assert (stretched[1:].amin((2, 3)) == 0).all()
    assert (stretched[1:].amax((2, 3)) >= 254).all(), "255, or a bit below it, cut off"
    assert (stretched[0, 1] == 99).all()


def test_equalize_evens_out_and_is_monotone() -> None:
    x = (images(size=(64, 64), count=3).float() ** 2 / 255).byte()  # dark
    flat = color.equalize(x)
    share = torch.stack([(flat < level).float().mean((1, 2, 3)) for level in (64, 128, 192)])
    torch.testing.assert_close(share, torch.tensor([0.25, 0.5, 0.75])[:, None].expand(3, 3), atol=0.05, rtol=0)
    for before, after in zip(x.flatten(2).flatten(0, 1), flat.flatten(2).flatten(0, 1), strict=True):
        assert (after[before.argsort()].int().diff() >= 0).all()
    plain = torch.full((1, 3, 8, 8), 31, dtype=torch.uint8)
    assert torch.equal(color.equalize(plain), plain)


def test_blur_of_a_point_is_the_gaussian_and_keeps_plain_images() -> None:
    point = torch.zeros(2, 1, 31, 31)
    point[:, 0, 15, 15] = 1
    sigma = torch.tensor([1.0, 2.0])
    blurred = color.gaussian_blur(point, sigma, 8)
    squares = (torch.arange(31) - 15.0) ** 2
    for image, s in zip(blurred[:, 0], sigma, strict=True):
        bell = torch.exp(-squares / (2 * s**2)) * (squares <= 64)
        torch.testing.assert_close(image, bell[:, None] * bell / bell.sum() ** 2, atol=1e-6, rtol=0)
    plain = torch.full((2, 3, 4, 4), 200, dtype=torch.uint8)
    assert torch.equal(color.gaussian_blur(plain, sigma, 6), plain), "a radius beyond the image is cut to fit"


def test_sharpness_leaves_the_rim_and_images_without_an_inside() -> None:
    x = images()
    sharp = color.sharpness(x, torch.full((40,), 1.9))
    for rim in (sharp[..., 0, :] == x[..., 0, :], sharp[..., -1] == x[..., -1], sharp[..., 0] == x[..., 0]):
        assert rim.all()
    assert (sharp != x).float().mean() > 0.3
    small = images(size=(2, 9))
    assert torch.equal(color.sharpness(small, torch.full((40,), 1.9)), small)
