"""Keys of the commands that use a model: one class for each command."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vitral.config import Config, Count, Pair
from vitral.data.config import SourceConfig


class EvalData(SourceConfig):
    """Which images to measure on; without a path, those of the training run."""

    path: str | None = Field(
        default=None, description="images with known classes; `data=X` is short for it; null: as in training"
    )


class ModelUse(Config):
    """How a model is used, whatever for."""

    image_size: Count | Pair | None = Field(
        default=None, description="pixels, one number or [height, width]; null: the model's own size"
    )
    position_resize: Literal["bicubic_antialias", "bicubic", "google"] | None = Field(
        default=None, description="learned positions at another image_size; null: as the model says"
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")


class EvalOptions(ModelUse):
    """Keys of `vitral eval`."""

    data: EvalData = EvalData()
    split: Literal["auto", "train", "val", "test"] = Field(
        default="auto", description="auto: test if there is one, else val, else all"
    )
    compare: str | None = Field(default=None, description="a second model, on the same images: McNemar's paired test")
    min_top1: float | None = Field(default=None, ge=0, le=1, description="exit code 3 if top-1, as a share, is below")
    min_map: float | None = Field(
        default=None, ge=0, le=1, description="multi-label: exit code 3 if mean average precision, as a share, is below"
    )
    batch_size: int = Field(default=256, ge=1, description="images at once")


class PredictOptions(ModelUse):
    """Keys of `vitral predict`."""

    topk: int = Field(default=5, ge=1, description="classes an image, the likeliest first")
    batch_size: int = Field(default=64, ge=1, description="images at once")
