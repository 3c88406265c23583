"""Weighted k-nearest-neighbor evaluation of frozen features.

Shape letters: N train samples, M evaluated samples, B evaluated samples of a block, D width, C classes, K neighbors, J
numbers of neighbors that are tried.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vitral.evaluate.config import KnnConfig
from vitral.evaluate.features import Embedded, Metrics, accuracy, check

# Similarities are computed in blocks of 512 x 32,768, 64 MB: no full matrix ever exists.
_QUERIES, _TRAIN = 512, 32_768


def knn(train: Embedded, evaluated: Embedded, classes: int, config: KnnConfig) -> Metrics:
    """Top-1 of the vote of the k most similar train samples, for each k of the config.

    A neighbor votes for its class with exp(cosine similarity / temperature): Wu et al. 2018 (arXiv 1805.01978) and
    DINO (2104.14294). `per_k`: accuracy by k; `top1`, `top1_interval` and `count` are those of `best_k`, the best k on
    the evaluated samples themselves (the smallest of equals), so with several k it is a little flattering. A k above N
    is taken as N, with a warning. Similarities are float32: of neighbors that differ by less than its rounding, 1e-7,
    any may come first. Raises UserError as `embedded.check` does.
    """
    check(train, evaluated, classes)
    most = len(train.labels_N)
    if max(config.k) > most:
        warning = "knn.k: %s clipped to the %d train samples"
        logging.getLogger("vitral").warning(warning, ", ".join(str(k) for k in config.k if k > most), most)
    ks = sorted({min(k, most) for k in config.k})
    predicted_MJ = _votes(train, evaluated.features_ND, classes, ks, config.temperature)
    per_k = {k: dict(accuracy(predicted_MJ[:, j], evaluated.labels_N)) for j, k in enumerate(ks)}
    best = max(ks, key=lambda k: per_k[k]["top1"])
    yield from per_k[best].items()
    yield "best_k", best
    yield "per_k", {str(k): found for k, found in per_k.items()}


def _votes(train: Embedded, query_MD: Tensor, classes: int, ks: Sequence[int], temperature: float) -> Tensor:
    """The class with the most votes of the k nearest, for each k of ascending `ks`: [M, J]."""
    train_ND = normalize(train.features_ND.float(), dim=1)
    rows: list[Tensor] = []
    for queries_BD in query_MD.split(_QUERIES):
        similarity_BK, place_BK = _nearest(normalize(queries_BD.float(), dim=1), train_ND, ks[-1])
        # Relative to the nearest neighbor, as exp(1 / temperature) alone may overflow.
        weight_BK = ((similarity_BK - similarity_BK[:, :1]) / temperature).exp()
        label_BK = train.labels_N[place_BK]
        votes_BC = weight_BK.new_zeros(len(queries_BD), classes)
        columns: list[Tensor] = []
        for start, k in zip([0, *ks], ks, strict=False):
            votes_BC.scatter_add_(1, label_BK[:, start:k], weight_BK[:, start:k])
            columns.append(votes_BC.argmax(1))
        rows.append(torch.stack(columns, dim=1))
    return torch.cat(rows)


def _nearest(queries_BD: Tensor, train_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Similarities, falling, and places of the k nearest train samples: [B, K] each."""
    best_BK = queries_BD.new_empty(len(queries_BD), 0)
    place_BK = torch.empty(len(queries_BD), 0, dtype=torch.int64, device=queries_BD.device)
    for start in range(0, len(train_ND), _TRAIN):
        similarity_BN = queries_BD @ train_ND[start : start + _TRAIN].T
        found_BK, where_BK = similarity_BN.topk(min(k, similarity_BN.shape[1]), dim=1)
        candidates_BK = torch.cat([best_BK, found_BK], dim=1)
        best_BK, chosen_BK = candidates_BK.topk(min(k, candidates_BK.shape[1]), dim=1)
        place_BK = torch.cat([place_BK, where_BK + start], dim=1).gather(1, chosen_BK)
    return best_BK, place_BK
