"""Corrections for classes of unequal size, against torch's own losses and closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vitral.errors import UserError
from vitral.objectives.class_balance import ClassBalance, class_balance
from vitral.objectives.config import SupervisedConfig
from vitral.objectives.losses import cross_entropy, soft_targets

SHARES, CLASSES = (0.7, 0.2, 0.1), ("cat", "dog", "owl")


def made(**keys: Any) -> ClassBalance:
    return class_balance(SupervisedConfig(**keys), SHARES, CLASSES)


def batch(size: int = 60) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    targets = {name: torch.randint(0, 3, (size,), generator=generator) for name in ("label", "partner")}
    targets["weight"] = torch.rand(size, generator=generator)
    return torch.randn(size, 3, generator=generator) * 3, targets


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weights_are_those_of_torchs_loss_with_distributions_as_targets(mixed: bool, smoothing: float) -> None:
    logits, targets = batch()
    target = soft_targets(targets if mixed else {"label": targets["label"]}, 3, smoothing)
    weights = torch.tensor([0.5, 2.0, 0.0])
    found = cross_entropy(logits, target, made(class_weights=(0.5, 2.0, 0.0)))
    torch.testing.assert_close(found, F.cross_entropy(logits, target, weight=weights))


def test_balanced_weights_make_every_class_count_the_same() -> None:
    weights = made(class_weights="balanced").weights_C
    assert weights is not None
    torch.testing.assert_close(weights * torch.tensor(SHARES), torch.full((3,), 1 / 3))
    logits, label = torch.randn(10, 3), torch.tensor([0] * 7 + [1] * 2 + [2])
    each = F.cross_entropy(logits, label, reduction="none")
    mean = torch.stack([each[label == index].mean() for index in range(3)]).mean()
    found = cross_entropy(logits, soft_targets({"label": label}, 3, 0.0), made(class_weights="balanced"))
    torch.testing.assert_close(found, mean)


def test_logit_adjustment_is_the_loss_of_shifted_logits() -> None:
    logits, targets = batch()
    target = soft_targets(targets, 3, 0.1)
    shifted = logits + 1.5 * torch.tensor(SHARES).log()
    torch.testing.assert_close(
        cross_entropy(logits, target, made(logit_adjustment=1.5)), cross_entropy(shifted, target)
    )


def test_adjusted_logits_that_fit_the_shares_are_equal() -> None:
    """Without any evidence the loss's minimum is where softmax(logits + log share) is the share: at equal logits."""
    logits = torch.zeros(1, 3, requires_grad=True)
    cross_entropy(logits, torch.tensor([SHARES]), made(logit_adjustment=1.0)).backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


def test_micro_batches_add_up() -> None:
    logits, targets = batch(10)
    target, balance = soft_targets(targets, 3, 0.1), made(class_weights="balanced", logit_adjustment=0.7)
    parts = [cross_entropy(logits[part], target[part], balance) * share for part, share in
             ((slice(0, 4), 0.4), (slice(4, 8), 0.4), (slice(8, 10), 0.2))]  # fmt: skip
    torch.testing.assert_close(sum(parts), cross_entropy(logits, target, balance))


def test_switched_off_it_is_nothing() -> None:
    assert made() == ClassBalance(None, None)
    assert made(logit_adjustment=2.0).offset_C is not None
    torch.testing.assert_close(made(logit_adjustment=2.0).offset_C, torch.tensor([2 * math.log(s) for s in SHARES]))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"class_weights": (1.0, 2.0)}, r"(?s)not one factor per class.*got: +2.*expected: 3"),
        ({"class_weights": (1.0, -2.0, 1.0)}, "not negative"),
        ({"class_weights": (0.0, 0.0, 0.0)}, "nor all 0"),
    ],
)
def test_wrong_factors_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(**keys)


@pytest.mark.parametrize("keys", [{"class_weights": "balanced"}, {"logit_adjustment": 0.5}])
def test_a_class_without_images_is_named(keys: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="without training images: owl"):
        class_balance(SupervisedConfig(**keys), (0.5, 0.5, 0.0), CLASSES)
