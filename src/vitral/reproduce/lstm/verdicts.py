"""Claims about Transformer and LSTM, and the rules by which they hold here. All numbers are lists with one for each
seed, or for each round of measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitral.reproduce.runs import Verdict, paired, verdict

Numbers = Sequence[float]
Claim = dict[str, Any]
TRANSFORMER, DOT, ADDITIVE, NONE, RNN = "Transformer", "LSTM, dot", "LSTM, additive", "LSTM, no attention", "RNN"
_INTERVALS = "with their 95 % intervals, paired by seed; it does not hold if one is below"
VANISHES, FLAT = 0.95, 0.98  # factors of the gradient per step


def _claim(text: str, rule: str, found: Verdict, **values: Any) -> Claim:
    return {"claim": text, "rule": rule, "verdict": found, **values}


def errors_at(curves: Sequence[Sequence[Mapping[str, float]]], seconds: float, key: str = "error_rate") -> list[float]:
    """The error of each run after so many processor seconds, between the points around by a line; 1 before training."""
    return [
        float(
            np.interp(seconds, [0.0, *(point["seconds"] for point in curve)], [1.0, *(point[key] for point in curve)])
        )
        for curve in curves
    ]


def accuracy_claim(errors: Mapping[str, Numbers], budget: str) -> Claim:
    """Whether the Transformer errs less than every LSTM. errors: by model, one for each seed."""
    pairs = {name: paired(own, errors[TRANSFORMER]) for name, own in errors.items() if name != TRANSFORMER}
    best = min(errors, key=lambda name: float(np.mean(errors[name])))
    return _claim(
        f"at equal parameters and {budget}, the Transformer errs less than every LSTM",
        f"its error is below that of every LSTM, all differences above 0 {_INTERVALS}",
        verdict(list(pairs.values())), fewest_errors=best, differences=pairs,
    )  # fmt: skip


def copy_claim(accuracy: Mapping[str, Numbers]) -> Claim:
    """Whether the Transformer copies the longest texts better than an LSTM that has no attention."""
    pair = paired(accuracy[TRANSFORMER], accuracy[NONE])
    return _claim(
        "in the longest texts to copy, the Transformer predicts more tokens than the LSTM without attention",
        f"the difference of token accuracies is above 0 {_INTERVALS}", verdict([pair]), difference=pair,
    )  # fmt: skip


def vanishing_claim(factors: Mapping[str, Numbers]) -> Claim:
    """Whether gradients fall with distance in the recurrent models and not in the Transformer. factors: per step, of a
    line through the logarithms of the norms; how well the line fits is not tested."""
    recurrent = [value < VANISHES for name, own in factors.items() if name != TRANSFORMER for value in own]
    flat = [value > FLAT for value in factors[TRANSFORMER]]
    found: Verdict = "undecided"
    if all(recurrent) and all(flat):
        found = "holds"
    elif not any(recurrent) or not any(flat):
        found = "does not hold"
    return _claim(
        "gradients fall with distance in RNN and LSTM, and not in the Transformer",
        f"in every run the mean factor per step is below {VANISHES} in RNN and LSTM and above {FLAT} in the "
        "Transformer; it does not hold if that is so in no recurrent or in no Transformer run",
        found,
    )  # fmt: skip


def carousel_claim(factors: Mapping[str, Numbers]) -> Claim:
    """Whether the LSTM's gradients fall more slowly than the plain RNN's."""
    pair = paired(factors[NONE], factors[RNN])
    return _claim(
        "gradients of the LSTM fall more slowly than those of the plain RNN",
        f"the difference of factors per step is above 0 {_INTERVALS}", verdict([pair]), difference=pair,
    )  # fmt: skip


def faster_claim(text: str, ratios: Numbers) -> Claim:
    """Whether the ratio of times, the other one's to the first one's, is above 1 in all rounds."""
    found: Verdict = "undecided"
    if min(ratios) > 1:
        found = "holds"
    elif max(ratios) < 1:
        found = "does not hold"
    return _claim(
        text, "the ratio of processor times is above 1 in every round; it does not hold if it is below 1 in every "
        "round", found, median=float(np.median(ratios)),
    )  # fmt: skip


def causal_claim(nll: tuple[Numbers, Numbers], exact: tuple[Numbers, Numbers]) -> Claim:
    """Whether training without the causal mask has a lower loss and writes fewer right texts; (with, without) mask."""
    pairs = {"loss": paired(*nll), "exact_match": paired(*exact)}
    return _claim(
        "without the causal mask the loss is lower, and fewer texts are right",
        f"loss and exact matches with the mask, less those without, are above 0 {_INTERVALS}",
        verdict(list(pairs.values())), differences=pairs,
    )  # fmt: skip


def padding_claim(changed: Numbers, changed_without: Numbers) -> Claim:
    """Whether texts depend on their batch without the padding mask alone; shares of the texts that do."""
    found: Verdict = "undecided"
    if not any(changed) and all(changed_without):
        found = "holds"
    elif not any(changed_without) or min(changed) >= max(changed_without):
        found = "does not hold"
    return _claim(
        "without the padding mask texts depend on the other texts of the batch",
        "some texts change in every run without the mask, and none in any run with it; it does not hold if none change "
        "without it, or as many with it", found,
    )  # fmt: skip


def better_claim(text: str, better: Sequence[Numbers], worse: Numbers) -> Claim:
    """Whether the token accuracy of all of `better` is above that of `worse`."""
    pairs = [paired(each, worse) for each in better]
    rule = f"all differences of token accuracies are above 0 {_INTERVALS}"
    return _claim(text, rule, verdict(pairs), differences=pairs)
