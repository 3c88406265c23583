"""Detection: boxes with classes, any number per image.

Shape letters: N images, M boxes of one image, B batch, A locations, X = 4 + C outputs of a location, K most detections,
4 a box (x0, y0, x1, y1), 6 a detection: box, score, class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from vitral.data.boxes import Boxes
from vitral.data.dataset import Dataset, Split
from vitral.data.image_spec import ImageSpec
from vitral.data.resize import Size, to_source
from vitral.errors import UserError
from vitral.evaluate.box_parity import box_parity
from vitral.evaluate.metric import Metric
from vitral.report.box_drawing import Outline, class_color, draw_outlines
from vitral.report.sections import Section
from vitral.tasks.classification import cell, class_places
from vitral.tasks.task import Array, Evaluation, Evaluator, Samples, Task, clean

if TYPE_CHECKING:
    from torch import Tensor

    from vitral.models.config import ModelConfig

# Conversion of outputs to detections; `state` of a task has these keys, and other values where a model needs them.
# min_score: below, boxes are dropped. max_iou: of two boxes of a class that overlap more, the one with the lower score
# is dropped. most: detections per image, as COCO counts. threshold: the lowest score of an answer.
STATE: dict[str, float | int] = {"min_score": 0.05, "max_iou": 0.6, "most": 100, "threshold": 0.3}
DRAWN_SIDE, DRAWN_TEXT = 1280, 16  # pixels of a drawn answer's longer side, and of a letter


class Truth(NamedTuple):
    """Annotations to measure by: boxes in pixels of the files, and each image's (height, width)."""

    boxes: Boxes
    sizes: tuple[Size, ...]


@dataclass(frozen=True)
class Detection(Task):
    """Boxes and their classes. Outputs of the model are its dense boxes and scores [A, 4 + C] in pixels of its own
    image, see `models.detector`; `outputs` of a subject are detections [K, 6] in pixels of the files, rows without one
    have class -1."""

    name: ClassVar[str] = "detection"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("ap", "AP", None), Metric("ap50", "AP50", None), Metric("ap75", "AP75", None)
    )  # fmt: skip
    tie_breaker: ClassVar[str | None] = None
    has_places: ClassVar[bool] = True
    evaluators: ClassVar[dict[str, Evaluator]] = {"map": clean}
    headline: ClassVar[tuple[str, ...]] = ("ap", "ap_interval", "ap50", "ap50_interval", "ap75", "count")
    export_names: ClassVar[tuple[str, ...]] = ("boxes_scores",)
    hub_type: ClassVar[str] = "object-detection"
    tags: ClassVar[tuple[str, ...]] = ("object-detection",)
    gives: ClassVar[str] = "boxes of objects of these classes, each with a score"
    limits: ClassVar[str] = (
        "It finds objects of these classes and no other. Scores are not calibrated probabilities. Objects much smaller "
        "or larger than those of the training data may be missed."
    )
    loss_note: ClassVar[str] = "The loss is the sum of those of classes, boxes and quality, per positive location."

    # Annotations and outputs

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """With the default thresholds. Raises UserError for data without boxes."""
        if dataset.task != cls.name:
            raise UserError(
                "the data have no boxes to learn", where=dataset.name, got=f"data for {dataset.task}",
                expected="COCO, VOC or YOLO annotations, or a table of boxes", hint="docs/boxes.md lists the formats.",
            )  # fmt: skip
        return cls(dataset.classes, state=dict(STATE))

    @classmethod
    def blank_targets(cls, count: int, architecture: ModelConfig) -> dict[str, Tensor]:
        """Boxes, their classes and the locations that learn them."""
        import torch

        locations, rows = getattr(architecture, "locations", 0), 8
        return {
            "boxes": torch.empty(count, rows, 4), "box_class": torch.empty(count, rows, dtype=torch.long),
            "location_box": torch.empty(count, locations, dtype=torch.long),
        }  # fmt: skip

    def match(self, dataset: Dataset, split: Split) -> Split:
        """The split with classes in the model's order. Raises UserError where the classes of the data are others."""
        split = super().match(dataset, split)
        place = np.array(class_places(dataset, self.labels), np.int64)
        assert split.boxes is not None
        hot_NK = np.zeros((len(split), len(self.labels)), np.bool_)
        hot_NK[:, place] = split.labels_N
        return replace(split, labels_N=hot_NK, boxes=split.boxes.relabeled(place))

    def compact(self, outputs: Tensor) -> Tensor:
        """Detections [B, K, 6] in pixels of the model's image from its outputs [B, A, X]."""
        from vitral.models.select_boxes import select_boxes

        state = STATE | dict(self.state)
        return select_boxes(outputs, state["min_score"], state["max_iou"], int(state["most"]))

    def annotated(
        self, outputs_NS: Array, annotations: Array, split: Split, spec: ImageSpec
    ) -> tuple[Array, Any]:  # fmt: skip
        """Detections [N, K, 6] in pixels of the files, and the `Truth`."""
        assert split.boxes is not None
        sizes = tuple(image_size(split, place) for place in range(len(split)))
        found = [in_file(found_K6, size, spec) for found_K6, size in zip(outputs_NS, sizes, strict=True)]
        return np.stack(found), Truth(split.boxes, sizes)

    # Answers

    def scores(self, outputs: Tensor) -> Tensor:
        """Dense boxes and scores as they are."""
        return outputs

    def answers(
        self, outputs: Tensor, topk: int, sizes: Sequence[Size] | None, spec: ImageSpec
    ) -> list[dict[str, Any]]:  # fmt: skip
        """{"detections": [{"label", "index", "score", "box"}]} for each image of detections [B, K, 6]: boxes (x0, y0,
        x1, y1) in pixels of the files, whose (height, width) `sizes` holds; None: of the model's image. All with a
        score of `state["threshold"]` or more, best first."""
        found_BK6 = outputs.double().numpy()
        if sizes is not None:
            found_BK6 = [in_file(each_K6, size, spec) for each_K6, size in zip(found_BK6, sizes, strict=True)]
        return [self.answer(each_K6, topk) for each_K6 in found_BK6]

    def comparable(self, outputs: Tensor) -> Tensor:
        """Boxes in 500 pixels, so that 0.001 is half a pixel; scores as they are."""
        import torch

        return torch.cat([outputs[..., :4] / 500, outputs[..., 4:]], -1)

    def parity(self, mine_NS: Tensor, theirs_NS: Tensor) -> dict[str, float]:
        """See `evaluate.box_parity`; with the largest differences of boxes, in pixels, and of scores over all
        locations."""
        state, apart = STATE | dict(self.state), (mine_NS - theirs_NS).abs()
        found = box_parity(self.compact(mine_NS), self.compact(theirs_NS), state["threshold"], state["max_iou"])
        return {**found, "pixels_apart": float(apart[..., :4].max()), "scores_apart": float(apart[..., 4:].max())}

    def answer(self, scores_S: Array, topk: int) -> dict[str, Any]:
        """The answer of detections [K, 6]."""
        least = (STATE | dict(self.state))["threshold"]
        rows = [row for row in scores_S if row[5] >= 0 and row[4] >= least]
        return {"detections": [self.detection(row) for row in rows]}

    def at_threshold(self, threshold: float) -> Self:
        """With another lowest score of an answer, which also those may have that are else dropped before."""
        state = STATE | dict(self.state)
        return replace(
            self, state={**state, "threshold": threshold, "min_score": min(state["min_score"], threshold)}
        )  # fmt: skip

    def drawn(self, image_HWC: Array, answer: Mapping[str, Any]) -> Array:
        """The boxes with classes and scores, the best over the others."""
        found = answer["detections"][::-1]
        lines = [
            Outline(each["box"], f"{each['label']} {each['score']:.2f}", class_color(each["label"])) for each in found
        ]
        return draw_outlines(image_HWC, lines, DRAWN_SIDE, DRAWN_TEXT)

    def detection(self, row_6: Array) -> dict[str, Any]:
        """One detection as JSON: its class, its score and its box, rounded to hundredths of a pixel."""
        index = int(row_6[5])
        box = [round(float(each), 2) for each in row_6[:4]]
        return {"label": self.labels[index], "index": index, "score": round(float(row_6[4]), 6), "box": box}

    def scores_of(self, outputs_NS: Array) -> Array:
        """Detections as they are."""
        return outputs_NS

    def prediction_rows(self, names: Sequence[str], annotations: Any, scores_NS: Array) -> Iterator[Sequence[str]]:
        """One line per detection: name, class, score, box in pixels of the file."""
        yield "image", "label", "score", "x0", "y0", "x1", "y1"
        for name, found_K6 in zip(names, scores_NS, strict=True):
            for each in self.answer(found_K6, 0)["detections"]:
                yield cell(name), cell(each["label"]), f"{each['score']:.6f}", *(f"{x:.2f}" for x in each["box"])

    # Evaluation

    def measure(self, outputs_NS: Array, annotations: Any) -> dict[str, Any]:
        """AP50, until the evaluation of detections is there."""
        value = _ap50(outputs_NS, annotations.boxes, len(self.labels))
        return {"ap": value, "ap50": value, "ap75": value, "count": len(outputs_NS)}

    def own_sections(self, evaluation: Evaluation | None, samples: Samples) -> list[Section]:
        """The headline."""
        assert evaluation is not None
        primary, *others = self.of_values(evaluation.values)
        return [self._headline(evaluation, frozenset({"report"}), *others)]

    def hub_scores(self, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
        """AP and AP50."""
        return [{"type": key, "value": metrics[key], "name": name} for key, name in (("ap", "AP"), ("ap50", "AP50"))]


def image_size(split: Split, place: int) -> Size:
    """Height and width of an image of a split, upright, from its header where that is cheap."""
    if split.size is not None:
        return split.size(place)
    image_CHW = split.read(place)
    return image_CHW.shape[1], image_CHW.shape[2]


def in_file(found_K6: Array, size: Size, spec: ImageSpec) -> Array:
    """Detections in pixels of the model's image as those in pixels of the file, cut at its border; `size`: of the file,
    (height, width). Rows without a detection stay."""
    boxes_K4 = to_source(found_K6[:, :4].astype(np.float64), size, spec.image_size, spec)
    return np.where(found_K6[:, 5:] < 0, found_K6, np.concatenate([boxes_K4, found_K6[:, 4:]], axis=1))


def _ap50(found_NK6: Array, truth: Boxes, classes: int) -> float:
    import torch

    from vitral.data.box_ops import iou

    precision: list[float] = []
    for label in range(classes):
        rows, total = list[tuple[float, bool]](), 0
        for place, found_K6 in enumerate(found_NK6):
            own, mine = truth.of(place), found_K6[found_K6[:, 5] == label]
            real = own.boxes_M4[own.label_M == label]
            total, taken = total + len(real), set[int]()
            overlap = iou(torch.from_numpy(mine[:, :4]).double(), torch.from_numpy(real)).numpy()
            for row, best in zip(mine, overlap, strict=True):
                hits = [j for j in np.argsort(-best).tolist() if best[j] >= 0.5 and j not in taken]
                taken |= set(hits[:1])
                rows.append((float(row[4]), bool(hits)))
        if not total:
            continue
        right = np.cumsum([hit for _, hit in sorted(rows, key=lambda row: -row[0])])
        share = right / np.arange(1, len(right) + 1)
        share = np.maximum.accumulate(share[::-1])[::-1]
        at = np.searchsorted(right / total, np.linspace(0, 1, 101))
        precision.append(float(np.mean([share[i] if i < len(share) else 0.0 for i in at])))
    return float(np.mean(precision)) if precision else 0.0
