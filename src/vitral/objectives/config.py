"""What a run minimises: one configuration class for each kind of objective."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from vitral.config import Config, Floats


class SupervisedConfig(Config):
    """Classification by labels."""

    kind: Literal["supervised"] = Field(
        default="supervised",
        description="what is learned: classes from labels; pruned: which patches can go, too (needs init, init_head)",
    )
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


class PrunedConfig(Config):
    """Classification by labels, and a pruner of patches that learns with it from the whole model."""

    kind: Literal["pruned"] = Field(default="pruned", description="what is learned: which patches can go")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of the target spread over all classes, in training only"
    )
    answer_weight: float = Field(
        default=0.5, ge=0, description="pruned: factor of the divergence from the whole model's answers"
    )
    token_weight: float = Field(
        default=0.5, ge=0, description="pruned: factor of the kept patches' squared distance from the whole model's"
    )
    ratio_weight: float = Field(
        default=2.0, gt=0, description="pruned: factor of the kept shares' squared distance from model.pruner_keep"
    )


def _kind(value: Any) -> Any:
    return value.get("kind", "supervised") if isinstance(value, dict) else getattr(value, "kind", None)


ObjectiveConfig = Annotated[
    Annotated[SupervisedConfig, Tag("supervised")] | Annotated[PrunedConfig, Tag("pruned")], Discriminator(_kind)
]
