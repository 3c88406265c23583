"""Keys of semi-supervised objectives, each set to another value: lines of the same kind as in test_keys.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.run.outcomes import Case, weights
from vitral.training.metrics_log import MetricsLog


def thresholds(out: Path) -> object:
    """The adaptive thresholds of each step: in few steps all predictions exceed them."""
    return [row["threshold"] for row in MetricsLog.read(out) if "threshold" in row]


_FEW = {"data.labels_per_class": 5}
VAT: Mapping[str, Any] = {**_FEW, "objective.kind": "vat"}
MEAN_TEACHER: Mapping[str, Any] = {**_FEW, "objective.kind": "mean_teacher"}
# A threshold that all predictions of ten classes exceed.
FIXMATCH: Mapping[str, Any] = {**_FEW, "objective.kind": "fixmatch", "objective.threshold": 0.1001}
FREEMATCH: Mapping[str, Any] = {
    **_FEW, "objective.kind": "fixmatch", "objective.adaptive": "freematch", "train.log_every": 1
}  # fmt: skip
SEMI_VIT: Mapping[str, Any] = {**_FEW, "objective.kind": "semi_vit", "objective.threshold": 0.1001}

SEMI_CASES: dict[str, Case] = {
    "objective.unlabeled_weight": Case(3.0, weights, VAT),
    "objective.supervised_warmup": Case(0.5, weights, VAT),
    "objective.unlabeled_rampup": Case(1.0, weights, VAT),  # of step 0 the head is 0, and so is its loss
    "objective.eps": Case(0.5, weights, VAT),
    "objective.xi": Case(0.01, weights, VAT),
    "objective.power_iterations": Case(2, weights, VAT),
    "objective.entropy_weight": Case(1.0, weights, VAT),
    "objective.strong": Case({"rotate": 45.0}, weights, FIXMATCH),
    "objective.distance": Case("kl", weights, MEAN_TEACHER),
    "objective.teacher_ema": Case(0.05, weights, MEAN_TEACHER),
    "objective.threshold": Case(0.9, weights, FIXMATCH),
    "objective.teacher": Case("self", weights, FIXMATCH),
    "objective.adaptive": Case("freematch", weights, {**_FEW, "objective.kind": "fixmatch"}),
    "objective.threshold_momentum": Case(0.2, thresholds, FREEMATCH),
    "objective.pseudo_mixup": Case(5.0, weights, SEMI_VIT),
}
