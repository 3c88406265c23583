"""Few-shot accuracy: a closed-form regression of the classes on the features of some images of each.

Shape letters: N train samples, M evaluated samples, D width (of the features, plus one), C classes, E eigenvalues.
"""

from __future__ import annotations

import logging
import statistics

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from vitral.evaluate.classification import wilson_interval
from vitral.evaluate.config import FewshotConfig
from vitral.evaluate.features import Embedded, Metrics, accuracy, check

# The constants of Google's evaluation (big_vision); the paper gives none.
CONSTANT_FEATURE = 100.0  # as large as this, the bias is hardly penalized
STD_ABOVE = 1e-5
L2 = 2.0**10


def fewshot(train: Embedded, evaluated: Embedded, classes: int, config: FewshotConfig) -> Metrics:
    """Top-1 of regularized least squares on a few train samples per class: the paper's few-shot accuracy.

    `per_shot` has for each number of shots the mean `top1` over the seeds, their standard deviation `std` (None for one
    seed) and the single values, `seeds`; the number of train samples used, `images`, and of the smallest class,
    `fewest`, and whether that is `short`. A seed's smaller sets are parts of its larger ones. A class with fewer
    samples gives all it has, with a warning. `top1` is the mean of the last number of shots; its Wilson interval,
    `top1_interval`, is about the choice of evaluated samples, `std` about the choice of train samples. Raises UserError
    as `embedded.check` does. arXiv 2010.11929, section 4.1 (targets in {-1, 1}).
    """
    check(train, evaluated, classes)
    fewest = int(torch.bincount(train.labels_N, minlength=classes).min())
    if max(config.shots) > fewest:
        logging.getLogger("vitral").warning("fewshot.shots: some classes have only %d train samples", fewest)
    per_shot: dict[str, dict[str, object]] = {}
    mean = 0.0
    for shots in config.shots:
        shares: list[float] = []
        fit = train
        for seed in range(config.seeds):
            chosen = choose(train.labels_N, shots, seed)
            fit = Embedded(train.features_ND[chosen], train.labels_N[chosen])
            scores_MC = ridge_scores(fit, evaluated.features_ND, classes)
            shares.append(dict(accuracy(scores_MC.argmax(1), evaluated.labels_N))["top1"])
        mean = statistics.fmean(shares)
        std = statistics.stdev(shares) if len(shares) > 1 else None
        used = {"images": len(fit.labels_N), "fewest": min(shots, fewest), "short": fewest < shots}
        per_shot[str(shots)] = {"top1": mean, "std": std, "seeds": shares, **used}
    count = len(evaluated.labels_N)
    yield "top1", mean
    yield "top1_interval", list(wilson_interval(round(mean * count), count))
    yield "count", count
    yield "per_shot", per_shot


def choose(labels_N: Tensor, shots: int, seed: int) -> Tensor:
    """Places of up to `shots` random samples of each class, the same for the same labels and seed."""
    labels = labels_N.cpu().numpy()
    order_N = np.random.RandomState(seed).permutation(len(labels))  # RandomState: its numbers never change with NumPy
    chosen = [order_N[labels[order_N] == label][:shots] for label in np.unique(labels)]
    return torch.from_numpy(np.concatenate(chosen)).to(labels_N.device)


def ridge_scores(train: Embedded, evaluated_MD: Tensor, classes: int) -> Tensor:
    """Regressed targets of the evaluated samples, float64 [M, C]; the largest is the prediction.

    Features are whitened by mean and std of these train samples; the weights solve (X'X + L2 I) W = X'Y by the
    eigenvalues of the smaller of X'X and XX'. In float64: the constant feature alone makes an eigenvalue of 10^4 N,
    whose float32 rounding would be felt beside L2.
    """
    features_ND = train.features_ND.double()
    mean_D = features_ND.mean(0)
    std_D = features_ND.std(0, correction=0) + STD_ABOVE
    x_ND, evaluated_MD = (
        pad((f - mean_D) / std_D, (0, 1), value=CONSTANT_FEATURE) for f in (features_ND, evaluated_MD)
    )
    y_NC = 2.0 * one_hot(train.labels_N, classes).double() - 1.0
    if x_ND.shape[0] >= x_ND.shape[1]:
        eigen_E, vectors_DE = torch.linalg.eigh(x_ND.T @ x_ND)
        left_DE, right_EC = vectors_DE, vectors_DE.T @ (x_ND.T @ y_NC)
    else:
        eigen_E, vectors_NE = torch.linalg.eigh(x_ND @ x_ND.T)
        left_DE, right_EC = x_ND.T @ vectors_NE, vectors_NE.T @ y_NC
    return evaluated_MD @ ((left_DE / (eigen_E + L2)) @ right_EC)
