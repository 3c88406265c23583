"""Keys of MAE, and of the few labels that it is fine-tuned on, each set to another value: lines as in test_keys.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.run.outcomes import Case, weights

MAE: Mapping[str, Any] = {
    "objective.kind": "mae", "objective.decoder_width": 16, "objective.decoder_depth": 1, "objective.decoder_heads": 2,
    "train.eval_every": "end",
}  # fmt: skip

MAE_CASES: dict[str, Case] = {
    "data.shots": Case(5),
    "objective.mask_ratio": Case(0.5, weights, MAE),
    "objective.norm_pix_loss": Case(False, weights, MAE),
    "objective.decoder_width": Case(8, weights, MAE),
    "objective.decoder_depth": Case(2, weights, MAE),
    "objective.decoder_heads": Case(4, weights, MAE),
}
