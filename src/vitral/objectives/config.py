"""What a run minimises: one configuration class for each kind of objective."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vitral.config import Config


class SupervisedConfig(Config):
    """Classification by labels."""

    kind: Literal["supervised"] = Field(default="supervised", description="what is learned: classes from labels")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of the target spread over all classes, in training only"
    )
    head_first: float = Field(
        default=0.0, ge=0, le=1, description="share of the run in which only the head learns (fine-tuning)"
    )


# A union, told apart by `kind`, as soon as there is a second objective.
ObjectiveConfig = SupervisedConfig
