"""A classifier that reads images as codes: what needs gradients by the pixels is refused, not run without any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers import TINY, random_model
from vitral.attacks.config import PgdConfig, SquareConfig
from vitral.errors import UserError
from vitral.run.attack import attack
from vitral.run.command_options import AttackOptions, EvalOptions, ExplainOptions
from vitral.run.config import load_config
from vitral.run.evaluate import evaluate
from vitral.run.explain import explain
from vitral.run.train import run


def test_attacks_are_those_by_answers() -> None:
    """A palette's gradients are none, so PGD would find every answer robust."""
    random_model(Path("codes"), tuple("0123456789"), "igpt_micro_8")
    keys: dict[str, Any] = {"data": {"source": "digits"}, "samples": 20, "check": "none", "batch_size": 20}
    with pytest.raises(UserError, match=r"(?s)^attack.kind: this attack needs gradients.*got: +pgd.*square"):
        attack("codes", AttackOptions(attack=PgdConfig(), **keys))
    with pytest.raises(UserError, match=r"(?s)needs gradients by the images.*square"):
        evaluate("codes", EvalOptions.model_validate({"data": {"source": "digits"}, "eval": {"pgd": {}}}))
    found = attack("codes", AttackOptions(attack=SquareConfig(kind="square", queries=5), **keys))
    assert found["robust_top1"] <= found["clean_top1"]


def test_gradients_are_not_drawn() -> None:
    random_model(Path("codes"), preset="igpt_micro_8")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("black.png")
    with pytest.raises(UserError, match=r"(?s)^methods: integrated gradients need.*got: +igpt_micro_8"):
        explain("codes", ["black.png"], ExplainOptions(out="page", methods=("integrated_gradients",)))


@pytest.mark.parametrize("keys", [
    {"objective.kind": "adversarial"}, {"objective.kind": "vat", "data.labels_per_class": 5}
])  # fmt: skip
def test_no_run_learns_by_them(keys: dict[str, Any]) -> None:
    tiny = {**TINY, **dict.fromkeys(("model.pool",)), "model.name": "igpt_micro_8", "check.skip": True, "out": "a"}
    with pytest.raises(UserError, match=r"(?s)needs gradients by the images.*Image GPT"):
        run(load_config("digits", {**tiny, **keys}))
