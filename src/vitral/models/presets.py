"""Every named model in one table, and its exact number of parameters. Nothing here imports torch."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from vitral.errors import UserError, nearest
from vitral.models.config import ResNetConfig, ViTConfig, build_config


# Base, Large, Huge: table 1 of arXiv 2010.11929. Tiny, Small: DeiT, 2012.12877. Giant, Gigantic: 2106.04560.
SIZES: dict[str, dict[str, int]] = {
    "micro": {"width": 64, "depth": 4, "heads": 4, "mlp_dim": 256},
    "nano": {"width": 128, "depth": 6, "heads": 4, "mlp_dim": 512},
    "tiny": {"width": 192, "depth": 12, "heads": 3, "mlp_dim": 768},
    "small": {"width": 384, "depth": 12, "heads": 6, "mlp_dim": 1536},
    "base": {"width": 768, "depth": 12, "heads": 12, "mlp_dim": 3072},
    "large": {"width": 1024, "depth": 24, "heads": 16, "mlp_dim": 4096},
    "huge": {"width": 1280, "depth": 32, "heads": 16, "mlp_dim": 5120},
    "giant": {"width": 1408, "depth": 40, "heads": 16, "mlp_dim": 6144},
    "gigantic": {"width": 1664, "depth": 48, "heads": 16, "mlp_dim": 8192},
}

# Size: (patch, image) in pixels. Names are timm's, `vit_base_patch16_224`; images below 224 are for small data sets.
PUBLISHED: dict[str, tuple[tuple[int, int], ...]] = {
    "micro": ((2, 8),),
    "nano": ((4, 32), (8, 64)),
    "tiny": ((4, 32), (8, 64), (16, 224), (16, 384)),
    "small": ((4, 32), (8, 224), (16, 224), (16, 384), (32, 224), (32, 384)),
    "base": ((8, 224), (16, 224), (16, 384), (32, 224), (32, 384)),
    "large": ((14, 224), (16, 224), (16, 384), (32, 224), (32, 384)),
    "huge": ((14, 224),),
    "giant": ((14, 224),),
    "gigantic": ((14, 224),),
}

PRESETS: dict[str, dict[str, Any]] = {
    f"vit_{size}_patch{patch}_{image}": {
        **SIZES[size],
        "image_size": (image, image),
        "patch_size": patch,
        "num_classes": 1000 if image >= 224 else 10,
    }
    for size, pairs in PUBLISHED.items()
    for patch, image in pairs
}


def list_models(pattern: str = "*") -> list[str]:
    """The names that `resolve` knows and that fit a shell pattern (`*tiny*`), smallest model first."""
    return [name for name in PRESETS if fnmatchcase(name, pattern)]


def resolve(name: str, **options: Any) -> ViTConfig | ResNetConfig:
    """The configuration of a named model, with any of its fields replaced.

    num_classes is 1000 for presets of 224 pixels and more (ImageNet-1k) and 10 for the smaller ones (CIFAR-10, digits).
    Raises UserError for an unknown name or option, a value of the wrong kind, or fields that do not fit each other.
    """
    if name not in PRESETS:
        hint = f"{len(PRESETS)} models are known: vitral models"
        raise UserError("unknown model", where=name, nearest=nearest(name, PRESETS), hint=hint)
    return build_config({**PRESETS[name], **options}, where=name)


def count_parameters(config: ModelConfig) -> int:
    """Exact number of trained values, head included, by closed form (table 1 of arXiv 2010.11929 rounds them)."""
    d, hidden = config.width, config.mlp_dim
    rows, columns = config.grid
    stem = d * config.in_channels * config.patch_size**2 + d
    tokens = d * config.class_token + d * (rows * columns + config.class_token)
    attention = 3 * d * (d + 1) + d * (d + 1)
    mlp = hidden * (d + 1) + d * (hidden + 1)
    head = (d + 1) * config.num_classes + d * (d + 1) * (config.head == "mlp")
    norms = 2 * d * (2 * config.depth + 1)
    return stem + tokens + config.depth * (attention + mlp) + norms + head
