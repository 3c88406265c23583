"""Keys of the objective of detectors."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from vitral.config import Share
from vitral.errors import UserError
from vitral.objectives.base_config import StreamTraits, ViewedConfig, refuse_useless


class DetectionConfig(ViewedConfig):
    """Boxes and their classes, by a dense head (FCOS, Tian et al. 2019, arXiv 1904.01355)."""

    streams: ClassVar[dict[str, StreamTraits]] = {"train": StreamTraits(labeled=True)}
    task: ClassVar[str | None] = "detection"
    needs_patches: ClassVar[bool] = True
    learns_boxes: ClassVar[bool] = True
    model_family: ClassVar[str | None] = "detector"

    kind: Literal["detection"] = Field(description="detection: boxes and their classes")
    focal_alpha: Share = Field(
        default=0.25, description="focal loss (Lin et al. 2017): weight of positives; that of negatives is 1 - alpha"
    )
    focal_gamma: float = Field(
        default=2.0,
        ge=0,
        description="focal loss: exponent that lowers the weight of what is right; 0: none is lowered",
    )
    box_weight: float = Field(default=1.0, gt=0, description="weight of the boxes' loss, 1 - GIoU")
    quality_weight: float = Field(
        default=1.0, gt=0, description="weight of the cross-entropy of the predicted quality to the box's IoU"
    )
    second_stage_weight: float = Field(
        default=1.0, gt=0, description="weight of the losses of a second stage (model.second_stage)"
    )
    level_side: float = Field(
        default=8.0, gt=0,
        description="longest side of boxes that a map of the pyramid learns, in strides; the last map has no limit",
    )  # fmt: skip
    center_radius: float = Field(
        default=1.5, gt=0, description="center sampling: a box is learned this many strides around its center"
    )

    def check(self, run: Any) -> None:
        """Refuse keys without effect or support."""
        refuse_useless(run, {
            "model.head_bias": (run.model.head_bias, 0.0), "data.balance": (run.data.balance, "none"),
            "data.shots": (run.data.shots, None), "augment.mixup": (run.augment.mixup, 0.0),
            "augment.cutmix": (run.augment.cutmix, 0.0),
        })  # fmt: skip

    def warnings(self, run: Any) -> list[str]:
        """Warn of a resize that cuts off what lies at the border, and of objects that no box is for."""
        found: list[str] = []
        if run.data.resize_mode == "crop":
            found.append("data.resize_mode=crop cuts off what lies beyond the middle of an image; pad keeps the whole")
        if run.augment.fill == "reflection":
            found.append("augment.fill=reflection shows mirrored objects without boxes; gray shows none")
        return found

    def check_data(self, run: Any, dataset: Any) -> None:
        """Require a box to learn from."""
        boxes = dataset.splits["train"].boxes
        if boxes is not None and not (~(boxes.crowd_X | boxes.degenerate())).any():
            raise UserError(
                "there is nothing to learn", where=dataset.name, got="no box of a pixel or more among the train images",
                expected="boxes", hint="`vitral data check` shows what was read.",
            )  # fmt: skip

    def check_model(self, architecture: Any, dataset: Any) -> None:
        """Require a detector."""
        if not architecture.has_boxes:
            raise UserError(
                "objective.kind=detection trains detectors", where="model.name", got=architecture.description,
                expected="a detector, as detector_nano_patch8_64 (vitral models), or init=ENCODER and model.name=auto",
            )  # fmt: skip
        if self.second_stage_weight != 1 and not architecture.second_stage:
            raise UserError("has no effect without model.second_stage", where="objective.second_stage_weight",
                            got=self.second_stage_weight)  # fmt: skip
