"""Data sets: splits with labels, names and a function that reads one image.

Shape letters: N samples of a split, K classes, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from vitral.data.boxes import Boxes, Unpaired, joined_boxes
from vitral.data.config import UNLABELED
from vitral.data.decode import as_image
from vitral.errors import UserError, shown

Array = np.ndarray[Any, np.dtype[Any]]
# int64 [N]; bool [N, K] where an image may have several classes; float64 [N, K] where it has numbers.
Labels = Array
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
T = TypeVar("T")

SPLITS = ("train", "val", "test")
_SIZE_SAMPLES = 256


@dataclass(frozen=True)
class Split:
    """One part of a dataset.

    labels_N: class indices, int64 [N]; or, multi-label, which classes are there, bool [N, K]; or numbers, float64
    [N, K]. names: one unique name a
    sample, relative to the dataset. read(i): image i as uint8 [C, H, W] at its own size with the dataset's channel
    count; raises UserError, naming it, for an unreadable one; safe to call from many threads. size(i): its (height,
    width) without decoding, if cheap. file(i): where it is a file, its path or bytes; a part of it can then be read
    alone. content(i): where it is none, what identifies it whatever the number of channels that it is read with,
    as bytes. made_up: the names are running numbers that the source gives, and say nothing about the images. boxes:
    where objects are, for detection; labels_N then holds the classes of each image's boxes, bool [N, K].
    """

    labels_N: Labels
    names: Sequence[str]
    read: Callable[[int], Tensor]
    size: Callable[[int], tuple[int, int]] | None = None
    file: Callable[[int], str | bytes] | None = None
    content: Callable[[int], bytes] | None = None
    made_up: bool = False
    boxes: Boxes | None = None

    def __post_init__(self) -> None:
        found = self.labels_N.dtype, self.labels_N.ndim
        assert found in ((np.int64, 1), (np.bool_, 2), (np.float64, 2)), found
        assert len(self.labels_N) == len(self.names), self.labels_N.shape
        assert self.boxes is None or (self.multi_label and len(self.boxes) == len(self.names)), len(self.names)

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several classes, or none."""
        return self.labels_N.dtype == np.bool_

    @property
    def task(self) -> str:
        """The task that the annotations are for, as config.json of a model folder calls it."""
        if self.boxes is not None:
            return "detection"
        kinds = {"b": "multilabel", "f": "regression"}
        return kinds.get(self.labels_N.dtype.kind, "classification")

    def class_counts(self, classes: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Images of each of so many classes; in a multi-label split an image counts once for each of its classes."""
        if self.labels_N.ndim == 2:  # every image has a number in each column
            return (self.labels_N if self.multi_label else np.ones_like(self.labels_N)).sum(axis=0, dtype=np.int64)
        return np.bincount(self.labels_N, minlength=classes)

    def subset(self, indices: Iterable[int]) -> Split:
        """The samples at these places, in this order."""
        places = [int(index) for index in indices]

        def at(function: Callable[[int], T]) -> Callable[[int], T]:
            return lambda index: function(places[index])

        return Split(
            self.labels_N[np.array(places, np.int64)], [self.names[place] for place in places], at(self.read),
            self.size and at(self.size), self.file and at(self.file), self.content and at(self.content), self.made_up,
            self.boxes and self.boxes.subset(places),
        )  # fmt: skip


class Carved(NamedTuple):
    """How a train split was divided: 64 bits of the identity (see `identity`) of each image that was kept for training,
    and of each that was held out, uint64."""

    train_N: np.ndarray[Any, np.dtype[np.uint64]]
    val_N: np.ndarray[Any, np.dtype[np.uint64]]


@dataclass(frozen=True)
class Dataset:
    """Images with one class each or, multi-label, with any number of them; or with numbers.

    classes: names, by class index (of numbers: of their columns), the same for every split. splits: train
    always, val and test where there are any.
    channels: of every image read. value_range: black and white of samples of more than 8 bits, if there is such a
    rule. notes: sentences for the log. fingerprint: 16 hex digits over the samples of all
    splits as the source holds them (names, classes, and content: see the source); the same before and after a
    validation split is carved. left_out: folders beside those of the splits that hold images and are not read, with how
    many. carved: how a validation split was held out of train, if it was. unlabeled: images beside these, without
    labels, as the train split of a dataset. hidden: the same images with the labels that training does not see, where
    they are known, to measure predictions by. unpaired: label files and images that have no counterpart. Name and notes
    are printable (`shown`).
    """

    name: str
    classes: tuple[str, ...]
    splits: dict[str, Split]
    channels: int
    notes: tuple[str, ...]
    fingerprint: str
    left_out: Mapping[str, int] = field(default_factory=dict[str, int])
    value_range: tuple[float, float] | None = None
    carved: Carved | None = None
    unlabeled: Dataset | None = None
    hidden: Split | None = None
    unpaired: Unpaired = field(default_factory=Unpaired)

    def __post_init__(self) -> None:
        assert {"train"} <= set(self.splits) <= set(SPLITS), self.splits.keys()
        assert len({split.task for split in self.splits.values()}) == 1, "splits of different tasks"
        # Folders, tables and shards may hold any bytes; reports, cards and model folders get names that can be written.
        for name in ("classes", "notes"):
            object.__setattr__(self, name, tuple(map(shown, getattr(self, name))))
        object.__setattr__(self, "name", shown(self.name))

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several classes, or none."""
        return self.splits["train"].multi_label

    @property
    def task(self) -> str:
        """The task that the annotations are for, as config.json of a model folder calls it."""
        return self.splits["train"].task

    @property
    def parts(self) -> dict[str, Split]:
        """Every split by its name, and the images without labels as `unlabeled`, if there are any."""
        return self.splits if self.unlabeled is None else {**self.splits, UNLABELED: self.unlabeled.splits["train"]}

    def with_parts(self, parts: Mapping[str, Split]) -> Dataset:
        """The dataset with other samples in its `parts`."""
        splits = {name: split for name, split in parts.items() if name != UNLABELED}
        if self.unlabeled is None:
            return replace(self, splits=splits)
        return replace(self, splits=splits, unlabeled=replace(self.unlabeled, splits={"train": parts[UNLABELED]}))

    @property
    def whole_fingerprint(self) -> str:
        """16 hex digits over all samples, those without labels too."""
        if self.unlabeled is None:
            return self.fingerprint
        return fingerprint([self.fingerprint.encode(), self.unlabeled.fingerprint.encode()])

    def absent(self) -> dict[str, tuple[str, ...]]:
        """Classes that a split holds no image of, by split; splits that hold all are not in it."""
        missing: dict[str, tuple[str, ...]] = {}
        for name, split in self.splits.items():
            places = np.flatnonzero(split.class_counts(len(self.classes)) == 0).tolist()
            missing |= {name: tuple(self.classes[place] for place in places)} if places else {}
        return missing

    def labels(self, split: str) -> list[tuple[str, ...]]:
        """The names of the classes of each sample of a split, or the columns with its numbers."""
        labels_N = self.splits[split].labels_N
        if self.task == "regression":
            rows = [zip(self.classes, row_K, strict=True) for row_K in labels_N.tolist()]
            return [tuple(f"{column} {value:g}" for column, value in row) for row in rows]
        places = (
            [np.flatnonzero(row_K).tolist() for row_K in labels_N] if self.multi_label else labels_N[:, None].tolist()
        )
        return [tuple(self.classes[place] for place in own) for own in places]

    def typical_size(self) -> tuple[int, int]:
        """Median (height, width) in pixels of up to 256 evenly spaced train images; unreadable ones don't count.

        Raises UserError if none of them can be read.
        """
        train = self.splits["train"]
        sizes: list[Sequence[int]] = []
        problem: UserError | None = None
        for index in spaced(len(train), _SIZE_SAMPLES):
            try:
                sizes.append(train.size(index) if train.size else train.read(index).shape[1:])
            except UserError as error:
                problem = error
        if not sizes:
            assert problem is not None, "an empty train split"
            raise problem
        return round(median(h for h, _ in sizes)), round(median(w for _, w in sizes))


def joined(one: Split, other: Split) -> Split:
    """The samples of two splits of a dataset, those of the first one first."""
    count = len(one)

    def both(mine: Callable[[int], T], theirs: Callable[[int], T]) -> Callable[[int], T]:
        return lambda index: mine(index) if index < count else theirs(index - count)

    return Split(
        np.concatenate([one.labels_N, other.labels_N]), [*one.names, *other.names], both(one.read, other.read),
        both(one.size, other.size) if one.size and other.size else None,
        both(one.file, other.file) if one.file and other.file else None,
        both(one.content, other.content) if one.content and other.content else None,
        one.made_up and other.made_up,
        None if one.boxes is None or other.boxes is None else joined_boxes(one.boxes, other.boxes),
    )  # fmt: skip


def memory_split(
    images_NCHW: Pixels, labels_N: Labels, names: Sequence[str], channels: int, *, made_up: bool = True
) -> Split:
    """A split of uint8 images [N, C, H, W] held in memory, given out with `channels` channels."""
    assert len(images_NCHW) == len(labels_N)
    _, own, height, width = images_NCHW.shape

    def read(index: int) -> Tensor:
        if own == channels:
            return torch.from_numpy(images_NCHW[index].copy())
        return as_image(images_NCHW[index].transpose(1, 2, 0), channels)

    return Split(
        labels_N, names, read, lambda _: (height, width), content=lambda index: images_NCHW[index].tobytes(),
        made_up=made_up,
    )  # fmt: skip


def fingerprint(parts: Iterable[bytes | memoryview]) -> str:
    """16 hex digits of the SHA-256 over the parts, each with its length, so that no two lists of parts run together."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(memoryview(part).nbytes.to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:16]


def spaced(count: int, most: int) -> list[int]:
    """Up to `most` evenly spaced places among `count`, first and last included; of one place the first."""
    if count <= most:
        return list(range(count))
    return [place * (count - 1) // max(most - 1, 1) for place in range(most)]
