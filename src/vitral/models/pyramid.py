"""Simple feature pyramid (ViTDet, arXiv 2203.16527, section 3): maps of several strides from the last map of a plain
encoder.

Shape letters: B batch, D width of the encoder, F features of the pyramid, h w rows and columns of a map.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitral.models.layers import lecun_normal


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the features of each cell of a map."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, F, h, w] to the same."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FeaturePyramid(nn.Module):
    """Maps of `width` features at scales 4, 2, 1, 1/2 or 1/4 of the encoder's map: transposed convolutions enlarge it,
    maximum pooling makes it smaller, then a 1 x 1 and a 3 x 3 convolution, each with a norm. Every scale reads the
    encoder's map itself."""

    def __init__(self, encoder_width: int, width: int, scales: Sequence[float]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_level(encoder_width, width, scale) for scale in scales)

    def init_weights(self) -> None:
        """Convolutions LeCun normal, norms 1 and 0."""
        init_convolutions(self)

    def forward(self, map_BDhw: Tensor) -> list[Tensor]:
        """The encoder's map [B, D, h, w] to one map [B, F, h', w'] per scale."""
        return [level(map_BDhw) for level in self.levels]


def _level(encoder_width: int, width: int, scale: float) -> nn.Module:
    features, parts = encoder_width, OrderedDict[str, nn.Module]()
    if scale < 1:
        parts["pool"] = nn.MaxPool2d(round(1 / scale), ceil_mode=True)  # the last cells of an odd map stay
    for number in range(round(math.log2(scale)) if scale > 1 else 0):
        if number:
            parts["up_norm"], parts["up_gelu"] = ChannelNorm(features), nn.GELU()
        parts[f"up{number}"] = nn.ConvTranspose2d(features, features // 2, 2, 2)
        features //= 2
    parts["mix"], parts["mix_norm"] = nn.Conv2d(features, width, 1, bias=False), ChannelNorm(width)
    parts["conv"], parts["conv_norm"] = nn.Conv2d(width, width, 3, padding=1, bias=False), ChannelNorm(width)
    return nn.Sequential(parts)


@torch.no_grad()
def init_convolutions(module: nn.Module) -> None:
    """Initialize all convolutions of a module LeCun normal with zero biases, and its norms with 1 and 0."""
    for part in module.modules():
        if isinstance(part, nn.ConvTranspose2d):  # each of the four places is a dense layer of its own
            for place_DE in part.weight.permute(2, 3, 1, 0).flatten(0, 1):
                lecun_normal(place_DE, part.bias)
        elif isinstance(part, nn.Conv2d):
            lecun_normal(part.weight, part.bias)
        elif isinstance(part, nn.GroupNorm | nn.LayerNorm):
            part.reset_parameters()
