"""Evaluate a model folder, alone or against another one on the same images."""

from __future__ import annotations

from typing import Any, NamedTuple

from vitral.errors import UserError
from vitral.run.command_options import EvalOptions
from vitral.run.eval_target import loaded_subject
from vitral.run.inference_inputs import load_used, open_images, recorded, split_logits, split_name
from vitral.tasks.task import Evaluation, Task
from vitral.training.metrics_log import console_logging, log
from vitral.weights.text_kind import is_text_model


def evaluate(model: str, options: EvalOptions | None = None) -> dict[str, Any]:
    """Return the result of `measure`."""
    return measure(model, options or EvalOptions()).result


class Measured(NamedTuple):
    """A model's task, its evaluation, and the result as JSON."""

    task: Task
    evaluation: Evaluation
    result: dict[str, Any]


def measure(model: str, options: EvalOptions) -> Measured:
    """Return the output of `vitral eval --json`: `task`, `primary`, all results of the task's evaluators, `split`,
    `splits` (all of the data; unsplit images are "train" only), `model`, `skipped` (damaged images
    that data.max_bad allowed to skip, with the cause), and `compare` if configured.

    Raises UserError where the data are not for the model's task (other classes, say), and for an unknown split.
    """
    console_logging()
    if options.compare is not None and is_text_model(options.compare):
        raise UserError("this model writes text", where="compare", got=options.compare, expected="a model of images")
    predictor = load_used(model, options)
    task = predictor.task
    task.require_evaluators(predictor.config.name)
    evaluators = task.evaluators_of(options.eval)
    for keys in evaluators.values():
        keys.check_images(predictor.config.preprocessing.image_size, predictor.config.architecture.in_channels)
        for warning in keys.warnings():
            log.warning("%s", warning)
    if options.compare is not None:
        predictor.require_answers()
    _check_limits(task, options)
    dataset, skipped = open_images(predictor.config, options.data, predictor.config, model)
    name = split_name(dataset, options.split)
    splits = {part: task.match(dataset, split) for part, split in dataset.splits.items()}
    subject = loaded_subject(predictor, splits, name, options.batch_size)
    found = task.evaluate(subject, evaluators)
    result = {
        "model": model, "data": dataset.name, "task": task.name, "split": name, "splits": list(dataset.splits),
        "primary": found.primary.row(), **found.values, "skipped": skipped.get(name, []),
    }  # fmt: skip
    if options.compare is not None:
        other = load_used(options.compare, options)
        if recorded(other.config) != recorded(predictor.config):
            what = "the two models were trained on different data or splits"
            log.warning("%s: one may have been trained on these images", what)
        dataset, _ = open_images(predictor.config, options.data, other.config, model)
        theirs = other.task.match(dataset, dataset.splits[name])
        other_N = other.task.per_sample(*split_logits(other, theirs, options.batch_size))
        own_N = task.per_sample(*subject.outputs())
        result["compare"] = {"model": options.compare, **task.compare(own_N, other_N)}
    return Measured(task, found, result)


def _check_limits(task: Task, options: EvalOptions) -> None:
    """Raise UserError for a limit of another task's metric."""
    ours = {f"{side}_{metric.name}" for metric in task.metrics for side in ("min", "max")}
    for key, value in options.limits.items():
        if key not in ours:
            expected = ", ".join(sorted(ours & EvalOptions.model_fields.keys()))
            raise UserError(f"this model is for {task.name}", where=key, got=value, expected=expected)
