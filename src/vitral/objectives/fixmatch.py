"""Pseudo-labels as targets: Pseudo-Label, FixMatch with adaptive thresholds, and Semi-ViT.

Shape letters: B rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vitral import distributed
from vitral.data.mixing import beta_quantiles
from vitral.models.model import ImageModel, unit_images
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.pseudo_labels import (
    PseudoLabels,
    class_thresholds,
    draw_pairs,
    mix,
    mix_labels,
    move,
    probabilities,
    pseudo_label_loss,
    pseudo_labels,
)
from vitral.objectives.semi_supervised import SemiSupervised, UnlabeledPart, steady
from vitral.objectives.semi_supervised_config import FixMatchConfig, PseudoLabelConfig, SemiViTConfig
from vitral.structs import Batch


class PseudoLabel(SemiSupervised):
    """Pseudo-labels (Lee 2013): the model's own prediction, where it is confident, as the label of the same view."""

    def __init__(self, factory: Callable[[], ImageModel], config: PseudoLabelConfig, context: ObjectiveContext) -> None:
        super().__init__(factory, config, context)
        self.config = config

    def unlabeled_part(self, batch: Batch, step: int) -> UnlabeledPart:
        """Return the cross-entropy; metric `pseudo_share`: share of the rows that teach."""
        logits_BC = self.model(batch.views[0].images_BCHW)
        labels = pseudo_labels(probabilities(logits_BC))
        loss, share = pseudo_label_loss(logits_BC, labels, self.config.threshold)
        return UnlabeledPart(loss, logits_BC, {"pseudo_share": share})


class FixMatch(SemiSupervised):
    """FixMatch (Sohn et al. 2020, arXiv 2001.07685): confident predictions on weak views are labels of strong ones.

    Predictions are those of an EMA teacher (Semi-ViT), or of the model itself without dropout. With `adaptive`, the
    thresholds are FreeMatch's (Wang et al. 2023, arXiv 2205.07246). Its moving means change after the update, so the
    thresholds of a step follow from the steps before; the paper includes the step itself, and has a fairness loss.
    """

    confidence: Tensor
    mean_C: Tensor

    def __init__(self, factory: Callable[[], ImageModel], config: FixMatchConfig, context: ObjectiveContext) -> None:
        super().__init__(factory, config, context)
        self.config = config
        if config.adaptive != "none":
            classes = self.model.config.num_classes
            self.register_buffer("confidence", torch.tensor(1 / classes))
            self.register_buffer("mean_C", torch.full((classes,), 1 / classes))

    def unlabeled_part(self, batch: Batch, step: int) -> UnlabeledPart:
        """Return the cross-entropy; metric `pseudo_share`: share of the rows that teach; with `adaptive`, `threshold`:
        the mean of their thresholds."""
        weak, strong = batch.views
        p_BC = probabilities(self.predictions(weak.images_BCHW))
        labels = pseudo_labels(p_BC)
        logits_BC = self.model(strong.images_BCHW)
        if self.config.adaptive == "none":
            loss, share = pseudo_label_loss(logits_BC, labels, self.config.threshold)
            return UnlabeledPart(loss, logits_BC, {"pseudo_share": share})
        threshold_B = class_thresholds(self.confidence, self.mean_C)[p_BC.argmax(-1)]
        loss, share = pseudo_label_loss(logits_BC, labels, threshold_B)
        means = {"confidence": labels.confidence_B.mean(), "probabilities": p_BC.mean(0)}
        return UnlabeledPart(loss, logits_BC, {"pseudo_share": share, "threshold": threshold_B.mean()}, means)

    @torch.no_grad()
    def predictions(self, images_BCHW: Tensor) -> Tensor:
        """Return the logits that pseudo-labels come from."""
        if self.teacher is not None:
            return self.teacher(images_BCHW)
        with steady(self.model, images_BCHW, wide=False):
            return self.model(images_BCHW)

    def after_update(self, step: int, means: Mapping[str, Tensor], found_inf: Tensor) -> None:
        """Move the teacher and, with `adaptive`, the moving means, by those over all processes."""
        super().after_update(step, means, found_inf)
        if self.config.adaptive != "none" and means:
            confidence, mean_C = distributed.mean([means["confidence"], means["probabilities"]])
            move(self.confidence, confidence, self.config.threshold_momentum, found_inf)
            move(self.mean_C, mean_C, self.config.threshold_momentum, found_inf)


class SemiViT(SemiSupervised):
    """Semi-ViT (Cai et al. 2022, arXiv 2208.05688): FixMatch with an EMA teacher and probabilistic pseudo mixup, which
    mixes all unlabeled images of a batch, confident or not, with their pseudo-labels and confidences."""

    def __init__(self, factory: Callable[[], ImageModel], config: SemiViTConfig, context: ObjectiveContext) -> None:
        super().__init__(factory, config, context)
        self.config, self.quantiles_Q = config, beta_quantiles(config.pseudo_mixup)

    @property
    def adds_up(self) -> bool:
        """Not where micro-batches cut the groups of 8 that are mixed."""
        return False

    def unlabeled_part(self, batch: Batch, step: int) -> UnlabeledPart:
        """Return the cross-entropy on mixed strong views; metric `pseudo_share`: share of the mixed rows that teach."""
        assert self.teacher is not None
        weak, strong = batch.views
        pairs = draw_pairs(self.seed, step, batch.sample_ids_B.to(strong.images_BCHW.device), self.quantiles_Q)
        labels: PseudoLabels = pseudo_labels(probabilities(self.teacher(weak.images_BCHW)))
        logits_BC = self.model(mix(unit_images(strong.images_BCHW), pairs))
        loss, share = pseudo_label_loss(logits_BC, mix_labels(labels, pairs), self.config.threshold)
        return UnlabeledPart(loss, logits_BC, {"pseudo_share": share})
