"""Keys of detectors, each set to another value: lines as in test_keys.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.objectives.scenes import SMALL
from tests.run.outcomes import Case, shapes, weights

DETECTION: Mapping[str, Any] = {
    **SMALL, "data.path": "scenes", "data.source": "auto", "objective.kind": "detection", "model.pool": None,
    "objective.level_side": 3.0, "data.resize_mode": "pad",
}  # fmt: skip

DETECTION_CASES: dict[str, Case] = {
    "model.strides": Case([4, 8, 16], shapes, DETECTION),
    "model.pyramid_width": Case(16, shapes, DETECTION),
    "model.tower_depth": Case(2, shapes, DETECTION),
    "augment.mosaic": Case(1.0, weights, DETECTION),
    "augment.copy_paste": Case(1.0, weights, DETECTION),
    "objective.focal_alpha": Case(0.5, weights, DETECTION),
    "objective.focal_gamma": Case(0.0, weights, DETECTION),
    "objective.box_weight": Case(3.0, weights, DETECTION),
    "objective.quality_weight": Case(3.0, weights, DETECTION),
    "objective.level_side": Case(1.0, weights, DETECTION),
    "objective.center_radius": Case(0.8, weights, DETECTION),
}
