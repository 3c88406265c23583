"""Measuring a model folder, alone or against another one on the same images."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from vitral.config import build
from vitral.data.config import DataConfig, SourceConfig
from vitral.data.damage import find_damage, said, without_damage
from vitral.data.dataset import Dataset, Split
from vitral.data.loader import ImageStore, eval_batches
from vitral.data.sources import held_out, open_dataset
from vitral.errors import UserError
from vitral.evaluate.classify import collect_logits
from vitral.evaluate.compare import mcnemar
from vitral.evaluate.problems import PROBLEMS
from vitral.predictor import Predictor, load
from vitral.run.options import EvalOptions
from vitral.training.journal import console_logging, log
from vitral.weights.folder import FolderConfig

_CACHE_MB = 0  # each image is read once


def evaluate(model: str, options: EvalOptions | None = None) -> dict[str, Any]:
    """What `vitral eval --json` prints: the metrics of the model's kind of problem, `split`, `model`, `skipped` (the
    damaged images that data.max_bad let be left out, with the cause), and `compare` if asked for.

    Raises UserError where the classes of the data are not those of the model, or where there is no such split.
    """
    console_logging()
    options = options or EvalOptions()
    predictor = load(model, options.device, options.image_size, options.position_resize)
    problem = PROBLEMS[predictor.config.problem_type]
    _check_threshold(predictor, options)
    dataset, skipped = _open(predictor.config, options, predictor.config)
    name = _split_name(dataset, options)
    split = _in_classes_of(predictor, dataset, dataset.splits[name])
    logits_NC, labels_N = _logits(predictor, split, options.batch_size)
    found = problem.metrics(logits_NC, labels_N, predictor.classes, predictor.config.temperature)
    result = {"model": model, "data": dataset.name, "split": name, **found, "skipped": skipped.get(name, [])}
    if options.compare is not None:
        other = load(options.compare, options.device, options.image_size, options.position_resize)
        if _recorded(other.config) != _recorded(predictor.config):
            log.warning("the two models were trained on different data or splits: one may know these images")
        dataset, _ = _open(predictor.config, options, other.config)
        theirs = _in_classes_of(other, dataset, dataset.splits[name])
        other_NC, other_labels_N = _logits(other, theirs, options.batch_size)
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


class _Recorded(NamedTuple):
    """What a model folder says of its data."""

    source: SourceConfig
    val_fraction: float
    fingerprint: str


def _recorded(folder: FolderConfig) -> _Recorded | None:
    data = folder.provenance.get("data")
    if not isinstance(data, dict) or not {"path", "source", "val_fraction", "fingerprint"} <= data.keys():
        return None
    keys = {key: data[key] for key in SourceConfig.model_fields if key in data}
    source = build(SourceConfig, keys, where=f"{folder.name}: recorded data")
    return _Recorded(source, data["val_fraction"], data["fingerprint"])


def _open(folder: FolderConfig, options: EvalOptions, reader: FolderConfig) -> tuple[Dataset, dict[str, list[str]]]:
    """The images asked for, or those of `folder`'s training, as `reader` sees them; and the damaged ones that were left
    out, "name: cause", by split. Where the images asked for are those of the training, only the part that was held out
    counts as validation data."""
    recorded, asked = _recorded(folder), options.data
    named = asked.path is not None or asked.source != "auto"
    if named:
        keys = asked.model_dump()
    elif recorded is not None:
        keys = recorded.source.model_dump() | {"verify": recorded.source.verify and asked.verify}
        keys["max_pixels"] = asked.max_pixels
    else:
        raise UserError(
            "this model doesn't say what it was trained on", where=folder.name, hint="Name the images: data=DIR."
        )
    keys |= {"channels": reader.architecture.in_channels, "background": reader.preprocessing.background}
    if "max_pixels" not in asked.model_fields_set:
        keys["max_pixels"] = reader.preprocessing.max_pixels
    config = build(DataConfig, keys)
    dataset = open_dataset(config, hold_out=False, equal_classes=False)
    same = recorded is not None and dataset.fingerprint == recorded.fingerprint
    if not named and not same:
        log.warning("the data at %s have changed since the training", config.path)
    if recorded is None or (named and not same):
        return _readable(dataset, asked.max_bad)
    # Damaged images are left out before the validation data are, as in the training.
    dataset, skipped = _readable(dataset, max(asked.max_bad, recorded.source.max_bad))
    return held_out(dataset, recorded.val_fraction), skipped


def _readable(dataset: Dataset, max_bad: int) -> tuple[Dataset, dict[str, list[str]]]:
    """Without the damaged images, which are looked for only where some are allowed: reading names the first one."""
    if not max_bad:
        return dataset, {}
    damage = find_damage(dataset)
    skipped = {name: said(dataset.splits[name], found) for name, found in damage.items()}
    return without_damage(dataset, damage, max_bad), skipped


def _split_name(dataset: Dataset, options: EvalOptions) -> str:
    name = options.split
    if name == "auto":
        name = next(split for split in ("test", "val", "train") if split in dataset.splits)
    if name not in dataset.splits:
        raise UserError("the data have no such split", where="split", got=name, wanted=", ".join(dataset.splits))
    return name


def _in_classes_of(predictor: Predictor, dataset: Dataset, split: Split) -> Split:
    """The split with labels in the model's order of classes. Class names are matched, never positions."""
    if dataset.problem_type != predictor.config.problem_type:
        raise UserError(
            "the labels of the data are not of the model's kind", where=dataset.name,
            got=dataset.problem_type.replace("_", " "), wanted=predictor.config.problem_type.replace("_", " "),
        )  # fmt: skip
    if set(dataset.classes) != set(predictor.classes):
        extra = sorted(set(dataset.classes) ^ set(predictor.classes))
        raise UserError(
            "the classes of the data are not those of the model", where=dataset.name,
            got=", ".join(dataset.classes[:20]), wanted=", ".join(predictor.classes[:20]),
            hint=f"Not in both: {', '.join(extra[:10])}",
        )  # fmt: skip
    if split.multi_label:
        own = [dataset.classes.index(name) for name in predictor.classes]
        return replace(split, labels_N=split.labels_N[:, own])
    place = np.array([predictor.classes.index(name) for name in dataset.classes], np.int64)
    return replace(split, labels_N=place[split.labels_N])


def _logits(predictor: Predictor, split: Split, batch_size: int) -> tuple[Any, Any]:
    recipe = predictor.config.preprocessing
    with ImageStore(
        split,
        recipe.image_size,
        recipe.fitting,
        exact=True,
        workers=os.cpu_count() or 1,
        cache_mb=_CACHE_MB,
        device=predictor.device,
        batch=batch_size,
    ) as store:
        return collect_logits(predictor.model, eval_batches(store, batch_size))
