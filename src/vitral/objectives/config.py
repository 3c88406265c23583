"""What a run minimises: one configuration class for each kind of objective."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vitral.config import Config, Floats


class SupervisedConfig(Config):
    """Classification by labels."""

    kind: Literal["supervised"] = Field(default="supervised", description="what is learned: classes from labels")
    loss: Literal["softmax", "sigmoid"] = Field(
        default="softmax",
        description="one class an image: cross-entropy, or binary cross-entropy summed over the classes; images with "
        "several classes always have the binary one",
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of the target spread over all classes, in training only"
    )
    class_weights: Literal["none", "balanced"] | Floats = Field(
        default="none",
        description="factors of the classes in the loss: balanced is by one over their counts, 1 on average over the "
        "images; or a number for each class, in their order",
    )
    logit_adjustment: float = Field(
        default=0.0, ge=0, description="tau: the loss sees logits plus tau times the log of the classes' shares; 0: off"
    )
    head_first: float = Field(
        default=0.0, ge=0, le=1, description="share of the run in which only the head learns (fine-tuning)"
    )


# A union, told apart by `kind`, as soon as there is a second objective.
ObjectiveConfig = SupervisedConfig
