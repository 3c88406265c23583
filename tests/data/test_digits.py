"""The digits: counts, scaling and the split that everybody can repeat."""

from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from vitral.config import build
from vitral.data.config import DataConfig
from vitral.data.sources import open_dataset

DIGITS = open_dataset(build(DataConfig, {"path": "digits"}))


def test_counts_and_description() -> None:
    assert {name: len(split) for name, split in DIGITS.splits.items()} == {"train": 1293, "val": 144, "test": 360}
    assert DIGITS.classes == tuple("0123456789")
    assert (DIGITS.name, DIGITS.channels, DIGITS.typical_size()) == ("digits", 1, (8, 8))
    assert DIGITS.notes == ("no validation split: 144 of 1437 train images held out, stratified, seed 0",)


def test_the_test_split_is_scikit_learns() -> None:
    bunch: Any = load_digits()
    _, test = train_test_split(range(1797), test_size=360, stratify=bunch.target, random_state=0)
    assert sorted(DIGITS.splits["test"].names) == [f"digits/{index:04d}" for index in sorted(test)]


def test_pixels_and_labels_are_the_scans() -> None:
    bunch: Any = load_digits()
    for split in DIGITS.splits.values():
        places = [int(name.removeprefix("digits/")) for name in split.names]
        assert np.array_equal(split.labels_N, bunch.target[places])
        images = np.stack([split.read(index).numpy()[0] for index in range(len(split))])
        assert np.array_equal(images, np.rint(bunch.images[places] * 255 / 16))


def test_splits_are_disjoint_whole_and_stratified() -> None:
    names = [name for split in DIGITS.splits.values() for name in split.names]
    assert len(names) == len(set(names)) == 1797
    before = np.bincount(np.concatenate([DIGITS.splits[name].labels_N for name in ("train", "val")]))
    held = np.bincount(DIGITS.splits["val"].labels_N)
    assert np.abs(held - before * 144 / 1437).max() < 1


def test_three_channels_repeat_the_gray() -> None:
    image = open_dataset(build(DataConfig, {"source": "digits", "channels": 3})).splits["test"].read(0)
    assert image.shape == (3, 8, 8)
    assert (image == DIGITS.splits["test"].read(0)).all()


def test_what_is_read_cannot_change_what_is_kept() -> None:
    first = DIGITS.splits["train"].read(0)
    copy = first.clone()
    first.zero_()
    assert (DIGITS.splits["train"].read(0) == copy).all()
