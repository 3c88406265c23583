"""What every data source gives: splits with labels, names and a way to read one image.

Shape letters: N samples of a split, K classes, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from vitral.data.decode import as_image
from vitral.errors import UserError, shown

# int64 [N]; bool [N, K] where an image may have several classes; float64 [N, K] where it has numbers.
Labels = np.ndarray[Any, np.dtype[Any]]
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
    count; raises UserError, naming it, for an unreadable one; safe to call from many threads, and to send to other
    processes. size(i): its (height, width) without decoding, if cheap. file(i): where it is a file, its path or bytes;
    a part of it can then be read alone. content(i): where it is none, what tells it from others whatever the number of
    channels that it is read with, as bytes. made_up: the names are running numbers that the source gives, and say
    nothing about the images.
    """

    labels_N: Labels
    names: Sequence[str]
    read: Callable[[int], Tensor]
    size: Callable[[int], tuple[int, int]] | None = None
    file: Callable[[int], str | bytes] | None = None
    content: Callable[[int], bytes] | None = None
    made_up: bool = False

    def __post_init__(self) -> None:
        found = self.labels_N.dtype, self.labels_N.ndim
        assert found in ((np.int64, 1), (np.bool_, 2), (np.float64, 2)), found
        assert len(self.labels_N) == len(self.names), self.labels_N.shape

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several classes, or none."""
        return self.labels_N.dtype == np.bool_

    @property
    def task(self) -> str:
        """The task that the annotations are for, as config.json of a model folder calls it."""
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
        return Split(
            self.labels_N[np.array(places, np.int64)],
            [self.names[place] for place in places],
            partial(_at, self.read, places),
            None if self.size is None else partial(_at, self.size, places),
            None if self.file is None else partial(_at, self.file, places),
            None if self.content is None else partial(_at, self.content, places),
            self.made_up,
        )


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
    many. carved: how a validation split was held out of train, if it was. Name and notes are printable (`shown`).
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

    def absent(self) -> dict[str, tuple[str, ...]]:
        """Classes that a split holds no image of, by split; splits that hold all are not in it."""
        counts = {name: split.class_counts(len(self.classes)) for name, split in self.splits.items()}
        missing = {
            name: tuple(label for label, count in zip(self.classes, counts_K.tolist(), strict=True) if not count)
            for name, counts_K in counts.items()
        }
        return {name: labels for name, labels in missing.items() if labels}

    def typical_size(self) -> tuple[int, int]:
        """Median (height, width) in pixels of up to 256 evenly spaced train images; unreadable ones don't count.

        Raises UserError if none of them can be read.
        """
        train = self.splits["train"]
        sizes: list[tuple[int, int]] = []
        problem: UserError | None = None
        for index in spaced(len(train), _SIZE_SAMPLES):
            try:
                sizes.append(train.size(index) if train.size else _shape(train.read(index)))
            except UserError as error:
                problem = error
        if not sizes:
            assert problem is not None, "an empty train split"
            raise problem
        return round(median(h for h, _ in sizes)), round(median(w for _, w in sizes))


def joined(one: Split, other: Split) -> Split:
    """The samples of two splits of a dataset, those of the first one first."""
    count = len(one)

    def both(mine: Callable[[int], T] | None, theirs: Callable[[int], T] | None) -> Callable[[int], T] | None:
        return partial(_of_two, mine, theirs, count) if mine is not None and theirs is not None else None

    read = partial(_of_two, one.read, other.read, count)
    labels_N = np.concatenate([one.labels_N, other.labels_N])
    sizes, files = both(one.size, other.size), both(one.file, other.file)
    content, made_up = both(one.content, other.content), one.made_up and other.made_up
    return Split(labels_N, [*one.names, *other.names], read, sizes, files, content, made_up)


def memory_split(
    images_NCHW: Pixels, labels_N: Labels, names: Sequence[str], channels: int, *, made_up: bool = True
) -> Split:
    """A split of uint8 images [N, C, H, W] held in memory, given out with `channels` channels."""
    assert len(images_NCHW) == len(labels_N)
    height, width = images_NCHW.shape[2:]
    return Split(
        labels_N, names, partial(_from_memory, images_NCHW, channels), partial(_constant_size, (height, width)),
        content=partial(_bytes, images_NCHW), made_up=made_up,
    )  # fmt: skip


def fingerprint(parts: Iterable[bytes | memoryview]) -> str:
    """16 hex digits of the SHA-256 over the parts, each with its length, so that no two lists of parts run together."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(memoryview(part).nbytes.to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:16]


def spaced(count: int, most: int) -> list[int]:
    """Up to `most` evenly spaced places among `count`, first and last included."""
    return list(range(count)) if count <= most else [place * (count - 1) // (most - 1) for place in range(most)]


def _at(function: Callable[[int], T], places: Sequence[int], index: int) -> T:
    return function(places[index])


def _of_two(mine: Callable[[int], T], theirs: Callable[[int], T], count: int, index: int) -> T:
    return mine(index) if index < count else theirs(index - count)


def _shape(image_CHW: Tensor) -> tuple[int, int]:
    return image_CHW.shape[1], image_CHW.shape[2]


def _constant_size(size: tuple[int, int], index: int) -> tuple[int, int]:
    return size


def _bytes(images_NCHW: Pixels, index: int) -> bytes:
    return images_NCHW[index].tobytes()


def _from_memory(images_NCHW: Pixels, channels: int, index: int) -> Tensor:
    image_CHW = images_NCHW[index]
    same = len(image_CHW) == channels
    return torch.from_numpy(image_CHW.copy()) if same else as_image(image_CHW.transpose(1, 2, 0), channels)
