"""Metrics of classification with confidence intervals, and the logits that they need.

Shape letters: N samples, C classes, B batch, H W height and width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitral import distributed
from vitral.errors import UserError
from vitral.evaluate.calibration import (
    Floats,
    Ints,
    checked,
    expected_calibration_error,
    negative_log_likelihood,
    positive,
    softmax,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

NORMAL_95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution


def wilson_interval(correct: int, count: int, z: float = NORMAL_95) -> tuple[float, float]:
    """The score interval (low, high) in [0,1] for a share `correct / count`; 95 % with the default z.

    Honest for few samples and near 0 and 1: 10 of 10 gives 0.72 to 1. Raises UserError unless 0 <= correct <= count and
    count >= 1. Wilson 1927 (JASA 22:209).
    """
    if not 0 <= correct <= count or count < 1:
        raise UserError(
            "no share to give an interval for", got=f"{correct} of {count}", expected="0 <= correct <= count >= 1"
        )
    share, square = correct / count, z * z
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = z / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    return (0.0 if correct == 0 else middle - half), (1.0 if correct == count else middle + half)


def classification_metrics(
    logits_NC: ArrayLike, labels_N: ArrayLike, classes: Sequence[str], temperature: float = 1.0
) -> dict[str, Any]:
    """Everything that a single-label evaluation reports, ready for JSON; shares are fractions in [0,1].

    `top1`, `top1_interval` [low, high] (95 % Wilson), `top5` (with more than 5 classes only), `count`, `baseline` (the
    top-1 of always predicting `baseline_class`, the most common class), `loss` (plain cross-entropy of the
    logits as they are, nats), `ece` (15 bins, after `temperature`), `ece_uncalibrated` (before),
    `per_class` {name: {precision, recall, f1, count}} with None where the divisor is 0, and `confusion`, rows of counts
    (row = truth, column = prediction). Of equal scores the lowest class index comes first, in top-1 and top-5, so a
    model that gives every class the same score is no better than its first class. Raises UserError for class names
    that are twice there or don't fit the logits, a temperature that isn't positive, and as `calibration.checked` does.
    """
    logits, labels = checked(logits_NC, labels_N)
    check_classes(classes, logits.shape[1])
    ranks_N = _ranks(logits, labels)
    confusion_CC = _confusion(labels, logits.argmax(axis=1), len(classes))
    correct, count = int((ranks_N == 0).sum()), len(labels)
    commonest = int(confusion_CC.sum(axis=1).argmax())
    return {
        "top1": correct / count,
        "top1_interval": list(wilson_interval(correct, count)),
        **({"top5": float((ranks_N < 5).mean())} if len(classes) > 5 else {}),
        "count": count,
        "baseline": int(confusion_CC[commonest].sum()) / count,
        "baseline_class": classes[commonest],
        "loss": negative_log_likelihood(logits, labels),
        "ece": expected_calibration_error(softmax(logits / positive(temperature)), labels),
        "ece_uncalibrated": expected_calibration_error(softmax(logits), labels),
        "per_class": per_class_scores(
            np.diagonal(confusion_CC), confusion_CC.sum(axis=1), confusion_CC.sum(axis=0), classes
        ),
        "confusion": confusion_CC.tolist(),
    }


def check_classes(classes: Sequence[str], width: int) -> None:
    """Raises UserError for class names that are twice there or don't fit the logits."""
    if len(classes) != width:
        raise UserError(
            "number of class names does not match the logits", got=f"{len(classes)} names", expected=f"{width} names"
        )
    twice = sorted({name for name in classes if list(classes).count(name) > 1}) if len(set(classes)) < width else []
    if twice:
        raise UserError("duplicate class names", got=", ".join(map(repr, twice)))


def _ranks(logits_NC: Floats, labels_N: Ints) -> Ints:
    """Return the rank of the true class [N]; 0 is correct."""
    own_N1 = logits_NC[np.arange(len(labels_N)), labels_N][:, None]
    earlier_NC = np.arange(logits_NC.shape[1]) < labels_N[:, None]
    return ((logits_NC > own_N1) | ((logits_NC == own_N1) & earlier_NC)).sum(axis=1)


def _confusion(labels_N: Ints, predictions_N: Ints, classes: int) -> Ints:
    """Counts [C,C]: row = truth, column = prediction."""
    flat = np.bincount(labels_N * classes + predictions_N, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def ratio(part: Any, total: Any) -> float | None:
    """Return part / total; None where the total is 0."""
    return float(part / total) if total else None


def per_class_scores(
    correct_C: Ints, truth_C: Ints, predicted_C: Ints, classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return precision, recall, F1 and count per class; None where the divisor is 0."""
    return {
        name: {
            "precision": ratio(correct, predicted), "recall": ratio(correct, truth),
            "f1": ratio(2 * correct, truth + predicted), "count": int(truth),
        }
        for name, correct, truth, predicted in zip(classes, correct_C, truth_C, predicted_C, strict=True)
    }  # fmt: skip


def collect_logits(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], compact: Callable[[Tensor], Tensor] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits float32 [N,C] and labels int64 [N] of every sample in `batches` of (images_BCHW, labels_B), in order;
    multi-label labels are [B,C], and numbers as targets float64 [B,C]; they stay so. compact: what is kept of outputs
    of any shape, in place of logits.

    Runs the model in eval mode on its own device, without gradients; every module's mode is afterwards as it was, also
    after an error. Nothing is padded, repeated or dropped: N is the sum of the batch sizes. Raises UserError for no
    batches and for a model that doesn't give one row of logits for each label.
    """
    import torch

    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    modes = [(module, module.training) for module in model.modules()]
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    try:
        model.eval()
        # Shards of weights are gathered into tensors that training uses too, so these must not be inference tensors.
        with torch.no_grad() if any(map(distributed.is_sharded, model.parameters())) else torch.inference_mode():
            for images_BCHW, labels_B in batches:
                logits_BC = model(images_BCHW.to(device, non_blocking=True))
                if compact is not None:
                    logits_BC = compact(logits_BC)
                elif (
                    logits_BC.ndim != 2
                    or len(logits_BC) != len(labels_B)
                    or (labels_B.ndim != 1 and labels_B.shape != logits_BC.shape)
                ):
                    got = f"logits {tuple(logits_BC.shape)} for labels {tuple(labels_B.shape)}"
                    raise UserError("shapes of logits and labels do not match", got=got, expected="(B, C) and (B,)")
                logits.append(logits_BC.float().cpu())
                labels.append(labels_B.cpu() if labels_B.is_floating_point() else labels_B.to("cpu", torch.int64))
    finally:
        for module, training in modes:
            module.training = training
    if not logits:
        raise UserError("no samples to evaluate", got="no batches")
    return torch.cat(logits).numpy(), torch.cat(labels).numpy()
