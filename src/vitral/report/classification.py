"""Report sections of classification and multi-label evaluations.

Shape letters: N samples, C classes, H W height and width, D image channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitral.errors import shown
from vitral.evaluate.calibration import reliability_bins
from vitral.evaluate.metric import Metric, percent
from vitral.report import plots
from vitral.report.sections import Figure, Gallery, Note, Part, Picture, Section, Table

Mistake = tuple[NDArray[Any], str, str, float, str]

_MAX_MISTAKES = 24
_MAX_ROWS = 20  # of the table of classes; the rest is folded
_MAX_PAIRS = 10  # of confused classes
_COLUMNS = {"f1": "F1 %", "precision": "Precision %", "recall": "Recall %"}
_TABLE_CAPTION = (
    "Precision: share of the images predicted as this class that are of this class. Recall: share of the images of "
    "this class that are predicted as this class. F1: harmonic mean of both. –: undefined, no such image."
)
_AP_CAPTION = "AP: average precision, the area under precision over recall. The other columns: at a probability of 0.5."


def classification_sections(evaluation: Mapping[str, Any], mistakes: Sequence[Mistake]) -> list[Section]:
    """Return the sections of a single-label evaluation, the headline first.

    evaluation: the result of `classification_metrics` (`per_class` in the order of the confusion's rows), with `split`,
    its name, and for the reliability diagram `probabilities` [N,C] in [0,1], after the temperature, and `labels` [N].
    mistakes: (image [H,W] or [H,W,D] as uint8 or floats in [0,1], true class, predicted class, its probability, name of
    the image); the 24 with the highest probability are shown. Raises KeyError for an evaluation that lacks a key,
    UserError as `reliability_bins` does.
    """
    return [
        _headline(evaluation), _confusion(evaluation), _classes(evaluation, _COLUMNS, _TABLE_CAPTION),
        _reliability(evaluation), _mistakes(mistakes, _wrong(evaluation)),
    ]  # fmt: skip


def multilabel_sections(evaluation: Mapping[str, Any]) -> list[Section]:
    """Return the sections of a multi-label evaluation: `multilabel_metrics` with the name of its `split`."""
    images = f"{evaluation['count']:,} {evaluation['split']} images"
    headline: list[Part] = [
        Metric("map", f"mean average precision on {images}, each with any number of classes", evaluation["map"]),
        Metric("micro_f1", "F1 over all decisions (micro)", evaluation["micro_f1"]),
        Metric("macro_f1", "F1, mean over the classes (macro)", evaluation["macro_f1"]),
        _metric(evaluation, "exact_match", "Images with every class correct"),
        Metric("loss", "Binary cross-entropy", evaluation["loss"], None, False, "number", "nats"),
        Note("F1 and images with every class correct: at a probability of 0.5."),
    ]
    columns, caption = {"ap": "AP %", **_COLUMNS}, f"{_AP_CAPTION} {_TABLE_CAPTION}"
    return [Section("", headline), _classes(evaluation, columns, caption)]


def _metric(evaluation: Mapping[str, Any], name: str, label: str) -> Metric:
    low, high = evaluation[f"{name}_interval"]
    return Metric(name, label, evaluation[name], (low, high))


def _headline(evaluation: Mapping[str, Any]) -> Section:
    parts: list[Part] = [
        _metric(evaluation, "top1", f"of {evaluation['count']:,} {evaluation['split']} images classified correctly"),
        Metric("wrong", "Wrong", _wrong(evaluation), format="integer"),
    ]
    if "top5" in evaluation:
        parts.append(Metric("top5", "Correct class among the top five", evaluation["top5"]))
    if "loss" in evaluation:
        parts.append(Metric("loss", "Cross-entropy", evaluation["loss"], None, False, "number", "nats"))
    if "baseline" in evaluation:
        label = f"Always predicting {evaluation['baseline_class']}, the most common class"
        parts.append(Metric("baseline", label, evaluation["baseline"]))
    return Section("", parts)


def _wrong(evaluation: Mapping[str, Any]) -> int:
    return evaluation["count"] - round(evaluation["top1"] * evaluation["count"])


def _confusion(evaluation: Mapping[str, Any]) -> Section:
    classes, counts_CC = list(evaluation["per_class"]), np.asarray(evaluation["confusion"])
    mistakes_CC = counts_CC - np.diag(np.diagonal(counts_CC))
    pairs = sorted(zip(*np.nonzero(mistakes_CC), strict=True), key=lambda pair: -mistakes_CC[pair])
    rows = [(classes[i], classes[j], int(counts_CC[i, j])) for i, j in pairs[:_MAX_PAIRS]]
    caption = f"The {len(rows)} most frequent of {len(pairs):,} pairs of confused classes"
    alt = f"Confusion matrix of {len(classes)} classes, rows are the true classes; the table lists its largest entries"
    figure = Figure(plots.confusion_matrix(counts_CC, classes), alt, wide=True)
    table = Table(["True class", "Predicted", "Images"], rows, caption) if rows else "No classes were confused."
    return Section("Confusion matrix", [figure, table])


def _classes(evaluation: Mapping[str, Any], columns: Mapping[str, str], caption: str) -> Section:
    # Classes whose F1 is undefined come last: they are not the worst.
    items = sorted(evaluation["per_class"].items(), key=lambda item: (item[1]["f1"] is None, item[1]["f1"] or 0.0))
    rows = [
        (name, *(None if each[key] is None else percent(each[key], 1) for key in columns), each["count"])
        for name, each in items
    ]
    table = Table(["Class", *columns.values(), "Images"], rows, caption, min(_MAX_ROWS, len(rows)))
    return Section("Classes, worst first", [table])


def _reliability(evaluation: Mapping[str, Any]) -> Section:
    ece, before = evaluation["ece"], evaluation.get("ece_uncalibrated")
    parts: list[Part] = [Metric("ece", "Expected calibration error (ECE)", ece, None, False)]
    if before is not None:
        parts.append(Metric("ece_uncalibrated", "ECE before temperature scaling", before, None, False))
    if before is not None and ece > before:
        parts.append("Temperature scaling reduced the error on the validation images, but increases it on these.")
    parts.append(Note("ECE: mean distance between the confidence and the accuracy of its bin."))
    if evaluation.get("probabilities") is None or evaluation.get("labels") is None:
        parts.append("The probabilities were not stored, so there is no diagram.")
    else:
        svg = plots.reliability_diagram(reliability_bins(evaluation["probabilities"], evaluation["labels"]))
        alt = f"Reliability diagram: accuracy over confidence, and the images in each bin; ECE {percent(ece)} %"
        parts.append(Figure(svg, alt))
    return Section("Reliability", parts)


def _mistakes(mistakes: Sequence[Mistake], wrong: int) -> Section:
    if not mistakes:
        return Section("Worst mistakes", ["No images of mistakes were stored." if wrong else "No mistakes."])
    worst = sorted(mistakes, key=lambda mistake: -mistake[3])[:_MAX_MISTAKES]
    caption = f"{len(worst)} of {max(wrong, len(mistakes)):,} mistakes, the most confident first"
    return Section("Worst mistakes", [Gallery([_mistake(*mistake) for mistake in worst], caption)])


def _mistake(image: NDArray[Any], truth: str, prediction: str, probability: float, name: str) -> Picture:
    caption = f"True: {shown(truth)}\nPredicted: {shown(prediction)} ({percent(probability, 1)}\u00a0%)"
    return Picture(image, caption, f"Image {name}: true class {truth}, predicted {prediction}", name)
