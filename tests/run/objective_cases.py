"""Keys of objectives, each set to another value: lines of the same kind as in test_keys.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.run.adversarial_cases import ADVERSARIAL_CASES
from tests.run.beit_cases import BEIT_CASES
from tests.run.detection_cases import DETECTION_CASES
from tests.run.dino_cases import DINO_CASES
from tests.run.igpt_cases import IGPT_CASES
from tests.run.mae_cases import MAE_CASES
from tests.run.outcomes import Case, judged, weights
from tests.run.semi_cases import SEMI_CASES
from tests.run.tokenizer_cases import TOKENIZER_CASES

MASKED_PATCH: Mapping[str, Any] = {"objective.kind": "masked_patch", "train.eval_every": 0.02}

OBJECTIVE_CASES: dict[str, Case] = {
    "eval": Case({"knn": {"k": 1}}, judged, MASKED_PATCH),
    "data.target": Case(["ink"], weights, {"objective.kind": "regression", "data.target": ["digit"]}),
    "objective.mask_ratio": Case(0.2, weights, MASKED_PATCH),
    "objective.mask_token_prob": Case(0.0, weights, MASKED_PATCH),
    "objective.swap_prob": Case(0.0, weights, MASKED_PATCH),
    "objective.target": Case("pixels", weights, MASKED_PATCH),
    **MAE_CASES,
    **BEIT_CASES,
    **IGPT_CASES,
    **TOKENIZER_CASES,
    **DINO_CASES,
    **DETECTION_CASES,
    **ADVERSARIAL_CASES,
    **SEMI_CASES,
}
