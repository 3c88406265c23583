"""Sections of an evaluation whose answers are numbers.

Shape letters: N samples, T targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitral.errors import shown
from vitral.evaluate.metric import Metric
from vitral.report import plots
from vitral.report.sections import Figure, Gallery, Picture, Section, Table

if TYPE_CHECKING:
    from vitral.tasks.task import Evaluation, Samples

_MISTAKES = 24


def regression_sections(
    targets: Sequence[str], metrics: Sequence[Metric], evaluation: Evaluation, samples: Samples
) -> list[Section]:
    """Headline, errors of each target, predicted against true, residuals, and the images with the largest errors, in
    standard deviations of the target."""
    assert samples.scores_NS is not None
    true_NT, predicted_NT = samples.annotations, samples.scores_NS
    primary, *others = metrics
    label = f"{primary.label} on {evaluation.values['count']:,} {evaluation.split} images"
    figures: list[Figure] = []
    for t, name in enumerate(targets):
        pair = true_NT[:, t], predicted_NT[:, t]
        figures += [
            Figure(plots.predicted_over_true(*pair, name), f"Predicted {name} over true {name}"),
            Figure(plots.residuals(*pair, name), f"Error of {name} over true {name}"),
        ]
    facts = [replace(metric, label=metric.label[:1].upper() + metric.label[1:]) for metric in others]
    sections = [Section("", [replace(primary, label=label), *facts])]
    if len(targets) > 1:
        rows = [
            [name, *(replace(metric, value=row[metric.name]) for metric in metrics)]
            for name, row in evaluation.values["per_target"].items()
        ]
        sections.append(Section("Targets", [Table(["Target", *(metric.label for metric in metrics)], rows)]))
    return [
        *sections,
        Section("Predicted and true", [Gallery(figures)]),
        _mistakes(targets, true_NT, predicted_NT, samples),
    ]


def _mistakes(targets: Sequence[str], true_NT: NDArray[Any], predicted_NT: NDArray[Any], samples: Samples) -> Section:
    spread_T = np.where(true_NT.std(0) > 0, true_NT.std(0), 1)
    order = np.argsort(-(np.abs(predicted_NT - true_NT) / spread_T).max(1), kind="stable")[:_MISTAKES]
    pictures: list[Picture] = []
    for place in order.tolist():
        lines = [
            f"{shown(name)}: {true:.4g}, predicted {predicted:.4g}"
            for name, true, predicted in zip(targets, true_NT[place], predicted_NT[place], strict=True)
        ]
        name = str(samples.names[place])
        pictures.append(Picture(samples.image(place), "\n".join(lines), f"Image {name}: {'; '.join(lines)}", name))
    return Section("Worst mistakes", [Gallery(pictures, f"{len(pictures)} images, the largest error first")])
