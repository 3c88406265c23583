"""Features: an encoder without a head, learned without annotations and evaluated by its nearest neighbors.

Shape letters: N samples, D width of the features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from vitral.data.dataset import Dataset
from vitral.evaluate.config import KnnConfig, NeighborsConfig
from vitral.evaluate.metric import Metric
from vitral.report.sections import Section
from vitral.tasks.classification import accuracy_row
from vitral.tasks.task import Array, Evaluation, Evaluator, Found, Samples, Subject, Task


def neighbors(task: Task, subject: Subject, config: NeighborsConfig) -> Iterator[Found]:
    """Accuracy of the vote of the nearest train images, by the features that a head would read."""
    from vitral.evaluate.features import embed_batches
    from vitral.evaluate.knn import knn
    from vitral.models.model import ImageModel

    model = subject.model
    assert isinstance(model, ImageModel)
    train, own = (embed_batches(model, subject.batches(split, config.samples)) for split in ("train", subject.split))
    classes = int(max(train.labels_N.max(), own.labels_N.max())) + 1
    found = dict(knn(train, own, classes, KnnConfig(k=(config.k,))))
    low, high = found["top1_interval"]
    yield Metric("knn_top1", "k-NN top-1", found["top1"], (low, high))
    yield from ((key, found[key]) for key in ("top1", "top1_interval", "count"))
    yield "evaluated_by", f"{config.k} nearest neighbors"


@dataclass(frozen=True)
class Features(Task):
    """Features only. Annotations, where the data have one class per image, are used to evaluate."""

    name: ClassVar[str] = "features"
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("knn_top1", "k-NN top-1", None),)
    evaluators: ClassVar[dict[str, Evaluator]] = {"knn": neighbors}
    headline: ClassVar[tuple[str, ...]] = ("top1", "top1_interval", "count", "evaluated_by")
    has_head: ClassVar[bool] = False
    export_names: ClassVar[tuple[str, ...]] = ("features",)
    limits: ClassVar[str] = "What its features are good for needs a test on the images at hand."
    loss_note: ClassVar[str] = (
        "The loss without labels says little about the features. Compare it within a run, and compare runs by the "
        "accuracy of nearest neighbors."
    )
    hub_type: ClassVar[str] = "image-feature-extraction"

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """Accept any annotations."""
        return cls()

    def can_evaluate(self, dataset: Dataset) -> bool:
        """Where images have one class each, out of several."""
        labels_N = dataset.splits["train"].labels_N
        return dataset.task == "classification" and len(np.unique(labels_N)) > 1

    def own_sections(self, evaluation: Evaluation | None, samples: Samples) -> list[Section]:
        """Headline, and pictures of what was learned."""
        from vitral.report.features import features_sections

        found = {} if evaluation is None else evaluation.values | {"split": evaluation.split}
        return features_sections(found, samples.pictures)

    def kept(self, metrics: Mapping[str, Any]) -> list[Metric]:
        """The share of images that the nearest neighbors name right."""
        if metrics.get("top1") is None:
            return []
        return self.of_values({"knn_top1": metrics["top1"], "knn_top1_interval": metrics.get("top1_interval")})

    def hub_scores(self, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Accuracy of the votes."""
        by = f" by {metrics['evaluated_by']}" if "evaluated_by" in metrics else ""
        return [accuracy_row(metrics, f"top-1{by}")] if metrics.get("top1") is not None else []

    def measure(self, outputs_NS: Array, annotations: Array) -> dict[str, Any]:
        """Features have no answers to measure."""
        raise NotImplementedError
