"""Detection: boxes with classes, any number per image.

Shape letters: N images, M boxes of one image, B batch, A locations, X = 4 + C outputs of a location, K most detections,
4 a box (x0, y0, x1, y1), 6 a detection: box, score, class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from vitral.config import Config, Share, build
from vitral.data.boxes import Boxes, OwnBoxes
from vitral.data.dataset import Dataset, Split
from vitral.data.image_spec import ImageSpec
from vitral.data.resize import Size, to_source
from vitral.errors import UserError
from vitral.evaluate.box_matching import Detections, match_all
from vitral.evaluate.box_parity import box_parity
from vitral.evaluate.detection import compare_detections, measure_detections, quick_metrics
from vitral.evaluate.detection_errors import best_threshold
from vitral.evaluate.metric import Metric, percent
from vitral.report.box_drawing import Outline, class_color, draw_outlines
from vitral.report.sections import Section
from vitral.tasks.classification import cell, class_places
from vitral.tasks.task import Array, Evaluation, Evaluator, Samples, Task, clean

if TYPE_CHECKING:
    from torch import Tensor

    from vitral.models.config import ModelConfig

DRAWN_SIDE, DRAWN_TEXT = 1280, 22  # pixels of a drawn answer's longer side, and of a letter


class DetectionState(Config):
    """Conversion of outputs to detections.

    min_score: below, boxes are dropped. max_iou: of two boxes of a class that overlap more, the one with the lower
    score is dropped. most: detections per image, as COCO counts. threshold: the lowest score of an answer.
    suppressed: outputs are detections [K, 6] already: those of an export that ends with non-maximum suppression.
    """

    min_score: Share = 0.05
    max_iou: Share = 0.6
    most: int = Field(default=100, ge=1, le=1000)
    threshold: Share = 0.3
    suppressed: bool = False


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
    state_type: ClassVar[type[Config]] = DetectionState
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("ap", "AP", None), Metric("ap50", "AP50", None), Metric("ap75", "AP75", None),
        Metric("ap_small", "AP, small boxes", None), Metric("ap_medium", "AP, medium boxes", None),
        Metric("ap_large", "AP, large boxes", None), Metric("ar100", "AR at 100 detections", None),
    )  # fmt: skip
    tie_breaker: ClassVar[str | None] = None
    has_places: ClassVar[bool] = True
    evaluators: ClassVar[dict[str, Evaluator]] = {"map": clean}
    headline: ClassVar[tuple[str, ...]] = (
        "ap", "ap_interval", "ap50", "ap50_interval", "ap75", "ap_small", "ap_medium", "ap_large", "ar100", "count",
        "boxes", "score_threshold", "precision", "recall",
    )  # fmt: skip
    tables: ClassVar[tuple[str, ...]] = ("per_class", "curves", "errors", "confusion", "sizes")
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
        return cls(dataset.classes, state=DetectionState().model_dump())

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

    def suppressed_state(self, architecture: ModelConfig) -> dict[str, Any]:
        """All limits, which the graph then holds; no more detections than there are boxes."""
        room = getattr(architecture, "outputs", 0) * architecture.num_classes
        changed = {"suppressed": True, "most": min(self._kept.most, room)}
        return self._kept.model_copy(update=changed).model_dump()

    def compact(self, outputs: Tensor) -> Tensor:
        """Detections [B, K, 6] in pixels of the model's image from its outputs [B, A, X]."""
        from vitral.models.select_boxes import select_boxes

        if self._kept.suppressed:
            if outputs.shape[1:] != (self._kept.most, 6):
                raise UserError(
                    "these outputs are no detections", where="task_state.suppressed", got=list(outputs.shape[1:]),
                    expected=[self._kept.most, 6],
                )  # fmt: skip
            return outputs
        return select_boxes(outputs, self._kept.min_score, self._kept.max_iou, self._kept.most)

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
        score of `threshold` or more, best first."""
        found_BK6 = outputs.double().numpy()
        if sizes is not None:
            found_BK6 = [in_file(each_K6, size, spec) for each_K6, size in zip(found_BK6, sizes, strict=True)]
        return [self.answer(each_K6, topk) for each_K6 in found_BK6]

    def comparable(self, outputs: Tensor) -> Tensor:
        """Boxes in 500 pixels, so that 0.001 is half a pixel; scores as they are. Of detections, whose order equal
        scores leave open, the scores alone, by falling score; those below the threshold count as equal to it."""
        import torch

        if self._kept.suppressed:
            return outputs[..., 4].clamp(min=self.threshold)
        return torch.cat([outputs[..., :4] / 500, outputs[..., 4:]], -1)

    def parity(self, mine_NS: Tensor, theirs_NS: Tensor) -> dict[str, float]:
        """See `evaluate.box_parity`; with the largest differences of boxes, in pixels, and of scores over all
        locations, unless outputs are detections."""
        found = box_parity(self.compact(mine_NS), self.compact(theirs_NS), self.threshold, self._kept.max_iou)
        if self._kept.suppressed:
            return found
        apart = (mine_NS - theirs_NS).abs()
        return {**found, "pixels_apart": float(apart[..., :4].max()), "scores_apart": float(apart[..., 4:].max())}

    @property
    def threshold(self) -> float:
        """The lowest score of an answer: that of the best F1 on validation images, else a default."""
        return self._kept.threshold

    @cached_property
    def _kept(self) -> DetectionState:
        return build(DetectionState, self.state)

    def answer(self, scores_S: Array, topk: int) -> dict[str, Any]:
        """The answer of detections [K, 6]."""
        rows = [row for row in scores_S if row[5] >= 0 and row[4] >= self.threshold and has_area(row)]
        return {"detections": [self.detection(row) for row in rows]}

    def at_threshold(self, threshold: float) -> Self:
        """With another lowest score of an answer, which also those may have that are else dropped before."""
        if self._kept.suppressed and threshold < self._kept.min_score:
            raise UserError(
                "this export drops boxes of lower scores itself", where="threshold", got=threshold,
                expected=f"{self._kept.min_score:g} or more", hint="Take the model, or an export without nms=true.",
            )  # fmt: skip
        changed = {"threshold": threshold, "min_score": min(self._kept.min_score, threshold)}
        return replace(self, state={**self.state, **changed})

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

    def calibrated(self, outputs_NS: ArrayLike, annotations: Any) -> Self:
        """With the score threshold of the best F1 on these images at IoU 0.5; unchanged where nothing is found."""
        threshold = best_threshold(match_all(*_images(np.asarray(outputs_NS), annotations), len(self.labels)))
        return self if threshold is None else replace(self, state={**self.state, "threshold": threshold})

    def measure(self, outputs_NS: Array, annotations: Any) -> dict[str, Any]:
        """See `measure_detections`; at the task's score threshold."""
        return measure_detections(*_images(outputs_NS, annotations), self.labels, score=self.threshold)

    def measure_quickly(self, outputs_NS: Array, annotations: Any) -> dict[str, Any]:
        """Without intervals and tables."""
        return quick_metrics(match_all(*_images(outputs_NS, annotations), len(self.labels)))

    def per_sample(self, outputs_NS: Array, annotations: Any) -> Array:
        """Detections and true boxes of each image, [N, 2] objects: average precision is not a mean over images."""
        rows = np.empty((len(outputs_NS), 2), object)
        for place, pair in enumerate(zip(*_images(outputs_NS, annotations), strict=True)):
            rows[place, 0], rows[place, 1] = pair
        return rows

    def compare(self, own_N: Array, other_N: Array) -> dict[str, Any]:
        """See `compare_detections`; each with the true boxes in its own order of classes."""
        one, other = (match_all(list(rows[:, 0]), list(rows[:, 1]), len(self.labels)) for rows in (own_N, other_N))
        return compare_detections(one, other)

    def comparison(self, found: Mapping[str, Any]) -> str:
        """The differences in AP and AP50, in points."""
        texts: list[str] = []
        for name, label in (("ap", "AP"), ("ap50", "AP50")):
            if found[name]["difference"] is None:
                return f"against {found['model']}: no difference, as these images have no boxes to be found"
            value, low, high = (100 * each for each in (found[name]["difference"], *found[name]["difference_interval"]))
            texts.append(f"{label} {value:+.2f} points (95 % interval {low:+.2f} to {high:+.2f})")
        return f"against {found['model']}: {', '.join(texts)}"

    # Report, console and model card

    def own_sections(self, evaluation: Evaluation | None, samples: Samples) -> list[Section]:
        """Headline, classes, curves, errors, confusions, sizes and images with boxes."""
        from vitral.report.detection import DetectionSamples, detection_sections

        assert evaluation is not None
        assert samples.scores_NS is not None
        drawn = DetectionSamples(*_images(samples.scores_NS, samples.annotations), samples.names, samples.source)
        values = evaluation.values | {"split": evaluation.split}
        return detection_sections(values, self.of_values(evaluation.values), drawn)

    def console(self, evaluation: Evaluation) -> list[Section]:
        """Also the classes."""
        from vitral.report.detection import class_table

        if not evaluation.values.get("per_class"):
            return super().console(evaluation)
        section = Section("", [class_table(evaluation.values)], frozenset({"console"}))
        return [*super().console(evaluation), section]

    def log_lines(self, evaluation: Evaluation) -> list[str]:
        """Also AP50, and the score threshold with its precision and recall."""
        first, *more = super().log_lines(evaluation)
        ap50, values = evaluation.metric("ap50"), evaluation.values
        lines = [f"AP50 {ap50.text()}"] if ap50 else []
        if values.get("precision") is not None and values["recall"] is not None:
            shares = f"precision {percent(values['precision'])} %, recall {percent(values['recall'])} %"
            lines.append(f"detections with a score of {values['score_threshold']:.3g} or more: {shares}")
        return [first, *lines, *more]

    def hub_scores(self, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Those of AP with its interval in the name."""
        return [
            {
                "type": metric.name, "value": metric.value,
                "name": f"{metric.label} ({metric.interval_text()})" if metric.interval else metric.label,
            }
            for metric in self.of_values(metrics)
            if metric.value is not None
        ]  # fmt: skip


def _images(found_NK6: Array, truth: Truth) -> tuple[list[Detections], list[OwnBoxes]]:
    """Detections and true boxes of each image."""
    rows = (found_K6[found_K6[:, 5] >= 0] for found_K6 in found_NK6)
    found = [Detections(each[:, :4], each[:, 4], each[:, 5].astype(np.int64)) for each in rows]
    return found, [truth.boxes.of(place) for place in range(len(found))]


def image_size(split: Split, place: int) -> Size:
    """Height and width of an image of a split, upright, from its header where that is cheap."""
    if split.size is not None:
        return split.size(place)
    image_CHW = split.read(place)
    return image_CHW.shape[1], image_CHW.shape[2]


def has_area(row_6: Array) -> bool:
    """Whether anything is left of a detection that was cut at a border: in the padding there is no file."""
    return bool(row_6[0] < row_6[2] and row_6[1] < row_6[3])


def in_file(found_K6: Array, size: Size, spec: ImageSpec) -> Array:
    """Detections in pixels of the model's image as those in pixels of the file, cut at its border; `size`: of the file,
    (height, width). Rows without a detection stay."""
    boxes_K4 = to_source(found_K6[:, :4].astype(np.float64), size, spec.image_size, spec)
    return np.where(found_K6[:, 5:] < 0, found_K6, np.concatenate([boxes_K4, found_K6[:, 4:]], axis=1))
