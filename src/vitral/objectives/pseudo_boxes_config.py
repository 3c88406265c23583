"""Keys of semi-supervised detection: boxes from a few annotated images and many without annotations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from vitral.config import Share
from vitral.data.config import UNLABELED, AugmentConfig, ViewConfig
from vitral.errors import UserError
from vitral.objectives.base_config import Size, StreamTraits, refuse_parts
from vitral.objectives.detection_config import DetectionConfig
from vitral.objectives.semi_supervised_config import (
    Changes,
    TeacherEMA,
    Threshold,
    refuse_large_steps,
    strong_view,
    warn_of_weak,
)

# Colors and small erased parts (Soft Teacher, table 7); no rotation, whose upright hulls are larger than the objects.
STRONG: Mapping[str, Any] = {
    "brightness": 0.4, "contrast": 0.4, "blur": 0.3, "random_erasing": 0.7, "erase_scale": (0.01, 0.05),
    "erase_fill": "mean",
}  # fmt: skip


class PseudoBoxesConfig(DetectionConfig):
    """Pseudo-labels of detection: what an EMA teacher finds in a weak view is learned in a strong one."""

    streams: ClassVar[dict[str, StreamTraits]] = {
        "labeled": StreamTraits(labeled=True), UNLABELED: StreamTraits(labeled=False),
    }  # fmt: skip

    kind: Literal["pseudo_boxes"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
        description="pseudo-boxes: what a teacher is sure to find in images without annotations, as annotations"
    )
    threshold: Threshold = Field(
        default=0.7,
        description="score from which a box that the teacher finds is an annotation, in (0, 1) (Soft Teacher: 0.9)",
    )
    unlabeled_weight: float = Field(
        default=1.0,
        gt=0,
        description="weight of the loss on unlabeled images, mean over images, to that on labeled ones",
    )
    supervised_warmup: Share = Field(
        default=0.3,
        description="share of the run, at its start, that learns from the labeled images only; the teacher is a copy "
        "until then",
    )
    teacher_ema: TeacherEMA = Field(
        default=0.998,
        description="decay of the teacher's weights per step, at most (1 + t) / (10 + t), t steps after the warm-up",
    )
    strong: Changes | None = Field(
        default=None,
        description="augmentation of the strong view: keys of `augment` that differ from the run's; null: brightness, "
        "contrast, blur and random erasing",
    )

    def __hash__(self) -> int:
        """As of a frozen model, whose dict has no hash."""
        return hash(self.model_dump_json())

    def views(self, augment: AugmentConfig, size: Size, stride: int) -> dict[str, tuple[ViewConfig, ...]]:
        """One view of labeled images; of unlabeled ones a weak one and a strong one."""
        weak, strong = self._unlabeled_views(augment)
        return {
            "labeled": (ViewConfig(augment, size),), UNLABELED: (ViewConfig(weak, size), ViewConfig(strong, size))
        }  # fmt: skip

    def _unlabeled_views(self, augment: AugmentConfig) -> tuple[AugmentConfig, AugmentConfig]:
        return augment, strong_view(augment, STRONG if self.strong is None else self.strong)

    def check(self, run: Any) -> None:
        """Refuse keys without effect, and a second moving average."""
        super().check(run)
        refuse_parts(run)
        if self.supervised_warmup == 1:
            raise ValueError("objective.supervised_warmup=1 leaves no part of the run for the unlabeled images")
        if run.train.ema is not None:
            raise ValueError(
                f"no effect with objective.kind={self.kind}: train.ema, since its teacher (objective.teacher_ema) is "
                "the moving average that is evaluated and saved. Set train.ema=null"
            )

    def warnings(self, run: Any) -> list[str]:
        """Also of a strong view that is none, and of turned views."""
        views = self._unlabeled_views(run.augment)
        found = [*super().warnings(run), *warn_of_weak(views)]
        if max(view.rotate for view in views) > 15:
            found.append("boxes of views that are turned by more than 15 degrees are much larger than the objects")
        return found

    def check_data(self, run: Any, dataset: Any) -> None:
        """Also refuse steps of more unlabeled images than there are."""
        super().check_data(run, dataset)
        refuse_large_steps(run, dataset)


class SoftTeacherConfig(PseudoBoxesConfig):
    """Soft Teacher (Xu et al. 2021, arXiv 2106.09018)."""

    kind: Literal["soft_teacher"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
        description="Soft Teacher: pseudo-boxes, with the teacher's doubt in weights of the background, and boxes that "
        "it finds again from jittered ones"
    )
    min_score: Share = Field(
        default=0.5, description="score from which boxes are tried by jitter (teachers of boxes, not of classes)"
    )
    jitters: int = Field(default=10, ge=2, le=100, description="jittered boxes for each box that is tried")
    jitter: float = Field(
        default=0.06, gt=0, le=1, description="standard deviation of each side's jitter, in sides of the box"
    )
    max_spread: float = Field(
        default=0.02,
        gt=0,
        description="largest standard deviation, in sides of the box, of what the teacher makes of the jittered boxes: "
        "those below teach where objects are",
    )

    def check_model(self, architecture: Any, dataset: Any) -> None:
        """Require a second stage, which scores any box."""
        super().check_model(architecture, dataset)
        if not architecture.second_stage:
            raise UserError(
                "objective.kind=soft_teacher scores boxes a second time", where="model.second_stage", got=0,
                expected="a second stage, as model.second_stage=256, or objective.kind=pseudo_boxes",
            )  # fmt: skip
