"""Evaluate an encoder by a simple classifier on its features of the train images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from vitral.atomic_files import whole_file
from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset, Split
from vitral.data.files import some
from vitral.data.splits import with_validation
from vitral.errors import UserError
from vitral.evaluate.features import Embedded, Metrics
from vitral.evaluate.few_shot import fewshot
from vitral.evaluate.knn import knn
from vitral.evaluate.layers import best_layer, embed_layers
from vitral.evaluate.linear_probe import linear
from vitral.models.features import layer_names
from vitral.models.model import ImageModel
from vitral.predictor import Predictor
from vitral.run.command_options import ProbeOptions
from vitral.run.inference_inputs import image_batches, load_used, open_images, split_name
from vitral.run.page_folder import png_file
from vitral.training.metrics_log import console_logging, log


def probe(model: str, options: ProbeOptions | None = None) -> dict[str, Any]:
    """Return the output of `vitral probe --json`: `top1`, `top1_interval` and `count` of the evaluated split, results
    of the kind of probe, and the data, split and features; with layer=auto also `per_layer`.

    The classes are those of the data, not of the model. Raises UserError for data whose images have several
    classes, for a class without train images, and for an unknown split.
    """
    console_logging()
    options = options or ProbeOptions()
    predictor = load_used(model, options)
    dataset, skipped = open_images(predictor.config, options.data, predictor.config, model)
    dataset = _with_two_splits(dataset)
    name = split_name(dataset, options.split)
    target = None if options.out is None else png_file(options.out, overwrite=options.overwrite)
    names = [options.features] if options.layer is None else _layers(predictor.model, options.layer)
    train, evaluated = (_embedded(predictor, dataset.splits[part], options, names) for part in ("train", name))
    count = len(dataset.splits["train"])
    log.info("evaluating %d features of %d %s images with %d train images", train[names[0]].features_ND.shape[1],
             len(dataset.splits[name]), name, count)  # fmt: skip
    found = {each: dict(_metrics(train[each], evaluated[each], len(dataset.classes), options)) for each in names}
    best = names[0]
    if options.layer == "auto":
        best, rows = best_layer(found)
        found[best]["per_layer"] = rows
        if target is not None:
            from vitral.report.layer_plot import layer_plot

            with whole_file(target) as partial:
                partial.write_bytes(layer_plot(rows, name))
    values = found[best]
    return {
        "model": model, "data": dataset.name, "kind": options.kind, "features": best, "split": name,
        "train_count": count,
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


def _layers(model: ImageModel, layer: Literal["auto"] | int) -> list[str]:
    """The layers to look at. Raises UserError for one that is not there."""
    names = layer_names(model)
    if layer == "auto":
        return names
    if not -len(names) <= layer < len(names):
        raise UserError("the model has no such layer", where="layer", got=layer, expected=f"0 to {len(names) - 1}")
    return [names[layer]]


@torch.no_grad()
def _embedded(predictor: Predictor, split: Split, options: ProbeOptions, layers: Sequence[str]) -> dict[str, Embedded]:
    """Features of a split by name: those of layers, or the one kind of `features`."""
    if options.layer is not None:
        return embed_layers(predictor.model, image_batches(predictor, split, options.batch_size), layers)
    rows = [
        predictor.forward(images_BCHW, options.features).cpu()
        for images_BCHW, _ in image_batches(predictor, split, options.batch_size)
    ]
    labels_N = torch.from_numpy(split.labels_N).to(predictor.device)
    return {layers[0]: Embedded(torch.cat(rows).to(predictor.device), labels_N)}


def _metrics(train: Embedded, evaluated: Embedded, classes: int, options: ProbeOptions) -> Metrics:
    if options.kind == "knn":
        return knn(train, evaluated, classes, options.knn)
    if options.kind == "linear":
        return linear(train, evaluated, classes, options.linear)
    return fewshot(train, evaluated, classes, options.fewshot)
