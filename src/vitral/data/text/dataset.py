"""Data with text: splits of target texts with source texts or images, and splits that are held out by key.

Shape letters: N samples, M boxes of a sample, 4 a box (x0, y0, x1, y1).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np

from vitral.data.counter_rng import Stream, bits
from vitral.data.dataset import SPLITS, Split, fingerprint
from vitral.errors import UserError, plural, shown

Array = np.ndarray[Any, np.dtype[Any]]
T = TypeVar("T")

HELD_OUT = 0.1  # share of the keys for val, and for test


@dataclass(frozen=True)
class TextSplit:
    """One part of a dataset with text.

    targets: the text to learn. names: one per sample, for messages. sources: the text to read, or None where `images`
    are read, the split with the same samples. references: all answers that count as right, the target first; None: the
    target alone. boxes: float64 [M, 4] of every sample, the pixel edges of the symbols of its image, in the order of
    the text, where a source knows them.
    """

    targets: Sequence[str]
    names: Sequence[str]
    sources: Sequence[str] | None = None
    references: Sequence[tuple[str, ...]] | None = None
    images: Split | None = None
    boxes: Sequence[Array] | None = None

    def __post_init__(self) -> None:
        assert (self.sources is None) != (self.images is None), "either source texts or images"
        every = (self.names, self.sources, self.references, self.images, self.boxes)
        assert all(len(each) == len(self.targets) for each in every if each is not None)

    def __len__(self) -> int:
        return len(self.targets)

    def answers(self, index: int) -> tuple[str, ...]:
        """All texts that are right for a sample, the target first."""
        return (self.targets[index],) if self.references is None else self.references[index]

    def subset(self, indices: Iterable[int]) -> TextSplit:
        """The samples at these places, in this order."""
        places = [int(index) for index in indices]

        def at(values: Sequence[T] | None) -> list[T] | None:
            return None if values is None else [values[place] for place in places]

        return TextSplit(
            at(self.targets) or [], at(self.names) or [], at(self.sources), at(self.references),
            self.images and self.images.subset(places), at(self.boxes),
        )  # fmt: skip


@dataclass(frozen=True)
class TextDataset:
    """Texts to learn, from source texts or images. splits: train, and val and test where there are any; one of them
    alone where only that is checked. channels: of the images; 0 without any. notes: sentences for the log. fingerprint:
    16 hex digits over all texts (and names and sizes of image files). Name and notes are printable."""

    name: str
    splits: dict[str, TextSplit]
    notes: tuple[str, ...]
    fingerprint: str
    channels: int = 0

    def __post_init__(self) -> None:
        assert self.splits and set(self.splits) <= set(SPLITS), self.splits.keys()
        object.__setattr__(self, "name", shown(self.name))
        object.__setattr__(self, "notes", tuple(map(shown, self.notes)))

    @property
    def has_images(self) -> bool:
        """Whether images are read, and not texts."""
        return next(iter(self.splits.values())).images is not None


def text_dataset(name: str, splits: dict[str, TextSplit], notes: Iterable[str] = (), channels: int = 0) -> TextDataset:
    """The dataset of these samples, with a fingerprint over all texts, and over images that are no files."""
    texts = (
        text.encode("utf-8", "surrogatepass")
        for split, part in splits.items()
        for index in range(len(part))
        for text in (split, part.sources[index] if part.sources else "", *part.answers(index))
    )
    pixels = (
        part.images.content(index)
        for part in splits.values()
        if part.images is not None and part.images.content is not None
        for index in range(len(part))
    )
    return TextDataset(name, splits, tuple(notes), fingerprint(chain(texts, pixels)), channels)


def held_out(keys: Sequence[str], seed: int, where: str) -> dict[str, list[int]]:
    """Places of the samples of train, val and test, ascending: of the distinct keys a tenth, rounded, is val, another
    one test. Samples of one key stay together. A key's draw depends on its text and the seed alone, so that few keys
    change sides when others are added. Raises UserError for fewer than ten distinct keys."""
    distinct = sorted(set(keys))
    if len(distinct) < 10:
        raise UserError(
            f"{plural(len(distinct), 'different sample')}, too few to hold out a tenth of them", where=where,
            expected="10 or more, or a column `split`",
        )  # fmt: skip
    digests = (hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8] for key in distinct)
    words_N2 = np.frombuffer(b"".join(digests), "<u4").reshape(-1, 2).astype(np.int64)
    order = np.argsort(bits(seed, words_N2[:, 1], 0, words_N2[:, 0], int(Stream.TEXT_SPLIT)), kind="stable")
    each = round(HELD_OUT * len(distinct))
    side = dict.fromkeys(distinct, "train")
    side |= {distinct[place]: "val" for place in order[:each].tolist()}
    side |= {distinct[place]: "test" for place in order[each : 2 * each].tolist()}
    places: dict[str, list[int]] = {split: [] for split in SPLITS}
    for place, key in enumerate(keys):
        places[side[key]].append(place)
    return places


def with_held_out(whole: TextSplit, keys: Sequence[str], seed: int, where: str) -> tuple[dict[str, TextSplit], str]:
    """The splits of `held_out`, and a note about them."""
    splits = {name: whole.subset(places) for name, places in held_out(keys, seed, where).items()}
    counts = ", ".join(f"{name} {len(split):,}" for name, split in splits.items())
    return splits, f"no splits are given: a tenth each is held out for val and test, by seed {seed} ({counts})"
