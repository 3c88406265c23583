"""Detection: focal loss of the classes, GIoU loss of the boxes and cross-entropy of their quality, at every location.

Shape letters: B batch, M rows of boxes of an image, A locations, C classes, 4 a box (x0, y0, x1, y1).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vitral.data.box_ops import pairwise_giou, pairwise_iou
from vitral.models.dense_head import HeadOutput, to_boxes
from vitral.models.detector import Detector
from vitral.models.model import ImageModel
from vitral.models.parameters import trains_head_only
from vitral.models.registry import detector
from vitral.objectives.box_targets import Locations, assign, unlearned
from vitral.objectives.detection_config import DetectionConfig
from vitral.objectives.objective import Objective, ObjectiveContext
from vitral.objectives.second_stage_loss import Relevance, second_stage_parts
from vitral.structs import Batch, StepOutput, sample_places

log = logging.getLogger("vitral")


def focal_loss(logits: Tensor, target: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sigmoid focal loss of each logit to a target of 0 or 1 (arXiv 1708.02002, equation 5), not reduced."""
    p = logits.sigmoid()
    miss = (p - target).abs()
    weight = 1 - alpha + (2 * alpha - 1) * target
    return weight * miss**gamma * F.binary_cross_entropy_with_logits(logits, target, reduction="none")


class Detection(Objective):
    """The loss of a detector. Which location learns which box follows from the boxes alone (`box_targets.assign`).

    All three parts are sums over locations, divided by the number of positive locations of the whole batch plus one for
    each image, so that a batch without boxes has a loss too. Unlike in FCOS, boxes count equally, not by centerness,
    and quality is the IoU. A second stage has two parts more, see `second_stage_loss`.
    """

    def __init__(self, factory: Callable[[], ImageModel], config: DetectionConfig, context: ObjectiveContext) -> None:
        super().__init__(factory, config, context)
        self.model, self.config = factory(), config
        self.frozen = trains_head_only(self.model)
        self.has_warned = False

    @property
    def detector(self) -> Detector:
        """The model as a detector."""
        found = detector(self.model)
        assert found is not None
        return found

    def compile_key(self, step: int) -> int | None:
        """No step differs from the others."""
        return 0

    def prepare_batches(self, batches: Mapping[str, Batch], step: int) -> Mapping[str, Batch]:
        """Add what `located` adds."""
        return {**batches, "train": self.located_batch(batches["train"])}

    def located_batch(self, batch: Batch) -> Batch:
        """The annotated batch with what `located` adds; a warning says once a run which boxes no location learns."""
        found = batch._replace(targets=self.located(batch.targets))
        self._report_unlearned(batch, found.targets["location_box"])
        return found

    def located(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """With `location_box`: the row of the box that each location learns, int64 [B, A], or -1."""
        c, strides = self.config, self.detector.config.strides
        row_BA = assign(
            targets["boxes"], targets["box_class"], self.locations(), strides, c.level_side, c.center_radius
        )
        return {**targets, "location_box": row_BA}

    def _report_unlearned(self, batch: Batch, row_BA: Tensor) -> None:
        """Warn once a run of boxes that no location learns."""
        if self.has_warned or not (count_B := unlearned(batch.targets["box_class"], row_BA)).any():
            return
        self.has_warned, places = True, (sample_places(batch)[count_B > 0] + 1).tolist()
        log.warning(
            "%d boxes of this batch are not learned, as their map has fewer cells than boxes: of train image %s. "
            "Later ones are not reported. A larger data.image_size or smaller model.strides give more cells.",
            int(count_B.sum()), ", ".join(map(str, places[:5])) + (", ..." if len(places) > 5 else ""),
        )  # fmt: skip

    def locations(self) -> Locations:
        """The detector's locations."""
        model = self.detector
        counts = [rows * columns for rows, columns in model.config.maps]
        stride_L = model.centers_A2.new_tensor(model.config.strides)
        return Locations(model.centers_A2, stride_L.repeat_interleave(stride_L.new_tensor(counts, dtype=torch.long)))

    def forward(self, batches: Mapping[str, Batch], step: int) -> StepOutput:
        """The loss, and its parts `class_loss`, `box_loss` and `quality_loss`; of a second stage `second_class_loss`
        and `second_box_loss`."""
        batch = batches["train"]
        weight_B = image_weights(batch.targets)
        parts = self.parts(self.detector.maps(batch.views[0].images_BCHW), batch.targets, weight_B)
        return step_output(parts, weight_B.sum())

    def parts(
        self, maps: Sequence[Tensor], targets: Mapping[str, Tensor], weight_B: Tensor,
        relevance: Relevance | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Sums of all parts of the loss. maps: of the pyramid. targets: `boxes`, `box_class` and `location_box`.
        relevance: see `second_stage_parts`."""
        out = self.detector.dense_head(maps)
        parts = self.dense_parts(out, targets)
        if self.detector.config.second_stage:
            with torch.no_grad():
                boxes_BR4, _ = self.detector.propose(self.detector.decode(HeadOutput(*(each.detach() for each in out))))
            found = second_stage_parts(self.detector.second_stage, maps, boxes_BR4, targets, weight_B, relevance)
            parts |= {name: self.config.second_stage_weight * part for name, part in found.items()}
        return parts

    def dense_parts(self, out: HeadOutput, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums of the parts of the loss of what the dense head says. Where the targets have `is_known` [B, A], other
        locations teach no class."""
        c, row_BA = self.config, targets["location_box"]
        is_positive_BA = row_BA >= 0
        row_BA = row_BA.clamp(min=0)
        class_BA = targets["box_class"].gather(1, row_BA)
        box_BA4 = targets["boxes"].gather(1, row_BA[..., None].expand(-1, -1, 4)).to(out.distances_BA4.dtype)
        hot_BAC = class_BA[..., None] == torch.arange(out.logits_BAC.shape[-1], device=class_BA.device)
        hot_BAC = (hot_BAC & is_positive_BA[..., None]).to(out.logits_BAC.dtype)
        predicted_BA4 = to_boxes(self.detector.centers_A2, out.distances_BA4)
        # Elsewhere the target is the prediction itself, so that no gradient depends on where a padded row lies.
        box_BA4 = torch.where(is_positive_BA[..., None], box_BA4, predicted_BA4.detach())
        positive_BA = is_positive_BA.to(out.distances_BA4.dtype)
        iou_BA = pairwise_iou(predicted_BA4.detach(), box_BA4)
        miss_BA = F.binary_cross_entropy_with_logits(out.quality_BA, iou_BA, reduction="none")
        focal_BAC = focal_loss(out.logits_BAC, hot_BAC, c.focal_alpha, c.focal_gamma)
        if "is_known" in targets:
            focal_BAC = focal_BAC * (targets["is_known"] | is_positive_BA)[..., None]
        return {
            "class_loss": focal_BAC.sum(),
            "box_loss": c.box_weight * (positive_BA * (1 - pairwise_giou(predicted_BA4, box_BA4))).sum(),
            "quality_loss": c.quality_weight * (positive_BA * miss_BA).sum(),
        }


def image_weights(targets: Mapping[str, Tensor]) -> Tensor:
    """What each image counts in the loss, float32 [B]: its positive locations and one."""
    return (targets["location_box"] >= 0).sum(1).float() + 1


def step_output(parts: Mapping[str, Tensor], weight: Tensor) -> StepOutput:
    """The loss as the sum of its parts, with these as metrics."""
    metrics = {name: part.detach() / weight for name, part in parts.items()}
    return StepOutput(sum(parts.values(), weight.new_zeros(())), weight, metrics)
