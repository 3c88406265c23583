"""Every named model in one table, and the configuration that any of them resolves to. Nothing here imports torch."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import Field, model_validator

from vitral.config import Config, Pair, Shares, build
from vitral.errors import UserError, nearest


class ModelConfig(Config):
    """All that builds an encoder and its head; equal configs mean parameters of equal names and shapes."""

    image_size: Pair = Field(description="[height, width] in pixels, multiples of patch_size; one number: a square")
    patch_size: int = Field(ge=1, description="side of a square patch, in pixels")
    in_channels: int = Field(default=3, ge=1, le=4, description="1 grey, 2, 3 RGB, 4 RGBA")
    num_classes: int = Field(
        default=1000, ge=0, description="outputs of the head; 0: no head, the model gives pooled features"
    )
    width: int = Field(ge=1, description="features of a token")
    depth: int = Field(ge=1, description="number of blocks")
    heads: int = Field(ge=1, description="attention heads of a block; divides width")
    mlp_dim: int = Field(ge=1, description="hidden features of a block's MLP")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="after each dense layer but qkv, and after adding positions"
    )
    drop_path: float = Field(
        default=0.0, ge=0, lt=1, description="share of samples that skip the last block; rising from 0"
    )
    pool: Literal["cls", "avg"] = Field(
        default="cls", description="what the head reads: class token, or mean over the patches"
    )
    fc_norm: bool | None = Field(
        default=None, description="final norm after pooling instead of before; null: for avg only"
    )
    class_token: bool = Field(default=True, description="whether a learned token is put before the patches")
    head: Literal["linear", "mlp"] = Field(
        default="linear", description="mlp: a tanh layer of model width before the output"
    )
    gelu: Literal["exact", "tanh"] = Field(
        default="exact", description="form of the activation; the paper's weights used tanh"
    )
    norm_eps: float = Field(default=1e-6, gt=0, description="epsilon of every layer norm")
    mean: Shares = Field(default=(), description="per channel, in units of [0,1] images; empty: 0.5 for each")
    std: Shares = Field(default=(), description="per channel, in units of [0,1] images; empty: 0.5 for each")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, tree: dict[str, Any]) -> dict[str, Any]:
        filled = dict(tree)
        size, channels = filled.get("image_size"), filled.get("in_channels", 3)
        if isinstance(size, int) and not isinstance(size, bool):
            filled["image_size"] = (size, size)
        if isinstance(channels, int) and 1 <= channels <= 4:
            for key in ("mean", "std"):
                filled[key] = filled.get(key) or (0.5,) * channels
        return filled

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        (height, width), patch = self.image_size, self.patch_size
        if min(height, width) < 1 or height % patch or width % patch:
            near = " x ".join(str(max(round(side / patch), 1) * patch) for side in (height, width))
            raise ValueError(f"image_size {height} x {width} is no multiple of patch_size {patch}; nearest: {near}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be split evenly among {self.heads} heads")
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.in_channels:
                raise ValueError(f"{key} has {len(values)} values for {self.in_channels} channels")
        if min(self.std) <= 0:
            raise ValueError(f"std has to be positive in every channel, but is {list(self.std)}")
        if self.pool == "cls" and not self.class_token:
            raise ValueError("pool=cls needs class_token=true; without a class token use pool=avg")
        if self.head == "mlp" and not self.num_classes:
            raise ValueError("head=mlp needs num_classes above 0; num_classes=0 means no head at all")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def norm_after_pool(self) -> bool:
        """Whether the final norm follows the pooling (`fc_norm`), with None resolved."""
        return self.pool == "avg" if self.fc_norm is None else self.fc_norm


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


def resolve(name: str, **options: Any) -> ModelConfig:
    """The configuration of a named model, with any of its fields replaced.

    num_classes is 1000 for presets of 224 pixels and more (ImageNet-1k) and 10 for the smaller ones (CIFAR-10, digits).
    Raises UserError for an unknown name or option, a value of the wrong kind, or fields that do not fit each other.
    """
    if name not in PRESETS:
        hint = f"{len(PRESETS)} models are known: vitral models"
        raise UserError("unknown model", where=name, nearest=nearest(name, PRESETS), hint=hint)
    return build(ModelConfig, {**PRESETS[name], **options}, where=name)


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
