"""Configuration of Image GPT, and its presets. Nothing here imports torch."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from vitral.models.config import ModelConfig
from vitral.models.image_tokenizer_config import ImageTokenizerConfig

MAX_TOKENS = 4096


class IGPTConfig(ModelConfig):
    """Image GPT (Chen et al. 2020, "Generative Pretraining from Pixels"): a Transformer over the colors of pixels.

    Images are read by a palette or an image tokenizer, so mean and std stay at 0.5.
    """

    has_codes: ClassVar[bool] = True
    family: Literal["igpt"] = "igpt"  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    colors: int = Field(
        ge=2, le=2**16,
        description="Image GPT: colors of the palette, found by k-means on the train images; 512 as published",
    )  # fmt: skip
    width: int = Field(ge=1, description="number of features per token")
    depth: int = Field(ge=1, description="number of transformer blocks")
    heads: int = Field(ge=1, description="number of attention heads per block; divides width")
    mlp_dim: int = Field(ge=1, description="number of hidden features of each MLP")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout rate after the embedding and each branch")
    mask_ratio: Annotated[float, Field(ge=0, lt=1)] | Literal["cosine"] = Field(
        default=0.0,
        description="Image GPT: 0: predict each pixel from those before it, row by row; above 0, 0.15 as published: "
        "hide this share of the pixels and predict them from all others (the BERT variant); cosine: hide a share "
        "cos(pi u / 2), u uniform for each image (MaskGIT), which draws images in a few steps",
    )
    class_tokens: int = Field(
        default=0, ge=0, description="Image GPT: number of classes that an image can be conditioned on; 0: none"
    )

    tokenizer: ImageTokenizerConfig | None = Field(
        default=None, description="image tokenizer whose codes are predicted; null: the palette's colors of pixels"
    )

    @model_validator(mode="after")
    def _check(self) -> IGPTConfig:
        height, width = self.image_size
        if self.tokenizer is not None:
            self._check_tokenizer(self.tokenizer)
        if not 1 <= self.tokens <= MAX_TOKENS:
            what = "pixels, one token each" if self.tokenizer is None else "codes of the tokenizer"
            raise ValueError(
                f"image_size {height} x {width} has {self.tokens:,} {what}: expected 1 to {MAX_TOKENS:,}; a smaller "
                "data.image_size helps"
            )
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be split evenly among {self.heads} heads")
        if isinstance(self.mask_ratio, float) and self.mask_ratio and not round(self.tokens * self.mask_ratio):
            raise ValueError(f"mask_ratio {self.mask_ratio} hides no code of {self.tokens}")
        if self.class_tokens and not self.draws:
            raise ValueError("with a fixed mask_ratio no image is drawn, of no class either: class_tokens=0")
        if {*self.mean, *self.std} != {0.5}:
            raise ValueError("codes are read from images as they are: data.mean=auto data.std=auto")
        return self

    def _check_tokenizer(self, tokenizer: ImageTokenizerConfig) -> None:
        """A palette of another number, images of another size."""
        (height, width), (rows, columns) = self.image_size, tokenizer.image_size
        if self.image_size != tokenizer.image_size:
            raise ValueError(f"image_size {height} x {width}, and the tokenizer is for {rows} x {columns} pixels")
        if self.in_channels != tokenizer.in_channels:
            raise ValueError(f"images of {self.in_channels} channels, and the tokenizer is for {tokenizer.in_channels}")
        if self.colors != tokenizer.codes:
            raise ValueError(f"colors={self.colors}, and the tokenizer has {tokenizer.codes:,} codes")

    @property
    def description(self) -> str:
        """Kind, width and depth."""
        return f"an Image GPT of width {self.width}, depth {self.depth}"

    @property
    def stride(self) -> int:
        """Pixels between tokens: one, or as many as the tokenizer's patches have."""
        return 1 if self.tokenizer is None else self.tokenizer.stride

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes."""
        return self.image_size if self.tokenizer is None else self.tokenizer.grid

    @property
    def codes(self) -> int:
        """Number of codes: the colors, or those of the tokenizer."""
        return self.colors

    @property
    def has_fixed_size(self) -> bool:
        """Always."""
        return True

    @property
    def reads_raw_images(self) -> bool:
        """Always."""
        return True

    @property
    def causal(self) -> bool:
        """Whether a token depends on earlier pixels alone."""
        return not self.mask_ratio

    @property
    def draws(self) -> bool:
        """Whether images are drawn: each code by those before it, or in steps by `mask_ratio=cosine`."""
        return self.causal or self.mask_ratio == "cosine"

    @property
    def tokens(self) -> int:
        """Tokens of an image."""
        return math.prod(self.grid)

    @property
    def upper_half(self) -> int:
        """Tokens of the upper half of an image, the middle row left out."""
        rows, columns = self.grid
        return rows // 2 * columns

    @property
    def pooled_width(self) -> int:
        """Features of a pooled image."""
        return self.width

    @property
    def block_count(self) -> int:
        """Its depth."""
        return self.depth


def _preset(image: int, colors: int, width: int, depth: int, heads: int) -> dict[str, Any]:
    return {
        "image_size": image, "colors": colors, "width": width, "depth": depth, "heads": heads, "mlp_dim": 4 * width
    }  # fmt: skip


# Small, medium, large: section 3 of the paper, with the heads of its released code. The others are for small images.
IGPTS: dict[str, dict[str, Any]] = {
    "igpt_micro_8": _preset(8, 17, 64, 4, 2),
    "igpt_nano_16": _preset(16, 256, 96, 4, 4),
    "igpt_tiny_32": _preset(32, 512, 192, 8, 3),
    "igpt_small_32": _preset(32, 512, 512, 24, 8),
    "igpt_medium_32": _preset(32, 512, 1024, 36, 8),
    "igpt_large_32": _preset(32, 512, 1536, 48, 16),
}
