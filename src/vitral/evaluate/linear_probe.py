"""The linear probe: logistic regression on frozen features.

Shape letters: N train samples, M evaluated samples, D width, C classes.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from vitral.data.splits import VAL_SEED, stratified
from vitral.errors import UserError
from vitral.evaluate.config import LinearConfig
from vitral.evaluate.features import Embedded, Metrics, accuracy, check

log = logging.getLogger("vitral")

_EPS = 1e-6  # of MAE's BatchNorm
_ROWS = 16_384  # samples of which logits exist at once


class Head(NamedTuple):
    """Logits are (features - shift) / scale @ weight' + bias."""

    weight_CD: Tensor
    bias_C: Tensor
    shift_D: Tensor
    scale_D: Tensor

    def predict(self, features_ND: Tensor) -> Tensor:
        """The class of each sample [N]."""
        rows = features_ND.split(_ROWS)
        logits = (((x_ND - self.shift_D) / self.scale_D) @ self.weight_CD.T + self.bias_C for x_ND in rows)
        return torch.cat([logits_NC.argmax(1) for logits_NC in logits])


def linear(train: Embedded, evaluated: Embedded, classes: int, config: LinearConfig) -> Metrics:
    """Top-1 of a linear classifier on the features, its penalty chosen on held-out train samples.

    Every l2 is fitted without a stratified part of train (a class's only sample is never held out), the one best there
    (the largest of equals) is fitted again to all of train, and that head alone sees the evaluated samples: the
    protocol of CLIP (arXiv 2103.00020, A.3) on a coarser grid. `l2` is the chosen one, `val_top1` the accuracy of each
    where there are several; the log says where the best lies at an end of the list, and which fit didn't converge. Fits
    run in the features' own precision: float32 is enough, as the penalty keeps the problem well-conditioned. Raises
    UserError where no class has two samples to choose by, and as `embedded.check` does.
    """
    check(train, evaluated, classes)
    strengths = sorted(set(config.l2), reverse=True)
    best, shares = strengths[0], dict[str, float]()
    if len(strengths) > 1:
        kept, held = _hold_out(train, config.val_fraction)
        head = None
        for l2 in strengths:  # from strong to weak: each fit starts where the last one ended
            head = fit(kept, classes, l2, batchnorm=config.batchnorm, steps=config.steps, start=head)
            shares[str(l2)] = dict(accuracy(head.predict(held.features_ND), held.labels_N))["top1"]
        best = max(strengths, key=lambda l2: shares[str(l2)])
        beside = strengths[1] if best == strengths[0] else strengths[-2] if best == strengths[-1] else best
        if shares[str(best)] > shares[str(beside)]:
            text = "linear.l2: the best, %g, is at an end of the list; one beyond it may be better"
            log.warning(text, best)
    head = fit(train, classes, best, batchnorm=config.batchnorm, steps=config.steps)
    yield from accuracy(head.predict(evaluated.features_ND), evaluated.labels_N)
    yield "l2", best
    yield "val_top1", shares


def fit(train: Embedded, classes: int, l2: float, *, batchnorm: bool, steps: int, start: Head | None = None) -> Head:
    """The head with the least mean cross-entropy + l2 / 2 |weight|^2, by L-BFGS over all samples at once.

    batchnorm: features are standardized first, which over a frozen, whole train set is what BatchNorm without scale and
    shift does (MAE, arXiv 2111.06377, appendix A; its images are augmented, ours are not). The bias is not penalized.
    """
    features_ND, labels_N = train
    shift_D, scale_D = torch.zeros_like(features_ND[0]), torch.ones_like(features_ND[0])
    if batchnorm:
        shift_D, scale_D = features_ND.mean(0), (features_ND.var(0, correction=0) + _EPS).sqrt()
    inputs_ND = (features_ND - shift_D) / scale_D
    weight_CD = features_ND.new_zeros(classes, features_ND.shape[1]) if start is None else start.weight_CD.clone()
    bias_C = features_ND.new_zeros(classes) if start is None else start.bias_C.clone()
    parameters = [weight_CD.requires_grad_(), bias_C.requires_grad_()]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=steps, max_eval=2 * steps, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = (l2 / 2) * weight_CD.square().sum()
        total.backward()
        for x_ND, y_N in zip(inputs_ND.split(_ROWS), labels_N.split(_ROWS), strict=True):
            loss = cross_entropy(x_ND @ weight_CD.T + bias_C, y_N, reduction="sum") / len(labels_N)
            loss.backward()
            total = total + loss
        return total.detach()

    with torch.enable_grad():
        optimizer.step(closure)
    if optimizer.state[weight_CD]["n_iter"] >= steps:
        log.info("linear: at l2 = %g not converged after linear.steps=%d", l2, steps)
    return Head(weight_CD.detach(), bias_C.detach(), shift_D, scale_D)


def _hold_out(train: Embedded, fraction: float) -> tuple[Embedded, Embedded]:
    """Split train into samples to fit and samples to choose the penalty by."""
    labels = train.labels_N.cpu().numpy()
    divisible = np.flatnonzero(np.bincount(labels)[labels] > 1)
    if not len(divisible):
        raise UserError(
            "no class has two train images, so none can be held out",
            where="linear.l2",
            expected="one value, not several",
        )
    held = divisible[stratified(labels[divisible], fraction, VAL_SEED)]
    kept = np.setdiff1d(np.arange(len(labels)), held)
    parts = (torch.from_numpy(places).to(train.labels_N.device) for places in (kept, held))
    kept_part, held_part = (Embedded(train.features_ND[places], train.labels_N[places]) for places in parts)
    return kept_part, held_part
