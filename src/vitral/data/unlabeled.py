"""Images without labels beside labeled ones: a source of their own, or the rest of the training split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vitral.data.config import DataConfig
from vitral.data.content_ids import identities
from vitral.data.counter_rng import Stream, bits
from vitral.data.dataset import Dataset, Split
from vitral.data.sources import open_dataset, unlabeled_source
from vitral.errors import UserError, plural


def with_unlabeled(dataset: Dataset, config: DataConfig) -> Dataset:
    """Return the dataset with the training images of `data.unlabeled` beside it, whose labels, if any, are dropped.

    Images of more than 8 bits have the dataset's value range. Raises UserError for what the source raises, and for
    images of other channels, unless `data.channels` says how both are read.
    """
    assert config.unlabeled is not None
    value_range = dataset.value_range if config.value_range == "auto" else config.value_range
    source = DataConfig(
        path=config.unlabeled, channels=config.channels, background=config.background, value_range=value_range,
        max_pixels=config.max_pixels, verify=config.verify,
    )  # fmt: skip
    try:
        found = open_dataset(unlabeled_source(source), hold_out=False, equal_classes=False, one_class=True)
    except UserError as error:
        lines = [line for line in str(error).splitlines() if "data.source=" not in line]
        raise UserError("\n".join(lines).replace("data.path: ", ""), where="data.unlabeled") from None
    if found.channels != dataset.channels:
        raise UserError(
            "the unlabeled images have other channels than the labeled ones", where="data.unlabeled",
            got=found.channels, expected=dataset.channels, hint="data.channels=N reads both with N channels.",
        )  # fmt: skip
    return replace(dataset, unlabeled=_without_labels(found, found.splits["train"]))


def with_labels_per_class(dataset: Dataset, count: int, seed: int) -> Dataset:
    """Return the dataset with `count` labeled training images of each class, drawn by `seed` as `data.shots` draws
    them, and the other training images beside it, without labels.

    Raises UserError for a class with fewer images, where no image is left, and where an image may have several classes.
    """
    train, where = dataset.splits["train"], "data.labels_per_class"
    if dataset.task != "classification":
        raise UserError("images need one class each to be counted per class", where=where, got=dataset.task)
    counts_K = train.class_counts(len(dataset.classes))
    few = int(counts_K.argmin())
    if counts_K[few] < count:
        raise UserError(
            f"the class {dataset.classes[few]} has {plural(int(counts_K[few]), 'training image')}", where=where,
            got=count, expected=f"at most {counts_K[few]}",
        )  # fmt: skip
    kept = drawn_per_class(train, len(dataset.classes), count, seed)
    rest = np.setdiff1d(np.arange(len(train)), kept)
    if not len(rest):
        raise UserError("every training image keeps its label, so none is left without", where=where, got=count)
    note = f"{len(kept)} labeled train images, {count} of each class (data.labels_per_class), drawn by seed {seed}"
    note += f"; {len(rest)} others without their labels"
    unlabeled = _without_labels(dataset, train.subset(rest))
    splits = {**dataset.splits, "train": train.subset(kept)}
    return replace(dataset, splits=splits, unlabeled=unlabeled, notes=(*dataset.notes, note))


def drawn_per_class(train: Split, classes: int, count: int, seed: int) -> np.ndarray:
    """Places, ascending, of `count` samples of each class (of fewer, where it has no more), drawn by `seed`. A seed's
    smaller sets are parts of its larger ones."""
    order_N = np.argsort(bits(seed, 0, 0, np.arange(len(train), dtype=np.int64), int(Stream.SHOTS)), kind="stable")
    labels_N = train.labels_N[order_N]
    return np.sort(np.concatenate([order_N[labels_N == label][:count] for label in range(classes)]))


def without_held_out(dataset: Dataset) -> Dataset:
    """Leave out unlabeled images that are equal files (or, where images are no files, equal pixels) to images held out
    for validation, and say so in a note. Raises UserError where no image is left."""
    if dataset.unlabeled is None or dataset.carved is None:
        return dataset
    split = dataset.unlabeled.splits["train"]
    held_N = np.isin(identities(split)[:, 0], dataset.carved.val_N)
    if not held_N.any():
        return dataset
    if held_N.all():
        raise UserError("all unlabeled images are held out for validation", where="data.unlabeled", got=len(split))
    note = f"{plural(int(held_N.sum()), 'unlabeled image')} left out: held out of train for validation"
    rest = _without_labels(dataset.unlabeled, split.subset(np.flatnonzero(~held_N)))
    return replace(dataset, unlabeled=rest, notes=(*dataset.notes, note))


def _without_labels(dataset: Dataset, split: Split) -> Dataset:
    plain = replace(split, labels_N=np.zeros(len(split), np.int64))
    return replace(dataset, classes=("unlabeled",), splits={"train": plain}, carved=None, unlabeled=None)
