"""A few labels: `data.shots` drops the other images, `data.labels_per_class` and, of boxes, `data.labeled_images` keep
them without labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vitral.data.counter_rng import Stream, bits
from vitral.data.dataset import Dataset, Split
from vitral.data.unlabeled import without_labels
from vitral.errors import UserError, plural


def with_shots(dataset: Dataset, shots: int, seed: int) -> Dataset:
    """The dataset with `shots` train images of each class, drawn by `seed`, and a note that says so; other splits stay.

    A seed's smaller sets are parts of its larger ones. A class with fewer images gives all it has. Raises UserError
    where an image may have several classes.
    """
    train = dataset.splits["train"]
    if train.multi_label:
        raise UserError("images with several classes cannot be counted so", where="data.shots", got=shots)
    kept = drawn_per_class(train, len(dataset.classes), shots, seed)
    fewer = int(((counts_K := train.class_counts(len(dataset.classes))) < shots)[counts_K > 0].sum())
    note = f"{len(kept)} of {len(train)} train images, {shots} of each class (data.shots), drawn by seed {seed}"
    note += f"; {plural(fewer, 'class has', 'classes have')} fewer" if fewer else ""
    splits = {**dataset.splits, "train": train.subset(kept)}
    return replace(dataset, splits=splits, notes=(*dataset.notes, note))


def with_labels_per_class(dataset: Dataset, count: int, seed: int) -> Dataset:
    """Return the dataset with `count` labeled training images of each class, drawn by `seed` as `data.shots` draws
    them, and the other training images beside it, without labels; `hidden` holds these labels.

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
    if len(kept) == len(train):
        raise UserError("every training image keeps its label, so none is left without", where=where, got=count)
    note = f"{len(kept)} labeled train images, {count} of each class (data.labels_per_class), drawn by seed {seed}"
    return _divided(dataset, kept, note)


def with_labeled_images(dataset: Dataset, count: int, seed: int, *, unlabeled: bool) -> Dataset:
    """Return the dataset with `count` training images that keep their boxes, drawn by `seed`, and, with `unlabeled`,
    the others beside them, without; `hidden` holds these boxes. A seed's smaller sets are parts of its larger ones.

    Raises UserError for data without boxes, and where no image is left.
    """
    train, where = dataset.splits["train"], "data.labeled_images"
    if dataset.task != "detection":
        hint = "data.labels_per_class=N keeps the labels of N images of each class."
        raise UserError("only images with boxes are counted so", where=where, got=dataset.task, hint=hint)
    if count >= len(train):
        raise UserError("every training image keeps its boxes, so none is left without", where=where, got=count,
                        expected=f"at most {len(train) - 1}")  # fmt: skip
    kept = np.sort(_drawn_order(len(train), seed)[:count])
    note = f"{count} train images with boxes (data.labeled_images), drawn by seed {seed}"
    counts_K = train.subset(kept).class_counts(len(dataset.classes))
    absent = [name for name, images in zip(dataset.classes, counts_K.tolist(), strict=True) if not images]
    note += f", none of {', '.join(absent[:10])}" if absent else ""
    if unlabeled:
        return _divided(dataset, kept, note)
    notes = *dataset.notes, f"{note}; {len(train) - count} others left out"
    return replace(dataset, splits={**dataset.splits, "train": train.subset(kept)}, notes=notes)


def _divided(dataset: Dataset, kept: np.ndarray, note: str) -> Dataset:
    train = dataset.splits["train"]
    hidden = train.subset(np.setdiff1d(np.arange(len(train)), kept))
    notes = *dataset.notes, f"{note}; {len(hidden)} others without their labels"
    splits = {**dataset.splits, "train": train.subset(kept)}
    return replace(dataset, splits=splits, unlabeled=without_labels(dataset, hidden), hidden=hidden, notes=notes)


def _drawn_order(count: int, seed: int) -> np.ndarray:
    return np.argsort(bits(seed, 0, 0, np.arange(count, dtype=np.int64), int(Stream.SHOTS)), kind="stable")


def drawn_per_class(train: Split, classes: int, count: int, seed: int) -> np.ndarray:
    """Places, ascending, of `count` samples of each class (of fewer, where it has no more), drawn by `seed`. A seed's
    smaller sets are parts of its larger ones."""
    order_N = _drawn_order(len(train), seed)
    labels_N = train.labels_N[order_N]
    return np.sort(np.concatenate([order_N[labels_N == label][:count] for label in range(classes)]))
