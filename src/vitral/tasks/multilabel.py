"""Multi-label classification: any number of classes per image.

Shape letters: N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vitral.data.dataset import Split
from vitral.evaluate.metric import Metric
from vitral.evaluate.multilabel import exactly_right, multilabel_metrics
from vitral.report.sections import Section, Table
from vitral.tasks.classification import LOSS_NOTE, Classes, cell
from vitral.tasks.task import Array, Evaluation, Evaluator, Samples, clean

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Multilabel(Classes):
    """Any number of classes per image: an independent sigmoid per output.

    Sigmoids are not calibrated: at 0.5 a decision would stay as it is, and with several classes per image there is no
    one confidence.
    """

    name: ClassVar[str] = "multilabel"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("map", "mAP", None),
        Metric("micro_f1", "F1, micro", None),
        Metric("macro_f1", "F1, macro", None),
        Metric("exact_match", "every class correct", None),
        Metric("loss", "loss", None, higher_is_better=False, format="number", unit="nats"),
    )
    tie_breaker: ClassVar[str | None] = "loss"
    evaluators: ClassVar[dict[str, Evaluator]] = {"clean": clean}
    headline: ClassVar[tuple[str, ...]] = (
        "map", "micro_f1", "macro_f1", "exact_match", "exact_match_interval", "count", "loss",
    )  # fmt: skip
    right_metric: ClassVar[str] = "exact_match"
    loss_unit: ClassVar[str] = "nats"
    loss_note: ClassVar[str] = LOSS_NOTE
    hf_problem_type: ClassVar[str] = "multi_label_classification"
    hub_type: ClassVar[str] = "image-classification"
    gives: ClassVar[str] = "an independent probability for each class"
    limits: ClassVar[str] = "It knows these classes and no other; a foreign image may get any of them, or none."
    is_exclusive: ClassVar[bool] = False
    tags: ClassVar[tuple[str, ...]] = ("multi-label",)

    def reordered(self, split: Split, place: Sequence[int]) -> Split:
        """The split with columns in the model's order of classes."""
        hot_NK = np.zeros((len(split), len(self.labels)), split.labels_N.dtype)
        hot_NK[:, place] = split.labels_N
        return replace(split, labels_N=hot_NK)

    def scores(self, outputs: Tensor) -> Tensor:
        """Return independent probabilities [..., K] of the classes."""
        return super().scores(outputs).sigmoid()

    def measure(self, outputs_NS: Array, annotations: Array) -> dict[str, Any]:
        """See `multilabel_metrics`."""
        return multilabel_metrics(outputs_NS, annotations, self.labels, self.temperature)

    def own_sections(self, evaluation: Evaluation | None, samples: Samples) -> list[Section]:
        """Headline and classes."""
        from vitral.report.classification import multilabel_sections

        assert evaluation is not None
        return multilabel_sections(evaluation.values | {"split": evaluation.split})

    def console(self, evaluation: Evaluation) -> list[Section]:
        """Also the classes."""
        columns = {"ap": "AP", "precision": "precision", "recall": "recall", "f1": "F1"}
        rows = [
            [name, *(Metric(key, label, row[key]) for key, label in columns.items()), row["count"]]
            for name, row in evaluation.values.get("per_class", {}).items()
        ]
        table = Table(["class", *columns.values(), "images"], rows)
        return [*super().console(evaluation), Section("", [table], frozenset({"console"}))]

    def log_lines(self, evaluation: Evaluation) -> list[str]:
        """Also the share of images with every class correct."""
        exact = evaluation.metric("exact_match")
        lines = super().log_lines(evaluation)
        return [*lines, f"{exact.label}: {exact.text()} ({exact.interval_text()})"] if exact else lines

    def hub_scores(self, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Mean average precision, micro F1 and exact matches."""
        if not self.of_values(metrics):
            return []
        low, high = metrics["exact_match_interval"]
        return [
            {"type": "mean_average_precision", "value": metrics["map"], "name": "mAP"},
            {"type": "f1", "value": metrics["micro_f1"], "name": "F1, micro, at a probability of 0.5"},
            {
                "type": "exact_match", "value": metrics["exact_match"],
                "name": f"every class correct (95 % interval {low:.4f} to {high:.4f})",
            },
        ]  # fmt: skip

    def per_sample(self, outputs_NS: Array, annotations: Array) -> Array:
        """Which samples have every class correct at a probability of 0.5, bool [N]."""
        return exactly_right(outputs_NS, annotations)

    def prediction_rows(self, names: Sequence[str], annotations: Array, scores_NS: Array) -> Iterator[Sequence[str]]:
        """Name, the classes present, those with a probability of 0.5 or more and their probabilities, each
        joined by ";", and whether they are the same."""
        yield "image", "label", "prediction", "score", "correct"
        for name, hot_C, row_C in zip(names, annotations.astype(bool), scores_NS, strict=True):
            pred_C = row_C >= 0.5
            words = [
                ";".join(cell(self.labels[i]) for i in np.flatnonzero(one_C).tolist()) for one_C in (hot_C, pred_C)
            ]
            scores = ";".join(f"{score:.6f}" for score in row_C[pred_C].tolist())
            yield cell(name), *words, scores, str(bool((hot_C == pred_C).all())).lower()
