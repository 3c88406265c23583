"""What nothing would read is refused, not ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers import TINY
from vitral.errors import UserError
from vitral.run.config import load_config
from vitral.run.train import run


@pytest.mark.parametrize(
    "keys",
    [
        {"model.rope_theta": 3.0}, {"model.stem_epsilons": "google"},
        {"model.positions": "none", "model.positions_at": "stem"},
        {"model.positions": "rope", "model.heads": 2, "model.position_resize": "google"},
        {"model.mlp": "swiglu", "model.gelu": "tanh"}, {"model.positions": "sincos", "model.prefix_positions": False},
        {"optim.momentum": 0.8}, {"optim.timescale": 5}, {"optim.trust_coefficient": 0.1}, {"optim.gamma": 0.5},
        {"optim.cooldown": 0.5}, {"optim.milestones": [0.5]}, {"optim.schedule": "constant", "optim.min_lr_ratio": 0.5},
        {"optim.name": "sgd", "optim.betas": [0.8, 0.9]}, {"lora.alpha": 4.0}, {"lora.targets": "attn"},
    ],
)  # fmt: skip
def test_what_nothing_would_read_is_refused(keys: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no effect here"):
        run(load_config("digits", {**TINY, **keys, "out": str(tmp_path / "a")}))
