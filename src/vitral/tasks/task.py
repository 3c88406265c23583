"""Interface of a task: the kind of output that a model predicts. Only this package depends on the kind.

Shape letters: N samples, S outputs of the head, B batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike

from vitral import distributed
from vitral.config import Config, build
from vitral.data.dataset import Dataset, Split, spaced
from vitral.data.image_spec import ImageSpec
from vitral.errors import UserError, nearest, plural
from vitral.evaluate.config import EVALUATORS, EvaluatorConfig
from vitral.evaluate.metric import Metric
from vitral.report.sections import Part, Section

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vitral.models.config import ModelConfig

Array = np.ndarray[Any, Any]
Found = Metric | tuple[str, Any]


class Subject:
    """What evaluators measure: a model on the images of one split.

    model: gives outputs [B, S] of images in [0,1], [B, C, H, W]; None for an export. batches(split, most): all images
    of a split, or `most` evenly spaced ones, with their annotations, as the model takes them; of many processes each
    gets its share. in_training: it is a validation during a run, of which there are many. outputs: outputs and
    annotations of every sample of `split` without any change, computed once. sizes: images of each split. classifier:
    the function from images in [0,1] to outputs that is attacked; by default the model.
    """

    def __init__(
        self,
        split: str,
        batches: Callable[[str, int | None], Iterable[tuple[Tensor, Tensor]]],
        collect: Callable[[], tuple[Array, Array]],
        model: nn.Module | None = None,
        *,
        in_training: bool = False,
        sizes: Mapping[str, int] | None = None,
        classifier: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.split, self.batches, self._collect, self._model = split, batches, collect, model
        self._sizes, self._classifier = sizes or {}, classifier
        self.in_training = in_training
        self._outputs: tuple[Array, Array] | None = None

    @property
    def model(self) -> nn.Module:
        """The network. Raises UserError for an export, which is one closed function."""
        if self._model is None:
            raise UserError("this evaluator needs the model, and an export gives answers only", where="eval")
        return self._model

    @property
    def classifier(self) -> Callable[[Tensor], Tensor]:
        """What is attacked; the network, or a closed function without gradients."""
        return self._classifier or self.model

    @property
    def has_gradients(self) -> bool:
        """Whether outputs have gradients by the images."""
        from vitral.models.registry import has_input_gradients

        return has_input_gradients(self.classifier)

    def places(self, split: str, most: int | None) -> list[int]:
        """Return the places in the split of the images that `batches` gives this process."""
        count = self._sizes[split]
        every = range(count) if most is None else spaced(count, most)
        first, last = distributed.shard_range(len(every))
        return list(every[first:last])

    def outputs(self) -> tuple[Array, Array]:
        """Outputs float32 [N, S] and annotations [N, ...] of the split."""
        if self._outputs is None:
            self._outputs = self._collect()
        return self._outputs


class Samples(NamedTuple):
    """The samples of an evaluated split, as input of report sections: scores [N, S] and annotations with their
    names, one image [H, W, C] in [0,1] by its place, as the model takes it; `pictures`: columns [B, H, W, C] of an
    objective's examples; `source`: one image as its file has it, uint8 [H, W, C]."""

    scores_NS: Array | None
    annotations: Any
    names: Sequence[str]
    image: Callable[[int], Array]
    pictures: Mapping[str, Array]
    source: Callable[[int], Array]


Evaluator = Callable[["Task", Subject, Any], Iterable[Found]]


@dataclass(frozen=True)
class Evaluation:
    """Results of evaluators: `metrics`, the primary one first, and `values`, everything as JSON: every metric by its
    name, its interval as NAME_interval, and other results such as the rows of a confusion matrix."""

    split: str
    metrics: tuple[Metric, ...]
    values: dict[str, Any]

    @property
    def primary(self) -> Metric:
        """Return the metric that selects the best checkpoint and appears in every headline."""
        return self.metrics[0]

    def summary(self, task: Task) -> dict[str, Any]:
        """Return `values` without tables, and the primary metric, as summary.json holds them."""
        short = {key: value for key, value in self.values.items() if key not in task.tables}
        return {"primary": self.primary.row(), **short}

    def more(self, task: Task) -> list[Metric]:
        """Return the metrics of evaluators other than the task's default one."""
        own = {metric.name for metric in task.metrics}
        return [metric for metric in self.metrics if metric.name not in own]

    def metric(self, name: str) -> Metric | None:
        """Return the metric with this name, or None if it was not measured."""
        return next((metric for metric in self.metrics if metric.name == name), None)


@dataclass(frozen=True)
class Task(ABC):
    """A kind of answer, for a model whose head has outputs of these names.

    labels: names of the outputs, in order. temperature: divides the outputs before they become scores. state: further
    parameters of the conversion of outputs to answers, saved in the model folder. Class attributes:

    name: as config.json and messages have it. state_type: what `state` may hold. metrics: templates of what `measure`
    finds, the primary one first.
    evaluators: by name, the default first. headline: keys of an evaluation that a model folder keeps. tables: keys that
    are too long for summary.json. tie_breaker: the metric, lower is better, that decides between checkpoints of equal
    primary metrics. has_head: whether there are answers beside features. has_classes: whether outputs are classes and
    scores their probabilities. has_places: whether an answer is {"detections"}, boxes in the image with scores above a
    threshold, and not the likeliest outputs. is_exclusive: whether a sample has one answer, so that probabilities sum
    to 1. export_names: of an exported graph's results, the outputs and, where there are two, their scores.
    hf_problem_type, hub_type, tags: what transformers and the Hugging Face hub call it. outputs_name, gives, limits:
    texts of the model card about outputs, answers and limitations. more_commands: further
    commands that it shows. loss_unit, loss_note: texts of the report about the loss curves.
    """

    labels: tuple[str, ...] = ()
    temperature: float = 1.0
    state: Mapping[str, Any] = field(default_factory=dict[str, Any])

    name: ClassVar[str]
    state_type: ClassVar[type[Config]] = Config
    metrics: ClassVar[tuple[Metric, ...]]
    evaluators: ClassVar[dict[str, Evaluator]]
    headline: ClassVar[tuple[str, ...]]
    has_head: ClassVar[bool] = True
    has_classes: ClassVar[bool] = False
    has_places: ClassVar[bool] = False
    is_exclusive: ClassVar[bool] = True
    tables: ClassVar[tuple[str, ...]] = ()
    tie_breaker: ClassVar[str | None] = None
    export_names: ClassVar[tuple[str, ...]] = ("logits", "scores")
    hf_problem_type: ClassVar[str] = ""
    hub_type: ClassVar[str]
    tags: ClassVar[tuple[str, ...]] = ()
    outputs_name: ClassVar[tuple[str, str]] = ("class", "classes")
    gives: ClassVar[str] = ""
    limits: ClassVar[str]
    more_commands: ClassVar[tuple[str, ...]] = ()
    loss_unit: ClassVar[str] = ""
    loss_note: ClassVar[str] = "The training loss includes what augmentation does; the validation loss does not."

    @classmethod
    def fits(cls, architecture: ModelConfig) -> bool:
        """Whether a model of this architecture can have this task."""
        return architecture.has_boxes == cls.has_places

    def check_state(self) -> None:
        """Raise UserError for a `state` that the task cannot use, as a damaged or foreign folder may have it."""
        build(self.state_type, self.state, where="task_state")

    def suppressed_state(self, architecture: ModelConfig) -> dict[str, Any]:
        """Return the `state` of an export whose graph ends with non-maximum suppression. Raises UserError where
        answers are no boxes."""
        got = f"a model for {self.name}"
        raise UserError("there are no boxes to suppress", where="nms", got=got, expected="a detector")

    # Annotations and outputs

    @property
    def inputs_name(self) -> str:
        """What its samples are called: "images", unless a task reads something else."""
        return "images"

    @classmethod
    def count_outputs(cls, count: int) -> str:
        """Format a number of outputs: "10 classes"."""
        return plural(count, *cls.outputs_name)

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """The task for a model that learns from these data. Raises UserError for annotations of another kind."""
        if dataset.task != cls.name:
            raise UserError(
                f"objective.kind learns {cls.name}, and the data are for another task", where=dataset.name,
                got=dataset.task, expected=cls.name,
            )  # fmt: skip
        return cls(dataset.classes)

    def encode(self, split: Split) -> Split:
        """The split with targets as the loss takes them, in place of its annotations. The same by default."""
        return split

    @classmethod
    def blank_targets(cls, count: int, architecture: ModelConfig) -> dict[str, Tensor]:
        """Targets of so many samples, of the types and shapes that a batch has, without values."""
        import torch

        return {"label": torch.empty(count, dtype=torch.long)}

    def match(self, dataset: Dataset, split: Split) -> Split:
        """The split with annotations in the order of `labels`. Raises UserError where the data are not for the task."""
        if dataset.task != self.name:
            raise UserError(
                "the labels of the data do not match the model's task", where=dataset.name, got=dataset.task,
                expected=self.name,
            )  # fmt: skip
        return split

    def compact(self, outputs: Tensor) -> Tensor:
        """What is kept of a batch's outputs [B, ...] until all of a split are there. All by default."""
        return outputs

    def annotated(self, outputs_NS: Array, annotations: Array, split: Split, spec: ImageSpec) -> tuple[Array, Any]:
        """The `compact` outputs of all images of a split, prepared as `spec` says, and what they are measured by. Both
        as they are by default."""
        return outputs_NS, annotations

    # Answers

    def answers(
        self, outputs: Tensor, topk: int, sizes: Sequence[tuple[int, int]] | None, spec: ImageSpec
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Return the JSON of each image without its name, from `compact` outputs. sizes: (height, width) of the images
        before they were prepared as `spec` says, for answers that hold places; None: these are places in the prepared
        ones."""
        return [self.answer(scores_S, topk) for scores_S in self.scores(outputs).cpu().numpy()]

    def scores(self, outputs: Tensor) -> Tensor:
        """Convert outputs [..., S] to scores, float32 or float64: probabilities, or numbers in units. Exportable."""
        logits = outputs if outputs.element_size() > 4 else outputs.float()
        return logits / self.temperature

    def comparable(self, outputs: Tensor) -> Tensor:
        """Outputs in units in which an export may differ by 0.001 from its model. As they are by default."""
        return outputs

    def parity(self, mine_NS: Tensor, theirs_NS: Tensor) -> dict[str, float]:
        """How much the answers of an export are those of its model: "agreement", a share, where there is one, and
        other numbers by their names. Outputs are finite and of one shape."""
        if not self.has_classes:
            return {}
        return {"agreement": float((mine_NS.argmax(1) == theirs_NS.argmax(1)).double().mean())}

    def scores_of(self, outputs_NS: Array) -> Array:
        """The scores of all samples, float64."""
        import torch

        return self.scores(torch.from_numpy(outputs_NS).double()).numpy()

    def answer(self, scores_S: Array, topk: int) -> dict[str, Any]:
        """Return the JSON of one image without its name, for `predict`, the server and exports."""
        raise NotImplementedError

    @property
    def threshold(self) -> float | None:
        """The lowest score of an answer with places; None: answers have none."""
        return None

    def at_threshold(self, threshold: float) -> Self:
        """The task with another lowest score of its answers. Raises UserError where answers have none."""
        self.require_places("threshold", threshold)
        raise NotImplementedError

    def drawn(self, image_HWC: Array, answer: Mapping[str, Any]) -> Array:
        """An answer on its uint8 image [H, W, C], as uint8 [H, W, 3]. Raises UserError where it has no places."""
        self.require_places("draw", "this model")
        raise NotImplementedError

    def require_places(self, key: str, got: object) -> None:
        """Raise UserError for a key that only places in the image have."""
        if not self.has_places:
            raise UserError("this model finds no boxes", where=key, got=got, expected="a detector (vitral docs boxes)")

    def refuse_topk(self, topk: int) -> None:
        """Raise UserError for a number of answers that has no effect."""
        if self.has_places:
            hint = "`vitral predict` has threshold=SCORE."
            raise UserError("a detector answers with all boxes above its threshold", where="topk", got=topk, hint=hint)

    def answer_of(self, scores_S: Array, index: int) -> dict[str, Any]:
        """Return one output of an image as JSON: its label, its index and its score or value."""
        raise NotImplementedError

    def answer_text(self, scores_S: Array, index: int) -> str:
        """Format one output: "owl, 97.3 %"."""
        raise NotImplementedError

    def chosen(self, scores_S: Array) -> int:
        """The output that is explained unless another one is named; the first by default."""
        return 0

    def answer_line(self, scores_S: Array) -> str:
        """Format the answer of one image."""
        return self.answer_text(scores_S, self.chosen(scores_S))

    def require_answers(self, where: str) -> None:
        """Raise UserError for a model that gives features only."""
        if not self.has_head:
            hint = "`vitral probe` evaluates its features, `vitral embed` writes them."
            raise UserError("this model has no head, so it predicts no classes", where=where, hint=hint)

    def require_evaluators(self, where: str) -> None:
        """Raise UserError for a model that nothing but its features can be evaluated by."""
        self.require_answers(where)

    def prediction_rows(self, names: Sequence[str], annotations: Array, scores_NS: Array) -> Iterator[Sequence[str]]:
        """The lines of predictions.csv, the header first."""
        raise NotImplementedError

    # Report, console and model card

    def sections(self, evaluation: Evaluation | None, samples: Samples) -> list[Section]:
        """The sections of the report, the headline first."""
        if evaluation is None:
            return self.own_sections(None, samples)
        has_own = any(metric.name in evaluation.values for metric in self.metrics)
        sections = self.own_sections(evaluation, samples) if has_own else []
        if evaluation.primary in evaluation.more(self):
            sections = [self._headline(evaluation, frozenset({"report"})), *sections]
        return [*sections, *self.more_sections(evaluation)]

    @abstractmethod
    def own_sections(self, evaluation: Evaluation | None, samples: Samples) -> list[Section]:
        """The sections of what the default evaluator found, the headline first; None: these data have nothing to
        evaluate by."""

    def _headline(self, evaluation: Evaluation, where: frozenset[str], *others: Metric) -> Section:
        primary, count = evaluation.primary, evaluation.values.get("count")
        what = f"{evaluation.split} {self.inputs_name}"
        of = what if count is None else f"{count:,} {what}"
        return Section("", [replace(primary, label=f"{primary.label} of {of}"), *others], where)

    def more_sections(self, evaluation: Evaluation) -> list[Section]:
        """Return a section with the metrics of evaluators other than the default one, if there are any."""
        more = evaluation.more(self)
        parts: list[Part] = ["", *more]
        return [Section("Other evaluators", parts, frozenset({"report", "console"}))] if more else []

    def console(self, evaluation: Evaluation) -> list[Section]:
        """Return the sections that `vitral eval` prints: the metrics, then tables of the task."""
        more = evaluation.more(self)
        others = (metric for metric in evaluation.metrics[1:] if metric not in more)
        return [self._headline(evaluation, frozenset({"console"}), *others), *self.more_sections(evaluation)]

    def comparison(self, found: Mapping[str, Any]) -> str:
        """Format the result of `compare` as one line for the console."""
        raise NotImplementedError

    def kept(self, metrics: Mapping[str, Any]) -> list[Metric]:
        """Return the metrics in the model folder's provenance, the primary one first."""
        return self.of_values(metrics)

    def card(self, provenance: Mapping[str, Any]) -> list[Section]:
        """Return the sections of the model card from the provenance; none without measured metrics."""
        metrics, rows = provenance.get("metrics") or {}, provenance.get("more_metrics", [])
        found: list[Part] = [*self.kept(metrics), *(Metric(**row) for row in rows)]
        if not found:
            return []
        by = f", by the {metrics['evaluated_by']} among the train images" if "evaluated_by" in metrics else ""
        of = f"{metrics['count']:,} {metrics['split']}" if "count" in metrics else metrics["split"]
        scaled = ["Probabilities are scaled by a temperature that was fitted on validation images."]
        parts = [f"On {of} {self.inputs_name}{by}:", *found, *(scaled if self.temperature != 1 else [])]
        return [Section("Numbers", parts, frozenset({"card"}))]

    def hub_scores(self, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the rows of a model-index from the provenance. The hub has no intervals: they are in the name."""
        raise NotImplementedError

    # Evaluation

    def calibrated(self, outputs_NS: ArrayLike, annotations: ArrayLike) -> Self:
        """Return the task with parameters fitted on validation data. Unchanged by default."""
        return self

    @abstractmethod
    def measure(self, outputs_NS: Array, annotations: Array) -> dict[str, Any]:
        """Return all results of the evaluator `clean`, ready for JSON."""

    def measure_quickly(self, outputs_NS: Array, annotations: Array) -> dict[str, Any]:
        """Return the results of `measure` without slow parts, for validation during training. The same by default."""
        return self.measure(outputs_NS, annotations)

    def log_lines(self, evaluation: Evaluation) -> list[str]:
        """The result in lines of the log: the primary metric with its interval, then those of other evaluators."""
        primary, count = evaluation.primary, evaluation.values.get("count")
        of = "" if count is None else f" of {count:,} {self.inputs_name}"
        interval = f" ({primary.interval_text()})" if primary.interval else ""
        more = [f"{metric.label} {metric.text()}" for metric in evaluation.more(self) if metric is not primary]
        return [f"{primary.label} {primary.text()}{of}{interval}", *more]

    def provenance(self, evaluation: Evaluation) -> dict[str, Any]:
        """Return what the model folder stores of an evaluation: the headline, and metrics of other evaluators."""
        kept = {key: evaluation.values[key] for key in self.headline if key in evaluation.values}
        metrics = {"split": evaluation.split, **kept, "primary": evaluation.primary.row()}
        more = [asdict(metric) for metric in evaluation.more(self)]
        return {"metrics": metrics, **({"more_metrics": more} if more else {})}

    def per_sample(self, outputs_NS: Array, annotations: Array) -> Array:
        """Return the quality of each answer, [N], as input of `compare`."""
        raise NotImplementedError

    def compare(self, own_N: Array, other_N: Array) -> dict[str, Any]:
        """A paired comparison with another model on the same samples, by `per_sample` of both, ready for JSON."""
        raise NotImplementedError

    def can_evaluate(self, dataset: Dataset) -> bool:
        """Whether these data have annotations to evaluate by."""
        return True

    def evaluators_of(self, config: Mapping[str, EvaluatorConfig]) -> dict[str, EvaluatorConfig]:
        """The evaluators that are configured, or else the default one. Raises UserError for one that the task lacks,
        and for keys that do not fit the number of outputs."""
        for name in config:
            if name not in self.evaluators:
                raise UserError(
                    f"unknown evaluator of the task {self.name}", where="eval", got=name,
                    expected=", ".join(self.evaluators), nearest=nearest(name, self.evaluators),
                )  # fmt: skip
        for keys in config.values():
            keys.check(len(self.labels))
        default = next(iter(self.evaluators))
        return dict(config) or {default: EVALUATORS[default]()}

    def evaluate(self, subject: Subject, evaluators: Mapping[str, EvaluatorConfig]) -> Evaluation:
        """Run these evaluators; see `evaluators_of`."""
        metrics, values = list[Metric](), dict[str, Any]()
        for name, config in evaluators.items():
            for found in self.evaluators[name](self, subject, config):
                if isinstance(found, Metric):
                    metrics.append(found)
                    values[found.name] = found.value
                    if found.interval is not None:
                        values[f"{found.name}_interval"] = list(found.interval)
                else:
                    values[found[0]] = found[1]
        assert metrics, "an evaluator without a metric"
        return Evaluation(subject.split, tuple(metrics), values)

    def of_values(self, values: Mapping[str, Any]) -> list[Metric]:
        """The task's metrics with the values of an evaluation, the primary one first; those that it lacks are left
        out."""
        found = (
            replace(metric, value=values[metric.name], interval=_pair(values.get(f"{metric.name}_interval")))
            for metric in self.metrics
            if metric.name in values
        )
        return list(found)


def clean(task: Task, subject: Subject, config: EvaluatorConfig) -> Iterator[Found]:
    """The metrics of the task on unchanged images."""
    found = (task.measure_quickly if subject.in_training else task.measure)(*subject.outputs())
    metrics = task.of_values(found)
    yield from metrics
    names = {name for metric in metrics for name in (metric.name, f"{metric.name}_interval")}
    yield from ((name, value) for name, value in found.items() if name not in names)


def _pair(values: Sequence[float] | None) -> tuple[float, float] | None:
    return None if values is None else (values[0], values[1])
