"""Keys of BEiT, each set to another value: lines as in test_keys.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.run.outcomes import Case, shapes, weights

BEIT: Mapping[str, Any] = {"objective.kind": "beit", "objective.codes": 8, "train.eval_every": "end"}

BEIT_CASES: dict[str, Case] = {
    "model.key_bias": Case(False, shapes),
    "model.weight_init": Case("beit", weights),
    "objective.tokenizer": Case("vitral-digits", weights, BEIT),
    "objective.codes": Case(4, weights, BEIT),
}
