"""Average precision against pycocotools and closed forms, intervals, comparisons, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.evaluate.detection_problems import COCO_KEYS, coco_numbers, detections, random_problem, true_boxes
from vitral.data.boxes import OwnBoxes
from vitral.errors import UserError
from vitral.evaluate.box_matching import Detections, class_ap, class_precisions, match_all
from vitral.evaluate.detection import compare_detections, measure_detections, quick_metrics, resample_weights

NONE = detections()
SQUARE = true_boxes((0, 0, 10, 10, 0))


@pytest.mark.oracle
def test_equal_to_pycocotools() -> None:
    """50 problems with equal scores, crowds, images and classes without boxes or detections; and nothing found but one
    false detection, as pycocotools fails on an empty list."""
    problems = [random_problem(seed) for seed in range(50)]
    found, truth, labels = problems[0]
    problems.append(([detections((0, 0, 1, 1, 3, 0.5)), *[NONE] * (len(found) - 1)], truth, labels))
    problems.append((found, [true_boxes()] * len(truth), labels))
    for problem in problems:
        found, truth, labels = problem
        values = quick_metrics(match_all(found, truth, len(labels)))
        ours = [-1.0 if values[key] is None else values[key] for key in COCO_KEYS]
        assert ours == pytest.approx(coco_numbers(problem), abs=1e-6)


def test_oracle_detector_is_perfect() -> None:
    """The true boxes as detections: everything is 1, and there is no error."""
    _, truth, labels = random_problem(3, images=20)
    found = [Detections(own.boxes_M4, np.ones(len(own.label_M)), own.label_M) for own in truth]
    values = measure_detections(found, truth, labels)
    assert [values[key] for key in ("ap", "ap50", "ap75", "ar100", "precision", "recall", "f1")] == [1.0] * 7
    assert values["ap_interval"] == [1.0, 1.0]
    assert values["per_class"]["c3"]["ap"] is None, "a class without boxes"
    assert {row["count"] for row in values["errors"].values()} == {0}
    assert (np.array(values["confusion"]) == np.diag(np.diagonal(values["confusion"]))).all()
    assert sum(row["missed"] for row in values["sizes"]) == 0
    assert (
        sum(row["found"] for row in values["sizes"]) == values["boxes"] == sum((~each.crowd_M).sum() for each in truth)
    )
    json.dumps(values, allow_nan=False)


def test_closed_forms() -> None:
    """Two boxes; by falling score: hit, false, hit. Precision 1 up to recall 1/2, then 2/3: 51 and 50 points."""
    truth = [true_boxes((0, 0, 10, 10, 0), (50, 50, 60, 60, 0))]
    found = [detections((0, 0, 10, 10, 0, 0.9), (80, 0, 90, 10, 0, 0.8), (50, 50, 60, 60, 0, 0.7))]
    values = measure_detections(found, truth, ["a"])
    assert values["ap"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert values["ar1"] == 0.5
    assert values["ar10"] == 1.0
    assert values["score_threshold"] == pytest.approx(0.7)
    assert (values["precision"], values["recall"], values["f1"]) == (2 / 3, 1.0, 0.8)
    # IoU 8/10 = 0.8 exactly counts from 0.5 to 0.8: seven of ten overlaps.
    values = measure_detections([detections((0, 0, 10, 8, 0, 0.9))], [SQUARE], ["a"])
    assert values["ap"] == pytest.approx(0.7)
    # One false detection below the hit; the threshold is halfway between their scores.
    values = measure_detections([detections((0, 0, 9, 10, 0, 0.9), (30, 0, 40, 10, 0, 0.5))], [SQUARE], ["a"])
    assert values["score_threshold"] == pytest.approx(0.7)
    assert values["ap50"] == 1.0


def test_equal_scores_are_taken_by_image_and_place() -> None:
    hit, false = (0, 0, 10, 10, 0, 0.5), (30, 0, 40, 10, 0, 0.5)
    first = measure_detections([detections(hit, false)], [SQUARE], ["a"])
    second = measure_detections([detections(false, hit)], [SQUARE], ["a"])
    assert (first["ap50"], second["ap50"]) == (1.0, 0.5)


def test_a_crowd_is_neither_missed_nor_false() -> None:
    """A detection inside a crowd is ignored, any number of times; so is a box without area."""
    truth = [true_boxes((0, 0, 10, 10, 0), (20, 0, 60, 40, 0), (5, 5, 5, 9, 0), crowd=(1,))]
    found = [detections((0, 0, 10, 10, 0, 0.5), (22, 2, 30, 9, 0, 0.9), (30, 2, 38, 9, 0, 0.8))]
    values = measure_detections(found, truth, ["a"])
    assert (values["ap"], values["boxes"], values["crowds_and_empty"]) == (1.0, 1, 2)
    assert values["per_class"]["a"]["false"] == 0


def test_nothing_found_and_nothing_to_find() -> None:
    values = measure_detections([NONE, NONE], [SQUARE, true_boxes()], ["a", "b"])
    assert (values["ap"], values["ar100"], values["recall"], values["precision"]) == (0.0, 0.0, 0.0, None)
    assert values["score_threshold"] is None
    assert values["errors"]["missed"] == {"count": 1, "ap50_gain": 1.0}
    assert values["confusion"] == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    for found in (NONE, detections((0, 0, 5, 5, 0, 0.5))):
        values = measure_detections([found], [true_boxes()], ["a"])
        assert values["ap"] is values["ap50"] is values["recall"] is values["errors"]["background"]["ap50_gain"] is None
        assert "ap_interval" not in values
        json.dumps(values, allow_nan=False)


def test_a_weight_is_a_copy_of_the_image() -> None:
    """Average precision with weights equals that of a set with copies of the images, for scores that differ."""
    found, truth, labels = random_problem(4, images=12)
    found = [each._replace(score_N=each.score_N + 1e-6 * place) for place, each in enumerate(found)]
    weight_RN = resample_weights(12, 5)
    assert weight_RN.sum(1).tolist() == [12] * 5
    ap_RKT = class_ap(match_all(found, truth, 4), weight_RN)
    for weight_N, ap_KT in zip(weight_RN, ap_RKT, strict=True):
        places = np.repeat(np.arange(12), weight_N)
        copies = match_all([found[place] for place in places], [truth[place] for place in places], len(labels))
        again_KT = class_ap(copies, np.ones((1, 12), np.int64))[0]
        np.testing.assert_allclose(ap_KT, again_KT, atol=1e-12)


def test_precision_falls_with_recall() -> None:
    found, truth, _ = random_problem(6, images=30)
    curve_Q = class_precisions(match_all(found, truth, 4), 0, np.ones((1, 30), np.int64))[0]
    assert curve_Q.shape == (101,)
    assert (np.diff(curve_Q) <= 0).all()


def test_interval_and_comparison() -> None:
    """The interval holds the number, is repeatable, and shrinks with more images; a detector does not differ from
    itself, and is better than one that finds half as many boxes."""
    found, truth, labels = random_problem(8, images=100)
    values = measure_detections(found, truth, labels)
    low, high = values["ap_interval"]
    assert low < values["ap"] < high
    assert measure_detections(found, truth, labels)["ap_interval"] == [low, high]
    few = measure_detections(found[:15], truth[:15], labels)["ap_interval"]
    assert few[1] - few[0] > high - low
    full = [Detections(own.boxes_M4, np.ones(len(own.label_M)), own.label_M) for own in truth]
    half = [Detections(*(each[::2] for each in own)) for own in full]
    all_found, some_found = match_all(full, truth, len(labels)), match_all(half, truth, len(labels))
    same = compare_detections(some_found, some_found)
    assert same["ap"] == {"difference": 0.0, "difference_interval": [0.0, 0.0], "p_value": 1.0}
    better = compare_detections(all_found, some_found)["ap50"]
    assert better["difference"] == pytest.approx(1 - quick_metrics(some_found)["ap50"])
    assert better["difference_interval"][0] > 0
    assert better["p_value"] == pytest.approx(1 / 201)
    nothing = match_all([NONE], [true_boxes()], 1)
    assert compare_detections(nothing, nothing) == {"ap": {"difference": None}, "ap50": {"difference": None}}
    with pytest.raises(UserError, match="100 and 1 images"):
        compare_detections(all_found, nothing)


@pytest.mark.parametrize(
    ("found", "truth", "message"),
    [
        ([], [], "0 and 0 images"),
        ([NONE], [SQUARE, SQUARE], "1 and 2 images"),
        ([detections((0, 0, np.nan, 1, 0, 0.5))], [SQUARE], "aren't finite"),
        ([detections((0, 0, 1, 1, 2, 0.5))], [SQUARE], "0 to 1"),
        ([NONE], [true_boxes((0, 0, 1, 1, 5))], "0 to 1"),
        ([Detections(np.zeros((2, 4)), np.zeros(1), np.zeros(2, int))], [SQUARE], "2 boxes, 1 scores"),
    ],
)
def test_refused(found: list[Detections], truth: list[OwnBoxes], message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure_detections(found, truth, ["a", "b"])
