"""The color palette: images as integer codes, each the nearest color of a pixel; k-means finds the colors (Chen et al.
2020, "Generative Pretraining from Pixels", section 3.1).

A tokenizer turns images into codes int64 [B, h, w] (`encode`) and codes into images (`decode`); this one has a code for
each pixel. Shape letters: B batch, C channels, H W height and width, X pixels, K colors of the palette, M distinct
colors of the images.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vitral.errors import UserError
from vitral.models.codebook import Codebook, check_codes
from vitral.models.kmeans import kmeans, nearest
from vitral.models.model import unit_images


class Palette(Codebook):
    """K colors, float32 [K, C] in [0,1] like the images; a fixed part of a model, saved with its weights.

    New palettes are evenly spaced grays; `fit_palette` finds better colors.
    """

    colors_KC: Tensor

    def __init__(self, colors: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("colors_KC", torch.linspace(0, 1, colors)[:, None].repeat(1, channels))

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """The nearest color of each pixel, int64 [B, H, W]; of equally near ones the first. Images are floats in [0,1]
        or uint8."""
        pixels_XC = unit_images(images_BCHW).movedim(1, -1).flatten(0, 2)
        return nearest(pixels_XC, self.colors_KC)[0].view(len(images_BCHW), *images_BCHW.shape[2:])

    def decode(self, codes_BHW: Tensor) -> Tensor:
        """The images [B, C, H, W] in [0,1] of these codes. Raises UserError for codes outside the palette."""
        check_codes(codes_BHW, len(self.colors_KC), "palette")
        return self.colors_KC[codes_BHW].movedim(-1, 1)


def count_colors(images: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """The distinct colors of batches of images uint8 [B, C, H, W], float64 [M, C] in [0,1], and their counts [M]."""
    rows = torch.cat([images_BCHW.movedim(1, -1).flatten(0, 2).cpu() for images_BCHW in images])
    colors_MC, counts_M = torch.unique(rows, dim=0, return_counts=True)
    return colors_MC.double() / 255, counts_M


def fit_palette(colors_MC: Tensor, counts_M: Tensor, count: int, seed: int) -> Tensor:
    """The palette of `count` colors with (nearly) the least squared error over colors that occur `counts_M` times:
    float32 [K, C], from dark to light.

    By `kmeans` in float64. As many colors as there are give exactly these. Raises UserError for more colors than there
    are.
    """
    if count > len(colors_MC):
        raise UserError(
            "more colors than the train images have", where="model.colors", got=count,
            expected=f"at most {len(colors_MC):,}, the distinct colors of their pixels",
        )  # fmt: skip
    centers_KC = kmeans(colors_MC, counts_M, count, seed)
    return centers_KC[centers_KC.sum(1).argsort(stable=True)].float()
