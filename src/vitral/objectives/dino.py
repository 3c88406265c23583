"""DINO: a student predicts, from every view of an image, the teacher's output on two large views.

Caron et al. 2021 (arXiv 2104.14294). Shape letters: R rows (views of images, or images of a view), K prototypes, D
width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from vitral.models.model import ImageModel
from vitral.objectives.config import DinoConfig
from vitral.objectives.losses import wide
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.self_distillation import GLOBAL, SelfDistillation
from vitral.objectives.sinkhorn import cross_view_loss
from vitral.structs import Batch, StepOutput


class Dino(SelfDistillation):
    """Cross-entropy between prototypes of different views: large ones from the teacher, all from the student."""

    def __init__(self, factory: Callable[[], ImageModel], config: DinoConfig, context: ObjectiveContext) -> None:
        super().__init__(factory, config, context)
        self.start()

    def forward(self, batches: Mapping[str, Batch], step: int) -> StepOutput:
        """The loss in nats, and what a collapse shows in (see `monitors`)."""
        batch = batches["train"]
        config = self.distilled
        large, small = self.large_and_small(batch)
        with torch.no_grad():
            taught_RD = self.taught.pool(self.taught.encode(large))
            logits_RK = self.teacher_head(taught_RD)
            target_RK = self.targets(logits_RK, self.center_K, step)
        pooled = [self.model.pool(self.model.encode(images)) for images in (large, small) if images is not None]
        pred_RK = self.head(torch.cat(pooled))
        views = len(batch.views)
        loss = cross_view_loss(
            target_RK.unflatten(0, (GLOBAL, -1)), pred_RK.unflatten(0, (views, -1)) / config.student_temperature
        )
        metrics = self.monitors(target_RK, taught_RD)
        if config.koleo:
            metrics["koleo"] = (loss_koleo := self.koleo_loss(pooled[0])).detach()
            loss = loss + config.koleo * loss_koleo
        return StepOutput.mean(loss, len(batch.sample_ids_B), metrics, {"logits": wide(logits_RK).mean(0)})
