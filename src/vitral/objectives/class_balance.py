"""Class weights and logit adjustment for classes of unequal size. Shape letters: C classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor

from vitral.errors import UserError
from vitral.objectives.base_config import ClassifierConfig, ViewedConfig


class ClassBalance(NamedTuple):
    """What a loss knows of the classes, float32 [C] each, or None where it is off.

    weights_C: factors of the classes' terms. offset_C: added to the logits before the softmax, in training only.
    """

    weights_C: Tensor | None = None
    offset_C: Tensor | None = None


NO_BALANCE = ClassBalance()


def needs_balance(config: ViewedConfig) -> TypeGuard[ClassifierConfig]:
    """Whether the objective corrects for classes of unequal size."""
    return isinstance(config, ClassifierConfig) and (config.class_weights != "none" or config.logit_adjustment > 0)


def class_balance(config: ClassifierConfig, shares: Sequence[float], classes: Sequence[str]) -> ClassBalance:
    """The configured correction for classes of which the training draws hold these shares (they sum to 1).

    class_weights balanced: w_c = 1 / (C share_c), so that every class weighs equally and the factor is 1 on average
    over the draws; a list is taken as it is. logit_adjustment tau (Menon et al. 2020, arXiv 2007.07314, equation 10):
    tau * log(share_c), so that the plain logits, which the model predicts with, minimize the balanced error (tau 1).
    Raises UserError for a list of another length, of negative or only zero factors, and for a class without training
    images, whose factor or logarithm would be infinite.
    """
    weights, tau = config.class_weights, config.logit_adjustment
    key = "objective.class_weights" if weights == "balanced" else "objective.logit_adjustment" if tau else None
    absent = [name for name, share in zip(classes, shares, strict=True) if share == 0]
    if key is not None and absent:
        raise UserError(f"classes without training images: {', '.join(absent[:10])}", where=key)
    weights_C = None
    if weights == "balanced":
        weights_C = torch.tensor([1 / (len(shares) * share) for share in shares])
    elif not isinstance(weights, str):
        if len(weights) != len(shares):
            raise UserError(
                "not one factor per class", where="objective.class_weights", got=len(weights), expected=len(shares)
            )
        if min(weights) < 0 or max(weights) == 0:
            raise UserError("factors are expected that are not negative, nor all 0", where="objective.class_weights")
        weights_C = torch.tensor(weights, dtype=torch.float32)
    return ClassBalance(weights_C, torch.tensor([tau * math.log(share) for share in shares]) if tau else None)
