"""Keys of adversarial training, each set to another value: lines of the same kind as in test_keys.py.

A key that several attacks have is the same field of the same class or of one with its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import TINY
from tests.run.outcomes import Case, logged, weights
from vitral.objectives.adversarial import Adversarial
from vitral.run.config import load_config
from vitral.run.train import run
from vitral.training.metrics_log import MetricsLog

ADVERSARIAL: Mapping[str, Any] = {
    "objective.kind": "adversarial", "objective.attack.steps": 2, "objective.attack.eps": 0.1,
    "objective.monitor_images": 0, "train.log_every": 1,
}  # fmt: skip
# The head starts at 0, where nothing an attack does makes a difference.
MORE: Mapping[str, Any] = {**ADVERSARIAL, "train.steps": 12, "objective.eps_warmup": 0.0}
NO_STEPS: Mapping[str, Any] = {key: value for key, value in ADVERSARIAL.items() if not key.endswith("steps")}


def monitored(out: Path) -> object:
    """Steps of the rows with measurements under attack."""
    return [row["step"] for row in MetricsLog.read(out) if "pgd_top1" in row]


def attack(kind: str, base: Mapping[str, Any] = ADVERSARIAL, **keys: Any) -> dict[str, Any]:
    """A run with this attack."""
    return {**base, "objective.attack.kind": kind, **{f"objective.attack.{key}": value for key, value in keys.items()}}


ADVERSARIAL_CASES: dict[str, Case] = {
    "objective.attack.kind": Case("mifgsm", weights, ADVERSARIAL),
    "objective.attack.norm": Case("l2", weights, ADVERSARIAL),
    "objective.attack.eps": Case("1/255", weights, ADVERSARIAL),
    "objective.attack.steps": Case(3, weights, ADVERSARIAL),
    "objective.attack.step": Case(0.01, weights, ADVERSARIAL),
    "objective.attack.random_start": Case(False, weights, ADVERSARIAL),
    "objective.attack.restarts": Case(4, weights, MORE),
    "objective.attack.noise": Case(0.5, weights, attack("nfgsm", NO_STEPS)),
    "objective.attack.momentum": Case(0.0, weights, attack("mifgsm")),
    "objective.attack.loss": Case("dlr", weights, attack("apgd")),
    "objective.attack.targets": Case(2, weights, attack("apgd", loss="dlr")),
    "objective.attack.queries": Case(4, weights, attack("square", NO_STEPS, queries=2)),
    "objective.attack.first_share": Case(
        0.1,
        weights,
        attack("square", {key: value for key, value in MORE.items() if "attack.steps" not in key}, queries=30),
    ),
    "objective.replays": Case(3, weights, attack("fgsm", NO_STEPS)),
    "objective.clean_weight": Case(0.5, weights, ADVERSARIAL),
    "objective.beta": Case(1.0, weights, {**ADVERSARIAL, "objective.loss": "trades"}),
    "objective.eps_warmup": Case(0.0, weights, ADVERSARIAL),
    "objective.align": Case(5.0, weights, ADVERSARIAL),
    "objective.monitor_images": Case(16, logged, ADVERSARIAL),
    "objective.monitor_every": Case(2, monitored, {**ADVERSARIAL, "objective.monitor_images": 8, "train.steps": 4}),
}


def test_overfitting_ends_the_run_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {**ADVERSARIAL, "objective.monitor_images": 8, "train.steps": 6, "train.eval_every": 0.02}
    monkeypatch.setattr(
        Adversarial, "check_collapse", lambda self, row: "overfits" if row["step"] >= 4 and "pgd_top1" in row else None
    )
    for stops, steps in ((False, 6), (True, 4)):
        keys["objective.stop_on_overfitting"] = stops
        found = run(load_config("digits", {**TINY, **keys, "out": str(tmp_path / str(stops))}))
        assert found["steps"] == steps, stops
    assert found["best_step"] <= 4
