"""Classification: one class per image.

Shape letters: N samples, C classes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from vitral.attacks.config import AttackConfig
from vitral.data.dataset import Dataset, Split
from vitral.errors import UserError
from vitral.evaluate.calibration import helpful_temperature
from vitral.evaluate.classification import classification_metrics, wilson_interval
from vitral.evaluate.compare import mcnemar
from vitral.evaluate.config import ATTACKED, AttackedConfig
from vitral.evaluate.metric import Metric, eps_text
from vitral.report.sections import Section, Table
from vitral.tasks.imagenet_names import numbered_names, numbered_of
from vitral.tasks.task import Array, Evaluation, Evaluator, Found, Samples, Subject, Task, clean

if TYPE_CHECKING:
    from torch import Tensor

_WORST, _WORST_MISTAKES = 5, 24  # classes and images
LOSS_NOTE = "The training loss includes label smoothing and mixing, if any; the validation loss includes neither."
log = logging.getLogger("vitral")


@dataclass(frozen=True)
class Classes(Task):
    """Common base of the tasks whose outputs are classes."""

    has_classes: ClassVar[bool] = True
    tables: ClassVar[tuple[str, ...]] = ("per_class", "confusion")
    right_metric: ClassVar[str]

    def match(self, dataset: Dataset, split: Split) -> Split:
        """The split with labels in the model's order of classes. Class names are matched, and positions only where
        both sides have numbers alone. Raises UserError where the classes of the data are others."""
        split = super().match(dataset, split)
        return self.reordered(split, class_places(dataset, self.labels))

    def reordered(self, split: Split, place: Sequence[int]) -> Split:
        """The split with class indices of the model; place: the model's index of each class of the data."""
        return replace(split, labels_N=np.array(place, np.int64)[split.labels_N])

    def answer(self, scores_S: Array, topk: int) -> dict[str, Any]:
        """Return the `topk` most probable classes, best first: {"predictions": [{"label", "index", "score"}]}."""
        order = np.argsort(-scores_S, kind="stable")[:topk]
        return {"predictions": [self.answer_of(scores_S, index) for index in order.tolist()]}

    def answer_of(self, scores_S: Array, index: int) -> dict[str, Any]:
        """One class with its probability."""
        return {"label": self.labels[index], "index": index, "score": round(float(scores_S[index]), 6)}

    def answer_text(self, scores_S: Array, index: int) -> str:
        """One class with its probability."""
        return f"{self.labels[index]}, {100 * float(scores_S[index]):.1f} %"

    def chosen(self, scores_S: Array) -> int:
        """Return the most probable class."""
        return int(scores_S.argmax())

    def provenance(self, evaluation: Evaluation) -> dict[str, Any]:
        """Add the classes with the lowest recall."""
        worst = worst_classes(evaluation.values.get("per_class", {}))
        return {"worst_classes": worst, **super().provenance(evaluation)}

    def card(self, provenance: Mapping[str, Any]) -> list[Section]:
        """Add the classes with the lowest recall."""
        sections, worst = super().card(provenance), provenance.get("worst_classes")
        if not sections or not worst:
            return sections
        rows: list[list[Any]] = []
        for row in worst:
            low, high = (100 * end for end in row["interval"])
            rows.append([row["class"], f"{row['found']} of {row['count']}", f"{low:.2f} to {high:.2f} %"])
        table = Table(["class", "found", "95 % interval"], rows, "Classes with the lowest recall:")
        return [*sections, Section("", [table], frozenset({"card"}))]

    def compare(self, own_N: Array, other_N: Array) -> dict[str, Any]:
        """McNemar's paired test, and the other model's accuracy."""
        return {self.right_metric: float(np.mean(other_N)), **mcnemar(own_N, other_N)}

    def comparison(self, found: Mapping[str, Any]) -> str:
        """Format both accuracies, the difference and the test."""
        other = next(replace(each, value=found[each.name]) for each in self.metrics if each.name == self.right_metric)
        low, high = found["difference_interval"]
        return (
            f"against {found['model']} ({other.label} {other.text()}): {100 * found['difference']:+.2f} points "
            f"(95 % interval {100 * low:+.2f} to {100 * high:+.2f}), correct only here {found['only_a']}, only there "
            f"{found['only_b']}, McNemar p = {found['p_value']:.3g}"
        )


def attacked(task: Task, subject: Subject, config: AttackedConfig) -> Iterator[Found]:
    """Top-1 under an attack: the share of images whose answer is correct before and after it."""
    from vitral.attacks.registry import attack_of
    from vitral.evaluate.robustness import robustness

    assert isinstance(config, AttackConfig)
    if not (config.black_box or subject.has_gradients):
        raise UserError(
            "this attack needs gradients by the images, which exports and models of codes do not have", where="eval",
            got=config.kind, expected="square",
        )  # fmt: skip
    batches, places = subject.batches(subject.split, config.samples), subject.places(subject.split, config.samples)
    found = robustness(attack_of(config), subject.classifier, batches, places, config.seed)
    label = f"top-1 under {config.kind} ({config.norm}, eps {eps_text(config.radius)})"
    yield Metric(f"{config.kind}_top1", label, found.top1, found.interval)
    yield f"{config.kind}_count", found.images
    yield f"{config.kind}_clean_top1", found.right / found.images


@dataclass(frozen=True)
class Classification(Classes):
    """One class per image: probabilities by softmax of the outputs over the temperature."""

    name: ClassVar[str] = "classification"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("top1", "top-1", None),
        Metric("top5", "top-5", None),
        Metric("baseline", "always predicting the most common class", None),
        Metric("loss", "loss", None, higher_is_better=False, format="number", unit="nats"),
        Metric("ece", "ECE", None, higher_is_better=False),
        Metric("ece_uncalibrated", "ECE without temperature scaling", None, higher_is_better=False),
    )
    tie_breaker: ClassVar[str | None] = "loss"
    evaluators: ClassVar[dict[str, Evaluator]] = {"clean": clean, **dict.fromkeys(ATTACKED, attacked)}
    headline: ClassVar[tuple[str, ...]] = ("top1", "top1_interval", "count", "ece", "loss")
    right_metric: ClassVar[str] = "top1"
    loss_unit: ClassVar[str] = "nats"
    loss_note: ClassVar[str] = LOSS_NOTE
    hf_problem_type: ClassVar[str] = "single_label_classification"
    hub_type: ClassVar[str] = "image-classification"

    gives: ClassVar[str] = "probabilities of these classes"
    limits: ClassVar[str] = (
        "It knows only these classes: for any image, one of them is the most probable. A low probability "
        "suggests an image of another class; a high one does not rule it out."
    )

    def scores(self, outputs: Tensor) -> Tensor:
        """Probabilities [..., C] that sum to 1."""
        return super().scores(outputs).softmax(-1)

    def calibrated(self, outputs_NS: ArrayLike, annotations: ArrayLike) -> Self:
        """Return the task with the temperature fitted on validation data; 1 where scaling does not help there."""
        temperature = helpful_temperature(outputs_NS, annotations)
        if temperature == 1:
            log.info("calibration: temperature scaling does not help on the validation images and is left out")
        return replace(self, temperature=temperature)

    def measure(self, outputs_NS: Array, annotations: Array) -> dict[str, Any]:
        """Return `classification_metrics`."""
        return classification_metrics(outputs_NS, annotations, self.labels, self.temperature)

    def own_sections(self, evaluation: Evaluation | None, samples: Samples) -> list[Section]:
        """Headline, confusions, classes, reliability and the most confident mistakes."""
        from vitral.report.classification import classification_sections

        assert evaluation is not None
        evidence = evaluation.values | {
            "split": evaluation.split, "probabilities": samples.scores_NS, "labels": samples.annotations,
        }  # fmt: skip
        return classification_sections(evidence, self._mistakes(samples))

    def _mistakes(self, samples: Samples) -> list[tuple[Array, str, str, float, str]]:
        """The most confident wrong answers: image [H, W, C], truth, prediction, its probability, name."""
        scores_NC, labels_N = samples.scores_NS, samples.annotations
        assert scores_NC is not None
        answers_N = scores_NC.argmax(axis=1)
        wrong = np.flatnonzero(answers_N != labels_N)
        wrong = wrong[np.argsort(-scores_NC[wrong, answers_N[wrong]], kind="stable")][:_WORST_MISTAKES]
        return [
            (
                samples.image(place), self.labels[labels_N[place]], self.labels[answers_N[place]],
                float(scores_NC[place, answers_N[place]]), str(samples.names[place]),
            )
            for place in wrong.tolist()
        ]  # fmt: skip

    def console(self, evaluation: Evaluation) -> list[Section]:
        """Add the classes, with the classes that each is most often confused with."""
        values = evaluation.values
        rows: list[list[Any]] = []
        for index, (name, row) in enumerate(values.get("per_class", {}).items()):
            counts = values["confusion"][index]
            wrong = sorted(
                ((count, self.labels[j]) for j, count in enumerate(counts) if j != index and count), reverse=True
            )
            mixed = ", ".join(f"{other} ({count})" for count, other in wrong[:3])
            rows.append([name, *(Metric(key, key, row[key]) for key in ("precision", "recall")), row["count"], mixed])
        table = Table(["class", "precision", "recall", "images", "most often confused with"], rows)
        tables = [Section("", [table], frozenset({"console"}))] if rows else []
        return [*super().console(evaluation), *tables]

    def log_lines(self, evaluation: Evaluation) -> list[str]:
        """Add the accuracy of always predicting the most common class."""
        lines, baseline = super().log_lines(evaluation), evaluation.metric("baseline")
        if baseline is not None:
            name = evaluation.values["baseline_class"]
            lines.append(f"always predicting {name}, the most common class: {baseline.text()}")
        return lines

    def hub_scores(self, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Top-1."""
        return [accuracy_row(metrics, "top-1")] if self.of_values(metrics) else []

    def per_sample(self, outputs_NS: Array, annotations: Array) -> Array:
        """Return which samples are classified correctly, bool [N]."""
        return outputs_NS.argmax(axis=1) == annotations

    def prediction_rows(self, names: Sequence[str], annotations: Array, scores_NS: Array) -> Iterator[Sequence[str]]:
        """Yield name, label, the most probable class with its probability, and whether it is correct."""
        yield "image", "label", "prediction", "score", "correct"
        for name, label, row_C in zip(names, annotations.tolist(), scores_NS, strict=True):
            best = int(row_C.argmax())
            words = [cell(text) for text in (name, self.labels[label], self.labels[best])]
            yield *words, f"{row_C[best]:.6f}", str(best == label).lower()


def accuracy_row(metrics: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return top-1 as a row of a model-index."""
    low, high = metrics["top1_interval"]
    name = f"{name} (95 % interval {low:.4f} to {high:.4f})"
    return {"type": "accuracy", "value": metrics["top1"], "name": name}


def worst_classes(per_class: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Classes with the lowest recall: class, images found, count, and the 95 % interval of the share."""
    rows: list[dict[str, Any]] = []
    for name, row in per_class.items():
        if row["count"]:
            found = round(row["recall"] * row["count"])
            interval = list(wilson_interval(found, row["count"]))
            rows.append({"class": name, "found": found, "count": row["count"], "interval": interval})
    return sorted(rows, key=lambda row: row["found"] / row["count"])[:_WORST]


def cell(text: str) -> str:
    """Return a name that no spreadsheet reads as a formula: an apostrophe precedes a formula's first character."""
    if not str(text).startswith(("=", "+", "-", "@", "\t", "\r")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def class_places(dataset: Dataset, labels: Sequence[str]) -> Sequence[int]:
    """The model's index of each class of the data. Class names are matched, and positions only where both sides have
    numbers alone. Raises UserError where the classes of the data are others."""
    place = _places(dataset.classes, labels, dataset.name)
    if place is None:
        extra = sorted(set(dataset.classes) ^ set(labels))
        raise UserError(
            "the classes of the data are not those of the model", where=dataset.name,
            got=", ".join(dataset.classes[:20]), expected=", ".join(labels[:20]),
            hint=f"Not in both: {', '.join(extra[:10])}",
        )  # fmt: skip
    return place


def _places(theirs: Sequence[str], ours: Sequence[str], where: str) -> list[int] | None:
    """The model's number of each class of the data, or None where these are other classes."""
    index: Mapping[str, int] = {name: number for number, name in enumerate(ours)}
    missing = [name for name in ours if name not in theirs]
    if set(theirs) <= set(ours) and all(numbered_of(name) in index for name in missing):
        if missing:
            log.warning("%s: images of one name count for its first class, none for %s", where, ", ".join(missing))
        return [index[name] for name in theirs]
    numbers = [int(name) for name in theirs if re.fullmatch(r"[0-9]{1,9}", name)]
    unnamed = list(ours) == list(numbered_names(len(ours)).values())
    if unnamed and len(numbers) == len(theirs) and sorted(numbers) == list(range(len(ours))):
        log.warning("%s: the model's classes have no names: those of the data are taken for their numbers", where)
        return numbers
    return None
