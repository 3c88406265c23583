"""Text: an image or a text is answered by a text. Outputs are one `ANSWER` per sample, annotations the right texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from vitral.errors import UserError
from vitral.evaluate.classification import wilson_interval
from vitral.evaluate.config import EvaluatorConfig, PointingConfig
from vitral.evaluate.metric import Metric
from vitral.evaluate.text import METRICS, compare_texts, text_metrics, token_metrics
from vitral.report.sections import Section, Table
from vitral.tasks.classification import cell
from vitral.tasks.task import Array, Evaluation, Evaluator, Found, Samples, Subject, Task, clean

# Of each sample: its text, the score of the search, its log-probability, whether it ended, sums over the tokens of
# the right text (negative log-likelihood in nats, tokens that are the likeliest, and tokens; 0: CTC has none), and the
# ids that were written, without an end: encoding the text again may give other ones.
ANSWER = np.dtype([
    ("text", object), ("score", "f8"), ("log_prob", "f8"), ("finished", "?"), ("nll", "f8"), ("right", "f8"),
    ("tokens", "f8"), ("written", object),
])  # fmt: skip
_SUMS = ("nll", "right", "tokens")
_WORST = 20
_QUICK = 0  # resamples during training: no intervals
_RESAMPLES = 1000
_LENGTHS = ((1, 5), (6, 8), (9, 11), (12, 20), (21, 50), (51, None))  # characters of the first right text


def _error_rate(name: str, label: str) -> Metric:
    return Metric(name, label, None, higher_is_better=False)


TRANSLATION = (Metric("chrf", "chrF", None, format="number"), Metric("bleu", "BLEU", None, format="number"))


def translation(task: Task, subject: Subject, config: EvaluatorConfig) -> Iterator[Found]:
    """BLEU and chrF of the corpus, by sacrebleu."""
    outputs, annotations = subject.outputs()
    resamples = _QUICK if subject.in_training else _RESAMPLES
    found = text_metrics(list(outputs["text"]), list(annotations), ("chrf", "bleu"), resamples)
    for metric in TRANSLATION:
        yield replace(metric, value=found[metric.name], interval=_pair(found.get(f"{metric.name}_interval")))
        yield f"{metric.name}_signature", found[f"{metric.name}_signature"]


def compared(evaluation: Evaluation) -> list[str]:
    """The metrics of an evaluation that `Text.compare` knows, in the order of the evaluators."""
    return [metric.name for metric in evaluation.metrics if metric.name in METRICS]


class TextSubject(Subject):
    """A model that writes text, on a split. peaks: of so many evenly spaced samples, whether attention peaks on the
    character that is written, bool [1 + L, K]: by the mean over layers and heads, and by that of each of L layers;
    None: the data have no boxes."""

    peaks: Callable[[int], Array] | None = None


def pointing(task: Task, subject: Subject, config: PointingConfig) -> Iterator[Found]:
    """The share of characters with the peak of attention in their box, with teacher forcing on the right text, and its
    Wilson interval, which takes characters as independent."""
    peaks = subject.peaks if isinstance(subject, TextSubject) else None
    if peaks is None:
        raise UserError(
            "pointing needs the box of each character, and these data have none", where="eval.pointing",
            expected="data.source=digits_read",
        )  # fmt: skip
    inside_AK = peaks(config.samples)
    right_A, count = inside_AK.sum(1).tolist(), inside_AK.shape[1]
    share = right_A[0] / count
    yield Metric(
        "pointing", "characters with the peak of attention in their box", share, wilson_interval(right_A[0], count)
    )
    yield "pointing_layers", [right / count for right in right_A[1:]]
    yield "pointing_characters", count


@dataclass(frozen=True)
class Text(Task):
    """Texts. Edits are counted against the nearest of the right texts. `reads`: "image" or "text"."""

    reads: str = "text"

    name: ClassVar[str] = "text"
    metrics: ClassVar[tuple[Metric, ...]] = (
        _error_rate("cer", "character error rate"),
        Metric("exact_match", "exact matches", None),
        _error_rate("wer", "word error rate"),
        Metric("token_accuracy", "token accuracy, teacher forcing", None),
        Metric("perplexity", "perplexity per token", None, higher_is_better=False, format="number"),
    )
    evaluators: ClassVar[dict[str, Evaluator]] = {
        "clean": clean, "translation": translation, "pointing": pointing,
    }  # fmt: skip
    headline: ClassVar[tuple[str, ...]] = (
        "cer", "cer_interval", "exact_match", "exact_match_interval", "wer", "wer_interval", "token_accuracy",
        "perplexity", "count",
    )  # fmt: skip
    tables: ClassVar[tuple[str, ...]] = ("by_length",)
    tie_breaker: ClassVar[str | None] = "perplexity"
    hub_type: ClassVar[str] = "text2text-generation"
    outputs_name: ClassVar[tuple[str, str]] = ("token", "tokens")
    gives: ClassVar[str] = "a text"
    limits: ClassVar[str] = (
        "It writes a text for any input and does not detect unrelated ones. Characters and words that its training "
        "texts lack are never written."
    )
    loss_unit: ClassVar[str] = "nats per token"
    loss_note: ClassVar[str] = "The training loss includes label smoothing and dropout."

    @property
    def inputs_name(self) -> str:
        """Images, or texts."""
        return "images" if self.reads == "image" else "texts"

    def measure(self, outputs_NS: Array, annotations: Array) -> dict[str, Any]:
        """Rates with bootstrap intervals, and by the length of the right text."""
        return self._measured(outputs_NS, annotations, _RESAMPLES) | {
            "by_length": self._by_length(outputs_NS, annotations)
        }

    def measure_quickly(self, outputs_NS: Array, annotations: Array) -> dict[str, Any]:
        """Without intervals."""
        return self._measured(outputs_NS, annotations, _QUICK)

    def _measured(self, outputs_N: Array, annotations: Array, resamples: int) -> dict[str, Any]:
        found = text_metrics(list(outputs_N["text"]), list(annotations), resamples=resamples)
        sums_N3 = np.stack([outputs_N[name] for name in _SUMS], 1)
        if sums_N3[:, 2].sum():
            found |= token_metrics(sums_N3, resamples)
        return found | {"unfinished": int((~outputs_N["finished"]).sum())}

    def _by_length(self, outputs_N: Array, annotations: Array) -> list[dict[str, Any]]:
        length_N = np.array([len(each[0]) for each in annotations])
        rows: list[dict[str, Any]] = []
        for low, high in _LENGTHS:
            places = np.flatnonzero((length_N >= low) & (length_N <= (high or length_N.max())))
            if len(places):
                texts, right = list(outputs_N["text"][places]), [annotations[place] for place in places]
                found = text_metrics(texts, right, resamples=_QUICK)
                name = f"{low} to {high}" if high else f"{low} and more"
                rows.append({"characters": name, **{key: found[key] for key in ("count", "exact_match", "cer", "wer")}})
        return rows

    def own_sections(self, evaluation: Evaluation | None, samples: Samples) -> list[Section]:
        """Headline, rates by length, and the texts with the most errors."""
        assert evaluation is not None
        primary, *others = self.of_values(evaluation.values)
        count = evaluation.values["count"]
        label = f"{primary.label} on {count:,} {evaluation.split} {self.inputs_name}"
        facts = [replace(metric, label=metric.label[:1].upper() + metric.label[1:]) for metric in others]
        return [
            Section("", [replace(primary, label=label[:1].upper() + label[1:]), *facts]),
            Section("By length of the right text", [self._length_table(evaluation)]),
        ]

    def _length_table(self, evaluation: Evaluation) -> Table:
        shown = {metric.name: metric for metric in self.metrics}
        rows = [
            [
                row["characters"],
                row["count"],
                *(replace(shown[key], value=row[key]) for key in ("cer", "wer", "exact_match")),
            ]
            for row in evaluation.values["by_length"]
        ]
        return Table(["Characters", "Texts", "Character error rate", "Word error rate", "Exact matches"], rows)

    def console(self, evaluation: Evaluation) -> list[Section]:
        """Also by length."""
        if "by_length" not in evaluation.values:
            return super().console(evaluation)
        table = self._length_table(evaluation)
        return [*super().console(evaluation), Section("", [table], frozenset({"console"}))]

    def log_lines(self, evaluation: Evaluation) -> list[str]:
        """Also the exact matches."""
        first, *more = super().log_lines(evaluation)
        exact = evaluation.metric("exact_match")
        return [first, *([f"{exact.label} {exact.text()}"] if exact else []), *more]

    def prediction_rows(self, names: Sequence[str], annotations: Array, scores_NS: Array) -> Iterator[Sequence[str]]:
        """Name, right text, written text, its log-probability."""
        yield "name", "text", "predicted", "log_prob"
        for name, right, row in zip(names, annotations, scores_NS, strict=True):
            yield cell(name), cell(right[0]), cell(row["text"]), f"{row['log_prob']:.6g}"

    def per_sample(self, outputs_NS: Array, annotations: Array) -> Array:
        """The texts themselves, and the right ones: what `compare` needs."""
        rows = np.empty((len(annotations), 2), object)
        rows[:, 0], rows[:, 1] = outputs_NS["text"], annotations
        return rows

    def compare(self, own_N: Array, other_N: Array, metrics: Sequence[str] = METRICS[:3]) -> dict[str, Any]:
        """Differences of these metrics on shared bootstrap resamples, and McNemar's test of exact matches."""
        return compare_texts(
            list(own_N[:, 0]), list(other_N[:, 0]), list(own_N[:, 1]), metrics, references_b=list(other_N[:, 1])
        )  # fmt: skip

    def comparison(self, found: Mapping[str, Any]) -> str:
        """The difference in the first metric that was compared."""
        name = next(name for name in found if name in _COMPARED)
        metric, gap = _COMPARED[name], found[name]
        if "difference_interval" not in gap:
            return f"against {found['model']}: no difference in {metric.label}, as all right texts are empty"
        scale, unit = (1, "") if metric.format == "number" else (100, " points")
        value, low, high = (scale * each for each in (gap["difference"], *gap["difference_interval"]))
        return f"against {found['model']}: {metric.label} {value:+.2f}{unit} (95 % interval {low:+.2f} to {high:+.2f})"

    def hub_scores(self, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Error rates and exact matches."""
        return [
            {"type": metric.name, "value": metrics[metric.name], "name": metric.label}
            for metric in self.metrics[:3]
            if metrics.get(metric.name) is not None
        ]


# Metrics with a difference and its interval; exact matches have McNemar's test.
_COMPARED = {metric.name: metric for metric in (*Text.metrics, *TRANSLATION) if metric.name in METRICS[1:]}


def worst_section(texts: Sequence[tuple[str, str, str]]) -> Section:
    """The texts with the most errors: rows of source or name, right text and written text."""
    caption = f"{len(texts)} samples, the most edits first"
    return Section("Most errors", [Table(["Source", "Right text", "Written"], [list(row) for row in texts], caption)])


def worst(outputs_N: Array, annotations: Array, most: int = _WORST) -> list[int]:
    """Places of the samples with the most character edits to the nearest right text."""
    from vitral.optional_imports import require

    distance = require("rapidfuzz.distance", "text").Levenshtein.distance
    edits_N = np.array([
        min(distance(text, right) for right in rights)
        for text, rights in zip(outputs_N["text"], annotations, strict=True)
    ])  # fmt: skip
    order = np.argsort(-edits_N, kind="stable")[:most]
    return [int(place) for place in order if edits_N[place]]


def _pair(values: Sequence[float] | None) -> tuple[float, float] | None:
    return None if values is None else (values[0], values[1])
