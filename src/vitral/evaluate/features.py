"""Inputs and results of the probes: features with labels, accuracy of predictions.

Shape letters: N samples, D width of the features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vitral import distributed
from vitral.errors import UserError
from vitral.evaluate.classification import wilson_interval

if TYPE_CHECKING:
    from vitral.models.model import ImageModel

Metrics = Iterator[tuple[str, Any]]


class Embedded(NamedTuple):
    """Features of images, floats [N, D], and their class indices, int64 [N], on one device."""

    features_ND: Tensor
    labels_N: Tensor


@torch.inference_mode()
def embed_batches(model: ImageModel, batches: Iterable[tuple[Tensor, Tensor]]) -> Embedded:
    """Pooled features and labels of every image, on every process; each gives its share of the batches."""
    model.eval()
    rows, labels = list[Tensor](), list[Tensor]()
    for images_BCHW, labels_B in batches:
        rows.append(model.pool(model.encode(images_BCHW)).float().cpu())
        labels.append(labels_B.cpu())
    device = next(model.parameters()).device
    found = (torch.from_numpy(distributed.gather_rows(torch.cat(each).numpy())).to(device) for each in (rows, labels))
    return Embedded(*found)


def check(train: Embedded, evaluated: Embedded, classes: int) -> None:
    """Raises UserError for no samples and for features that aren't finite; asserts that shapes and labels fit."""
    for name, (features_ND, labels_N) in (("train", train), ("evaluated", evaluated)):
        if not len(labels_N):
            raise UserError(f"no {name} samples to evaluate")
        assert features_ND.ndim == 2, features_ND.shape
        assert len(features_ND) == len(labels_N), (features_ND.shape, labels_N.shape)
        assert 0 <= int(labels_N.min()) <= int(labels_N.max()) < classes, (labels_N.min(), labels_N.max(), classes)
        broken = int((~torch.isfinite(features_ND)).any(dim=1).sum())
        if broken:
            raise UserError(
                "the model's features aren't finite", got=f"NaN or infinity in {broken} of {len(labels_N)}",
                hint="Did the training diverge?",
            )  # fmt: skip


def accuracy(predicted_N: Tensor, labels_N: Tensor) -> Metrics:
    """`top1` in [0,1], its 95 % Wilson interval `top1_interval`, `count`."""
    correct, count = int((predicted_N == labels_N).sum()), len(labels_N)
    yield "top1", correct / count
    yield "top1_interval", list(wilson_interval(correct, count))
    yield "count", count
