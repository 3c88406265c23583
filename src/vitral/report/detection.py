"""Report sections of an evaluation of detection.

Shape letters: N images, M true boxes of one image, H W height and width, C image channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vitral.data.dataset import spaced
from vitral.errors import plural, shown
from vitral.evaluate.box_matching import FALSE, HIT, Array, Detections
from vitral.evaluate.detection_errors import image_outcomes
from vitral.evaluate.metric import Metric, percent
from vitral.report.box_drawing import Outline, draw_outlines
from vitral.report.render import photo
from vitral.report.sections import Figure, Gallery, Note, Part, Section, Table

if TYPE_CHECKING:
    from vitral.data.boxes import OwnBoxes

_MAX_ROWS = 20  # of the table of classes; the rest is folded
_EXAMPLES, _WORST = 12, 6  # images
_SIDE, _TEXT = 384, 15  # pixels of a drawn image and of a letter: the page shows it smaller
_HIT, _FALSE, _MISSED = (86, 180, 233), (230, 159, 0), (255, 130, 205)
_TRUE, _IGNORED = (255, 255, 255), (150, 150, 150)
_LEGEND = (
    "Dashed: true boxes, white where found, pink where missed, gray where ignored (crowds). Solid: detections with "
    "their scores, blue where they find a box, orange where false, gray where ignored (in a crowd)."
)
_KINDS = {
    "classification": "on a box of another class",
    "localization": "near a box of its class, IoU 0.1 to 0.5",
    "both": "near a box of another class, IoU 0.1 to 0.5",
    "duplicate": "on a box that is found already",
    "background": "on no box, IoU below 0.1",
    "missed": "boxes that no detection finds or nearly finds",
}


class DetectionSamples(NamedTuple):
    """Images [N] with detections, true boxes, names, and each image [H, W, C], uint8, in the pixels of the boxes."""

    found: Sequence[Detections]
    truth: Sequence[OwnBoxes]
    names: Sequence[str]
    image: Callable[[int], Array]


def detection_sections(
    evaluation: Mapping[str, Any], metrics: Sequence[Metric], samples: DetectionSamples
) -> list[Section]:  # fmt: skip
    """Return the sections of `measure_detections`, with the name of its `split`, the headline first. metrics: those of
    the task, the primary one first."""
    return [
        _headline(evaluation, metrics), Section("Classes, worst first", [class_table(evaluation)]),
        *_figures(evaluation), *_pictures(evaluation, samples),
    ]  # fmt: skip


def _headline(evaluation: Mapping[str, Any], metrics: Sequence[Metric]) -> Section:
    primary, *others = metrics
    images, boxes = plural(evaluation["count"], "image"), plural(evaluation["boxes"], "box", "boxes")
    parts: list[Part] = [replace(primary, label=f"{primary.label} on {images} of {evaluation['split']}, {boxes}")]
    parts += others
    threshold = evaluation["score_threshold"]
    if threshold is not None:
        at = f"at a score threshold of {threshold:.3g} and IoU 0.5"
        parts += [Metric(key, f"{key} {at}", evaluation[key]) for key in ("precision", "recall")]
    parts.append(Note(
        "AP: mean over classes and IoU 0.50 to 0.95. AP50, AP75: at one IoU. Small: up to 32 × 32 pixels of the file, "
        "large: 96 × 96 or more (COCO's limits, by the area of the box)."
    ))  # fmt: skip
    if ignored := evaluation["crowds_and_empty"]:
        parts.append(Note(f"Ignored: {plural(ignored, 'crowd or box', 'crowds or boxes')} without area."))
    return Section("", parts)


def class_table(evaluation: Mapping[str, Any]) -> Table:
    """The classes of an evaluation, that with the lowest AP first; those without a box last."""
    columns = {"ap": "AP %", "ap50": "AP50 %", "precision": "Precision %", "recall": "Recall %"}
    items = sorted(evaluation["per_class"].items(), key=lambda item: (item[1]["ap"] is None, item[1]["ap"] or 0.0))
    rows = [
        (
            name, *(None if each[key] is None else percent(each[key], 1) for key in columns),
            *(each[key] for key in ("count", "found", "false")),
        )
        for name, each in items
    ]  # fmt: skip
    threshold = evaluation["score_threshold"]
    at = "all detections" if threshold is None else f"detections with a score of {threshold:.3g} or more"
    caption = f"Precision, recall, found and false: of {at}, at IoU 0.5. –: undefined."
    return Table(["Class", *columns.values(), "Boxes", "Found", "False"], rows, caption, min(_MAX_ROWS, len(rows)))


def _figures(evaluation: Mapping[str, Any]) -> list[Section]:
    from vitral.report import detection_plots, plots

    sections: list[Section] = []
    if curves := {name: curve for name, curve in evaluation["curves"].items() if curve is not None}:
        svg = detection_plots.precision_recall(curves)
        figure = Figure(svg, f"Precision over recall of {plural(len(curves), 'class', 'classes')} at IoU 0.5")
        sections.append(Section("Precision and recall at IoU 0.5", [figure]))
    errors = evaluation["errors"]
    if any(row["count"] for row in errors.values()):
        rows = [
            (kind.capitalize(), text, errors[kind]["count"], _points(errors[kind]["ap50_gain"]))
            for kind, text in _KINDS.items()
        ]
        caption = (
            "All detections, whatever their score. AP50 gained: if the errors of one kind were corrected and no other "
            "(TIDE, arXiv 2008.08115)."
        )
        gains = {kind: errors[kind]["ap50_gain"] or 0.0 for kind in _KINDS}
        bars = Figure(detection_plots.error_bars(gains), "AP50 gained by correcting each kind of error")
        table = Table(["Error", "A detection", "Count", "AP50 gained, points"], rows, caption)
        sections.append(Section("Kinds of errors", [table, bars]))
    names = [*evaluation["per_class"], "background"]
    svg = plots.confusion_matrix(evaluation["confusion"], names)
    alt = f"Confusion matrix of {len(names) - 1} classes and background, rows are the true classes"
    note = Note(
        "Row of background: false detections. Column of background: missed boxes. At the score threshold above."
    )
    sections.append(Section("Confusion matrix", [Figure(svg, alt, wide=True), note]))
    if sizes := evaluation["sizes"]:
        figure = Figure(detection_plots.boxes_by_size(sizes), "Found and missed boxes by size", wide=True)
        sections.append(Section("Found and missed by size", [figure, Note("At the score threshold above.")]))
    return sections


def _points(gain: float | None) -> str | None:
    return None if gain is None else f"{100 * gain:.1f}"


def _pictures(evaluation: Mapping[str, Any], samples: DetectionSamples) -> list[Section]:
    """Evenly spaced images, those with the most missed boxes, and those with the most false detections."""
    labels, threshold = list(evaluation["per_class"]), evaluation["score_threshold"]
    outcomes = [
        image_outcomes(found, own, len(labels), threshold)
        for found, own in zip(samples.found, samples.truth, strict=True)
    ]
    missed_N = np.array([missed_M.sum() for _, _, missed_M in outcomes])
    false_N = np.array([(outcome == FALSE).sum() for outcome, _, _ in outcomes])

    def drawn(place: int) -> Figure:
        outlines = _outlines(samples.found[place], samples.truth[place], outcomes[place], labels)
        name, hits = str(samples.names[place]), int(outcomes[place][1].sum())
        text = f"{shown(name)}: {hits} found, {missed_N[place]} missed, {false_N[place]} false"
        _, content, _ = photo(draw_outlines(samples.image(place), outlines, _SIDE, _TEXT), _SIDE)
        return Figure(content, f"Image {text}", text)

    sections = [Section("Images", [Note(_LEGEND), Gallery([drawn(each) for each in spaced(len(outcomes), _EXAMPLES)])])]
    for title, count_N in (("Most missed boxes", missed_N), ("Most false detections", false_N)):
        worst = [place for place in np.argsort(-count_N, kind="stable")[:_WORST].tolist() if count_N[place]]
        if worst:
            sections.append(Section(title, [Gallery([drawn(place) for place in worst])]))
    return sections


def _outlines(
    found: Detections, own: OwnBoxes, outcomes: tuple[Array, Array, Array], labels: Sequence[str]
) -> list[Outline]:
    outcome_N, found_M, missed_M = outcomes
    colors = {HIT: _HIT, FALSE: _FALSE}
    solid = [
        Outline(box, f"{labels[label]} {score:.2f}", colors.get(kind, _IGNORED))
        for box, label, score, kind in zip(
            found.boxes_N4.tolist(), found.label_N.tolist(), found.score_N.tolist(), outcome_N.tolist(), strict=True
        )
        if kind >= 0
    ]
    dashed = [
        Outline(box, labels[int(label)] if lost else "", _TRUE if hit else _MISSED if lost else _IGNORED, dashed=True)
        for box, label, hit, lost in zip(
            own.boxes_M4.tolist(), own.label_M.tolist(), found_M.tolist(), missed_M.tolist(), strict=True
        )
    ]
    return [*solid[::-1], *dashed]
