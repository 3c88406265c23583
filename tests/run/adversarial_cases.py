"""Keys of adversarial training, each set to another value: lines of the same kind as in test_keys.py.

A key that several attacks have is the same field of the same class or of one with its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.run.outcomes import Case, logged, weights

ADVERSARIAL: Mapping[str, Any] = {
    "objective.kind": "adversarial", "objective.attack.steps": 2, "objective.attack.eps": 0.1,
    "objective.monitor_images": 0, "train.log_every": 1,
}  # fmt: skip
# The head starts at 0, where nothing an attack does makes a difference.
MORE: Mapping[str, Any] = {**ADVERSARIAL, "train.steps": 12, "objective.eps_warmup": 0.0}
NO_STEPS: Mapping[str, Any] = {key: value for key, value in ADVERSARIAL.items() if not key.endswith("steps")}


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
    "objective.clean_weight": Case(0.5, weights, ADVERSARIAL),
    "objective.beta": Case(1.0, weights, {**ADVERSARIAL, "objective.loss": "trades"}),
    "objective.eps_warmup": Case(0.0, weights, ADVERSARIAL),
    "objective.align": Case(5.0, weights, ADVERSARIAL),
    "objective.monitor_images": Case(16, logged, ADVERSARIAL),
}
