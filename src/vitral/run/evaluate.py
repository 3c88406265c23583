"""Measuring a model folder, alone or against another one on the same images."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np

from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset, Split
from vitral.data.loader import ImageStore, eval_batches
from vitral.data.sources import open_dataset, with_validation
from vitral.errors import UserError
from vitral.evaluate.classify import classification_metrics, collect_logits
from vitral.evaluate.compare import mcnemar
from vitral.predictor import Predictor, load
from vitral.run.options import EvalOptions
from vitral.training.journal import console_logging, log
from vitral.weights.folder import FolderConfig

_CACHE_MB = 0  # each image is read once


def evaluate(model: str, options: EvalOptions | None = None) -> dict[str, Any]:
    """What `vitral eval --json` prints: `classification_metrics`, `split`, `model`, and `compare` if asked for.

    Raises UserError where the classes of the data are not those of the model, or where there is no such split.
    """
    console_logging()
    options = options or EvalOptions()
    predictor = load(model, options.device)
    dataset = _open(predictor.config, options, predictor.config.architecture.in_channels)
    name = _split_name(dataset, options)
    split = _in_classes_of(predictor, dataset, dataset.splits[name])
    logits_NC, labels_N = _logits(predictor, split, options.batch_size)
    found = classification_metrics(logits_NC, labels_N, predictor.classes, predictor.config.temperature)
    result = {"model": model, "data": dataset.name, "split": name, **found}
    if options.compare is not None:
        other = load(options.compare, options.device)
        if _recorded(other.config) != _recorded(predictor.config):
            log.warning("the two models were trained on different data or splits: one may know these images")
        dataset = _open(predictor.config, options, other.config.architecture.in_channels)
        theirs = _in_classes_of(other, dataset, dataset.splits[name])
        other_NC, other_labels_N = _logits(other, theirs, options.batch_size)
        right_N, other_right_N = logits_NC.argmax(axis=1) == labels_N, other_NC.argmax(axis=1) == other_labels_N
        top1 = float(np.mean(other_right_N))
        result["compare"] = {"model": options.compare, "top1": top1, **mcnemar(right_N, other_right_N)}
    return result


class _Recorded(NamedTuple):
    """What a model folder says of its data."""

    path: str | None
    source: Literal["auto", "digits", "folder", "cifar"]
    verify: bool
    val_fraction: float
    fingerprint: str


def _recorded(folder: FolderConfig) -> _Recorded | None:
    data = folder.provenance.get("data")
    if not isinstance(data, dict) or not set(_Recorded._fields) <= data.keys():
        return None
    return _Recorded(**{field: data[field] for field in _Recorded._fields})


def _open(folder: FolderConfig, options: EvalOptions, channels: int) -> Dataset:
    """The images asked for, or those of the training. Where the images asked for are those of the training, only the
    part that was held out counts as validation data."""
    recorded, asked = _recorded(folder), options.data
    if asked.path is not None or asked.source != "auto":
        config = DataConfig(path=asked.path, source=asked.source, verify=asked.verify, channels=channels)
        dataset = open_dataset(config, hold_out=False)
        if recorded and "val" not in dataset.splits and dataset.fingerprint == recorded.fingerprint:
            return with_validation(dataset, recorded.val_fraction)
        return dataset
    if recorded is None:
        raise UserError(
            "this model doesn't say what it was trained on", where=folder.name, hint="Name the images: data=DIR."
        )
    dataset = open_dataset(
        DataConfig(
            path=recorded.path, source=recorded.source, channels=channels,
            val_fraction=recorded.val_fraction, verify=recorded.verify and asked.verify,
        )
    )  # fmt: skip
    if dataset.fingerprint != recorded.fingerprint:
        log.warning("the data at %s have changed since the training", recorded.path)
    return dataset


def _split_name(dataset: Dataset, options: EvalOptions) -> str:
    name = options.split
    if name == "auto":
        name = next(split for split in ("test", "val", "train") if split in dataset.splits)
    if name not in dataset.splits:
        raise UserError("the data have no such split", where="split", got=name, wanted=", ".join(dataset.splits))
    return name


def _in_classes_of(predictor: Predictor, dataset: Dataset, split: Split) -> Split:
    """The split with labels in the model's order of classes. Class names are matched, never positions."""
    if set(dataset.classes) != set(predictor.classes):
        extra = sorted(set(dataset.classes) ^ set(predictor.classes))
        raise UserError(
            "the classes of the data are not those of the model", where=dataset.name,
            got=", ".join(dataset.classes[:20]), wanted=", ".join(predictor.classes[:20]),
            hint=f"Not in both: {', '.join(extra[:10])}",
        )  # fmt: skip
    place = np.array([predictor.classes.index(name) for name in dataset.classes], np.int64)
    return replace(split, labels_N=place[split.labels_N])


def _logits(predictor: Predictor, split: Split, batch_size: int) -> tuple[Any, Any]:
    recipe = predictor.config.preprocessing
    store = ImageStore(
        split,
        recipe.image_size,
        recipe.fit,
        exact=True,
        workers=os.cpu_count() or 1,
        cache_mb=_CACHE_MB,
        device=predictor.device,
    )
    return collect_logits(predictor.model, eval_batches(store, batch_size))
