"""Every named model in one table, and its exact number of parameters. Nothing here imports torch."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from vitral.errors import UserError, nearest
from vitral.models.config import ResNetConfig, ViTConfig, build_config
from vitral.models.resnet_counts import (
    HYBRIDS,
    RESNETS,
    hybrid_stem_parameters,
    resnet_parameters,
    stem_channels,
)

# Base, Large, Huge: table 1 of arXiv 2010.11929. Tiny, Small: DeiT, 2012.12877. Giant, Gigantic: 2106.04560.
# Plus, 7B: 2508.10104.
SIZES: dict[str, dict[str, int]] = {
    "micro": {"width": 64, "depth": 4, "heads": 4, "mlp_dim": 256},
    "nano": {"width": 128, "depth": 6, "heads": 4, "mlp_dim": 512},
    "tiny": {"width": 192, "depth": 12, "heads": 3, "mlp_dim": 768},
    "small": {"width": 384, "depth": 12, "heads": 6, "mlp_dim": 1536},
    "small_plus": {"width": 384, "depth": 12, "heads": 6, "mlp_dim": 1536},
    "base": {"width": 768, "depth": 12, "heads": 12, "mlp_dim": 3072},
    "large": {"width": 1024, "depth": 24, "heads": 16, "mlp_dim": 4096},
    "huge": {"width": 1280, "depth": 32, "heads": 16, "mlp_dim": 5120},
    "huge_plus": {"width": 1280, "depth": 32, "heads": 20, "mlp_dim": 5120},
    "giant": {"width": 1408, "depth": 40, "heads": 16, "mlp_dim": 6144},
    "gigantic": {"width": 1664, "depth": 48, "heads": 16, "mlp_dim": 8192},
    "7b": {"width": 4096, "depth": 40, "heads": 32, "mlp_dim": 8192},
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

_SQUARE: dict[str, dict[str, Any]] = {
    f"vit_{size}_patch{patch}_{image}": {**SIZES[size], "image_size": image, "patch_size": patch}
    for size, pairs in PUBLISHED.items()
    for patch, image in pairs
}

_HYBRIDS: dict[str, dict[str, Any]] = {
    f"{name}_{image}": {**SIZES[size], "image_size": image, "patch_size": patch, "stem_blocks": blocks}
    for name, (size, blocks, patch) in HYBRIDS.items()
    for image in (224, 384)
}

# DeiT with its distillation token (arXiv 2012.12877), DINOv2 (2304.07193, 2309.16588), DINOv3 (2508.10104).
_LATER: dict[str, dict[str, Any]] = {
    **{
        f"deit_{size}_distilled_patch16_{image}": {
            **SIZES[size],
            "image_size": image,
            "patch_size": 16,
            "distill_token": True,
        }
        for size, image in (("tiny", 224), ("small", 224), ("base", 224), ("base", 384))
    },
    **{
        f"vit_{size}_patch14_{'reg4_' * bool(registers)}dinov2": {
            **SIZES[size],
            "image_size": 518,
            "patch_size": 14,
            "registers": registers,
            "layer_scale": 1e-5,
            **({"heads": 24, "width": 1536, "mlp_dim": 4096, "mlp": "swiglu"} if size == "giant" else {}),
        }
        for registers in (0, 4)
        for size in ("small", "base", "large", "giant")
    },
    **{
        f"vit_{size}_patch16_dinov3": {
            **SIZES[size],
            "image_size": 256,
            "patch_size": 16,
            "registers": 4,
            "layer_scale": 1e-5,
            "positions": "rope",
            "norm_eps": 1e-5,
            "mlp": "swiglu" if size in ("small_plus", "huge_plus", "7b") else "gelu",
        }
        for size in ("small", "small_plus", "base", "large", "huge_plus", "7b")
    },
}

PRESETS: dict[str, dict[str, Any]] = {**_SQUARE, **_HYBRIDS, **_LATER, **RESNETS}


def list_models(pattern: str = "*") -> list[str]:
    """The names that `resolve` knows and that fit a shell pattern (`*tiny*`), of each kind the smallest first."""
    return [name for name in PRESETS if fnmatchcase(name, pattern)]


def resolve(name: str, **options: Any) -> ViTConfig | ResNetConfig:
    """The configuration of a named model, with any of its fields replaced.

    num_classes is 1000 for presets of 224 pixels and more (ImageNet-1k) and 10 for the smaller ones (CIFAR-10, digits).
    Raises UserError for an unknown name or option, a value of the wrong kind, or fields that do not fit each other.
    """
    if name not in PRESETS:
        hint = f"{len(PRESETS)} models are known: vitral models"
        raise UserError("unknown model", where=name, nearest=nearest(name, PRESETS), hint=hint)
    preset = PRESETS[name]
    classes = 1000 if preset["image_size"] >= 224 else 10
    return build_config({"num_classes": classes, **preset, **options}, where=name)


# What does not make it another model: classes and images that the data bring, and how it is trained.
_FREE = {"num_classes", "in_channels", "mean", "std", "dropout", "drop_path", "position_resize"}


def changed_name(name: str, config: ViTConfig | ResNetConfig) -> str:
    """A preset's name with what differs from the preset, as in `vit_tiny_patch16_224 (patch_size=28)`; any other name
    as it is. What the name says of changes already is said anew."""
    base = name.partition(" (")[0]
    if base not in PRESETS or (preset := resolve(base)).family != config.family:
        return name
    mine, theirs = config.model_dump(exclude=_FREE), preset.model_dump(exclude=_FREE)
    changes = ", ".join(f"{key}={_short(value)}" for key, value in mine.items() if value != theirs[key])
    return f"{base} ({changes})" if changes else base


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return str(value[0]) if len(value) == 2 and value[0] == value[1] else "x".join(map(str, value)) or "none"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def count_parameters(config: ViTConfig | ResNetConfig) -> int:
    """Exact number of trained values, head included, by closed form (table 1 of arXiv 2010.11929 rounds them)."""
    if isinstance(config, ResNetConfig):
        return resnet_parameters(config)
    c, d = config, config.width
    if c.stem_blocks is None:
        channels, backbone = c.in_channels, 0
    else:
        channels, backbone = stem_channels(c.stem_blocks), hybrid_stem_parameters(c.in_channels, c.stem_blocks)
    stem = backbone + d * channels * (c.patch_size // c.stem_stride) ** 2 + d
    mlps = sum(mlp_parameters(d, hidden, gates=1 + (c.mlp == "swiglu")) for hidden in c.mlp_dims_of_blocks)
    attentions = sum(attention_parameters(d, heads * (d // c.heads)) for heads in c.heads_of_blocks)
    norms = 4 * d + 4 * (d // c.heads) * c.qk_norm + 2 * d * (c.layer_scale is not None)
    pooling = (d + 4 * d * (d + 1) + 2 * d + mlp_parameters(d, c.mlp_dim)) * (c.pool == "map")
    heads = (c.pooled_width + 1 + c.distill_token) * c.num_classes + d * (d + 1) * (c.head == "mlp")
    blocks = attentions + mlps + c.depth * norms + len(c.pruner_blocks) * _predictor_parameters(d)
    return stem + c.prefix_tokens * d + _position_parameters(c) + blocks + 2 * d + pooling + heads


def attention_parameters(width: int, inner: int) -> int:
    """Weights and biases of query, key, value and projection, where all heads together have `inner` features."""
    return 3 * inner * (width + 1) + width * (inner + 1)


def mlp_parameters(width: int, hidden: int, gates: int = 1) -> int:
    """Weights and biases of an MLP whose first layer has `gates` times `hidden` outputs."""
    return gates * hidden * (width + 1) + width * (hidden + 1)


def _predictor_parameters(width: int) -> int:
    """Of a learned pruner in one block: a norm, two layers side by side, two after them."""
    inner = max(width // 2, 1)
    return 2 * width + 2 * inner * (width + 1) + inner * (2 * inner + 1) + 2 * (inner + 1)


def _position_parameters(config: ViTConfig) -> int:
    rows, columns = config.grid
    values = {
        "learned": (config.position_rows + rows * columns) * config.width,
        "learned_2d": (rows + columns) * (config.width // 2),
        "relative": (2 * rows * columns - 1) * config.width,
    }
    return config.position_tables * values.get(config.positions, 0)
