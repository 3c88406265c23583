"""Random detections of random boxes, and what COCO's own evaluation finds in them."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np

from tests.oracles import load_oracle
from vitral.data.boxes import OwnBoxes
from vitral.evaluate.box_matching import Detections

Problem = tuple[list[Detections], list[OwnBoxes], list[str]]
COCO_KEYS = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100", "ar_small", "ar_medium",
    "ar_large",
)  # fmt: skip


def true_boxes(*rows: tuple[float, float, float, float, int], crowd: tuple[int, ...] = ()) -> OwnBoxes:
    """Boxes and classes; `crowd`: places of crowds."""
    numbers = np.array(rows, np.float64).reshape(-1, 5)
    return OwnBoxes(numbers[:, :4], numbers[:, 4].astype(np.int64), np.isin(np.arange(len(rows)), crowd))


def detections(*rows: tuple[float, float, float, float, int, float]) -> Detections:
    """Boxes, classes, scores."""
    numbers = np.array(rows, np.float64).reshape(-1, 6)
    return Detections(numbers[:, :4], numbers[:, 5], numbers[:, 4].astype(np.int64))


def random_problem(seed: int, images: int = 8, classes: int = 4) -> Problem:
    """Images of which some have no boxes or detections, a class without boxes, crowds, boxes of all sizes on whole and
    broken pixels, detections beside the boxes and elsewhere; odd seeds: equal scores."""
    random = np.random.default_rng(seed)
    found: list[Detections] = []
    truth: list[OwnBoxes] = []
    for _ in range(images):
        count = int(random.integers(0, 6)) * int(random.random() > 0.2)
        low = np.round(random.uniform(0, 150, (count, 2)), int(random.integers(0, 3)))
        boxes = np.concatenate([low, low + np.round(random.uniform(4, 140, (count, 2)))], 1)
        labels = random.integers(0, classes - 1, count)
        truth.append(OwnBoxes(boxes, labels, random.random(count) < 0.15))
        count = int(random.integers(0, 12)) * int(random.random() > 0.2)
        low = random.uniform(0, 150, (count, 2))
        guesses = np.concatenate([low, low + random.uniform(4, 140, (count, 2))], 1)
        classes_N = random.integers(0, classes, count)
        if len(boxes) and count:
            near = random.random(count) < 0.8
            source = random.integers(0, len(boxes), count)
            noise = random.normal(0, 4, (count, 4)) * (random.random((count, 1)) < 0.8)
            guesses = np.where(near[:, None], boxes[source] + noise, guesses)
            guesses[:, 2:] = np.maximum(guesses[:, 2:], guesses[:, :2] + 1)
            classes_N = np.where(near & (random.random(count) < 0.9), labels[source], classes_N)
        found.append(Detections(guesses, np.round(random.random(count), 1 if seed % 2 else 3), classes_N))
    return found, truth, [f"c{place}" for place in range(classes)]


def coco_numbers(problem: Problem) -> list[float]:
    """The twelve numbers of pycocotools, -1 where one is undefined."""
    found, truth, labels = problem
    load_oracle("pycocotools")
    from pycocotools.coco import COCO  # pyright: ignore
    from pycocotools.cocoeval import COCOeval  # pyright: ignore

    def rows(boxes: Any, classes: Any) -> list[dict[str, Any]]:
        xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
        return [
            {"bbox": box, "category_id": label, "area": box[2] * box[3]}
            for box, label in zip(xywh, classes.tolist(), strict=True)
        ]

    annotations = [
        {**row, "image_id": image, "iscrowd": int(crowd)}
        for image, own in enumerate(truth)
        for row, crowd in zip(rows(own.boxes_M4, own.label_M), own.crowd_M, strict=True)
    ]
    results = [
        {**row, "image_id": image, "score": score}
        for image, own in enumerate(found)
        for row, score in zip(rows(own.boxes_N4, own.label_N), own.score_N.tolist(), strict=True)
    ]
    data: Any = COCO()
    data.dataset = {
        "images": [{"id": image} for image in range(len(truth))],
        "annotations": [{**row, "id": place + 1} for place, row in enumerate(annotations)],
        "categories": [{"id": place} for place in range(len(labels))],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        data.createIndex()
        evaluation = COCOeval(data, data.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()
