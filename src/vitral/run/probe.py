"""Evaluate an encoder by a simple classifier on its features of the train images."""

from __future__ import annotations

from typing import Any

import torch

from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset, Split
from vitral.data.files import some
from vitral.data.splits import with_validation
from vitral.errors import UserError
from vitral.evaluate.features import Embedded, Metrics
from vitral.evaluate.few_shot import fewshot
from vitral.evaluate.knn import knn
from vitral.evaluate.linear_probe import linear
from vitral.predictor import Predictor
from vitral.run.command_options import ProbeOptions
from vitral.run.inference_inputs import image_batches, load_used, open_images, split_name
from vitral.training.metrics_log import console_logging, log


def probe(model: str, options: ProbeOptions | None = None) -> dict[str, Any]:
    """Return the output of `vitral probe --json`: `top1`, `top1_interval` and `count` of the evaluated split, results
    of the kind of probe, and the data, split and features.

    The classes are those of the data, not of the model. Raises UserError for data whose images have several
    classes, for a class without train images, and for an unknown split.
    """
    console_logging()
    options = options or ProbeOptions()
    predictor = load_used(model, options)
    dataset, skipped = open_images(predictor.config, options.data, predictor.config, model)
    dataset = _with_two_splits(dataset)
    name = split_name(dataset, options.split)
    train, evaluated = (_embedded(predictor, dataset.splits[part], options) for part in ("train", name))
    log.info("evaluating %d features of %d %s images with %d train images", train.features_ND.shape[1],
             len(evaluated.labels_N), name, len(train.labels_N))  # fmt: skip
    values = dict(_metrics(train, evaluated, len(dataset.classes), options))
    return {
        "model": model, "data": dataset.name, "kind": options.kind, "features": options.features, "split": name,
        "train_count": len(train.labels_N),
        "primary": {"name": "top1", "value": values["top1"], "interval": values.get("top1_interval")}, **values,
        "skipped": [*skipped.get("train", []), *skipped.get(name, [])],
    }  # fmt: skip


def _with_two_splits(dataset: Dataset) -> Dataset:
    """Return the data, with a validation split made from train if there is only train."""
    if dataset.task != "classification":
        raise UserError(
            "a probe needs one class per image", where=dataset.name, got=f"annotations for {dataset.task}",
            hint="`vitral train` takes them, and `vitral embed` gives their features.",
        )  # fmt: skip
    if "train" in dataset.absent():
        raise UserError(f"no train image of {some(dataset.absent()['train'])}", where=dataset.name)
    if len(dataset.splits) == 1:
        dataset = with_validation(dataset, DataConfig().val_fraction)
        log.info("data: %s", dataset.notes[-1])
    return dataset


def _embedded(predictor: Predictor, split: Split, options: ProbeOptions) -> Embedded:
    batches = image_batches(predictor, split, options.batch_size)
    rows = [predictor.forward(images_BCHW, options.features).cpu() for images_BCHW, _ in batches]
    return Embedded(torch.cat(rows).to(predictor.device), torch.from_numpy(split.labels_N).to(predictor.device))


def _metrics(train: Embedded, evaluated: Embedded, classes: int, options: ProbeOptions) -> Metrics:
    if options.kind == "knn":
        return knn(train, evaluated, classes, options.knn)
    if options.kind == "linear":
        return linear(train, evaluated, classes, options.linear)
    return fewshot(train, evaluated, classes, options.fewshot)
