"""Named residual networks. Imports no torch."""

from __future__ import annotations

from typing import Any

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
