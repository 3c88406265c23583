"""Base of semi-supervised objectives: cross-entropy on labeled images, and one loss of each kind on unlabeled ones.

Shape letters: B rows, C classes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from vitral.attacks.quiet import quiet
from vitral.data.config import UNLABELED
from vitral.models.model import ImageModel
from vitral.models.parameters import trains_head_only
from vitral.objectives.class_balance import ClassBalance
from vitral.objectives.collapse_monitors import entropy
from vitral.objectives.losses import cross_entropy, soft_targets, wide
from vitral.objectives.objective import Objective, ObjectiveContext
from vitral.objectives.semi_supervised_config import SemiSupervisedConfig
from vitral.objectives.teacher import EMATeacher
from vitral.structs import Batch, StepOutput


class UnlabeledPart(NamedTuple):
    """A loss on unlabeled rows, mean over all of them, with their logits [B, C]; metrics and means as in StepOutput."""

    loss: Tensor
    logits_BC: Tensor
    metrics: Mapping[str, Tensor] = {}
    means: Mapping[str, Tensor] = {}


class SemiSupervised(Objective):
    """Loss of `Supervised` on labeled images plus a weighted loss of unlabeled ones, which each kind defines.

    In the first `supervised_warmup` share of the run unlabeled images are not used; then the weight rises to
    `unlabeled_weight`. Both streams have forward passes of their own, so that the labeled part stays bit-equal to
    `Supervised`. A teacher, where the kind has one, follows in all steps, and is evaluated and saved.
    """

    weights_C: Tensor | None
    offset_C: Tensor | None

    def __init__(
        self, factory: Callable[[], ImageModel], config: SemiSupervisedConfig, context: ObjectiveContext
    ) -> None:
        super().__init__(factory, config, context)
        self.model, self.shared = factory(), config
        self.steps, self.seed = context.steps, context.seed
        self.warmup_steps = round(config.supervised_warmup * context.steps)
        self.frozen = trains_head_only(self.model)
        self.teacher = EMATeacher(self.model, factory()) if config.teacher_decay is not None else None
        self.register_buffer("weights_C", context.balance.weights_C, persistent=False)
        self.register_buffer("offset_C", context.balance.offset_C, persistent=False)

    @property
    def eval_model(self) -> ImageModel:
        """The teacher, where there is one."""
        if self.teacher is None:
            return self.model
        assert isinstance(self.teacher.module, ImageModel)
        return self.teacher.module

    def unlabeled_weight(self, step: int) -> float:
        """Return the weight of the unlabeled loss: 0 in the warm-up, then rising by exp(-5 (1 - t)^2)."""
        if step < self.warmup_steps:
            return 0.0
        rise = self.shared.unlabeled_rampup * self.steps
        done = min((step - self.warmup_steps) / rise, 1.0) if rise else 1.0
        return self.shared.unlabeled_weight * math.exp(-5 * (1 - done) ** 2)

    def forward(self, batches: Mapping[str, Batch], step: int) -> StepOutput:
        """Return the loss in nats, and of the labeled images `train_top1`; of the unlabeled ones, outside of the
        warm-up, `unlabeled_loss`, without its weight, `class_entropy`, and the metrics of the kind."""
        loss, right_B = self.labeled_part(batches["labeled"])
        metrics, means = {"train_top1": right_B.float().mean()}, dict[str, Tensor]()
        weight = self.unlabeled_weight(step)
        if weight:
            part = self.unlabeled_part(batches[UNLABELED], step)
            loss = loss + weight * part.loss
            metrics |= {
                "unlabeled_loss": part.loss.detach(), "class_entropy": class_entropy(part.logits_BC), **part.metrics
            }  # fmt: skip
            means |= part.means
        return StepOutput.mean(loss, len(right_B), metrics, means)

    def labeled_part(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return `Supervised`'s loss, and which rows are right, [B]."""
        logits_BC = self.model(batch.views[0].images_BCHW)
        target_BC = soft_targets(batch.targets, logits_BC.shape[-1], self.shared.label_smoothing)
        right_B = logits_BC.detach().argmax(dim=-1) == batch.targets["label"]
        return cross_entropy(logits_BC, target_BC, ClassBalance(self.weights_C, self.offset_C)), right_B

    @abstractmethod
    def unlabeled_part(self, batch: Batch, step: int) -> UnlabeledPart:
        """Return the loss of unlabeled images. Draws depend on seed, step and sample numbers only."""

    def after_update(self, step: int, means: Mapping[str, Tensor], found_inf: Tensor) -> None:
        """Move the teacher towards the model, by decay min(teacher_ema, (1 + step) / (10 + step))."""
        decay = self.shared.teacher_decay
        if self.teacher is not None and decay is not None:
            self.teacher.update(min(decay, (1 + step) / (10 + step)), found_inf)

    def check_collapse(self, metrics: Mapping[str, float]) -> str | None:
        """Return a warning where predictions of unlabeled images favor few classes, or none is confident enough."""
        classes = self.model.config.num_classes
        if metrics.get("train_top1", 0) > 0.9 and metrics.get("class_entropy", 99) < 0.5 * math.log(max(classes, 1)):
            return (
                "collapse: the predictions on unlabeled images favor few classes (class_entropy below half of ln "
                "classes). A lower objective.unlabeled_weight or a longer objective.supervised_warmup may help"
            )
        if metrics.get("pseudo_share", 1) < 0.01 and metrics["step"] > self.steps / 2:
            return (
                "hardly any unlabeled image teaches (pseudo_share below 1 %): no prediction is confident enough. A "
                "lower objective.threshold, less label smoothing or more steps may help"
            )
        return None


def class_entropy(logits_BC: Tensor) -> Tensor:
    """Return the entropy of the mean prediction in nats, at most ln C; near 0 where all rows have one class.

    B rows of B classes have ln B only. Where there are fewer rows than classes, as in small micro-batches, the entropy
    is multiplied by ln C / ln B, so that a small value always means few classes; of one row it is ln C.
    """
    rows, most = len(logits_BC), math.log(max(logits_BC.shape[1], 1))
    found = entropy(wide(logits_BC.detach()).softmax(-1).mean(0, keepdim=True))
    if rows == 1:
        return torch.full_like(found, most)
    return (found * max(most / math.log(rows), 1.0)).clamp(max=most)


@contextmanager
def steady(model: ImageModel, images_BCHW: Tensor, *, wide: bool) -> Generator[None]:
    """Run the model as a fixed function: no dropout, no drop-path, frozen statistics; modes are restored afterwards.
    wide: in float32; otherwise under the caller's autocast."""
    device = "cpu" if images_BCHW.is_meta else images_BCHW.device.type
    is_cast = torch.is_autocast_enabled(device) and not wide
    with quiet(model, device), torch.autocast(device, enabled=is_cast):
        yield
