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

TWO_STAGES: Mapping[str, Any] = {**DETECTION, "model.second_stage": 8, "model.proposals": 4}
# All boxes of an untrained teacher teach.
SOFT: Mapping[str, Any] = {
    **TWO_STAGES, "objective.kind": "soft_teacher", "data.labeled_images": 4, "objective.threshold": 0.02,
    "objective.max_spread": 9.0,
}  # fmt: skip
TRIED: Mapping[str, Any] = {**SOFT, "objective.threshold": 0.9, "objective.min_score": 0.02}  # boxes teach, not classes

DETECTION_CASES: dict[str, Case] = {
    "model.strides": Case([4, 8, 16], shapes, DETECTION),
    "model.pyramid_width": Case(16, shapes, DETECTION),
    "model.tower_depth": Case(2, shapes, DETECTION),
    "model.second_stage": Case(16, shapes, TWO_STAGES),
    "model.proposals": Case(3, weights, TWO_STAGES),
    "data.labeled_images": Case(6, weights, {**DETECTION, "data.labeled_images": 10}),
    "objective.second_stage_weight": Case(3.0, weights, TWO_STAGES),
    "objective.min_score": Case(0.03, weights, {**TRIED, "objective.min_score": 0.5}),
    "objective.jitter": Case(0.5, weights, {**TRIED, "objective.max_spread": 0.1}),
    "objective.jitters": Case(2, weights, {**TRIED, "objective.max_spread": 0.02}),
    "objective.max_spread": Case(9.0, weights, {**TRIED, "objective.max_spread": 1e-9}),
    "augment.mosaic": Case(1.0, weights, DETECTION),
    "augment.copy_paste": Case(1.0, weights, DETECTION),
    "objective.focal_alpha": Case(0.5, weights, DETECTION),
    "objective.focal_gamma": Case(0.0, weights, DETECTION),
    "objective.box_weight": Case(3.0, weights, DETECTION),
    "objective.quality_weight": Case(3.0, weights, DETECTION),
    "objective.level_side": Case(1.0, weights, DETECTION),
    "objective.center_radius": Case(0.8, weights, DETECTION),
}
