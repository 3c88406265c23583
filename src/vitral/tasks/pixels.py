"""Pixels: a model of images themselves, which gives their probability, samples and features. Evaluated by bits per
token.

Shape letters: N images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Strict

from vitral.config import Config
from vitral.data.dataset import Dataset, Split
from vitral.errors import UserError
from vitral.evaluate.classification import wilson_interval
from vitral.evaluate.config import ClassifyConfig, CompletionConfig, EvaluatorConfig, LayersConfig, LinearConfig
from vitral.evaluate.metric import Metric
from vitral.report.sections import Figure, Note, Section
from vitral.tasks.task import Array, Evaluation, Evaluator, Found, Samples, Subject, Task

if TYPE_CHECKING:
    from torch import Tensor

    from vitral.models.config import ModelConfig
    from vitral.models.igpt import IGPT

_NORMAL = 1.959963984540054  # standard deviations of a 95 % interval
_TRAIN_IMAGES = 4096  # of the histogram

BITS = Metric("bits_per_token", "bits per token", None, higher_is_better=False, format="number")
HISTOGRAM = Metric(
    "histogram_bits", "bits per token of a histogram for each pixel", None, higher_is_better=False, format="number"
)


def bits(task: Task, subject: Subject, config: EvaluatorConfig) -> Iterator[Found]:
    """Bits per token, the mean over images; after a run also those of a histogram of the train images."""
    from vitral.evaluate.pixels import bits_per_token, histogram_bits

    model, split = _codes_of(subject), subject.split
    bits_N = bits_per_token(model, subject.batches(split, None), subject.places(split, None))
    mean, half = float(bits_N.mean()), _NORMAL * float(bits_N.std()) / math.sqrt(len(bits_N))
    yield replace(BITS, value=mean, interval=(mean - half, mean + half))
    if not subject.in_training:
        train = subject.batches("train", _TRAIN_IMAGES)
        yield replace(HISTOGRAM, value=histogram_bits(model, train, subject.batches(split, None)))
    yield "count", len(bits_N)


def classify(task: Task, subject: Subject, config: ClassifyConfig) -> Iterator[Found]:
    """The share of images that are most probable given their class (a generative classifier, all classes equally
    probable before)."""
    from vitral.evaluate.pixels import generative_classes

    if subject.in_training:
        return
    model = _codes_of(subject)
    if not model.config.class_tokens:
        hint = "Train one with model.class_tokens=N, the number of classes."
        raise UserError("this model has learned no classes", where="eval.classify", hint=hint)
    if not model.config.causal:
        raise UserError("a model that predicts hidden pixels gives no probability of an image", where="eval.classify")
    found_N, labels_N = generative_classes(model, _labeled(subject, subject.split, config.samples, "classify"))
    right, count = int((found_N == labels_N).sum()), len(labels_N)
    interval = wilson_interval(right, count)
    yield Metric("generative_top1", f"top-1 by log p(image | class) of {count:,} images", right / count, interval)


def completion(task: Task, subject: Subject, config: CompletionConfig) -> Iterator[Found]:
    """The share of images with a drawn lower half that have their class by their nearest train images, the mean over
    draws, beside that of whole images and of upper halves."""
    from vitral.evaluate.pixels import completed_classes

    if subject.in_training:
        return
    model, places = _codes_of(subject), subject.places(subject.split, config.samples)
    if not model.config.draws:
        raise UserError("this model draws no images", where="eval.completion", got=model.config.description)
    train = _labeled(subject, "train", None, "completion")
    found = completed_classes(
        model, train, _labeled(subject, subject.split, config.samples, "completion"), places, config
    )
    share_N = found["completed"].mean(1)
    mean, half = float(share_N.mean()), _NORMAL * float(share_N.std()) / math.sqrt(len(share_N))
    label = f"{config.k}-NN top-1 of {len(share_N):,} images with a drawn lower half"
    yield Metric("completion_top1", label, mean, (max(mean - half, 0), min(mean + half, 1)))
    for name, what in (("whole", "whole"), ("upper_half", "upper half alone")):
        yield Metric(f"{name}_top1", f"the same, {what}", float(found[name].mean()))


def layers(task: Task, subject: Subject, config: LayersConfig) -> Iterator[Found]:
    """A linear classifier on each layer's features; the one that is best on held-out train images, and all."""
    from vitral.evaluate.layers import best_layer, embed_layers
    from vitral.evaluate.linear_probe import linear
    from vitral.models.features import layer_names

    if subject.in_training:
        return
    model = _codes_of(subject)
    names, classes = layer_names(model), len(task.state["classes"])
    train, own = (
        embed_layers(model, _labeled(subject, split, config.samples, "layers"), names)
        for split in ("train", subject.split)
    )
    found = {name: dict(linear(train[name], own[name], classes, LinearConfig())) for name in names}
    best, rows = best_layer(found)
    low, high = found[best]["top1_interval"]
    yield Metric("layer_top1", f"linear probe of the best layer ({best})", found[best]["top1"], (low, high))
    yield from (("best_layer", best), ("per_layer", rows))


def _codes_of(subject: Subject) -> IGPT:
    from vitral.models.registry import code_model

    model = code_model(subject.model)
    assert model is not None
    return model


def _labeled(subject: Subject, split: str, most: int | None, evaluator: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a split. Raises UserError for images of other classes than the model's."""
    for images_BCHW, labels_B in subject.batches(split, most):
        if bool((labels_B < 0).any()):
            raise UserError("the images have other classes than the model's, or none", where=f"eval.{evaluator}")
        yield images_BCHW, labels_B


class PixelsState(Config):
    """The classes that samples can be of; none for images without classes."""

    classes: Annotated[tuple[str, ...], Strict(False)] = ()


@dataclass(frozen=True)
class Pixels(Task):
    """Images from nothing, or from their first pixels. `state` holds the classes that samples can be of."""

    name: ClassVar[str] = "pixels"
    state_type: ClassVar[type[Config]] = PixelsState
    metrics: ClassVar[tuple[Metric, ...]] = (BITS, HISTOGRAM)
    evaluators: ClassVar[dict[str, Evaluator]] = {
        "bits": bits, "classify": classify, "completion": completion, "layers": layers
    }  # fmt: skip
    tables: ClassVar[tuple[str, ...]] = ("per_layer",)
    headline: ClassVar[tuple[str, ...]] = ("bits_per_token", "bits_per_token_interval", "histogram_bits", "count")
    has_head: ClassVar[bool] = False
    export_names: ClassVar[tuple[str, ...]] = ("features",)
    limits: ClassVar[str] = (
        "Bits per token depend on the codes: compare models of the same palette or tokenizer only. Samples may repeat "
        "train images; "
        "`vitral sample` shows the nearest ones."
    )
    loss_unit: ClassVar[str] = "nats per token"
    hub_type: ClassVar[str] = "unconditional-image-generation"
    more_commands: ClassVar[tuple[str, ...]] = ("vitral sample . out=SAMPLES",)

    @classmethod
    def fits(cls, architecture: ModelConfig) -> bool:
        """Whether it predicts codes."""
        return architecture.has_codes

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """Accept any annotations; classes are remembered by name."""
        return cls(state={"classes": list(dataset.classes)} if dataset.task == "classification" else {})

    def match(self, dataset: Dataset, split: Split) -> Split:
        """Any images; those of other classes than the model's are of class -1: any."""
        if list(dataset.classes) == self.state.get("classes"):
            return split
        return replace(split, labels_N=np.full(len(split), -1))

    def evaluators_of(self, config: Mapping[str, EvaluatorConfig]) -> dict[str, EvaluatorConfig]:
        """Bits first, by which checkpoints are chosen, then those that are configured. Raises UserError for others than
        bits where the data have no classes."""
        found = super().evaluators_of(config)
        bits_of = {"bits": found.pop("bits", EvaluatorConfig())}
        if found and "classes" not in self.state:
            raise UserError("this evaluator needs one class per image", where="eval", got=next(iter(found)),
                            expected="bits")  # fmt: skip
        return bits_of | found

    def require_evaluators(self, where: str) -> None:
        """Images are all that bits need."""

    def require_answers(self, where: str) -> None:
        """Refuse: there is no head."""
        hint = (
            "objective.kind=igpt_finetune init=MODEL trains one. With model.class_tokens, `vitral eval MODEL "
            "eval.classify={}` measures classes by the probability of images."
        )
        raise UserError("this model has no head, so it predicts no classes", where=where, hint=hint)

    def own_sections(self, evaluation: Evaluation | None, samples: Samples) -> list[Section]:
        """Headline, and pictures of what was learned."""
        from vitral.report.features import picture_sections

        if evaluation is None:
            return [Section("", ["Not evaluated: there are no validation or test images."])]
        note = Note(
            "A token is a pixel's color in the palette, or a code of the tokenizer; images are evaluated unchanged."
        )
        primary, *others = self.of_values(evaluation.values)
        label = f"{primary.label} of {evaluation.values['count']:,} {evaluation.split} images"
        curve = list[Section]()
        if "per_layer" in evaluation.values:
            from vitral.report.layer_plot import layer_plot

            figure = Figure(layer_plot(evaluation.values["per_layer"], evaluation.split), "accuracy of each layer")
            caption = "A linear classifier on the mean over tokens after each layer, fitted on the train images."
            curve.append(Section("Layers", [figure, Note(caption)]))
        pictures = picture_sections(samples.pictures)
        return [Section("", [replace(primary, label=label), *others, note]), *curve, *pictures]

    def hub_scores(self, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Bits per token."""
        return [{"type": "bits_per_token", "value": metrics["bits_per_token"], "name": "bits per token"}]

    def measure(self, outputs_NS: Array, annotations: Array) -> dict[str, Any]:
        """Pixels have no outputs of a head to measure."""
        raise NotImplementedError
