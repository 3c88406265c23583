"""The resize of exported graphs is that of evaluation, for every fit, filter and size."""

from __future__ import annotations

import pytest
import torch

from vitral.data.image_spec import ResizeSpec
from vitral.data.resize import fit_image
from vitral.export.resize import FitAnySize

SIZES = [
    (31, 17),
    (150, 200),
    (32, 48),
    (48, 32),
    (375, 500),
    (1, 1),
    (1, 300),
    (9, 1200),
    (2000, 7),
    (33, 49),
    (40, 60),
]
FITS = [
    ResizeSpec(resize_mode="crop"),
    ResizeSpec(resize_mode="crop", interpolation="bilinear", crop_pct=0.875),
    ResizeSpec(resize_mode="crop", interpolation="bicubic", crop_pct=0.8),
    ResizeSpec(resize_mode="squash"),
    ResizeSpec(resize_mode="squash", interpolation="bilinear", crop_pct=0.9),
    ResizeSpec(resize_mode="pad"),
    ResizeSpec(resize_mode="pad", interpolation="bilinear", crop_pct=0.8),
    ResizeSpec(resize_mode="crop", interpolation="lanczos", crop_pct=0.9),
]


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_the_resize_that_evaluation_has(fit: ResizeSpec, channels: int) -> None:
    graph = FitAnySize((32, 48), fit)
    for number, (height, width) in enumerate(SIZES):
        draw = torch.Generator().manual_seed(number)
        images = torch.randint(0, 256, (2, channels, height, width), dtype=torch.uint8, generator=draw)
        found = graph(images.permute(0, 2, 3, 1))
        expected = torch.stack([fit_image(image, (32, 48), fit) for image in images])
        assert found.shape == expected.shape
        torch.testing.assert_close(
            found, expected, rtol=0, atol=3e-6, msg=lambda text, at=(height, width): f"{at}: {text}"
        )


def test_an_image_of_the_right_size_is_only_divided() -> None:
    images = torch.randint(0, 256, (3, 32, 48, 3), dtype=torch.uint8)
    for fit in (
        ResizeSpec(resize_mode="crop"),
        ResizeSpec(resize_mode="squash"),
        ResizeSpec(resize_mode="pad"),
        ResizeSpec(resize_mode="crop", interpolation="bilinear"),
    ):
        assert torch.equal(FitAnySize((32, 48), fit)(images), images.permute(0, 3, 1, 2) / 255)


def test_one_color_stays_that_color() -> None:
    for interpolation in ("bilinear", "bicubic", "lanczos"):
        gray = FitAnySize((32, 48), ResizeSpec(resize_mode="crop", interpolation=interpolation, crop_pct=0.9))(
            torch.full((1, 77, 130, 3), 153, dtype=torch.uint8)
        )
        torch.testing.assert_close(gray, torch.full_like(gray, 0.6), rtol=0, atol=1e-6)
