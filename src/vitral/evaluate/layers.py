"""Linear probes of all layers of a model.

Shape letters: N samples, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vitral import distributed
from vitral.evaluate.features import Embedded
from vitral.models.features import layer_features
from vitral.models.model import ImageModel


@torch.no_grad()
def embed_layers(
    model: ImageModel, batches: Iterable[tuple[Tensor, Tensor]], layers: Sequence[str]
) -> dict[str, Embedded]:
    """Features of each layer and labels of every image, on every process; each gives its share of the batches. See
    `models.features.layer_features`."""
    rows: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    labels = list[Tensor]()
    for images_BCHW, labels_B in batches:
        labels.append(labels_B.cpu())
        for layer, features_BD in layer_features(model, images_BCHW, layers).items():
            rows[layer].append(features_BD.float().cpu())
    labels_N = _gathered(labels).to(model.device)
    return {layer: Embedded(_gathered(parts).to(model.device), labels_N) for layer, parts in rows.items()}


def best_layer(found: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, dict[str, float]]]:
    """The layer with the best accuracy on held-out train images, the first of equals, and the accuracy of each; found:
    results of `linear` by layer."""
    rows = {layer: {"val_top1": max(each["val_top1"].values()), "top1": each["top1"]} for layer, each in found.items()}
    return max(rows, key=lambda layer: rows[layer]["val_top1"]), rows


def _gathered(parts: Sequence[Tensor]) -> Tensor:
    return torch.from_numpy(distributed.gather_rows(torch.cat(list(parts)).numpy()))
