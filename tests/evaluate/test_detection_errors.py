"""Kinds of errors, confusions and sizes on images whose errors are known."""

from __future__ import annotations

import numpy as np
import pytest

from tests.evaluate.detection_problems import detections, random_problem, true_boxes
from vitral.evaluate.box_matching import match_all
from vitral.evaluate.detection_errors import KINDS, best_threshold, confusion, counts_at, error_gains, found_by_size

TRUE = true_boxes((0, 0, 10, 10, 0), (50, 0, 60, 10, 1))
HITS = ((0, 0, 10, 10, 0, 0.9), (50, 0, 60, 10, 1, 0.8))
# A detection with the highest score, and the error that it is.
ERRORS = {
    "classification": (50, 0, 60, 10, 0, 0.95),
    "localization": (0, 0, 10, 4, 0, 0.95),  # IoU 0.4
    "both": (50, 0, 60, 4, 0, 0.95),
    "background": (80, 80, 90, 90, 0, 0.95),
    "duplicate": (0, 0, 10, 9, 0, 0.85),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_one_error_of_each_kind(kind: str) -> None:
    """Its correction, and no other one, gives AP50 1 where all boxes are found as well."""
    row = ERRORS[kind]
    found = error_gains(match_all([detections(*HITS, row)], [TRUE], 2))
    assert {name: each["count"] for name, each in found.items()} == {name: int(name == kind) for name in KINDS}
    assert sum(each["ap50_gain"] > 0 for each in found.values()) == (kind != "duplicate")
    if kind != "duplicate":  # class 0: 1/2 at every recall before
        assert found[kind]["ap50_gain"] == pytest.approx(0.25)


def test_corrected_errors_find_their_boxes() -> None:
    """A box that only an error overlaps is not missed: the error's correction finds it."""
    found = error_gains(match_all([detections((0, 0, 10, 4, 0, 0.9), (50, 0, 60, 10, 0, 0.8))], [TRUE], 2))
    assert {name: each["count"] for name, each in found.items() if each["count"]} == {
        "localization": 1, "classification": 1
    }  # fmt: skip
    # Moved, the first is a hit of class 0; renamed, the second is a hit of class 1, and class 0 still finds nothing.
    assert found["localization"]["ap50_gain"] == pytest.approx(0.5)
    assert found["classification"]["ap50_gain"] == pytest.approx(0.5)
    missed = error_gains(match_all([detections(HITS[0])], [TRUE], 2))["missed"]  # all of class 1
    assert missed == {"count": 1, "ap50_gain": 0.5}


def test_only_one_correction_finds_a_box() -> None:
    """Of two errors on one box the one with the higher score becomes a hit, the other one goes."""
    rows = (0, 0, 10, 4, 0, 0.9), (0, 6, 10, 10, 0, 0.8)
    found = error_gains(match_all([detections(*rows)], [true_boxes((0, 0, 10, 10, 0))], 1))
    assert found["localization"] == {"count": 2, "ap50_gain": 1.0}


def test_confusion_counts_every_box_once() -> None:
    rows = (
        HITS[0],
        (50, 0, 60, 10, 0, 0.7),  # class 1 taken for class 0
        (50, 0, 60, 9, 0, 0.6),  # once more: of nothing
        (80, 80, 90, 90, 1, 0.5),  # of nothing
        (80, 80, 90, 90, 1, 0.1),  # below the threshold
    )
    matches = match_all([detections(*rows), detections()], [TRUE, true_boxes((0, 0, 5, 5, 1))], 2)
    assert confusion(matches, 0.2).tolist() == [[1, 0, 0], [1, 0, 1], [1, 1, 0]]
    first, second, total = counts_at(matches, 0.2)
    assert (first["found"], first["false"], first["count"], first["precision"]) == (1, 2, 1, 1 / 3)
    assert (second["recall"], second["precision"], second["f1"]) == (0.0, 0.0, 0.0)
    assert total == {"count": 3, "found": 1, "false": 3, "precision": 0.25, "recall": 1 / 3, "f1": 2 / 7}


@pytest.mark.parametrize("seed", range(4))
def test_counts_agree(seed: int) -> None:
    """Confusion, counts and sizes hold the same boxes; no threshold has a better F1 than the chosen one."""
    found, truth, labels = random_problem(seed, images=30)
    matches = match_all(found, truth, len(labels))
    threshold = best_threshold(matches)
    assert threshold is not None
    table, *_, total = confusion(matches, threshold), *counts_at(matches, threshold)
    assert table[:-1].sum() == matches.counted_AG[0].sum() == total["count"]
    assert np.trace(table) == total["found"] == sum(row["found"] for row in found_by_size(matches, threshold))
    assert table[:, :-1].sum() == total["found"] + total["false"]
    every = [counts_at(matches, score)[-1]["f1"] for score in {*matches.score_D.tolist()}]
    assert total["f1"] == max(every)
