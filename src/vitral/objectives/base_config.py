"""Bases of the keys of objectives: task, streams and views, and refusal of keys without effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field

from vitral.config import Config, Floats
from vitral.data.config import AugmentConfig, ViewConfig

Size = tuple[int, int]


class StreamTraits(NamedTuple):
    """Properties of a stream. labeled: its batches hold labels. mixed: mixup and CutMix, if configured, mix its images
    and labels."""

    labeled: bool
    mixed: bool = False


class ViewedConfig(Config):
    """Base of every objective's keys: the task it learns, its streams of batches, and the views of their samples.

    `task`: the name of the task; None: the task of the annotations in the data. `needs_labels`: whether data without
    annotations are refused. `needs_patches`: whether the model must be a Vision Transformer. `learns_boxes`:
    whether data with boxes are taken. `model_family`: the only family of models that it trains; None: several.
    `keeps_last`: whether the last weights are saved instead of those of the best validation.

    The first stream of `streams` counts steps and epochs, with `train.batch_size` samples per step. Streams read the
    train split, except a stream called `unlabeled`, which reads the images without labels (`data.unlabeled`,
    `data.labels_per_class`), `data.unlabeled_ratio` times as many per step.
    """

    streams: ClassVar[dict[str, StreamTraits]] = {"train": StreamTraits(labeled=True, mixed=True)}
    task: ClassVar[str | None] = None
    needs_labels: ClassVar[bool] = True
    needs_patches: ClassVar[bool] = False
    learns_boxes: ClassVar[bool] = False
    model_family: ClassVar[str | None] = None
    keeps_last: ClassVar[bool] = False

    if TYPE_CHECKING:
        kind: Any  # of each class a Literal: its name

    def views(self, augment: AugmentConfig, size: Size, stride: int) -> dict[str, tuple[ViewConfig, ...]]:
        """Return the views of each sample per stream, for images of `size` (height, width), patches of `stride`
        pixels."""
        return dict.fromkeys(self.streams, (ViewConfig(augment, size),))

    def check(self, run: Any) -> None:
        """Raise ValueError for keys of the run (a RunConfig) that contradict this objective."""

    def warnings(self, run: Any) -> list[str]:
        """Return what is probably a mistake in the keys of the run (a RunConfig), one sentence each, to be logged."""
        return []

    def check_data(self, run: Any, dataset: Any) -> None:
        """Raise UserError for data (a Dataset, as the run uses it) that this objective cannot learn from."""

    def check_model(self, architecture: Any, dataset: Any) -> None:
        """Raise UserError for a model (a ModelConfig) that this objective cannot train on these data (a Dataset)."""

    def without_files(self) -> Self:
        """Return the same objective with random weights in place of weights from a file."""
        return self

    @property
    def passes(self) -> float:
        """Forward and backward passes per image, view and step."""
        return 1.0

    @property
    def steps_per_batch(self) -> int:
        """Consecutive steps that learn from the same batch of all streams."""
        return 1

    @property
    def head_only(self) -> float:
        """Share of the run that trains only the head."""
        return 0.0


class LabeledConfig(ViewedConfig):
    """Keys of every objective with labels."""

    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of the target spread over all classes, in training only"
    )


class ClassifierConfig(LabeledConfig):
    """Keys of every objective that learns one class per image by cross-entropy: corrections for classes of unequal
    size."""

    class_weights: Literal["none", "balanced"] | Floats = Field(
        default="none",
        description="weight of each class in the loss; balanced: inverse class frequency, with mean 1 over the images; "
        "or one number per class, in class order",
    )
    logit_adjustment: float = Field(
        default=0.0,
        ge=0,
        description="logit adjustment for long-tailed data (Menon et al. 2021): tau, the factor of the log class "
        "frequencies added to the logits in the loss; 0: off",
    )

    def check(self, run: Any) -> None:
        """Refuse two corrections for class imbalance at once."""
        refuse_target(run)
        if run.data.balance == "class":
            if self.class_weights == "balanced":
                raise ValueError("objective.class_weights=balanced has no effect with data.balance=class")
            if self.logit_adjustment:
                raise ValueError("objective.logit_adjustment has no effect with data.balance=class")


class SelfSupervisedConfig(ViewedConfig):
    """Base of objectives without labels: the last weights of the encoder are saved, without a head. Data with classes
    are evaluated by nearest neighbors, at train.eval_every."""

    streams: ClassVar[dict[str, StreamTraits]] = {"train": StreamTraits(labeled=False)}
    task: ClassVar[str | None] = "features"
    needs_labels: ClassVar[bool] = False
    needs_patches: ClassVar[bool] = True
    keeps_last: ClassVar[bool] = True
    has_teacher: ClassVar[bool] = False

    def idle(self) -> dict[str, Any]:
        """Return the keys of `augment` that this kind of objective sets, with the required values."""
        return {}

    def check(self, run: Any) -> None:
        """Refuse keys without effect or support in learning without labels."""
        model = run.model.options()
        wrong: dict[str, tuple[Any, Any]] = {
            "init_head": (run.init_head, False), "model.head_bias": (run.model.head_bias, 0.0),
            "model.head": (model.get("head", "linear"), "linear"),
            "model.distill_token": (model.get("distill_token", False), False),
            "data.shots": (run.data.shots, None), "lora.rank": (run.lora.rank, None),
            "train.freeze": (run.train.freeze, "none"), "train.patience": (run.train.patience, None),
            "train.ema": (run.train.ema if self.has_teacher else None, None),
            "augment.mixup": (run.augment.mixup, 0.0),
            "augment.cutmix": (run.augment.cutmix, 0.0), "augment.repeated_aug": (run.augment.repeated_aug, 1),
            **{f"augment.{key}": (getattr(run.augment, key), value) for key, value in self.idle().items()},
        }  # fmt: skip
        refuse_useless(run, wrong)
        refuse_parts(run)


def refuse_parts(run: Any) -> None:
    """Raise ValueError for models that are cut over processes or not in float32."""
    if run.train.parallel == "fsdp" or run.precision == "bfloat16_params":
        raise ValueError(
            f"objective.kind={run.objective.kind} needs complete models in float32: no train.parallel=fsdp, no "
            "precision=bfloat16_params; use ddp and bfloat16"
        )


def refuse_target(run: Any) -> None:
    """Raise ValueError for data.target with an objective of classes."""
    if run.data.target is not None:
        kind = run.objective.kind
        raise ValueError(f"objective.kind={kind} learns classes: data.target needs objective.kind=regression")


def refuse_useless(run: Any, wrong: Mapping[str, tuple[Any, Any]]) -> None:
    """Raise ValueError for keys that differ from the only value this objective supports: {key: (got, expected)}."""
    useless = {key: expected for key, (got, expected) in wrong.items() if got != expected}
    if useless:
        words = " ".join(f"{key}={_word(expected)}" for key, expected in useless.items())
        raise ValueError(f"no effect with objective.kind={run.objective.kind}: {', '.join(useless)}. Set {words}")


def _word(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}".removesuffix(".0")
