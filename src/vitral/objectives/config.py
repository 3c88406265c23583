"""Keys of the objectives: one configuration class per kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, Strict, model_validator

from vitral.config import Count, Share, reject_unused
from vitral.data.config import AugmentConfig, ShareRange, ViewConfig
from vitral.errors import UserError
from vitral.objectives.adversarial_config import AdversarialConfig
from vitral.objectives.base_config import (
    ClassifierConfig,
    LabeledConfig,
    SelfSupervisedConfig,
    Size,
    ViewedConfig,
    refuse_target,
    refuse_useless,
)
from vitral.objectives.beit_config import BeitConfig
from vitral.objectives.detection_config import DetectionConfig
from vitral.objectives.igpt_config import IGPTFinetuneConfig, IGPTObjectiveConfig
from vitral.objectives.pseudo_boxes_config import PseudoBoxesConfig, SoftTeacherConfig
from vitral.objectives.semi_supervised_config import (
    ConsistencyConfig,
    FixMatchConfig,
    MeanTeacherConfig,
    PseudoLabelConfig,
    SemiViTConfig,
    VATConfig,
)
from vitral.objectives.tokenizer_config import TokenizerConfig


class SupervisedConfig(ClassifierConfig):
    """Classification with labels."""

    kind: Literal["supervised"] = Field(default="supervised", description="classification with labels")
    loss: Literal["softmax", "sigmoid"] = Field(
        default="softmax",
        description="loss for single-label data; softmax: cross-entropy; sigmoid: binary cross-entropy summed over the "
        "classes; multi-label data always use the binary one",
    )
    head_only_fraction: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the run that trains only the head, before fine-tuning all weights (LP-FT, Kumar et al. "
        "2022)",
    )

    @property
    def head_only(self) -> float:
        """See `head_only_fraction`."""
        return self.head_only_fraction

    def check(self, run: Any) -> None:
        """Refuse corrections for class imbalance that contradict each other, or the loss."""
        super().check(run)
        if self.loss == "sigmoid" and (self.class_weights != "none" or self.logit_adjustment):
            raise ValueError("objective.class_weights and objective.logit_adjustment need objective.loss=softmax")


class DynamicViTConfig(LabeledConfig):
    """DynamicViT (arXiv 2106.02034): classification and token pruning, learned from the unpruned model."""

    kind: Literal["dynamic_vit"] = Field(
        default="dynamic_vit",
        description="DynamicViT: classification with learned token pruning (needs init and init_head)",
    )
    answer_weight: float = Field(
        default=0.5, ge=0, description="weight of the KL divergence from the unpruned model's predictions"
    )
    token_weight: float = Field(
        default=0.5, ge=0, description="weight of the squared distance of kept patch tokens from the unpruned model's"
    )
    ratio_weight: float = Field(
        default=2.0, gt=0, description="weight of the squared distance of the kept shares from model.pruner_keep"
    )

    def check(self, run: Any) -> None:
        """Require a trained model to learn from."""
        refuse_target(run)
        if run.init is None or not run.init_head:
            raise ValueError("objective.kind=dynamic_vit learns from a trained model: init=MODEL init_head=true")
        if run.train.parallel == "fsdp":
            raise ValueError("objective.kind=dynamic_vit does not support train.parallel=fsdp; use ddp")


class RegressionConfig(ViewedConfig):
    """Regression of the numbers in the columns data.target."""

    kind: Literal["regression"] = Field(description="regression of the numbers in the columns data.target")
    loss: Literal["l1", "l2", "huber"] = Field(
        default="huber",
        description="loss of targets in standard deviations of the train images; l1: absolute; l2: squared; "
        "huber: squared below 1, absolute above",
    )

    task: ClassVar[str | None] = "regression"

    def check(self, run: Any) -> None:
        """Require numbers, and refuse keys that need classes."""
        if run.data.target is None and run.data.source != "yaml":
            raise ValueError("objective.kind=regression needs data.target=COLUMN, the columns with the numbers")
        refuse_useless(run, {
            "augment.mixup": (run.augment.mixup, 0.0), "augment.cutmix": (run.augment.cutmix, 0.0),
            "data.balance": (run.data.balance, "none"), "data.shots": (run.data.shots, None),
        })  # fmt: skip


class MaskedPatchConfig(SelfSupervisedConfig):
    """Masked patch prediction (arXiv 2010.11929, appendix B.1.2)."""

    kind: Literal["masked_patch"] = Field(
        description="masked patch prediction (ViT, appendix B.1.2): predict the colors of corrupted patches"
    )
    mask_ratio: float = Field(
        default=0.5, gt=0, lt=1, description="share of the patches that are corrupted and predicted"
    )
    mask_token_prob: Share = Field(default=0.8, description="share of the corrupted patches replaced by the mask token")
    swap_prob: Share = Field(
        default=0.1, description="share of the corrupted patches replaced by another patch; the rest stay unchanged"
    )
    target: Literal["mean", "4x4", "pixels"] = Field(
        default="mean",
        description="prediction target; mean: the mean color at 3 bits per channel; 4x4: the mean colors of 16 parts; "
        "pixels: all pixel values, with squared error",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> MaskedPatchConfig:
        if self.mask_token_prob + self.swap_prob > 1:
            raise ValueError(
                f"the sum of objective.mask_token_prob ({self.mask_token_prob}) and objective.swap_prob "
                f"({self.swap_prob}) must be at most 1"
            )
        return self


class MaeConfig(SelfSupervisedConfig):
    """Masked autoencoders (arXiv 2111.06377)."""

    kind: Literal["mae"] = Field(
        description="MAE: reconstruct the pixels of masked patches; the encoder sees only the visible ones"
    )
    mask_ratio: float = Field(
        default=0.75, gt=0, lt=1, description="mask ratio: share of patches hidden from the encoder"
    )
    norm_pix_loss: bool = Field(
        default=True, description="normalize the pixels of each target patch to mean 0, variance 1 (MAE, section 4.1)"
    )
    decoder_width: Count = Field(default=512, description="features per token in the decoder; a multiple of 4")
    decoder_depth: Count = Field(default=8, description="number of decoder blocks")
    decoder_heads: Count = Field(default=16, description="attention heads per decoder block; divides decoder_width")

    @model_validator(mode="after")
    def _fits_together(self) -> MaeConfig:
        if self.decoder_width % self.decoder_heads or self.decoder_width % 4:
            raise ValueError(f"objective.decoder_width {self.decoder_width} must be a multiple of 4 and of "
                             f"objective.decoder_heads {self.decoder_heads}")  # fmt: skip
        return self


Probability = Annotated[float, Field(ge=0, le=1)]
Temperature = Annotated[float, Field(gt=0)]


class SelfDistillationConfig(SelfSupervisedConfig):
    """Keys shared by DINO and iBOT: views of an image, heads, and a teacher whose output is the target."""

    has_teacher: ClassVar[bool] = True

    local_crops: int = Field(default=8, ge=0, description="number of small views per image, beside the two large ones")
    global_scale: ShareRange = Field(
        default=(0.4, 1.0), description="smallest and largest area of a large view, as shares of the image"
    )
    local_scale: ShareRange = Field(
        default=(0.05, 0.4), description="smallest and largest area of a small view, as shares of the image"
    )
    local_size: Count | Literal["auto"] = Field(
        default="auto",
        description="side length of a small view in pixels; auto: 96/224 of the image, rounded to whole patches, at "
        "least two per side",
    )
    blur: Annotated[tuple[Probability, Probability, Probability], Strict(False)] = Field(
        default=(1.0, 0.1, 0.5),
        description="probability of blur in the first large view, the second large view and the small views",
    )
    solarize: Probability = Field(default=0.2, description="probability that the second large view is solarized")
    out_dim: Count = Field(default=4096, description="number of prototypes (output dimension of the head)")
    head_depth: Count = Field(default=3, description="number of dense layers of the head before the prototypes")
    head_hidden: Count = Field(default=2048, description="number of hidden features of the head")
    head_bottleneck: Count = Field(default=256, description="number of features that are compared with the prototypes")
    head_norm: Literal["none", "batch"] = Field(
        default="none",
        description="normalization in the head; batch: batch norm after the hidden layers, synchronized over all "
        "processes",
    )
    norm_last_layer: bool = Field(
        default=True, description="normalize the prototypes to length 1 (DINO's norm_last_layer); false: train lengths"
    )
    centering: Literal["mean", "sinkhorn"] = Field(
        default="mean",
        description="teacher targets, against collapse; mean: subtract the moving mean of the logits (DINO); "
        "sinkhorn: Sinkhorn-Knopp balancing over the prototypes (SwAV)",
    )
    center_momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of the moving mean, per step")
    sinkhorn_rounds: Count = Field(default=3, description="number of Sinkhorn-Knopp iterations")
    student_temperature: Temperature = Field(default=0.1, description="softmax temperature of the student")
    teacher_temperature: Temperature = Field(default=0.07, description="softmax temperature of the teacher, warmed up")
    teacher_temperature_start: Temperature = Field(
        default=0.04, description="softmax temperature of the teacher at the start; lower is more stable"
    )
    temperature_warmup: float = Field(
        default=0.3,
        ge=0,
        description="length of the linear warm-up of the teacher temperature: epochs if 1 or more, else a share of the "
        "run",
    )
    momentum: Share = Field(default=0.996, description="EMA momentum of the teacher's weights at the start, per step")
    momentum_final: Share = Field(
        default=1.0, description="EMA momentum of the teacher's weights at the end, reached along a half cosine"
    )
    freeze_last_layer: float = Field(
        default=1.0, ge=0, description="epochs at the start in which the prototypes are frozen"
    )
    checkpoint: str | None = Field(
        default=None,
        description="training checkpoint of the DINO or iBOT repository to continue from: both networks, heads and "
        "centers",
    )
    koleo: float = Field(default=0.0, ge=0, description="weight of the KoLeo loss (DINOv2), spreading features; 0: off")

    @model_validator(mode="after")
    def _targets_fit(self) -> SelfDistillationConfig:
        reject_unused(self, {
            "center_momentum": self.centering == "mean", "sinkhorn_rounds": self.centering == "sinkhorn",
            "head_hidden": self.head_depth > 1, "head_norm": self.head_depth > 1,
            "local_scale": self.local_crops > 0, "local_size": self.local_crops > 0,
        })  # fmt: skip
        return self

    def located(self, find: Callable[[str], str | None]) -> Self:
        """That of `checkpoint`."""
        return self.model_copy(update={"checkpoint": find(self.checkpoint)}) if self.checkpoint else self

    def without_files(self) -> Self:
        """Return the same objective without `checkpoint`."""
        return self.model_copy(update={"checkpoint": None})

    def views(self, augment: AugmentConfig, size: Size, stride: int) -> dict[str, tuple[ViewConfig, ...]]:
        """Return two large views of the model's size, then the small ones, each a random resized crop. Raises UserError
        if patches do not divide a small view."""
        small = self._small(size, stride)
        first, second, local = (
            augment.model_copy(
                update={"crop": "random_resized", "crop_scale": scale, "blur": blur, "solarize": inverted}
            )
            for scale, blur, inverted in zip(
                (self.global_scale, self.global_scale, self.local_scale),
                self.blur,
                (0.0, self.solarize, 0.0),
                strict=True,
            )
        )
        views = ViewConfig(first, size), ViewConfig(second, size), *[ViewConfig(local, small)] * self.local_crops
        return {"train": views}

    def _small(self, size: Size, stride: int) -> Size:
        if self.local_size == "auto":
            height, width = (max(round(side * 96 / 224 / stride), 2) * stride for side in size)
            return height, width
        if self.local_size % stride:
            raise UserError(
                "not a multiple of the patch size", where="objective.local_size", got=self.local_size,
                expected=f"a multiple of {stride}",
            )  # fmt: skip
        return self.local_size, self.local_size

    def idle(self) -> dict[str, Any]:
        """Crops, blur and solarization: the views set them."""
        fields = AugmentConfig.model_fields
        return {key: fields[key].default for key in ("crop", "crop_scale", "blur", "solarize")}


class DinoConfig(SelfDistillationConfig):
    """DINO (arXiv 2104.14294)."""

    kind: Literal["dino"] = Field(description="DINO: self-distillation between views of an image")


class IbotConfig(SelfDistillationConfig):
    """iBOT (arXiv 2111.07832), with the changes of DINOv2 (arXiv 2304.07193) as options."""

    kind: Literal["ibot"] = Field(description="iBOT: DINO plus prediction of the teacher's tokens of masked patches")
    mask: Literal["blocks", "random"] = Field(
        default="blocks", description="pattern of masked patches; blocks: rectangles; random: independent patches"
    )
    mask_ratio: ShareRange = Field(
        default=(0.1, 0.5), description="smallest and largest share of masked patches in a masked view"
    )
    mask_probability: Share = Field(default=0.5, description="share of the large views that are masked")
    mask_spread: bool = Field(
        default=False,
        description="mask exactly this share of each micro-batch, at evenly spaced ratios (DINOv2); false: draw for "
        "each image",
    )
    patch_weight: float = Field(default=1.0, gt=0, description="weight of the patch loss; that of the view loss is 1")
    patch_head: Literal["shared", "last_layer", "own"] = Field(
        default="shared",
        description="head for patches; shared: the head of the views; last_layer: shared except for its own "
        "prototypes; own: a separate head",
    )

    @model_validator(mode="after")
    def _patches_fit(self) -> IbotConfig:
        if not self.mask_probability:
            raise ValueError("objective.mask_probability=0 makes iBOT equal to DINO: use objective.kind=dino")
        return self


def _supervised(tree: Any) -> Any:
    """Set the default kind, supervised."""
    return {"kind": "supervised", **tree} if isinstance(tree, dict) else tree


if TYPE_CHECKING:
    ObjectiveConfig = ViewedConfig  # `register_objective` adds others
else:
    ObjectiveConfig = Annotated[
        Annotated[
            SupervisedConfig
            | DynamicViTConfig
            | RegressionConfig
            | DetectionConfig
            | PseudoBoxesConfig
            | SoftTeacherConfig
            | AdversarialConfig
            | MaskedPatchConfig
            | MaeConfig
            | BeitConfig
            | IGPTObjectiveConfig
            | IGPTFinetuneConfig
            | TokenizerConfig
            | DinoConfig
            | IbotConfig
            | VATConfig
            | ConsistencyConfig
            | MeanTeacherConfig
            | PseudoLabelConfig
            | FixMatchConfig
            | SemiViTConfig,
            Field(discriminator="kind"),
        ],
        BeforeValidator(_supervised),
    ]
