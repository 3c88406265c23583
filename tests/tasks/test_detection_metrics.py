"""The task of detection: what its evaluation shows in log, console, report, card and comparison."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.evaluate.detection_problems import detections, random_problem, true_boxes
from vitral.data.boxes import Boxes, OwnBoxes
from vitral.evaluate.box_matching import Detections, match_all
from vitral.evaluate.detection import quick_metrics
from vitral.evaluate.detection_errors import best_threshold
from vitral.report.render import to_console, to_html, to_markdown
from vitral.tasks.detection import Detection, DetectionState, Truth
from vitral.tasks.task import Samples, Subject

LABELS = ("c0", "c1", "c2", "c3")


def arrays(found: list[Detections], truth: list[OwnBoxes]) -> tuple[Any, Any]:
    """Outputs [N, K, 6] and annotations as a subject has them."""
    rows_NK6 = np.full((len(found), 12, 6), -1.0)
    for row_K6, own in zip(rows_NK6, found, strict=True):
        row_K6[: len(own.score_N)] = np.column_stack([own.boxes_N4, own.score_N, own.label_N])
    boxes = Boxes(
        np.cumsum([len(own.label_M) for own in truth]), np.concatenate([own.boxes_M4 for own in truth]),
        np.concatenate([own.label_M for own in truth]), np.concatenate([own.crowd_M for own in truth]),
        np.zeros((len(truth), 2), np.int64),
    )  # fmt: skip
    return rows_NK6, Truth(boxes, ((300, 300),) * len(truth))


def image(place: int) -> Any:
    return np.full((300, 300, 3), 100 + place, np.uint8)


@pytest.fixture(scope="module")
def problem() -> tuple[Any, Any]:
    return arrays(*random_problem(2, images=20)[:2])


def test_numbers_are_shown_everywhere(problem: tuple[Any, Any]) -> None:
    task = Detection(LABELS, state={"threshold": 0.5})
    found, truth, _ = random_problem(2, images=20)
    evaluation = task.evaluate(Subject("test", lambda *_: [], lambda: problem), task.evaluators_of({}))
    assert evaluation.primary.name == "ap"
    direct = quick_metrics(match_all(found, truth, 4))
    assert {key: evaluation.values[key] for key in direct} == direct
    assert evaluation.values["score_threshold"] == 0.5
    assert not {*task.tables} & {*evaluation.summary(task)}
    json.dumps(evaluation.values, allow_nan=False)
    first, ap50, threshold = task.log_lines(evaluation)
    assert first.startswith(f"AP {evaluation.primary.text()} of 20 images (95 % interval")
    assert ap50.startswith("AP50 ")
    assert threshold.startswith("detections with a score of 0.5 or more: precision ")
    console = to_console(task.console(evaluation), 120)
    assert all(word in console for word in ("AP of 20 test images", "AP50", "Precision %", *LABELS))
    card = to_markdown(task.card(task.provenance(evaluation)))
    assert evaluation.primary.text() in card
    assert [row["type"] for row in task.hub_scores(evaluation.values)][:3] == ["ap", "ap50", "ap75"]
    samples = Samples(problem[0], problem[1], [f"<{place}>" for place in range(20)], image, {}, image)
    page = to_html("A page", task.sections(evaluation, samples))
    titles = "Classes, worst first", "Kinds of errors", "Confusion matrix", "Images", "Most missed", "Most false"
    assert all(title in page for title in titles)
    assert "image/jpeg" in page
    assert "&lt;0&gt;: " in page


def test_validation_in_training_is_quick(problem: tuple[Any, Any]) -> None:
    task = Detection(LABELS, state=DetectionState().model_dump())
    subject = Subject("val", lambda *_: [], lambda: problem, in_training=True)
    evaluation = task.evaluate(subject, task.evaluators_of({}))
    assert "ap_interval" not in evaluation.values
    assert "per_class" not in evaluation.values
    assert len(task.console(evaluation)) == 1


def test_the_threshold_is_that_of_the_best_f1(problem: tuple[Any, Any]) -> None:
    task = Detection(LABELS, state=DetectionState().model_dump()).calibrated(*problem)
    found, truth, _ = random_problem(2, images=20)
    assert task.threshold == best_threshold(match_all(found, truth, 4))
    assert {**task.state, "threshold": 0.3} == DetectionState().model_dump()
    answers = [task.answer(rows_K6, 5)["detections"] for rows_K6 in problem[0]]
    assert all(each["score"] >= task.threshold - 1e-6 for rows in answers for each in rows)
    total = sum(own.score_N.__ge__(task.threshold).sum() for own in found)
    assert sum(map(len, answers)) == total > 0
    nothing = arrays([detections()], [true_boxes((0, 0, 9, 9, 0))])
    assert task.calibrated(*nothing) == task


def test_two_detectors_are_compared(problem: tuple[Any, Any]) -> None:
    """Each by its own order of classes: the same detections under other numbers do not differ."""
    task, (rows_NK6, truth) = Detection(LABELS, state=DetectionState().model_dump()), problem
    turned_NK6 = rows_NK6.copy()
    turned_NK6[..., 5] = np.where(rows_NK6[..., 5] >= 0, 3 - rows_NK6[..., 5], -1)
    turned = truth._replace(boxes=replace(truth.boxes, label_X=3 - truth.boxes.label_X))
    other = Detection(LABELS[::-1], state=DetectionState().model_dump())
    own_N = task.per_sample(rows_NK6, truth)
    found = task.compare(own_N, other.per_sample(turned_NK6, turned))
    assert found["ap"]["difference"] == pytest.approx(0, abs=1e-12)
    none_N = task.per_sample(np.full_like(rows_NK6, -1), truth)
    found = task.compare(own_N, none_N)
    assert found["ap50"]["difference"] == pytest.approx(task.measure_quickly(*problem)["ap50"])
    line = task.comparison({"model": "other", **found})
    assert line.startswith("against other: AP +")
    assert "points (95 % interval +" in line
    empty = arrays([detections()], [true_boxes()])
    found = task.compare(task.per_sample(*empty), task.per_sample(*empty))
    assert task.comparison({"model": "other", **found}).endswith("no boxes to be found")


@pytest.mark.parametrize("truth", [true_boxes(), true_boxes((0, 0, 9, 9, 0))])
def test_a_page_without_detections(truth: OwnBoxes) -> None:
    task = Detection(LABELS, state=DetectionState().model_dump())
    outputs = arrays([detections()], [truth])
    evaluation = task.evaluate(Subject("val", lambda *_: [], lambda: outputs), task.evaluators_of({}))
    samples = Samples(*outputs, ["a.png"], image, {}, image)
    page = to_html("A page", task.sections(evaluation, samples))
    assert f"a.png: 0 found, {len(truth.label_M)} missed, 0 false" in page
    assert to_console(task.console(evaluation), 120)
    task.log_lines(evaluation)
