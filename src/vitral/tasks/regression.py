"""Regression: one or several numbers per image, in the units of their columns.

Shape letters: N samples, T targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy as np
from annotated_types import Gt
from pydantic import Strict

from vitral.config import Config, Floats
from vitral.data.dataset import Dataset, Split
from vitral.errors import UserError
from vitral.evaluate.metric import Metric
from vitral.evaluate.regression import regression_metrics
from vitral.report.sections import Section, Table
from vitral.tasks.classification import cell
from vitral.tasks.task import Array, Evaluation, Evaluator, Samples, Task, clean

if TYPE_CHECKING:
    from torch import Tensor

    from vitral.models.config import ModelConfig

_RESAMPLES = 10_000


class RegressionState(Config):
    """Mean and standard deviation of each target among the train images, in the columns' units."""

    mean: Floats
    std: Annotated[tuple[Annotated[float, Gt(0)], ...], Strict(False)]


@dataclass(frozen=True)
class Regression(Task):
    """Numbers per image. The head learns targets that are standardized by mean and standard deviation of the train
    images, which `state` holds."""

    name: ClassVar[str] = "regression"
    state_type: ClassVar[type[Config]] = RegressionState
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("mae", "mean absolute error", None, higher_is_better=False, format="number"),
        Metric("rmse", "root mean squared error", None, higher_is_better=False, format="number"),
        Metric("r2", "R2", None, format="number"),
        Metric("spearman", "Spearman correlation", None, format="number"),
        Metric(
            "baseline_mae", "error of always predicting the train mean", None, higher_is_better=False, format="number"
        ),
    )
    tie_breaker: ClassVar[str | None] = "rmse"
    tables: ClassVar[tuple[str, ...]] = ("per_target",)
    evaluators: ClassVar[dict[str, Evaluator]] = {"clean": clean}
    headline: ClassVar[tuple[str, ...]] = (
        "mae", "mae_interval", "rmse", "rmse_interval", "r2", "spearman", "baseline_mae", "count",
    )  # fmt: skip
    hf_problem_type: ClassVar[str] = "regression"
    hub_type: ClassVar[str] = "other"
    tags: ClassVar[tuple[str, ...]] = ("image-regression",)
    outputs_name: ClassVar[tuple[str, str]] = ("number", "numbers")
    gives: ClassVar[str] = "a number for each of these, in the units of the training data"
    limits: ClassVar[str] = (
        "It predicts numbers for any image and does not detect unrelated images. Outside the range of the training "
        "numbers, predictions are extrapolated."
    )
    loss_note: ClassVar[str] = "The loss is of standardized targets; the validation metric is in the column's units."

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """With mean and standard deviation of the train images. Raises UserError for data without numbers, and for a
        target that is constant."""
        if dataset.task != cls.name:
            hint = "data.target=COLUMN names the column with the numbers."
            raise UserError("the data have no numbers to learn", where="data.target", got=dataset.name, hint=hint)
        train_NT = dataset.splits["train"].labels_N
        mean_T, std_T = train_NT.mean(0), train_NT.std(0)
        constant = [name for name, column_N in zip(dataset.classes, train_NT.T, strict=True) if np.ptp(column_N) == 0]
        if constant:
            got = f"{constant[0]} = {train_NT[0, dataset.classes.index(constant[0])]:g} in all train images"
            raise UserError("this target is constant, so nothing can be learned", where="data.target", got=got)
        return cls(dataset.classes, state={"mean": mean_T.tolist(), "std": std_T.tolist()})

    def check_state(self) -> None:
        """Also raise UserError for another number of targets than there are outputs."""
        super().check_state()
        for name in ("mean", "std"):
            if len(self.state[name]) != len(self.labels):
                raise UserError(
                    "one number for each target", where=f"task_state.{name}", got=len(self.state[name]),
                    expected=len(self.labels),
                )  # fmt: skip

    def encode(self, split: Split) -> Split:
        """Standardized targets."""
        return replace(split, labels_N=(split.labels_N - self.state["mean"]) / self.state["std"])

    @classmethod
    def blank_targets(cls, count: int, architecture: ModelConfig) -> dict[str, Tensor]:
        """Numbers, one for each output."""
        import torch

        return {"label": torch.empty(count, architecture.num_classes)}

    def match(self, dataset: Dataset, split: Split) -> Split:
        """The split with columns in the model's order. Raises UserError for other columns."""
        split = super().match(dataset, split)
        if set(dataset.classes) != set(self.labels):
            raise UserError(
                "the targets of the data are not those of the model", where="data.target",
                got=", ".join(dataset.classes), expected=", ".join(self.labels),
            )  # fmt: skip
        return replace(split, labels_N=split.labels_N[:, [dataset.classes.index(name) for name in self.labels]])

    def scores(self, outputs: Tensor) -> Tensor:
        """Numbers [..., T] in the columns' units."""
        import torch

        scaled = super().scores(outputs)
        columns = zip(self.state["mean"], self.state["std"], scaled.split(1, -1), strict=True)
        return torch.cat([column * std + mean for mean, std, column in columns], -1)

    def answer(self, scores_S: Array, topk: int) -> dict[str, Any]:
        """All numbers: {"predictions": [{"label", "index", "value"}]}."""
        return {"predictions": [self.answer_of(scores_S, index) for index in range(len(self.labels))]}

    def answer_of(self, scores_S: Array, index: int) -> dict[str, Any]:
        """One number."""
        return {"label": self.labels[index], "index": index, "value": float(f"{float(scores_S[index]):.7g}")}

    def answer_text(self, scores_S: Array, index: int) -> str:
        """One number."""
        return f"{self.labels[index]} {float(scores_S[index]):.4g}"

    def prediction_rows(self, names: Sequence[str], annotations: Array, scores_NS: Array) -> Iterator[Sequence[str]]:
        """Name, and for each target the true number, the predicted one and their difference."""
        yield "image", *(cell(f"{name}{end}") for name in self.labels for end in ("", "_predicted", "_error"))
        for name, true_T, predicted_T in zip(names, annotations.tolist(), scores_NS.tolist(), strict=True):
            cells = (f"{v:.7g}" for t, p in zip(true_T, predicted_T, strict=True) for v in (t, p, p - t))
            yield cell(name), *cells

    def measure(self, outputs_NS: Array, annotations: Array) -> dict[str, Any]:
        """See `regression_metrics`."""
        return regression_metrics(self.scores_of(outputs_NS), annotations, self.labels, self.state["mean"])

    def measure_quickly(self, outputs_NS: Array, annotations: Array) -> dict[str, Any]:
        """Without intervals."""
        scores_NT = self.scores_of(outputs_NS)
        return regression_metrics(scores_NT, annotations, self.labels, self.state["mean"], resamples=0)

    def answer_line(self, scores_S: Array) -> str:
        """All numbers."""
        return ", ".join(self.answer_text(scores_S, index) for index in range(len(self.labels)))

    def per_sample(self, outputs_NS: Array, annotations: Array) -> Array:
        """Absolute errors, mean over the targets, [N]."""
        return np.abs(self.scores_of(outputs_NS) - annotations).mean(1)

    def compare(self, own_N: Array, other_N: Array) -> dict[str, Any]:
        """The difference of the errors with its paired bootstrap interval (seed 0)."""
        gap_N = own_N - other_N
        draw = np.random.default_rng(0)
        means_R = [gap_N[draw.integers(0, len(gap_N), len(gap_N))].mean() for _ in range(_RESAMPLES)]
        low, high = map(float, np.quantile(means_R, (0.025, 0.975)))
        return {"mae": float(other_N.mean()), "difference": float(gap_N.mean()), "difference_interval": [low, high]}

    def comparison(self, found: Mapping[str, Any]) -> str:
        """Both errors and their difference."""
        low, high = found["difference_interval"]
        return (
            f"against {found['model']} (mean absolute error {found['mae']:.4g}): {found['difference']:+.4g} "
            f"(95 % interval {low:+.4g} to {high:+.4g})"
        )

    def own_sections(self, evaluation: Evaluation | None, samples: Samples) -> list[Section]:
        """Headline, targets, predicted against true, residuals and worst mistakes."""
        from vitral.report.regression import regression_sections

        assert evaluation is not None
        assert samples.scores_NS is not None
        return regression_sections(self.labels, self.of_values(evaluation.values), evaluation, samples)

    def console(self, evaluation: Evaluation) -> list[Section]:
        """Also each target, where there are several."""
        rows = [
            [name, *(replace(metric, value=row[metric.name]) for metric in self.metrics)]
            for name, row in evaluation.values.get("per_target", {}).items()
        ]
        table = Table(["target", *(metric.name for metric in self.metrics)], rows)
        sections = super().console(evaluation)
        return [*sections, Section("", [table], frozenset({"console"}))] if len(rows) > 1 else sections

    def hub_scores(self, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Both errors and R2."""
        names = {"mae": "mean absolute error", "rmse": "root mean squared error", "r2": "R2"}
        return [
            {"type": key, "value": metrics[key], "name": name}
            for key, name in names.items()
            if metrics.get(key) is not None
        ]
