"""Scenes of digits: what they hold, where their boxes are, and that they are the same everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from vitral.data import digits_scenes
from vitral.data.boxes import Boxes
from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset
from vitral.data.digits import open_digits
from vitral.data.sources import open_dataset
from vitral.errors import UserError


@pytest.fixture(scope="module")
def scenes() -> Dataset:
    return open_dataset(DataConfig(path="digits_scenes"), hold_out=False, boxes=True)


def boxes_of(dataset: Dataset, split: str) -> Boxes:
    found = dataset.splits[split].boxes
    assert found is not None
    return found


def test_what_scenes_hold(scenes: Dataset) -> None:
    assert scenes.task == "detection"
    assert scenes.classes == tuple("0123456789")
    assert {name: len(split) for name, split in scenes.splits.items()} == {"train": 2000, "val": 300, "test": 300}
    for name, split in scenes.splits.items():
        found = boxes_of(scenes, name)
        assert split.read(0).shape == (1, 64, 64)
        assert set(found.counts_N.tolist()) == {1, 2, 3, 4, 5, 6}
        assert not found.degenerate().any()
        assert found.boxes_X4.min() >= 0
        assert found.boxes_X4.max() <= 64
        sides = (found.boxes_X4[:, 2:] - found.boxes_X4[:, :2]).max(1)
        assert 10 <= sides.min() < sides.max() == 28
        counts = np.bincount(found.label_X, minlength=10)
        assert counts.min() > 0.7 * counts.mean()


def test_splits_share_no_scan() -> None:
    digits: Any = load_digits()
    places = digits_scenes.scan_places(digits.target.astype(np.int64))
    assert {name: len(own) for name, own in places.items()} == {"train": 1077, "val": 360, "test": 360}
    assert np.array_equal(np.sort(np.concatenate(list(places.values()))), np.arange(1797))
    test = [f"digits/{place:04d}" for place in places["test"].tolist()]
    assert test == list(open_digits(DataConfig(path="digits")).splits["test"].names)


def test_boxes_are_tight_about_ink(scenes: Dataset) -> None:
    """Every edge of a box has a pixel of a quarter of full ink, and background is darker."""
    split, found = scenes.splits["test"], boxes_of(scenes, "test")
    for place in range(50):
        image = split.read(place)[0].numpy()
        for x0, y0, x1, y1 in found.of(place).boxes_M4.astype(int).tolist():
            part = image[y0:y1, x0:x1]
            assert min(part[0].max(), part[-1].max(), part[:, 0].max(), part[:, -1].max()) >= 64
    empty = np.median(split.read(0).numpy())
    assert empty < 48


def test_scenes_are_the_same_everywhere(scenes: Dataset) -> None:
    """Whole numbers and Pillow's 8-bit resize: no processor makes others. A new digest is new data, and a new name."""
    assert scenes.fingerprint == "8579f0ad4c552f26"


def test_channels_and_wrong_keys() -> None:
    dataset = open_dataset(DataConfig(source="digits_scenes", channels=3), hold_out=False, boxes=True)
    assert dataset.splits["val"].read(0).shape == (3, 64, 64)
    with pytest.raises(UserError, match="built in and read no folder"):
        open_dataset(DataConfig(source="digits_scenes", path="x"), boxes=True)
    with pytest.raises(UserError, match="this key means nothing"):
        open_dataset(DataConfig(path="digits_scenes", box_unit="normalized"), boxes=True)
