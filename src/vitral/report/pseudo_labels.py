"""Report section about unlabeled images: how they taught, confidence, and correctness where labels are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitral.evaluate.metric import Metric, percent
from vitral.evaluate.pseudo_labels import PseudoLabelQuality
from vitral.report.sections import Figure, Gallery, Note, Part, Section, Table


def pseudo_label_sections(
    quality: PseudoLabelQuality, metrics_rows: Sequence[Mapping[str, Any]] = (), classes: int = 0
) -> list[Section]:
    """Return the section, in a list. metrics_rows: of metrics.jsonl, drawn over the steps. classes: their number."""
    from vitral.report.plots import unlabeled_curves

    columns, rows = (
        ["Confidence above", "Images %"],
        [[f"{row.threshold:g}", percent(row.share)] for row in quality.rows],
    )
    parts: list[Part] = []
    if quality.right is not None:
        label = f"of {quality.images:,} unlabeled images predicted as their hidden label"
        parts.append(Metric("pseudo_right", label, quality.right, quality.interval))
        columns.append("Of these correct %")
        for cells, row in zip(rows, quality.rows, strict=True):
            cells.append("–" if row.right is None else percent(row.right))
    hidden = "The hidden labels were not used in training." if quality.right is not None else "Labels are not known."
    how = f"Predictions of the final weights on {quality.images:,} images, without augmentation and temperature."
    parts += [Table(columns, rows), Note(f"{how} {hidden}")]
    curves = unlabeled_curves(metrics_rows, classes)
    if curves:
        figures = [Figure(svg, f"{title} over the training steps") for title, svg in curves.items()]
        parts.append(Gallery(figures, "Healthy: the share rises, the entropy stays near 1, the loss is above 0."))
    return [Section("Unlabeled images", parts)]
