"""The named residual networks and hybrids, and their exact numbers of parameters. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from vitral.models.config import ResNetConfig, stage_channels

# BiT (arXiv 1912.11370, section 3): blocks of each stage, and factors of the width that were published.
_BIT = {50: ((3, 4, 6, 3), (1, 3)), 101: ((3, 4, 23, 3), (1, 3)), 152: ((3, 8, 36, 3), (2, 4))}

_CIFAR: dict[str, Any] = {
    "family": "resnet", "block": "basic", "stem": "cifar", "norm": "batch", "preactivation": False, "image_size": 32,
    "num_classes": 10,
}  # fmt: skip

# `resnet{6n+2}_cifar` is table 6 of arXiv 1512.03385. `resnet18_cifar` is the ResNet-18 of ImageNet behind a 3x3.
RESNETS: dict[str, dict[str, Any]] = {
    **{
        f"resnetv2_{depth}x{factor}_bit": {
            "family": "resnet", "blocks": blocks, "width": 64 * factor, "image_size": 224, "num_classes": 1000
        }
        for depth, (blocks, factors) in _BIT.items()
        for factor in factors
    },
    **{
        f"resnet{6 * n + 2}_cifar": {**_CIFAR, "blocks": (n, n, n), "width": 16, "shortcut": "zeros"}
        for n in (3, 5, 7, 9, 18)
    },
    "resnet18_cifar": {**_CIFAR, "blocks": (2, 2, 2, 2)},
}  # fmt: skip

# The hybrids of arXiv 2010.11929 and 2106.10270, each for 224 and 384 pixels: size of the transformer, bottlenecks of
# each stage, pixels a token.
HYBRIDS: dict[str, tuple[str, tuple[int, ...], int]] = {
    "vit_tiny_r_s16_p8": ("tiny", (), 32),
    "vit_small_r26_s32": ("small", (2, 2, 2, 2), 32),
    "vit_base_r26_s32": ("base", (2, 2, 2, 2), 32),
    "vit_base_r50_s16": ("base", (3, 4, 9), 16),
    "vit_large_r50_s32": ("large", (3, 4, 6, 3), 32),
}

HYBRID_WIDTH = 64


def stem_channels(blocks: Sequence[int]) -> int:
    """Channels of the map that a hybrid's patches are cut from."""
    return [HYBRID_WIDTH, *stage_channels(blocks, HYBRID_WIDTH)][-1]


def hybrid_stem_parameters(in_channels: int, blocks: Sequence[int]) -> int:
    """The ResNet in front of a hybrid, without the projection to the transformer's width."""
    first = 49 * in_channels * HYBRID_WIDTH + 2 * HYBRID_WIDTH
    return first + _stages(blocks, HYBRID_WIDTH, "bottleneck", preactivation=False, projection=True)


def resnet_parameters(config: ResNetConfig) -> int:
    """The whole network, head included."""
    c, out = config, config.pooled_width
    stem = (49 if c.stem == "imagenet" else 9) * c.in_channels * c.width
    norm = 2 * (out if c.preactivation else c.width)  # before the head, or after the first convolution
    stages = _stages(c.blocks, c.width, c.block, c.preactivation, c.shortcut == "projection")
    return stem + norm + stages + (out + 1) * c.num_classes


def _stages(
    blocks: Sequence[int], width: int, block: Literal["bottleneck", "basic"], preactivation: bool, projection: bool
) -> int:
    """Convolutions without biases, and two values a channel for each norm."""
    total, before = 0, width
    for i, (count, out) in enumerate(zip(blocks, stage_channels(blocks, width, block), strict=True)):
        inner = out // 4 if block == "bottleneck" else out
        for j in range(count):
            if block == "bottleneck":
                convolutions, norms = before * inner + 9 * inner**2 + inner * out, 2 * inner
            else:
                convolutions, norms = 9 * before * out + 9 * out**2, out
            total += convolutions + 2 * (norms + (before if preactivation else out))
            if projection and j == 0 and (i > 0 or before != out):
                total += before * out + 2 * out * (not preactivation)
            before = out
    return total
