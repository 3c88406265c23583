"""The one resize against closed forms and against Pillow's bicubic on floating-point images."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from tests.oracles import load_oracle
from vitral.data.config import Interpolation
from vitral.data.image_spec import ResizeSpec
from vitral.data.resize import fit_image, fit_image_fast


def noise(height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(height * width).integers(0, 256, (3, height, width), np.uint8))


def reference(image_CHW: torch.Tensor, size: tuple[int, int], interpolation: Interpolation = "bicubic") -> np.ndarray:
    """Pillow's antialiased resize, channel by channel in floating point, clamped to [0,1]."""
    planes = [Image.fromarray(plane.numpy().astype(np.float32) / 255) for plane in image_CHW]
    how = Image.Resampling[interpolation.upper()]
    return np.stack([np.asarray(plane.resize((size[1], size[0]), how)) for plane in planes]).clip(0, 1)


@pytest.mark.parametrize("resize_mode", ["crop", "squash"])
def test_the_right_size_is_left_alone(resize_mode: Literal["crop", "squash"]) -> None:
    image = noise(24, 40)
    assert torch.equal(fit_image(image, (24, 40), ResizeSpec(resize_mode=resize_mode)), image.float() / 255)
    assert torch.equal(fit_image_fast(image, (24, 40), ResizeSpec(resize_mode=resize_mode)), image)


@pytest.mark.parametrize("source", [(100, 75), (31, 47), (8, 8), (224, 300)])
@pytest.mark.parametrize("size", [(32, 32), (48, 20), (7, 64)])
def test_squash_equals_pillow(source: tuple[int, int], size: tuple[int, int]) -> None:
    image = noise(*source)
    ours = fit_image(image, size, ResizeSpec(resize_mode="squash"))
    assert ours.dtype == torch.float32
    assert np.abs(ours.numpy() - reference(image, size)).max() < 3e-6
    fast = fit_image_fast(image, size, ResizeSpec(resize_mode="squash"))
    assert fast.dtype == torch.uint8
    difference = np.abs(fast.numpy() / 255 - reference(image, size))
    assert difference.max() < 0.08
    assert difference.mean() < 0.004  # a level of uint8


@pytest.mark.parametrize(
    ("source", "size", "covering"),
    [
        ((100, 75), (32, 32), (42, 32)),  # 100 * 32 / 75 = 42.7, cut down
        ((75, 100), (32, 32), (32, 42)),
        ((60, 60), (20, 40), (40, 40)),
        ((50, 200), (20, 40), (20, 80)),
        ((8, 10), (32, 32), (32, 40)),
    ],
)
def test_crop_covers_then_cuts_the_center(
    source: tuple[int, int], size: tuple[int, int], covering: tuple[int, int]
) -> None:
    image = noise(*source)
    top, left = (covering[0] - size[0]) // 2, (covering[1] - size[1]) // 2
    expected = reference(image, covering)[:, top : top + size[0], left : left + size[1]]
    assert np.abs(fit_image(image, size, ResizeSpec(resize_mode="crop")).numpy() - expected).max() < 3e-6


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize(
    ("source", "size", "ratio", "covering"),
    [
        ((300, 400), (224, 224), 0.875, (256, 341)),  # 400 * 256 / 300 = 341.3
        ((301, 200), (224, 224), 224 / 232, (349, 232)),
        ((90, 70), (32, 32), 0.95, (42, 33)),  # 32 / 0.95 = 33.7, rounded down as timm does
        ((90, 70), (20, 40), 0.8, (64, 50)),
        ((40, 40), (32, 32), 0.8, (40, 40)),
        ((20, 20), (32, 32), 0.5, (64, 64)),
    ],
)
def test_a_crop_ratio_resizes_to_more_and_cuts_the_center(
    source: tuple[int, int],
    size: tuple[int, int],
    ratio: float,
    covering: tuple[int, int],
    interpolation: Interpolation,
) -> None:
    image = noise(*source)
    top, left = (round((covering[axis] - size[axis]) / 2) for axis in (0, 1))
    part = (slice(None), slice(top, top + size[0]), slice(left, left + size[1]))
    ours = fit_image(image, size, ResizeSpec(resize_mode="crop", interpolation=interpolation, crop_pct=ratio))
    assert np.abs(ours.numpy() - reference(image, covering, interpolation)[part]).max() < 5e-5
    fast = (
        fit_image_fast(image, size, ResizeSpec(resize_mode="crop", interpolation=interpolation, crop_pct=ratio)).numpy()
        / 255
    )
    assert np.abs(fast - reference(image, covering, interpolation)[part]).mean() < 0.01
    whole = int(size[0] / ratio + 1e-6), int(size[1] / ratio + 1e-6)
    top, left = (round((whole[axis] - size[axis]) / 2) for axis in (0, 1))
    part = (slice(None), slice(top, top + size[0]), slice(left, left + size[1]))
    squashed = fit_image(image, size, ResizeSpec(resize_mode="squash", interpolation=interpolation, crop_pct=ratio))
    assert np.abs(squashed.numpy() - reference(image, whole, interpolation)[part]).max() < 5e-5


@pytest.mark.oracle
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("source", [(375, 500), (500, 375), (256, 300), (100, 80)])
def test_the_usual_256_and_224_are_those_of_torchvision_and_timm(
    source: tuple[int, int], interpolation: Interpolation
) -> None:
    load_oracle("torchvision")
    from torchvision.transforms import v2

    image = noise(*source)
    steps = [v2.Resize(256, v2.InterpolationMode(interpolation), antialias=True), v2.CenterCrop(224)]
    expected = v2.Compose(steps)(image.float() / 255).clamp(0, 1)
    assert (
        fit_image(image, (224, 224), ResizeSpec(resize_mode="crop", interpolation=interpolation, crop_pct=0.875))
        - expected
    ).abs().max() < 1e-6
    load_oracle("timm")
    from timm.data import create_transform

    theirs: Any = create_transform(
        (3, 224, 224), crop_pct=0.875, interpolation=interpolation, mean=(0, 0, 0), std=(1, 1, 1)
    )
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    # timm resizes 8-bit pictures, rounding after each pass: a level on average is how far that goes.
    assert (
        fit_image(image, (224, 224), ResizeSpec(resize_mode="crop", interpolation=interpolation, crop_pct=0.875))
        - theirs(picture)
    ).abs().mean() < 1 / 255


@pytest.mark.parametrize("width", [16, 24, 64, 200])
def test_a_linear_ramp_stays_one(width: int) -> None:
    """Bicubic reproduces straight lines: away from the borders a ramp resized is the ramp at the new pixel centers
    (to 4e-5 where the kernel, stretched against aliasing, is sampled unevenly)."""
    step = 250 // 63
    ramp = (torch.arange(64) * step).to(torch.uint8).expand(1, 8, 64)
    ours = fit_image(ramp, (8, width), ResizeSpec(resize_mode="squash"))[0, 0].double()
    centers = ((torch.arange(width).double() + 0.5) * 64 / width - 0.5) * step / 255
    inner = (centers > 9 * step / 255) & (centers < 54 * step / 255)
    assert inner.any()
    assert (ours - centers)[inner].abs().max() < 5e-5


def test_overshoot_is_clamped_and_flat_stays_flat() -> None:
    edge = torch.zeros(1, 16, 16, dtype=torch.uint8)
    edge[..., 8:] = 255
    ours = fit_image(edge, (50, 50), ResizeSpec(resize_mode="squash"))
    assert ours.min() == 0
    assert ours.max() == 1
    flat = torch.full((3, 33, 21), 77, dtype=torch.uint8)
    assert (fit_image(flat, (10, 10), ResizeSpec(resize_mode="crop")) - 77 / 255).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("source", "size"), [((1, 20_000), (224, 224)), ((20_000, 1), (224, 224)), ((3, 5000), (8, 64))]
)
def test_strips_do_not_explode(source: tuple[int, int], size: tuple[int, int]) -> None:
    """A strip's center crop is its middle: equal to the crop of a strip cut shorter, and cheap."""
    strip = (torch.arange(max(source)) % 251).to(torch.uint8).reshape(1, *source) if 1 in source else noise(*source)
    ours = fit_image(strip, size, ResizeSpec(resize_mode="crop"))
    assert ours.shape[1:] == size
    if source == (1, 20_000):
        middle = strip[:, :, 9_996:10_004]  # 8 pixels around the center, of which the crop shows one
        assert torch.equal(ours, fit_image(middle, size, ResizeSpec(resize_mode="crop")))


def test_pad_shows_the_whole_image_between_gray_bars() -> None:
    image = torch.arange(8, dtype=torch.uint8).repeat(3, 1)[None]
    spec = ResizeSpec(resize_mode="pad")
    fast, exact = fit_image_fast(image, (8, 8), spec), fit_image(image, (8, 8), spec)
    assert torch.equal(fast[0, 2:5], image[0])
    assert (fast[0, [0, 1, 5, 6, 7]] == 128).all()
    torch.testing.assert_close(exact, fast / 255)
    tall = fit_image_fast(image.transpose(1, 2), (8, 8), spec)
    assert torch.equal(tall, fast.transpose(1, 2))
    for source in ((1, 500), (500, 1), (31, 17)):  # down to one pixel, and a side that is one pixel short
        assert fit_image(torch.zeros(1, *source, dtype=torch.uint8), (32, 18), spec).shape == (1, 32, 18)


def test_a_result_of_one_column_equals_the_column_of_two() -> None:
    """torch 2.13 on a CPU: interpolate(x [1, 1, 2000, 1], (32, 1), antialias=True) is off by 0.07."""
    column = torch.randint(0, 256, (1, 2000, 7), dtype=torch.uint8)
    spec = ResizeSpec(resize_mode="squash", interpolation="bilinear")
    for fit, within in ((fit_image, 1e-5), (fit_image_fast, 1)):
        one = fit(column[..., :1].expand(-1, -1, 7), (32, 1), spec)
        two = fit(column[..., :1].expand(-1, -1, 7), (32, 2), spec)[..., :1]
        assert (one.float() - two.float()).abs().max() <= within
