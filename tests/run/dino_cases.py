"""Keys of DINO and iBOT, each set to another value: lines of the same kind as in test_keys.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.run.outcomes import Case, weights

_HEAD = {"objective.out_dim": 8, "objective.head_hidden": 8, "objective.head_bottleneck": 4}
DINO: Mapping[str, Any] = {
    "objective.kind": "dino",
    "objective.local_crops": 1,
    "objective.freeze_last_layer": 0.0,
    **_HEAD,
}
IBOT: Mapping[str, Any] = {**DINO, "objective.kind": "ibot"}
BALANCED: Mapping[str, Any] = {**DINO, "objective.centering": "sinkhorn"}

DINO_CASES: dict[str, Case] = {
    "objective.local_crops": Case(2, weights, DINO),
    "objective.global_scale": Case([0.9, 1.0], weights, DINO),
    "objective.local_scale": Case([0.5, 0.6], weights, DINO),
    "objective.local_size": Case(6, weights, DINO),
    "objective.blur": Case([0.0, 0.0, 0.0], weights, DINO),
    "objective.solarize": Case(1.0, weights, DINO),
    "objective.out_dim": Case(9, weights, DINO),
    "objective.head_depth": Case(2, weights, DINO),
    "objective.head_hidden": Case(9, weights, DINO),
    "objective.head_bottleneck": Case(5, weights, DINO),
    "objective.head_norm": Case("batch", weights, DINO),
    "objective.norm_last_layer": Case(False, weights, DINO),
    "objective.centering": Case("sinkhorn", weights, DINO),
    "objective.center_momentum": Case(0.5, weights, DINO),
    "objective.sinkhorn_rounds": Case(1, weights, BALANCED),
    "objective.student_temperature": Case(0.2, weights, DINO),
    "objective.teacher_temperature": Case(0.05, weights, DINO),
    "objective.teacher_temperature_start": Case(0.05, weights, DINO),
    "objective.temperature_warmup": Case(0.9, weights, DINO),
    "objective.momentum": Case(0.9, weights, DINO),
    "objective.momentum_final": Case(0.999, weights, DINO),
    "objective.freeze_last_layer": Case(1.0, weights, DINO),
    "objective.koleo": Case(0.1, weights, DINO),
    "objective.mask": Case("random", weights, IBOT),
    "objective.mask_ratio": Case([0.3, 0.4], weights, IBOT),
    "objective.mask_probability": Case(1.0, weights, IBOT),
    "objective.mask_spread": Case(True, weights, IBOT),
    "objective.patch_weight": Case(0.5, weights, IBOT),
    "objective.patch_head": Case("last_layer", weights, IBOT),
}
