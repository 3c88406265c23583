"""Measuring a model folder, alone or against another one on the same images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vitral.data.dataset import Dataset, Split
from vitral.errors import UserError
from vitral.evaluate.compare import mcnemar
from vitral.evaluate.problems import PROBLEMS
from vitral.predictor import Predictor
from vitral.run.images import load_used, open_images, recorded, split_logits, split_name
from vitral.run.options import EvalOptions
from vitral.training.journal import console_logging, log
from vitral.weights.class_names import numbered_names, numbered_of


def evaluate(model: str, options: EvalOptions | None = None) -> dict[str, Any]:
    """What `vitral eval --json` prints: the metrics of the model's kind of problem, `split`, `splits` (all that the
    data have; images that are not split are "train" alone), `model`, `skipped` (the damaged images that data.max_bad
    let be left out, with the cause), and `compare` if asked for.

    Raises UserError where the classes of the data are not those of the model, or where there is no such split.
    """
    console_logging()
    options = options or EvalOptions()
    predictor = load_used(model, options)
    predictor.require_head()
    problem = PROBLEMS[predictor.config.problem_type]
    _check_threshold(predictor, options)
    dataset, skipped = open_images(predictor.config, options.data, predictor.config, model)
    name = split_name(dataset, options.split)
    split = in_classes_of(predictor, dataset, dataset.splits[name])
    logits_NC, labels_N = split_logits(predictor, split, options.batch_size)
    found = problem.metrics(logits_NC, labels_N, predictor.classes, predictor.config.temperature)
    result = {"model": model, "data": dataset.name, "split": name, "splits": list(dataset.splits), **found}
    result["skipped"] = skipped.get(name, [])
    if options.compare is not None:
        other = load_used(options.compare, options)
        if recorded(other.config) != recorded(predictor.config):
            log.warning("the two models were trained on different data or splits: one may know these images")
        dataset, _ = open_images(predictor.config, options.data, other.config, model)
        theirs = in_classes_of(other, dataset, dataset.splits[name])
        other_NC, other_labels_N = split_logits(other, theirs, options.batch_size)
        right_N, other_right_N = problem.right(logits_NC, labels_N), problem.right(other_NC, other_labels_N)
        result["compare"] = {
            "model": options.compare,
            problem.right_score: float(np.mean(other_right_N)),
            **mcnemar(right_N, other_right_N),
        }
    return result


def _check_threshold(predictor: Predictor, options: EvalOptions) -> None:
    """Raises UserError for a threshold of the other kind of problem."""
    score = PROBLEMS[predictor.config.problem_type].score
    for key, value in (("top1", options.min_top1), ("map", options.min_map)):
        if value is not None and key != score:
            raise UserError(
                f"this model is for {predictor.config.problem_type.replace('_', ' ')}", where=f"min_{key}", got=value,
                wanted=f"min_{score}",
            )  # fmt: skip


def in_classes_of(predictor: Predictor, dataset: Dataset, split: Split) -> Split:
    """The split with labels in the model's order of classes. Class names are matched, and positions only where both
    sides have numbers alone."""
    if dataset.problem_type != predictor.config.problem_type:
        raise UserError(
            "the labels of the data are not of the model's kind", where=dataset.name,
            got=dataset.problem_type.replace("_", " "), wanted=predictor.config.problem_type.replace("_", " "),
        )  # fmt: skip
    place = _places(dataset.classes, predictor.classes, dataset.name)
    if place is None:
        extra = sorted(set(dataset.classes) ^ set(predictor.classes))
        raise UserError(
            "the classes of the data are not those of the model", where=dataset.name,
            got=", ".join(dataset.classes[:20]), wanted=", ".join(predictor.classes[:20]),
            hint=f"Not in both: {', '.join(extra[:10])}",
        )  # fmt: skip
    if split.multi_label:
        hot_NK = np.zeros((len(split.labels_N), len(predictor.classes)), split.labels_N.dtype)
        hot_NK[:, place] = split.labels_N
        return replace(split, labels_N=hot_NK)
    return replace(split, labels_N=np.array(place, np.int64)[split.labels_N])


def _places(theirs: Sequence[str], ours: Sequence[str], where: str) -> list[int] | None:
    """The model's number of each class of the data, or None where these are other classes."""
    index = {name: number for number, name in enumerate(ours)}
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
