"""Keys of semi-supervised objectives: classes from a few labeled images and many unlabeled ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from vitral.config import Count, Share, build, reject_unused
from vitral.data.config import UNLABELED, AugmentConfig, ViewConfig
from vitral.errors import UserError, plural
from vitral.objectives.base_config import (
    ClassifierConfig,
    Size,
    StreamTraits,
    refuse_parts,
    require_input_gradients,
)

# FixMatch's strong view (arXiv 2001.07685, section 2.3): RandAugment, then Cutout.
STRONG: Mapping[str, Any] = {"policy": "randaugment", "magnitude": 10.0, "random_erasing": 1.0, "erase_fill": "mean"}
# Keys of which more is stronger; 0 is none.
_AMOUNTS = frozenset({
    "pad_crop", "flip", "flip_vertical", "rotate", "scale", "shear", "translate", "num_ops", "magnitude",
    "magnitude_std", "brightness", "contrast", "saturation", "hue", "jitter_prob", "gray", "solarize", "posterize",
    "equalize", "autocontrast", "invert", "sharpen", "blur", "random_erasing",
})  # fmt: skip
# Keys that have an effect only where another one is on.
_PARTS: Mapping[str, str] = {
    "num_ops": "policy", "magnitude": "policy", "magnitude_std": "policy", "interpolation": "policy",
    "crop_scale": "crop", "aspect_ratio": "crop", "jitter_prob": "jitters", "fill": "moves",
    "solarize_from": "solarize", "posterize_bits": "posterize", "sharpen_factor": "sharpen",
    "erase_scale": "random_erasing", "erase_ratio": "random_erasing", "erase_fill": "random_erasing",
}  # fmt: skip
_OF_THE_BATCH = ("mixup", "cutmix", "mix_prob", "repeated_aug", "mosaic", "copy_paste")


def _augmentation(tree: Any) -> Any:
    """Check keys of `augment` and their values. Raises UserError for unknown ones, and for those of a whole batch."""
    if isinstance(tree, Mapping):
        build(AugmentConfig, dict(tree), where="objective.strong")
        idle = [key for key in _OF_THE_BATCH if key in tree]
        if idle:
            raise UserError(
                "these keys belong to the labeled images, not to a view", where="objective.strong", got=", ".join(idle)
            )
    return dict(tree) if isinstance(tree, Mapping) else tree


def is_stronger(strong: AugmentConfig, weak: AugmentConfig) -> bool:
    """Return whether `strong` has more of anything than `weak`: a larger amount, a crop or policy, or another value of
    a key without an order, as of the erased area. What is stronger on the whole is not decided."""
    for key in AugmentConfig.model_fields:
        more, less, is_on = getattr(strong, key), getattr(weak, key), getattr(strong, _PARTS.get(key, key))
        if more != less and is_on not in (0, "none") and (key not in _AMOUNTS or more > less):
            return True
    return False


def refuse_large_steps(run: Any, dataset: Any) -> None:
    """Raise UserError for steps of more unlabeled images than there are."""
    images, step = len(dataset.parts[UNLABELED]), run.train.batch_size * run.data.unlabeled_ratio
    if step > images:
        raise UserError(
            f"a step takes more unlabeled images than there are ({plural(images, 'image')})",
            where="data.unlabeled_ratio", got=f"{run.data.unlabeled_ratio} x {run.train.batch_size} = {step:,}",
            expected=f"train.batch_size times data.unlabeled_ratio of at most {images:,}",
        )  # fmt: skip


def strong_view(augment: AugmentConfig, changes: Mapping[str, Any]) -> AugmentConfig:
    """The run's augmentation with the changes of `objective.strong`."""
    return build(AugmentConfig, {**augment.model_dump(), **changes}, where="objective.strong")


def warn_of_weak(views: tuple[AugmentConfig, ...]) -> list[str]:
    """A warning where the strong view, the second one, changes images no more than the weak one."""
    weak, strong = views
    if is_stronger(strong, weak):
        return []
    return [
        "objective.strong: the strong view is no stronger than the weak one, so the model learns from unlabeled "
        "images what the teacher predicts for nearly the same view. Raise keys of objective.strong above those of "
        "augment, or leave objective.strong out"
    ]


def _inside(value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"a probability strictly between 0 and 1 is needed, got {value}")
    return value


Threshold = Annotated[float, AfterValidator(_inside)]
Changes = Annotated[dict[str, Any], BeforeValidator(_augmentation)]


class SemiSupervisedConfig(ClassifierConfig):
    """Base of every objective that learns classes from labeled images and, beside them, from unlabeled ones."""

    streams: ClassVar[dict[str, StreamTraits]] = {
        "labeled": StreamTraits(labeled=True, mixed=True), UNLABELED: StreamTraits(labeled=False),
    }  # fmt: skip
    task: ClassVar[str | None] = None

    unlabeled_weight: float = Field(
        default=1.0, gt=0, description="weight of the loss on unlabeled images; that of the labeled ones has weight 1"
    )
    supervised_warmup: Share = Field(
        default=0.0, description="share of the run, at its start, that learns from the labeled images only"
    )
    unlabeled_rampup: Share = Field(
        default=0.3,
        description="share of the run, after supervised_warmup, over which the weight of the unlabeled loss rises: by "
        "the factor exp(-5 (1 - t)^2), t from 0 to 1 (Laine and Aila 2017)",
    )

    @property
    def teacher_decay(self) -> float | None:
        """Largest decay per step of the teacher's weights, whose moving average is evaluated and saved; None without a
        teacher."""
        return None

    @model_validator(mode="after")
    def _phases_fit(self) -> SemiSupervisedConfig:
        if self.supervised_warmup + self.unlabeled_rampup > 1 or self.supervised_warmup == 1:
            raise ValueError(
                f"objective.supervised_warmup ({self.supervised_warmup}) and objective.unlabeled_rampup "
                f"({self.unlabeled_rampup}) must leave a part of the run for the unlabeled images: together at most 1"
            )
        return self

    def check(self, run: Any) -> None:
        """Refuse keys that contradict the objective."""
        super().check(run)
        refuse_parts(run)
        if self.teacher_decay is not None and run.train.ema is not None:
            raise ValueError(
                f"no effect with objective.kind={run.objective.kind}: train.ema, since its teacher "
                "(objective.teacher_ema) is the moving average that is evaluated and saved. Set train.ema=null"
            )

    def check_data(self, run: Any, dataset: Any) -> None:
        """Refuse data of another task, classes without labels, and steps of more unlabeled images than there are."""
        train = dataset.splits["train"]
        if dataset.task != "classification":
            raise UserError(
                f"objective.kind={run.objective.kind} needs one class per image", where="objective.kind",
                got={"multilabel": "images with several classes"}.get(dataset.task, dataset.task),
                expected="data with one class per image, or objective.kind=supervised",
            )  # fmt: skip
        counts_K = train.class_counts(len(dataset.classes))
        absent = [name for name, count in zip(dataset.classes, counts_K.tolist(), strict=True) if not count]
        if absent:
            raise UserError(
                "classes without labeled images cannot be learned", where="data", got=", ".join(absent[:10]),
                expected="at least one labeled training image of each class",
            )  # fmt: skip
        refuse_large_steps(run, dataset)

    def views(self, augment: AugmentConfig, size: Size, stride: int) -> dict[str, tuple[ViewConfig, ...]]:
        """Return one view of labeled images, and of unlabeled ones those of `unlabeled_views`."""
        return {
            "labeled": (ViewConfig(augment, size),),
            UNLABELED: tuple(ViewConfig(view, size) for view in self.unlabeled_views(augment)),
        }

    def unlabeled_views(self, augment: AugmentConfig) -> tuple[AugmentConfig, ...]:
        """Return the augmentation of each view of an unlabeled image: by default one, as labeled images have."""
        return (augment,)


class VATConfig(SemiSupervisedConfig):
    """Virtual adversarial training (Miyato et al. 2018, arXiv 1704.03976)."""

    kind: Literal["vat"] = Field(
        description="VAT: predictions on unlabeled images that the worst small change of pixels leaves as they are"
    )
    eps: float = Field(
        default=1.0,
        gt=0,
        description="L2 norm of the change of an image, over all pixels and channels in [0,1]; grows with the square "
        "root of their number: 1 for 8x8 gray images, 2 to 4 for 32x32 RGB",
    )
    xi: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        default="auto",
        description="distance at which the direction of the change is found; auto: eps, the strongest change; 1e-4 to "
        "1e-2: the paper's second-order direction",
    )
    power_iterations: Count = Field(default=1, description="power iterations that find the direction")
    entropy_weight: float = Field(
        default=0.0, ge=0, description="weight of the entropy of predictions on unlabeled images (VAT+EntMin: 1)"
    )
    # 0 is allowed here so that the message can name what is missing.
    unlabeled_weight: float = Field(default=1.0, ge=0, description="weight of the loss on unlabeled images")

    def check_model(self, architecture: Any, dataset: Any) -> None:
        """Require gradients by the images."""
        require_input_gradients(self.kind, architecture)

    @model_validator(mode="after")
    def _is_consistent(self) -> VATConfig:
        if self.unlabeled_weight == 0:
            alone = (
                "objective.entropy_weight without a consistency term puts all images into one class"
                if self.entropy_weight
                else "objective.unlabeled_weight=0 learns nothing from unlabeled images"
            )
            raise ValueError(f"{alone}: set objective.unlabeled_weight above 0, or objective.kind=supervised")
        return self


class ConsistencyConfig(SemiSupervisedConfig):
    """The Pi-model (Laine and Aila 2017, arXiv 1610.02242)."""

    kind: Literal["consistency"] = Field(description="Pi-model: equal predictions for two augmentations of an image")
    unlabeled_weight: float = Field(
        default=10.0, gt=0, description="weight of the squared difference of probabilities (mean over classes)"
    )

    def unlabeled_views(self, augment: AugmentConfig) -> tuple[AugmentConfig, ...]:
        """Return two views with the augmentation of labeled images, each with its own draws."""
        return augment, augment


class StrongViewConfig(SemiSupervisedConfig):
    """Keys of objectives that show unlabeled images twice: weakly augmented, as labeled images are, and strongly."""

    def __hash__(self) -> int:
        """As of a frozen model, whose dict has no hash."""
        return hash(self.model_dump_json())

    strong: Changes | None = Field(
        default=None,
        description="augmentation of the strong view: keys of `augment` that differ from the run's, as "
        "objective.strong.rotate=25; null: RandAugment of magnitude 10 and random erasing (FixMatch)",
    )

    def warnings(self, run: Any) -> list[str]:
        """Return a warning where the strong view changes images no more than the weak one."""
        return warn_of_weak(self.unlabeled_views(run.augment))

    def unlabeled_views(self, augment: AugmentConfig) -> tuple[AugmentConfig, ...]:
        """Return the weak view, then the strong one."""
        return augment, strong_view(augment, STRONG if self.strong is None else self.strong)


TeacherEMA = Annotated[float, Field(ge=0, lt=1)]


class MeanTeacherConfig(StrongViewConfig):
    """Mean Teacher (Tarvainen and Valpola 2017, arXiv 1703.01780)."""

    kind: Literal["mean_teacher"] = Field(
        description="Mean Teacher: predictions equal to those of a moving average of the weights"
    )
    unlabeled_weight: float = Field(
        default=10.0, gt=0, description="weight of the squared difference of probabilities (mean over classes)"
    )
    distance: Literal["mse", "kl"] = Field(
        default="mse",
        description="difference from the teacher; mse: squared difference of probabilities; kl: KL divergence",
    )
    teacher_ema: TeacherEMA = Field(
        default=0.999,
        description="decay of the teacher's weights per step, at most (1 + step) / (10 + step): early weights are soon "
        "forgotten",
    )

    @property
    def teacher_decay(self) -> float | None:
        """See `teacher_ema`."""
        return self.teacher_ema


class PseudoLabelConfig(SemiSupervisedConfig):
    """Pseudo-labels (Lee 2013), with FixMatch's threshold."""

    kind: Literal["pseudo_label"] = Field(
        description="pseudo-labels: the model's own confident predictions as labels, for the same view"
    )
    threshold: Threshold = Field(
        default=0.95, description="confidence above which a pseudo-label is learned, in (0, 1) (tau of FixMatch)"
    )


class FixMatchConfig(StrongViewConfig):
    """FixMatch (Sohn et al. 2020, arXiv 2001.07685), with an EMA teacher (Cai et al. 2022, arXiv 2208.05688)."""

    kind: Literal["fixmatch"] = Field(
        description="FixMatch: confident predictions on a weak view as labels of a strong view"
    )
    threshold: Threshold = Field(
        default=0.95, description="confidence above which a pseudo-label is learned, in (0, 1) (tau of FixMatch)"
    )
    unlabeled_rampup: Share = Field(default=0.0, description="as for other kinds; FixMatch uses none")
    teacher: Literal["ema", "self"] = Field(
        default="ema",
        description="source of pseudo-labels; ema: moving average of the weights, more stable for Vision Transformers "
        "(Semi-ViT); self: the weights that learn, as in the paper",
    )
    teacher_ema: TeacherEMA = Field(default=0.999, description="decay of the teacher's weights per step")
    adaptive: Literal["none", "freematch"] = Field(
        default="none",
        description="class-wise adaptive thresholds in place of `threshold`; freematch: FreeMatch's (2205.07246), from "
        "moving means of confidence and class probabilities; they serve as FlexMatch's curriculum, which would keep a "
        "table of all unlabeled images",
    )
    threshold_momentum: TeacherEMA = Field(
        default=0.999, description="decay of the moving means of adaptive thresholds, per step"
    )

    @property
    def teacher_decay(self) -> float | None:
        """See `teacher_ema`; None with teacher=self."""
        return self.teacher_ema if self.teacher == "ema" else None

    @model_validator(mode="after")
    def _is_used(self) -> FixMatchConfig:
        reject_unused(self, {
            "teacher_ema": self.teacher == "ema", "threshold": self.adaptive == "none",
            "threshold_momentum": self.adaptive != "none",
        })  # fmt: skip
        return self


class SemiViTConfig(StrongViewConfig):
    """Semi-ViT's third stage (Cai et al. 2022, arXiv 2208.05688)."""

    kind: Literal["semi_vit"] = Field(
        description="Semi-ViT: FixMatch with an EMA teacher and probabilistic pseudo mixup of all unlabeled images"
    )
    threshold: Threshold = Field(
        default=0.5, description="mixed confidence above which a mixed pseudo-label is learned, in (0, 1)"
    )
    unlabeled_weight: float = Field(default=5.0, gt=0, description="weight of the loss on unlabeled images")
    teacher_ema: TeacherEMA = Field(default=0.999, description="decay of the teacher's weights per step")
    pseudo_mixup: float = Field(
        default=0.8, gt=0, description="alpha of the Beta distribution of the weights that mix unlabeled images"
    )

    @property
    def teacher_decay(self) -> float | None:
        """See `teacher_ema`."""
        return self.teacher_ema

    def check(self, run: Any) -> None:
        """Refuse micro-batches that cut the groups of 8 images in which unlabeled ones are mixed."""
        super().check(run)
        micro = run.train.micro_batch
        if micro is not None and micro < run.train.batch_size and micro * run.data.unlabeled_ratio % 8:
            raise ValueError(
                f"objective.kind=semi_vit mixes in groups of 8 unlabeled images: train.micro_batch ({micro}) times "
                f"data.unlabeled_ratio ({run.data.unlabeled_ratio}) must be a multiple of 8"
            )
