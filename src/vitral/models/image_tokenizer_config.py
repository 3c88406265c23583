"""Configuration of image tokenizers, and its presets. Nothing here imports torch."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from vitral.config import reject_unused
from vitral.models.config import MAX_PATCHES, ModelConfig

Levels = Annotated[tuple[Annotated[int, Field(ge=2, le=2**10)], ...], Field(strict=False)]


class ImageTokenizerConfig(ModelConfig):
    """A discrete autoencoder: one code for each patch of an image, and images from codes."""

    is_tokenizer: ClassVar[bool] = True
    family: Literal["image_tokenizer"] = "image_tokenizer"  # pyright: ignore[reportIncompatibleVariableOverride]
    num_classes: int = Field(
        default=0, ge=0, description="number of outputs of the head; 0: no head, the model returns pooled features"
    )
    patch_size: int = Field(ge=1, description="side length of a patch in pixels; divides image_size")
    quantizer: Literal["vq", "fsq", "gumbel", "kmeans"] = Field(
        default="vq",
        description="image tokenizer; vq: nearest vector of a codebook that follows its vectors (VQ-VAE, van den Oord "
        "et al. 2017); fsq: rounded numbers (Mentzer et al. 2023); gumbel: the most probable code (dVAE, Ramesh et al. "
        "2021); kmeans: the nearest mean patch, without a network",
    )
    codes: int = Field(default=512, ge=2, le=2**20, description="image tokenizer: number of codes")
    levels: Levels = Field(
        default=(), description="quantizer=fsq: levels of each rounded number; their product is codes, as 8,8,8 for 512"
    )
    code_width: int = Field(default=32, ge=1, description="quantizer=vq or gumbel: numbers in the vector of a code")
    coder: Literal["convolution", "vit"] = Field(
        default="convolution",
        description="image tokenizer: residual blocks of encoder and decoder, on the grid of patches; convolution: 3 x "
        "3; vit: Transformer blocks with learned positions",
    )
    width: int = Field(default=128, ge=1, description="number of features per token")
    depth: int = Field(default=2, ge=1, description="number of transformer blocks")
    heads: int = Field(default=4, ge=1, description="number of attention heads per block; divides width")

    @model_validator(mode="after")
    def _check(self) -> ImageTokenizerConfig:
        (height, width), patch = self.image_size, self.patch_size
        if min(height, width) < 1 or height % patch or width % patch:
            raise ValueError(f"image_size {height} x {width} is not a multiple of patch_size {patch}")
        if self.tokens > MAX_PATCHES:
            raise ValueError(f"image_size {height} x {width} has more than {MAX_PATCHES:,} patches of side {patch}")
        if self.num_classes:
            raise ValueError("an image tokenizer has no head for classes: objective.kind=tokenizer trains it")
        is_learned = self.quantizer != "kmeans"
        reject_unused(self, {
            "levels": self.quantizer == "fsq", "code_width": self.quantizer in ("vq", "gumbel"),
            "coder": is_learned, "width": is_learned, "depth": is_learned,
            "heads": is_learned and self.coder == "vit",
        })  # fmt: skip
        if self.quantizer == "fsq" and math.prod(self.levels) != self.codes:
            product = " x ".join(map(str, self.levels)) or "none"
            raise ValueError(f"levels {product} make {math.prod(self.levels):,} codes, and codes is {self.codes:,}")
        if is_learned and self.coder == "vit" and self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be split evenly among {self.heads} heads")
        if not is_learned and {*self.mean, *self.std} != {0.5}:
            raise ValueError("mean patches are compared with images as they are: data.mean=auto data.std=auto")
        return self

    @property
    def description(self) -> str:
        """Quantizer, codes and patches."""
        return f"an image tokenizer ({self.quantizer}) of {self.codes} codes, patches of {self.patch_size}"

    @property
    def stride(self) -> int:
        """Side of a patch, in pixels."""
        return self.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def tokens(self) -> int:
        """Codes of an image."""
        return math.prod(self.grid)

    @property
    def has_fixed_size(self) -> bool:
        """Always."""
        return True

    @property
    def reads_raw_images(self) -> bool:
        """Without a network."""
        return self.quantizer == "kmeans"

    @property
    def pooled_width(self) -> int:
        """Numbers in what is quantized: of a dVAE one for each code."""
        match self.quantizer:
            case "kmeans":
                return self.in_channels * self.patch_size**2
            case "fsq":
                return len(self.levels)
            case "gumbel":
                return self.codes
            case "vq":
                return self.code_width


def _preset(image: int, patch: int, codes: int, **more: Any) -> dict[str, Any]:
    return {"image_size": image, "num_classes": 0, "patch_size": patch, "codes": codes, **more}


# The 224-pixel presets have the numbers of codes of BEiT's dVAE (8,192), and of the FSQ paper for about 2^12.
TOKENIZERS: dict[str, dict[str, Any]] = {
    "kmeans_patch2_8": _preset(8, 2, 64, quantizer="kmeans"),
    "vq_micro_patch2_8": _preset(8, 2, 64, width=64, code_width=16),
    "fsq_micro_patch2_8": _preset(8, 2, 64, quantizer="fsq", levels=(8, 8), width=64),
    "kmeans_patch4_32": _preset(32, 4, 512, quantizer="kmeans"),
    "vq_nano_patch4_32": _preset(32, 4, 512, width=64),
    "fsq_nano_patch4_32": _preset(32, 4, 512, quantizer="fsq", levels=(8, 8, 8), width=64),
    "gumbel_nano_patch4_32": _preset(32, 4, 512, quantizer="gumbel", width=64),
    "fsq_base_patch16_224": _preset(224, 16, 4375, quantizer="fsq", levels=(7, 5, 5, 5, 5), coder="vit", width=768,
                                    depth=12, heads=12),
    "vq_base_patch16_224": _preset(224, 16, 8192, coder="vit", width=768, depth=12, heads=12),
}  # fmt: skip
