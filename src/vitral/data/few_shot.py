"""A few train images of each class: what is left to learn from where labels are scarce."""

from __future__ import annotations

from dataclasses import replace

from vitral.data.dataset import Dataset
from vitral.data.unlabeled import drawn_per_class
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
