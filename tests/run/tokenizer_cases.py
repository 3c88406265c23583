"""Keys of image tokenizers, each set to another value: lines as in test_keys.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.run.outcomes import Case, shapes, weights

VQ: Mapping[str, Any] = {
    "model.name": "vq_micro_patch2_8", "objective.kind": "tokenizer", "model.pool": None, "train.eval_every": "end",
    "model.heads": None, "model.mlp_dim": None, "model.codes": 8, "model.depth": 1, "model.width": 16,
    "eval": {"reconstruction": {"baseline": False}},
}  # fmt: skip
GUMBEL: Mapping[str, Any] = {**VQ, "model.quantizer": "gumbel"}

TOKENIZER_CASES: dict[str, Case] = {
    "model.quantizer": Case("gumbel", shapes, VQ),
    "model.codes": Case(9, shapes, VQ),
    "model.levels": Case([2, 4], weights, {**VQ, "model.name": "fsq_micro_patch2_8", "model.levels": [4, 2]}),
    "model.code_width": Case(5, shapes, VQ),
    "model.coder": Case("vit", shapes, {**VQ, "model.heads": None}),
    "objective.ssim_weight": Case(0.5, weights, VQ),
    "objective.commitment": Case(2.0, weights, VQ),
    "objective.codebook_decay": Case(0.5, weights, VQ),
    "objective.restart_below": Case(1.0, weights, {**VQ, "objective.restart_every": 1}),
    "objective.restart_every": Case(1, weights, {**VQ, "objective.restart_below": 1.0}),
    "objective.temperature": Case(0.3, weights, GUMBEL),
    "objective.temperature_final": Case(0.3, weights, GUMBEL),
    "objective.kl_weight": Case(1.0, weights, GUMBEL),
}
