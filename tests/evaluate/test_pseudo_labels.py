"""Quality of pseudo-labels: counts by threshold, and the report section about them."""

from __future__ import annotations

import numpy as np
import pytest

from vitral.evaluate.classification import wilson_interval
from vitral.evaluate.metric import Metric
from vitral.evaluate.pseudo_labels import THRESHOLDS, pseudo_label_quality
from vitral.report.pseudo_labels import pseudo_label_sections
from vitral.report.sections import Table

P_NC = np.array([[0.97, 0.02, 0.01], [0.04, 0.92, 0.04], [0.1, 0.3, 0.6], [0.4, 0.3, 0.3]])
LABELS_N = np.array([0, 1, 0, 0])


def test_shares_and_right_answers_by_threshold() -> None:
    found = pseudo_label_quality(np.log(P_NC).astype(np.float32), LABELS_N)
    assert found.images == 4
    assert found.right == 0.75
    assert found.interval == wilson_interval(3, 4)
    assert found.unsure == 0.25
    rows = {row.threshold: (row.share, row.right) for row in found.rows}
    assert tuple(rows) == THRESHOLDS
    assert rows == {
        0.0: (1.0, 0.75), 0.5: (0.75, pytest.approx(2 / 3)), 0.8: (0.5, 1.0), 0.9: (0.5, 1.0), 0.95: (0.25, 1.0),
        0.99: (0.0, None),
    }  # fmt: skip
    assert found.summary() == {
        "pseudo_right": 0.75, "pseudo_right_interval": list(wilson_interval(3, 4)), "pseudo_unsure": 0.25
    }  # fmt: skip


def test_without_labels_only_confidence_is_known() -> None:
    found = pseudo_label_quality(np.log(P_NC), None)
    assert found.right is None
    assert all(row.right is None for row in found.rows)
    assert found.summary() == {"pseudo_unsure": 0.25}
    (section,) = pseudo_label_sections(found)
    (table,) = [part for part in section.parts if isinstance(part, Table)]
    assert len(table.columns) == 2
    assert not any(isinstance(part, Metric) for part in section.parts)


def test_the_section_has_a_row_per_threshold() -> None:
    (section,) = pseudo_label_sections(pseudo_label_quality(np.log(P_NC), LABELS_N))
    (table,) = [part for part in section.parts if isinstance(part, Table)]
    assert [row[0] for row in table.rows] == ["0", "0.5", "0.8", "0.9", "0.95", "0.99"]
    assert table.rows[0][1:] == ["100.00", "75.00"]
    assert table.rows[-1][1:] == ["0.00", "–"]
    assert [part.name for part in section.parts if isinstance(part, Metric)] == ["pseudo_right"]
