"""Description of preprocessing, shared by data, map files, model folders, exports and the server."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from vitral.config import Config, Count, Pair
from vitral.data.config import MAX_INPUT_PIXELS, MAX_PIXELS, Interpolation, ValueRange

PADDING = 128  # gray level beside an image that is padded


class ResizeSpec(Config):
    """How an image is resized.

    fit "crop": scaled until it covers size / crop_pct, keeping its aspect, then cropped at the center; "squash": each
    side scaled to size / crop_pct separately, then cropped; "pad": scaled until it fits into size / crop_pct, with gray
    (128 of 255) beside it, then cropped. interpolation: antialiased, with Pillow's filters.
    crop_pct: (0,1]; torchvision's 256 then 224 is 0.875, timm calls it crop_pct.
    """

    resize_mode: Literal["crop", "squash", "pad"]
    interpolation: Interpolation = "bicubic"
    crop_pct: float = Field(default=1.0, gt=0, le=1)

    def scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width in pixels that images are scaled to before they are cropped to `size`."""
        height, width = size
        # Rounded down as timm does; the millionth keeps 224 / (224 / 232) from becoming 231.
        return math.floor(height / self.crop_pct + 1e-6), math.floor(width / self.crop_pct + 1e-6)


class ImageSpec(ResizeSpec):
    """How an image becomes the model's input. Normalization is inside the model: architecture.mean, .std.

    image_size: (height, width), pixels. background: the color behind transparency. value_range: black and white of
    samples of more than 8 bits (null: as each file's format says). Larger images than max_pixels are refused.
    """

    image_size: Pair
    channels: int = Field(ge=1, le=4)
    antialias: Literal[True] = True
    background: str = "#ffffff"
    value_range: ValueRange | None = None
    max_pixels: Count = MAX_PIXELS

    @model_validator(mode="after")
    def _check_size(self) -> ImageSpec:
        if math.prod(self.image_size) > MAX_INPUT_PIXELS * self.crop_pct**2:
            raise ValueError(
                f"images would be resized to {self.image_size} / {self.crop_pct} pixels before they are cut, "
                f"more than {MAX_INPUT_PIXELS:,}"
            )
        return self
