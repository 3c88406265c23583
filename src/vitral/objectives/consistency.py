"""Consistency of predictions on unlabeled images: the Pi-model and Mean Teacher. Shape letters: B rows, C classes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vitral.attacks.losses import kl_divergence
from vitral.models.model import ImageModel
from vitral.objectives.losses import wide
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.pseudo_labels import probability_distance
from vitral.objectives.semi_supervised import SemiSupervised, UnlabeledPart
from vitral.objectives.semi_supervised_config import ConsistencyConfig, MeanTeacherConfig
from vitral.structs import Batch


class Consistency(SemiSupervised):
    """Pi-model (Laine and Aila 2017, arXiv 1610.02242): predictions for one augmentation approach those for another,
    each with its own dropout and drop-path."""

    def __init__(self, factory: Callable[[], ImageModel], config: ConsistencyConfig, context: ObjectiveContext) -> None:
        super().__init__(factory, config, context)

    def unlabeled_part(self, batch: Batch, step: int) -> UnlabeledPart:
        """Return the squared difference of probabilities; the second view is the target, without gradient."""
        first, second = batch.views
        with torch.no_grad():
            target_BC = self.model(second.images_BCHW)
        logits_BC = self.model(first.images_BCHW)
        return UnlabeledPart(probability_distance(logits_BC, target_BC), logits_BC)


class MeanTeacher(SemiSupervised):
    """Mean Teacher (Tarvainen and Valpola 2017, arXiv 1703.01780): predictions on the strong view approach those of the
    teacher, a moving average of the weights, on the weak view."""

    def __init__(self, factory: Callable[[], ImageModel], config: MeanTeacherConfig, context: ObjectiveContext) -> None:
        super().__init__(factory, config, context)
        self.config = config

    def unlabeled_part(self, batch: Batch, step: int) -> UnlabeledPart:
        """Return the configured distance from the teacher."""
        assert self.teacher is not None
        weak, strong = batch.views
        target_BC, logits_BC = self.teacher(weak.images_BCHW), self.model(strong.images_BCHW)
        if self.config.distance == "kl":
            loss = kl_divergence(wide(logits_BC), wide(target_BC).log_softmax(-1)).mean()
        else:
            loss = probability_distance(logits_BC, target_BC)
        return UnlabeledPart(loss, logits_BC)
