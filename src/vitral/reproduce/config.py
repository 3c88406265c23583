"""Keys of `vitral reproduce`. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt, Le
from pydantic import Field, Strict

from vitral.config import Config

Fractions = Annotated[tuple[Annotated[float, Gt(0), Le(1)], ...], Strict(False), Field(min_length=1)]


class ReproduceOptions(Config):
    """Options of every comparison; all other keys are those of `vitral train` and apply to every run."""

    data: str = Field(default="digits", description="images with classes, as for `vitral train`")
    seeds: int = Field(default=3, ge=2, description="number of runs per variant, with seeds 0, 1, 2, ...")
    steps: int = Field(default=600, ge=1, description="weight updates per run")
    out: str | None = Field(default=None, description="folder of the runs and the table; null: runs/NAME-TIME")
    resume: bool = Field(default=False, description="continue the comparison in out; finished runs are not repeated")


class BiasOptions(ReproduceOptions):
    """Options of `vitral reproduce inductive-bias`."""

    fractions: Fractions = Field(
        default=(0.05, 0.1, 0.25, 0.5, 1.0), description="shares of the train images; one table row per share"
    )
    vit: str = Field(default="auto", description="preset of the Vision Transformer; auto: that of the recipe")
    cnn: str = Field(default="resnet20_cifar", description="preset of the convolutional network")
    shift: int = Field(default=1, ge=1, description="shift of the test images in pixels, in 8 directions")
