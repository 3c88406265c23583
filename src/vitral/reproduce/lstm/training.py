"""Train and evaluate models of texts in small runs, timed by the processor.

Shape letters: N samples, B batch, T positions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vitral.data.text.batches import TokenIds
from vitral.data.text.dataset import TextDataset
from vitral.errors import UserError
from vitral.evaluate.text import text_metrics
from vitral.models.create import build_sequence_model
from vitral.models.presets import resolve_sequence
from vitral.models.search_config import SearchConfig
from vitral.models.sequence_config import SequenceConfig
from vitral.models.sequence_model import SequenceModel
from vitral.reproduce.lstm.changes import Change, change
from vitral.run.config import load_run
from vitral.run.text_config import TextRunConfig
from vitral.run.text_data import text_subject
from vitral.run.text_run import TextRun
from vitral.tasks.text_writing import write
from vitral.training.loop import train_step
from vitral.training.nonfinite import NonFiniteGuard

TOLERANCE = 0.05  # largest difference in the number of parameters
Keys = Mapping[str, Any]


class ExperimentRun(TextRun):
    """A run whose model is changed, for an experiment alone."""

    def __init__(self, config: TextRunConfig, dataset: TextDataset, changed: Change | None = None) -> None:
        self.changed: Change | None = changed
        super().__init__(config, dataset)

    def build(self) -> SequenceModel:
        """Return the model with its change."""
        model = super().build()
        if self.changed is not None:
            change(model, self.changed)
        return model


class Task(NamedTuple):
    """Texts with the keys of all runs on them. buckets: shortest and longest texts of each bucket, in tokens."""

    recipe: str
    keys: Keys
    dataset: TextDataset
    buckets: tuple[tuple[int, int], ...]

    def config(self, keys: Keys) -> TextRunConfig:
        """The configuration of a run with further keys."""
        config = load_run(self.recipe, {**self.keys, **keys})
        assert isinstance(config, TextRunConfig)
        return config


class Run(NamedTuple):
    """One run: its model with the number of parameters, its points over the training, and what it is at the end."""

    model: SequenceModel
    parameters: int
    curve: list[dict[str, float]]
    found: dict[str, Any]


Inspect = Callable[["ExperimentRun", SequenceModel], Mapping[str, Any]]


def train(
    task: Task, keys: Keys, folder: Path, *, samples: int, changed: Change | None = None, points: int = 1,
    inspect: Inspect | None = None,
) -> Run:  # fmt: skip
    """Train a model, evaluated at `points` evenly spaced steps (the last one is the end); `inspect` adds to what is
    found of the last model.

    Points have `step`, `seconds` of processor time in training steps alone, the mean training `loss` since the last
    point (nats per token, with label smoothing), and what `evaluate` finds.
    """
    config = task.config(keys)
    steps, curve, losses = config.train.steps or 0, list[dict[str, float]](), list[float]()
    with closing(ExperimentRun(config, task.dataset, changed)) as parts, torch.random.fork_rng():
        state, objective = parts.state()
        model, loader = objective.model, parts.loader()
        assert isinstance(model, SequenceModel)
        guard = NonFiniteGuard(state, loader.batch, folder, config.train)
        due = {round(steps * place / points) for place in range(1, points + 1)}
        seconds, found = 0.0, dict[str, Any]()
        objective.train()
        for batches in loader.stream(0, steps):
            started = time.process_time()
            loss, _, _ = train_step(state, objective, batches, config.train, config.optim, guard)
            seconds += time.process_time() - started
            losses.append(loss.item())
            state.progress.step += 1
            if state.progress.step in due:
                found = evaluate(parts, model, task, samples)
                numbers = {key: found[key] for key in ("exact_match", "error_rate", "token_accuracy", "nll")}
                point = {"step": state.progress.step, "seconds": seconds, "loss": float(np.mean(losses))}
                curve.append(point | numbers)
                losses.clear()
        guard.sync()
        model.eval()
        found |= {} if inspect is None else inspect(parts, model)
        count = parameter_count(model)
    return Run(model, count, curve, found)


def parameter_count(model: torch.nn.Module) -> int:
    """Of all that is trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def evaluate(parts: TextRun, model: SequenceModel, task: Task, samples: int) -> dict[str, Any]:
    """Greedy texts and teacher-forced tokens of the test split, of all texts and `by_length`.

    `exact_match`; `error_rate`, of symbols (phonemes, or characters); `token_accuracy` and `nll`, nats per token, with
    teacher forcing.
    """
    split = parts.dataset.splits["test"]
    search = SearchConfig(max_length=parts.config.search.max_length)
    subject = text_subject(
        model, "test", split, parts.ids["test"], parts.tokenizers, search, device=parts.device,
        most=min(samples, len(split)), in_training=True,
    )  # fmt: skip
    answers_N, right_N = subject.outputs()
    target = parts.tokenizers.target
    length_N = np.array([len(target.encode(right[0])) for right in right_N])
    rate = "wer" if target.kind == "words" else "cer"
    found = _rates(answers_N, right_N, rate)
    rows: list[dict[str, Any]] = []
    for low, high in task.buckets:
        places = np.flatnonzero((length_N >= low) & (length_N <= high))
        if len(places):
            own = _rates(answers_N[places], right_N[places], rate)
            rows.append({"shortest": low, "longest": high, **own})
    return {**found, "by_length": rows}


def _rates(answers_N: Any, right_N: Any, rate: str) -> dict[str, Any]:
    texts, right = list(answers_N["text"]), list(right_N)
    metrics = text_metrics(texts, right, ("exact_match", rate), resamples=0)
    tokens = float(answers_N["tokens"].sum())
    return {
        "count": len(texts), "exact_match": metrics["exact_match"], "error_rate": metrics[rate],
        "token_accuracy": float(answers_N["right"].sum()) / tokens, "nll": float(answers_N["nll"].sum()) / tokens,
    }  # fmt: skip


def architecture_of(task: Task, keys: Keys) -> SequenceConfig:
    """The architecture of a run on these texts."""
    with closing(ExperimentRun(task.config(keys), task.dataset)) as parts:
        return parts.architecture


def equal_lstm(like: SequenceConfig, options: Mapping[str, Any]) -> tuple[SequenceConfig, int]:
    """The recurrent model of these options whose width gives the number of parameters nearest to another model's, and
    that number. Raises UserError where they differ by more than 5 %."""
    wanted = counted(like)
    shared = {key: getattr(like, key) for key in ("vocabulary", "source_vocabulary", "max_length", "dropout")}

    def of_width(width: int) -> SequenceConfig:
        return resolve_sequence("lstm_tiny", **shared, **options, width=width)

    low, high = 1, 2
    while counted(of_width(high)) < wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if counted(of_width(middle)) < wanted else (low, middle)
    best = min((of_width(low), of_width(high)), key=lambda config: abs(counted(config) - wanted))
    count = counted(best)
    if abs(count / wanted - 1) > TOLERANCE:
        raise UserError(
            "no LSTM has as many parameters as this Transformer", where="model.width", got=f"{count:,}",
            expected=f"{wanted:,} within 5 %", hint="Take a wider model.",
        )  # fmt: skip
    return best, count


def counted(config: SequenceConfig) -> int:
    """The number of parameters of a model, without making it."""
    with torch.device("meta"):
        return parameter_count(build_sequence_model(config))


def buckets(shortest: int, longest: int, count: int) -> tuple[tuple[int, int], ...]:
    """Ranges of lengths of nearly equal size that cover both ends."""
    edges: Sequence[int] = [round(edge) for edge in np.linspace(shortest, longest + 1, count + 1)]
    return tuple((low, high - 1) for low, high in pairwise(edges))


@torch.no_grad()
def batch_dependence(parts: TextRun, model: SequenceModel, samples: int = 32) -> float:
    """The share of test texts that are written otherwise in one batch, padded to the longest source, than alone."""
    source_ids = parts.ids["test"].source
    assert source_ids is not None
    count = min(samples, len(source_ids.length_N))
    search = SearchConfig(max_length=parts.config.search.max_length)
    together = write(model, parts.tokenizers, _padded(source_ids, np.arange(count)), search)
    alone = [write(model, parts.tokenizers, _padded(source_ids, np.array([at])), search)[0] for at in range(count)]
    return float(np.mean([one[0].tokens != other[0].tokens for one, other in zip(together, alone, strict=True)]))


def _padded(ids: TokenIds, index_B: Any) -> torch.Tensor:
    return ids.padded(index_B, int(ids.length_N[index_B].max()))
