"""Is one classifier better than another on the same samples?

Shape letters: N samples.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vitral.errors import UserError
from vitral.evaluate.classification import wilson_interval


def mcnemar(correct_a_N: ArrayLike, correct_b_N: ArrayLike) -> dict[str, Any]:
    """The paired test of two models, from which samples each got right (booleans [N], in the same order).

    `only_a`, `only_b`: samples that one alone got right. `p_value` in [0,1]: exact two-sided binomial test of equal
    accuracy, 1 where the two never differ. `difference`: accuracy of A minus accuracy of B, in [-1,1];
    `difference_interval` [low, high]: its 95 % interval, Newcombe's method 10 (1998, Statistics in Medicine 17:2635),
    which unlike the test is approximate, so the two may disagree at the border. Raises UserError for lengths that
    differ, no samples and values other than true and false. McNemar 1947 (Psychometrika 12:153).
    """
    from scipy.special import bdtr  # pyright: ignore[reportMissingTypeStubs]

    a, b = _booleans(correct_a_N), _booleans(correct_b_N)
    if len(a) != len(b) or len(a) == 0:
        raise UserError("two models must be compared on the same samples", got=f"{len(a)} and {len(b)} samples")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    tail = float(bdtr(min(only_a, only_b), only_a + only_b, 0.5))  # cumulative binomial, share 1/2
    both, neither = int((a & b).sum()), int((~a & ~b).sum())
    return {
        "only_a": only_a,
        "only_b": only_b,
        "p_value": min(1.0, 2 * tail),
        "difference": (only_a - only_b) / len(a),
        "difference_interval": list(paired_interval(both, only_a, only_b, neither)),
    }


def paired_interval(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    """95 % interval (low, high) in [-1,1] of accuracy A minus accuracy B, from the four counts of a paired comparison.

    Two Wilson intervals, joined by the correlation of the pairs with its continuity correction; never empty, also where
    the models agree everywhere. Newcombe 1998 (Statistics in Medicine 17:2635), method 10.
    """
    count = both + only_a + only_b + neither
    share_a, share_b = (both + only_a) / count, (both + only_b) / count
    low_a, high_a = wilson_interval(both + only_a, count)
    low_b, high_b = wilson_interval(both + only_b, count)
    below_a, above_a, below_b, above_b = share_a - low_a, high_a - share_a, share_b - low_b, high_b - share_b
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    product = both * neither - only_a * only_b
    corrected = max(product - count / 2, 0.0) if product > 0 else product
    phi = corrected / math.sqrt(margins) if margins else 0.0
    down = math.sqrt(max(below_a**2 - 2 * phi * below_a * above_b + above_b**2, 0.0))
    up = math.sqrt(max(above_a**2 - 2 * phi * above_a * below_b + below_b**2, 0.0))
    return share_a - share_b - down, share_a - share_b + up


def _booleans(values_N: ArrayLike) -> np.ndarray[Any, np.dtype[np.bool_]]:
    values = np.asarray(values_N)
    if values.ndim != 1 or not np.isin(values, (0, 1)).all():
        raise UserError(
            "right or wrong for each sample is expected", got=f"shape {values.shape}", expected="booleans [N]"
        )
    return values.astype(np.bool_)
