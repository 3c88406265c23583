"""Keys of what makes a model lighter. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vitral.config import Config, refuse_idle

Counts = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]


class MergeConfig(Config):
    """Token merging without training."""

    r: Annotated[int, Field(ge=0)] | Counts = Field(
        default=8, description="tokens merged away in each block, at most half of those there; or a list, one a block"
    )
    schedule: Literal["constant", "decreasing"] = Field(
        default="constant", description="r in every block, or from twice r down to none, as many in all"
    )

    @model_validator(mode="after")
    def _nothing_ignored(self) -> MergeConfig:
        refuse_idle(self, {"schedule": isinstance(self.r, int)})
        return self


class KeepConfig(Config):
    """Keeping the patches that the class token attends to, without training."""

    share: float = Field(default=0.7, gt=0, le=1, description="of the patch tokens that each of these blocks keeps")
    after: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)] | None = Field(
        default=None, description="blocks, from 0, that keep only a share; null: a quarter, half and 3/4 of the way"
    )
