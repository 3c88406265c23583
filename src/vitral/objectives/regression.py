"""Regression by numbers: L1, L2 or Huber loss of standardized targets.

Shape letters: B batch, T targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn import functional

from vitral.models.model import ImageModel
from vitral.models.parameters import trains_head_only
from vitral.objectives.config import RegressionConfig
from vitral.objectives.losses import wide
from vitral.objectives.objective import Objective, ObjectiveContext
from vitral.structs import Batch, StepOutput

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": functional.l1_loss,
    "l2": functional.mse_loss,
    "huber": functional.huber_loss,
}


class Regression(Objective):
    """A loss of the model's outputs and the batch's targets [B, T], which are in standard deviations of the train
    images, mean over images and targets. Huber's changes from squared to linear at 1 (Huber 1964)."""

    def __init__(self, factory: Callable[[], ImageModel], config: RegressionConfig, context: ObjectiveContext) -> None:
        super().__init__(factory, config, context)
        self.model, self.loss = factory(), LOSSES[config.loss]
        self.frozen = trains_head_only(self.model)

    def compile_key(self, step: int) -> int:
        """No step differs from the others."""
        return 0

    def forward(self, batches: Mapping[str, Batch], step: int) -> StepOutput:
        """The loss, and `train_mae`, the mean absolute error in standard deviations."""
        batch = batches["train"]
        outputs_BT = wide(self.model(batch.views[0].images_BCHW))
        target_BT = batch.targets["label"].to(outputs_BT.dtype)
        mae = functional.l1_loss(outputs_BT.detach(), target_BT)
        return StepOutput.mean(self.loss(outputs_BT, target_BT), len(target_BT), {"train_mae": mae})
