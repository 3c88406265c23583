"""Measuring a model folder, alone or against another one on the same images."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np

from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset, Split
from vitral.data.loader import ImageStore, eval_batches
from vitral.data.sources import open_dataset
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
    dataset = _open(predictor.config, options)
    name = _split_name(dataset, options)
    split = _in_classes_of(predictor, dataset, dataset.splits[name])
    logits_NC, labels_N = _logits(predictor, split, options.batch_size)
    found = classification_metrics(logits_NC, labels_N, predictor.classes, predictor.config.temperature)
    result = {"model": model, "data": dataset.name, "split": name, **found}
    if options.compare is not None:
        other = load(options.compare, options.device)
        if other.config.architecture.in_channels != predictor.config.architecture.in_channels:
            dataset = _open(other.config, options)
        theirs = _in_classes_of(other, dataset, dataset.splits[name])
        other_NC, other_labels_N = _logits(other, theirs, options.batch_size)
        right_N, other_right_N = logits_NC.argmax(axis=1) == labels_N, other_NC.argmax(axis=1) == other_labels_N
        result["compare"] = {
            "model": options.compare,
            "top1": float(np.mean(other_right_N)),
            **mcnemar(right_N, other_right_N),
        }
    return result


def _open(folder: FolderConfig, options: EvalOptions) -> Dataset:
    """The data asked for, or those of the training, with a warning if they have changed since."""
    channels = folder.architecture.in_channels
    if options.data.path is not None or options.data.source != "auto":
        asked = DataConfig(
            path=options.data.path, source=options.data.source, verify=options.data.verify, channels=channels
        )
        return open_dataset(asked, hold_out=False)
    recorded = folder.provenance.get("data")
    if not isinstance(recorded, dict):
        raise UserError(
            "this model doesn't say what it was trained on", where=folder.name, hint="Name the images: data=DIR."
        )
    dataset = open_dataset(
        DataConfig(
            path=recorded["path"], source=recorded["source"], channels=channels,
            val_fraction=recorded["val_fraction"], verify=recorded["verify"] and options.data.verify,
        )
    )  # fmt: skip
    if dataset.fingerprint != recorded["fingerprint"]:
        log.warning("the data at %s have changed since the training", recorded["path"])
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
