"""Classification by labels: cross-entropy with label smoothing, mixed labels, and a head that may learn first."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vitral.models.vit import VisionTransformer
from vitral.objectives.config import SupervisedConfig
from vitral.objectives.losses import cross_entropy, soft_targets
from vitral.objectives.objective import Objective
from vitral.structs import Batch, StepOutput


class Supervised(Objective):
    """Cross-entropy of the model's logits to the batch's (smoothed, mixed) labels.

    In the first `head_first` share of the run's `steps` the encoder is not trained: it runs without gradients, so its
    weights and optimizer state stay untouched (a new head would otherwise spoil it).
    """

    def __init__(self, factory: Callable[[], VisionTransformer], config: SupervisedConfig, steps: int) -> None:
        super().__init__(factory, config, steps)
        self.model = factory()
        self.config, self.head_steps = config, round(config.head_first * steps)

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """The loss in nats, and `train_top1`: the share whose own label wins (of the mixed image, where mixed)."""
        images_BCHW = batch.views[0].images_BCHW
        if step < self.head_steps:
            with torch.no_grad():
                pooled_BD = self.model.pool(self.model.encode(images_BCHW))
            logits_BC = self.model.classify(pooled_BD)
        else:
            logits_BC = self.model(images_BCHW)
        target_BC = soft_targets(batch.targets, logits_BC.shape[-1], self.config.label_smoothing)
        right_B = logits_BC.detach().argmax(dim=-1) == batch.targets["label"]
        return StepOutput(cross_entropy(logits_BC, target_BC), {"train_top1": right_B.float().mean()})
