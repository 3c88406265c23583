"""Keys of token reduction. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vitral.config import Config, reject_unused

Counts = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]


class ToMeConfig(Config):
    """Token merging without training (ToMe)."""

    r: Annotated[int, Field(ge=0)] | Counts = Field(
        default=8,
        description="number of tokens merged in each block (ToMe, Bolya et al. 2023), at most half of the remaining "
        "ones; or a list with one number per block",
    )
    schedule: Literal["constant", "decreasing"] = Field(
        default="constant", description="constant: r in every block; decreasing: from 2 r down to 0, the same in all"
    )

    @model_validator(mode="after")
    def _nothing_ignored(self) -> ToMeConfig:
        reject_unused(self, {"schedule": isinstance(self.r, int)})
        return self


class EViTConfig(Config):
    """Selection of the patches with the most class-token attention, without training (EViT)."""

    share: float = Field(
        default=0.7, gt=0, le=1, description="share of patch tokens kept at these blocks (EViT, Liang et al. 2022)"
    )
    after: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)] | None = Field(
        default=None,
        description="blocks, counted from 0, that keep only this share; null: at a quarter, half and three "
        "quarters of the depth",
    )
