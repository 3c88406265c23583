"""Images for commands that use a model: the given ones, or those of the model's training."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitral.compression.evit import EViT
from vitral.compression.tome import ToMe
from vitral.config import build
from vitral.data.config import DataConfig, DataSource, Validation
from vitral.data.content_ids import identities
from vitral.data.damaged_images import describe_damage, find_damage, without_damage
from vitral.data.dataset import Carved, Dataset, Split
from vitral.data.files import some
from vitral.data.image_store import ImageStore
from vitral.data.loader import eval_batches
from vitral.data.sources import make_val_split, open_dataset
from vitral.data.splits import with_remembered, with_val_in_train
from vitral.engines import TorchEngine
from vitral.errors import UserError, plural, shown
from vitral.evaluate.classification import collect_logits
from vitral.models.registry import token_encoder
from vitral.models.token_reduction import refuse_reduction
from vitral.predictor import Predictor, load, require_finite
from vitral.run.command_options import EngineUse, ModelUse
from vitral.run.split_record import load_split
from vitral.training.metrics_log import log
from vitral.weights.folder import FolderConfig

Array = np.ndarray[Any, np.dtype[Any]]
_CACHE_MB = 0  # each image is read once


def load_used(model: str, use: ModelUse) -> Predictor:
    """Load the predictor of a model with the given options. Raises UserError where its tokens cannot be made fewer that
    way."""
    runtime = isinstance(use, EngineUse) and use.engine in ("onnx", "openvino")
    device = "cpu" if runtime and use.device == "auto" else use.device
    predictor = load(model, device, use.image_size, use.position_resize)
    if given := use.model_dump(include={"value_range", "max_pixels"}, exclude_none=True):
        recipe = predictor.config.preprocessing.model_copy(update=given)
        predictor.config = predictor.config.model_copy(update={"preprocessing": recipe})
    if use.reduce != "auto":
        _reduce(predictor, model, use)
    if not isinstance(use, EngineUse) or not {"engine", "precision"} & use.model_fields_set:
        return predictor
    from vitral.export.runtime_engine import with_engine

    return with_engine(predictor, use.engine, use.precision)


def _reduce(predictor: Predictor, model: str, use: ModelUse) -> None:
    """Apply the configured token reduction, or leave the model's own pruner out."""
    network = token_encoder(predictor.model)
    if network is None:
        raise UserError("this model has no patch tokens", where="reduce", got=use.reduce, expected="auto")
    if use.reduce == "none":
        network.reduce = None
        return
    if network.config.has_boxes:
        raise UserError("a detector reads all patches where they lie", where="reduce", got=use.reduce, expected="auto")
    refuse_reduction(network.config.positions, is_masked=False)
    tome, evit = use.tome, use.evit
    network.reduce = ToMe(tome.r, tome.schedule) if use.reduce == "tome" else EViT(evit.share, evit.after)
    counts = network.reduce.counts(network.grid[0] * network.grid[1], network.config.depth)
    log.info("%s: patch tokens after each block: %s", model, ", ".join(map(str, counts)))


class UsedData(DataConfig):
    """Data as a model sees them: how samples are scaled is a matter of the model."""

    range_key: ClassVar[str] = "value_range"


class Recorded(NamedTuple):
    """What a model folder says of its data."""

    source: DataSource
    val_fraction: float
    validation: Validation
    fingerprint: str


def recorded(folder: FolderConfig) -> Recorded | None:
    """What the folder says of its data, if it does."""
    data = folder.provenance.get("data")
    if not isinstance(data, dict) or not {"path", "source", "val_fraction", "fingerprint"} <= data.keys():
        return None
    keys = {key: data[key] for key in DataSource.model_fields if key in data}
    source = build(DataSource, keys, where=f"{folder.name}: recorded data")
    return Recorded(source, data["val_fraction"], data.get("validation", "own"), data["fingerprint"])


def open_images(
    folder: FolderConfig, given: DataSource, reader: FolderConfig, model: str | None = None
) -> tuple[Dataset, dict[str, list[str]]]:
    """Open the given images, or those of `folder`'s training, as `reader` sees them; and the damaged ones that were
    left out, "name: cause", by split. Where the given images are those of the training, only the part that was held out
    counts as validation data: also after images were added or removed and after the data were moved, as the run of
    `model` remembers it by content.

    Raises UserError for changed data of which nothing is remembered, where a part would have to be held out once more.
    """
    known = recorded(folder)
    if given.named:
        keys = given.model_dump()
        if given.target is None and known is not None:
            keys["target"] = known.source.target
    elif known is not None:
        keys = known.source.model_dump() | {"verify": known.source.verify and given.verify}
    else:
        what = "this model doesn't say what it was trained on"
        raise UserError(what, where=folder.name, hint="Name the images: data=DIR.")
    recipe = reader.preprocessing
    keys |= {
        "channels": reader.architecture.in_channels, "background": recipe.background, "value_range": recipe.value_range,
        "max_pixels": given.max_pixels if "max_pixels" in given.model_fields_set else recipe.max_pixels,
    }  # fmt: skip
    config = build(UsedData, keys)
    boxes = reader.task == "detection"
    dataset = open_dataset(config, hold_out=False, equal_classes=False, one_class=True, boxes=boxes)
    if known is None:
        return _readable(dataset, given.max_bad)
    # Damaged images are left out before the validation data are, as in the training.
    if dataset.fingerprint == known.fingerprint:
        dataset, skipped = _readable(dataset, max(given.max_bad, known.source.max_bad))
        return make_val_split(dataset, known.val_fraction, known.validation), skipped
    there = Path(known.source.path).resolve() if known.source.path is not None else None
    here = not given.named or (given.path is not None and Path(given.path).expanduser().resolve() == there)
    dataset, skipped = _readable(dataset, max(given.max_bad, known.source.max_bad) if here else given.max_bad)
    carved = load_split(model, known.fingerprint) if model is not None else None
    if not here and (carved is None or not _is_trained_on(dataset, carved)):
        return dataset, skipped
    log.warning("the data at %s have changed since the training", config.path)
    return _as_then(dataset, known, carved, named=given.named), skipped


def _is_trained_on(dataset: Dataset, carved: Carved) -> bool:
    """Whether data at another place are those of the training, changed: most images are known by content, and some of
    them were held out. Logs a warning where they are others and hold images that the model was trained on."""
    ids_N = identities(dataset.splits["train"])[:, 0]
    ids_N = ids_N[ids_N != 0]  # of images that cannot be read
    held, trained = int(np.isin(ids_N, carved.val_N).sum()), int(np.isin(ids_N, carved.train_N).sum())
    if held and 2 * (held + trained) >= len(ids_N):
        return True
    if trained:
        log.warning("the model was trained on %s of %s: results are too good", f"{trained:,}",
                    plural(len(ids_N), "image"))  # fmt: skip
    return False


def _as_then(dataset: Dataset, known: Recorded, carved: Carved | None, *, named: bool) -> Dataset:
    """Changed data of the training, divided as they were then."""
    was_carved = known.validation == "dev" or (known.validation == "own" and "val" not in dataset.splits)
    if not was_carved:
        return make_val_split(dataset, known.val_fraction, known.validation)
    if known.validation == "dev":
        dataset = with_val_in_train(dataset)
        dataset = replace(dataset, splits={"train": dataset.splits["train"]})
    if carved is None:
        if "test" not in dataset.splits and not named:
            raise UserError(
                "the data have changed since the training, and which images were held out is not remembered, so that "
                "the result would be of images that the model was trained on", where=dataset.name,
                hint="data=DIR names other images to measure. Runs remember it in split.safetensors in their folder.",
            )  # fmt: skip
        if "test" not in dataset.splits:
            log.warning("the model was trained on some of these images, or on most: results are too good")
        return dataset
    dataset, new = with_remembered(dataset, carved)
    if new:
        log.warning(
            "%s not there at the training and left out: %s. To measure new images: data=FOLDER with these alone",
            plural(len(new), "image was", "images were"), some(map(shown, new), 3),
        )  # fmt: skip
    return dataset


def _readable(dataset: Dataset, max_bad: int) -> tuple[Dataset, dict[str, list[str]]]:
    """Without the damaged images, which are looked for only where some are allowed: reading names the first one."""
    if not max_bad:
        return dataset, {}
    damage = find_damage(dataset)
    skipped = {name: describe_damage(dataset.splits[name], found) for name, found in damage.items()}
    return without_damage(dataset, damage, max_bad), skipped


def split_name(dataset: Dataset, given: str) -> str:
    """The split that is measured; auto: test if there is one, else val, else train."""
    name = given if given != "auto" else next(part for part in ("test", "val", "train") if part in dataset.splits)
    if name not in dataset.splits:
        raise UserError("the data have no such split", where="split", got=name, expected=", ".join(dataset.splits))
    return name


def image_batches(predictor: Predictor, split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image of the split once, in order, as the model takes it, with its label: ([0,1] images, labels)."""
    recipe = predictor.config.preprocessing
    with ImageStore(
        split, recipe.image_size, recipe, exact=True, workers=os.cpu_count() or 1, cache_mb=_CACHE_MB,
        device=predictor.device,
    ) as store:  # fmt: skip
        yield from eval_batches(store, batch_size)


def split_logits(predictor: Predictor, split: Split, batch_size: int) -> tuple[Array, Array]:
    """Logits float32 [N, classes] and labels int64 of every image of the split, in order, by the predictor's engine."""
    engine, name, task, spec = predictor.engine, predictor.config.name, predictor.task, predictor.config.preprocessing
    if isinstance(engine, TorchEngine):
        logits_NC, labels_N = collect_logits(engine.model, image_batches(predictor, split, batch_size), task.compact)
        return task.annotated(require_finite(torch.from_numpy(logits_NC), name).numpy(), labels_N, split, spec)
    if engine.takes == "resized":
        with torch.inference_mode():
            batches = image_batches(predictor, split, batch_size)
            rows = [task.compact(engine.logits(images)) for images, _ in batches]
    else:
        starts = range(0, len(split), batch_size)
        parts = (range(start, min(start + batch_size, len(split))) for start in starts)
        rows = [task.compact(predictor.forward([split.read(place) for place in part])) for part in parts]
    return task.annotated(require_finite(torch.cat(rows), name).numpy(), split.labels_N, split, spec)
