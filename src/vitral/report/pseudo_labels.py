"""Report section about predictions on unlabeled images: confidence, and correctness where labels are known."""

from __future__ import annotations

from vitral.evaluate.metric import Metric, percent
from vitral.evaluate.pseudo_labels import PseudoLabelQuality
from vitral.report.sections import Note, Part, Section, Table


def pseudo_label_sections(quality: PseudoLabelQuality) -> list[Section]:
    """Return the section, in a list."""
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
    return [Section("Unlabeled images", parts)]
