"""The one resize against closed forms and against Pillow's bicubic on floating-point images."""

import numpy as np
import pytest
import torch
from PIL import Image

from vitral.data.resize import fit_image, fit_image_fast


def noise(height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(height * width).integers(0, 256, (3, height, width), np.uint8))


def reference(image_CHW: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Pillow's antialiased bicubic, channel by channel in floating point, clamped to [0,1]."""
    planes = [Image.fromarray(plane.numpy().astype(np.float32) / 255) for plane in image_CHW]
    return np.stack([np.asarray(p.resize((size[1], size[0]), Image.Resampling.BICUBIC)) for p in planes]).clip(0, 1)


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_the_right_size_is_left_alone(fit: str) -> None:
    image = noise(24, 40)
    assert torch.equal(fit_image(image, (24, 40), fit), image.float() / 255)
    assert torch.equal(fit_image_fast(image, (24, 40), fit), image)


@pytest.mark.parametrize("source", [(100, 75), (31, 47), (8, 8), (224, 300)])
@pytest.mark.parametrize("size", [(32, 32), (48, 20), (7, 64)])
def test_squash_equals_pillow(source: tuple[int, int], size: tuple[int, int]) -> None:
    image = noise(*source)
    ours = fit_image(image, size, "squash")
    assert ours.dtype == torch.float32
    assert np.abs(ours.numpy() - reference(image, size)).max() < 3e-6
    fast = fit_image_fast(image, size, "squash")
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
def test_crop_covers_then_cuts_the_centre(
    source: tuple[int, int], size: tuple[int, int], covering: tuple[int, int]
) -> None:
    image = noise(*source)
    top, left = (covering[0] - size[0]) // 2, (covering[1] - size[1]) // 2
    wanted = reference(image, covering)[:, top : top + size[0], left : left + size[1]]
    assert np.abs(fit_image(image, size, "crop").numpy() - wanted).max() < 3e-6


@pytest.mark.parametrize("width", [16, 24, 64, 200])
def test_a_linear_ramp_stays_one(width: int) -> None:
    """Bicubic reproduces straight lines: away from the borders a ramp resized is the ramp at the new pixel centres
    (to 4e-5 where the kernel, stretched against aliasing, is sampled unevenly)."""
    step = 250 // 63
    ramp = (torch.arange(64) * step).to(torch.uint8).expand(1, 8, 64)
    ours = fit_image(ramp, (8, width), "squash")[0, 0].double()
    centres = ((torch.arange(width).double() + 0.5) * 64 / width - 0.5) * step / 255
    inner = (centres > 9 * step / 255) & (centres < 54 * step / 255)
    assert inner.any()
    assert (ours - centres)[inner].abs().max() < 5e-5


def test_overshoot_is_clamped_and_flat_stays_flat() -> None:
    edge = torch.zeros(1, 16, 16, dtype=torch.uint8)
    edge[..., 8:] = 255
    ours = fit_image(edge, (50, 50), "squash")
    assert ours.min() == 0
    assert ours.max() == 1
    flat = torch.full((3, 33, 21), 77, dtype=torch.uint8)
    assert (fit_image(flat, (10, 10), "crop") - 77 / 255).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("source", "size"), [((1, 20_000), (224, 224)), ((20_000, 1), (224, 224)), ((3, 5000), (8, 64))]
)
def test_strips_do_not_explode(source: tuple[int, int], size: tuple[int, int]) -> None:
    """A strip's centre crop is its middle: equal to the crop of a strip cut shorter, and cheap."""
    strip = (torch.arange(max(source)) % 251).to(torch.uint8).reshape(1, *source) if 1 in source else noise(*source)
    ours = fit_image(strip, size, "crop")
    assert ours.shape[1:] == size
    if source == (1, 20_000):
        middle = strip[:, :, 9_996:10_004]  # 8 pixels around the centre, of which the crop shows one
        assert torch.equal(ours, fit_image(middle, size, "crop"))
