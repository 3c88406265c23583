"""Classification with labels: cross-entropy with label smoothing and mixed labels, optionally head-only at first.

Where an image may have several classes (labels [B, C]), binary cross-entropy of each class. Shape letters: B
batch, C classes, H W of an image, D width of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vitral.models.model import ImageModel
from vitral.models.parameters import trains_head_only
from vitral.objectives.class_balance import ClassBalance
from vitral.objectives.config import SupervisedConfig
from vitral.objectives.losses import (
    binary_cross_entropy,
    cross_entropy,
    sigmoid_cross_entropy,
    soft_multi_hot,
    soft_targets,
)
from vitral.objectives.objective import Objective, ObjectiveContext
from vitral.structs import Batch, StepOutput


class Supervised(Objective):
    """Cross-entropy of the model's logits to the batch's (smoothed, mixed) labels, with factors of the classes and an
    offset of the logits where `balance` has them (not in multi-label data); or, on request, the binary one.

    In the first `head_only_fraction` share of the run's `steps` the encoder is not trained: it runs without gradients,
    so its weights and optimizer state stay untouched (a new head would otherwise spoil it), and as in evaluation: no
    dropout, no drop-path, no new statistics. So does an encoder without any parameter that takes gradients, throughout.
    """

    weights_C: Tensor | None
    offset_C: Tensor | None

    def __init__(self, factory: Callable[[], ImageModel], config: SupervisedConfig, context: ObjectiveContext) -> None:
        super().__init__(factory, config, context)
        self.model = factory()
        self.config, self.head_steps = config, round(config.head_only_fraction * context.steps)
        self.frozen = trains_head_only(self.model)
        # Buffers, so that they are where the model is; not saved, as they follow from the configuration and the data.
        self.register_buffer("weights_C", context.balance.weights_C, persistent=False)
        self.register_buffer("offset_C", context.balance.offset_C, persistent=False)

    def compile_key(self, step: int) -> int:
        """Only whether the head learns alone depends on the step."""
        return 0 if step < self.head_steps else self.head_steps

    def forward(self, batches: Mapping[str, Batch], step: int) -> StepOutput:
        """The loss in nats, and `train_top1`: the share whose own label wins (of the mixed image, where mixed); or,
        multi-label, `train_exact_match`: the share with all its own labels right at a probability of 0.5."""
        batch = batches["train"]
        images_BCHW = batch.views[0].images_BCHW
        rests = self.frozen or step < self.head_steps
        if self.model.training != (self.training and not rests):
            self.model.train(self.training and not rests)
        if step < self.head_steps:
            with torch.no_grad():
                pooled_BD = self.model.pool(self.model.encode(images_BCHW))
            logits_BC = self.model.classify(pooled_BD)
        else:
            logits_BC = self.model(images_BCHW)
        if batch.targets["label"].ndim == 2:
            return self._multi_label(logits_BC, batch)
        target_BC = soft_targets(batch.targets, logits_BC.shape[-1], self.config.label_smoothing)
        right_B = logits_BC.detach().argmax(dim=-1) == batch.targets["label"]
        if self.config.loss == "sigmoid":
            loss = sigmoid_cross_entropy(logits_BC, target_BC)
        else:
            loss = cross_entropy(logits_BC, target_BC, ClassBalance(self.weights_C, self.offset_C))
        return StepOutput.mean(loss, len(right_B), {"train_top1": right_B.float().mean()})

    def _multi_label(self, logits_BC: Tensor, batch: Batch) -> StepOutput:
        target_BC = soft_multi_hot(batch.targets, self.config.label_smoothing)
        right_B = ((logits_BC.detach() >= 0) == batch.targets["label"].bool()).all(dim=-1)
        loss = binary_cross_entropy(logits_BC, target_BC)
        return StepOutput.mean(loss, len(right_B), {"train_exact_match": right_B.float().mean()})
