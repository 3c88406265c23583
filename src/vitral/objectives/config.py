"""What a run minimises: one configuration class for each kind of objective."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from vitral.config import Config, Count, Floats, Share
from vitral.data.config import AugmentConfig, ViewConfig

Size = tuple[int, int]


class ViewedConfig(Config):
    """What every objective says: what it wants to see."""

    def views(self, augment: AugmentConfig, size: Size, stride: int) -> tuple[ViewConfig, ...]:
        """How each sample is shown: of images of `size` (height, width) and patches of `stride` pixels."""
        return (ViewConfig(augment, size),)


class LabelledConfig(ViewedConfig):
    """What learning from labels has in common."""

    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of the target spread over all classes, in training only"
    )


class SupervisedConfig(LabelledConfig):
    """Classification by labels."""

    kind: Literal["supervised"] = Field(default="supervised", description="classes from labels")
    loss: Literal["softmax", "sigmoid"] = Field(
        default="softmax",
        description="one class an image: cross-entropy, or binary cross-entropy summed over the classes; images with "
        "several classes always have the binary one",
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


class PrunedConfig(LabelledConfig):
    """Classification by labels, and a pruner of patches that learns with it from the whole model."""

    kind: Literal["pruned"] = Field(
        default="pruned", description="classes, and which patches can go (needs init, init_head)"
    )
    answer_weight: float = Field(
        default=0.5, ge=0, description="factor of the divergence from the whole model's answers"
    )
    token_weight: float = Field(
        default=0.5, ge=0, description="factor of the kept patches' squared distance from the whole model's"
    )
    ratio_weight: float = Field(
        default=2.0, gt=0, description="factor of the kept shares' squared distance from model.pruner_keep"
    )


class SelfSupervisedConfig(ViewedConfig):
    """What learning without labels has in common: the encoder is saved without a head, its last weights are kept, and
    where the data have classes it is judged by its nearest neighbours, at train.eval_every."""

    knn_k: Count = Field(default=20, description="train images that vote for the class of an image when judging")
    knn_samples: Count = Field(
        default=50_000, description="most train images that vote, and most that are judged, evenly spaced"
    )

    has_teacher: ClassVar[bool] = False

    def idle(self) -> dict[str, Any]:
        """Keys of `augment` that this kind of objective decides by itself, with the values that they must have."""
        return {}


class MaskedPatchConfig(SelfSupervisedConfig):
    """Masked patch prediction (arXiv 2010.11929, appendix B.1.2)."""

    kind: Literal["masked_patch"] = Field(description="colours of corrupted patches")
    ratio: float = Field(default=0.5, gt=0, lt=1, description="share of the patches that are corrupted and predicted")
    masked: Share = Field(default=0.8, description="share of those that become the mask token")
    swapped: Share = Field(default=0.1, description="share of those that become another patch; the rest stay")
    target: Literal["mean", "4x4", "pixels"] = Field(
        default="mean",
        description="mean: the mean colour at 3 bits a channel; 4x4: of 16 parts; pixels: all values, squared error",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> MaskedPatchConfig:
        if self.masked + self.swapped > 1:
            raise ValueError(f"objective.masked and objective.swapped are shares of one whole, got {self.masked} and "
                             f"{self.swapped}")  # fmt: skip
        return self


class MaeConfig(SelfSupervisedConfig):
    """Masked autoencoders (arXiv 2111.06377)."""

    kind: Literal["mae"] = Field(description="pixels of hidden patches, by an encoder that sees the others alone")
    hidden: float = Field(default=0.75, gt=0, lt=1, description="share of the patches that the encoder does not see")
    target_norm: bool = Field(default=True, description="each patch to be predicted is brought to mean 0, variance 1")
    decoder_width: Count = Field(default=512, description="features of a token in the decoder, a multiple of 4")
    decoder_depth: Count = Field(default=8, description="blocks of the decoder")
    decoder_heads: Count = Field(default=16, description="attention heads of a decoder's block; divides its width")

    @model_validator(mode="after")
    def _fits_together(self) -> MaeConfig:
        if self.decoder_width % self.decoder_heads or self.decoder_width % 4:
            raise ValueError(f"objective.decoder_width {self.decoder_width} has to be a multiple of 4 and of "
                             f"objective.decoder_heads {self.decoder_heads}")  # fmt: skip
        return self


def _supervised(tree: Any) -> Any:
    """Without a word, classes are learned from labels."""
    return {"kind": "supervised", **tree} if isinstance(tree, dict) else tree


ObjectiveConfig = Annotated[
    Annotated[SupervisedConfig | PrunedConfig | MaskedPatchConfig | MaeConfig, Field(discriminator="kind")],
    BeforeValidator(_supervised),
]
