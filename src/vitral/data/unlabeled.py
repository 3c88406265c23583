"""Images without labels beside labeled ones, from a source of their own (`data.unlabeled`)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vitral.data.config import DataConfig
from vitral.data.content_ids import identities
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
        found = open_dataset(unlabeled_source(source), hold_out=False, equal_classes=False, one_class=True, boxes=True)
    except UserError as error:
        lines = [line for line in str(error).splitlines() if "data.source=" not in line]
        raise UserError("\n".join(lines).replace("data.path: ", ""), where="data.unlabeled") from None
    if found.channels != dataset.channels:
        raise UserError(
            "the unlabeled images have other channels than the labeled ones", where="data.unlabeled",
            got=found.channels, expected=dataset.channels, hint="data.channels=N reads both with N channels.",
        )  # fmt: skip
    return replace(dataset, unlabeled=without_labels(found, found.splits["train"]))


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
    rest = without_labels(dataset.unlabeled, split.subset(np.flatnonzero(~held_N)))
    return replace(dataset, unlabeled=rest, notes=(*dataset.notes, note))


def without_labels(dataset: Dataset, split: Split) -> Dataset:
    """Return a data set of this split alone, with one class, `unlabeled`."""
    plain = replace(split, labels_N=np.zeros(len(split), np.int64), boxes=None)
    return replace(dataset, classes=("unlabeled",), splits={"train": plain}, carved=None, unlabeled=None)
