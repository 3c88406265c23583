"""Measure the trained model on the images that the run used without labels."""

from __future__ import annotations

from torch import nn

from vitral.data.config import UNLABELED
from vitral.evaluate.pseudo_labels import PseudoLabelQuality, pseudo_label_quality
from vitral.run.eval_target import EvalData
from vitral.run.prepare import RunContext
from vitral.tasks.task import Task
from vitral.training.metrics_log import log

MOST = 10_000  # images, evenly spaced
_UNSURE_SHARE = 0.2


def measure_unlabeled(prepared: RunContext, data: EvalData, model: nn.Module, task: Task) -> PseudoLabelQuality | None:
    """Return the quality of the predictions on unlabeled images, by all processes together; None for objectives without
    such images. Right answers are counted where the labels were hidden by data.labels_per_class."""
    if UNLABELED not in prepared.streams or not (task.has_classes and task.is_exclusive):
        return None
    logits_NC, labels_N = data.subject(model, UNLABELED, most=MOST).outputs()
    return pseudo_label_quality(logits_NC, None if prepared.dataset.hidden is None else labels_N)


def log_unlabeled(quality: PseudoLabelQuality) -> None:
    """Log the result, and a warning where many predictions stay unsure."""
    sure = next(row for row in quality.rows if row.threshold == 0.95)
    known = "" if quality.right is None else f"{100 * quality.right:.2f} % predicted as their hidden label, "
    right = "" if sure.right is None else f", of these {100 * sure.right:.2f} % correct"
    line = "unlabeled images (%d): %s%.1f %% with a confidence above 0.95%s"
    log.info(line, quality.images, known, 100 * sure.share, right)
    if quality.unsure > _UNSURE_SHARE:
        log.warning(
            "%.0f %% of the unlabeled images have a confidence of at most 0.5: the model is not trained to the end, or "
            "they show other classes than the labeled ones", 100 * quality.unsure,
        )  # fmt: skip
