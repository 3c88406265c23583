"""A few train images of each class: exact counts, nested sets, fair draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitral.data.dataset import Dataset, Split
from vitral.data.few_labels import with_labels_per_class, with_shots
from vitral.errors import UserError


def dataset(labels: list[int], classes: int = 3) -> Dataset:
    splits = {
        name: Split(np.array(labels, np.int64), [f"{name}{i}" for i in range(len(labels))], lambda i: torch.tensor(i))
        for name in ("train", "test")
    }
    return Dataset("made", tuple("abc"[:classes]), splits, 1, ("a note",), "print")


def test_exactly_so_many_of_each_class() -> None:
    found = with_shots(dataset([0] * 20 + [1] * 9 + [2] * 4), 5, 0)
    train = found.splits["train"]
    assert train.class_counts(3).tolist() == [5, 5, 4]
    assert len(set(train.names)) == 14
    assert all(int(train.read(i)) == int(train.names[i].removeprefix("train")) for i in range(14))
    assert len(found.splits["test"]) == 33
    said = "14 of 33 train images, 5 of each class (data.shots), drawn by seed 0; 1 class has fewer"
    assert found.notes[1] == said


def test_smaller_sets_are_parts_of_larger_ones_and_seeds_differ() -> None:
    whole = dataset(list(range(3)) * 50)
    few, more = (set(with_shots(whole, shots, 4).splits["train"].names) for shots in (5, 20))
    assert few < more
    assert few != set(with_shots(whole, 5, 5).splits["train"].names)


def test_every_image_is_drawn_as_often() -> None:
    counts = np.zeros(30)
    for seed in range(600):
        for name in with_shots(dataset(list(range(3)) * 10), 2, seed).splits["train"].names:
            counts[int(name.removeprefix("train"))] += 1
    assert abs(counts - 120).max() < 5 * np.sqrt(600 * 0.2 * 0.8)


def test_several_classes_an_image_are_refused() -> None:
    split = Split(np.ones((4, 3), np.bool_), list("abcd"), lambda i: torch.tensor(i))
    with pytest.raises(UserError, match="cannot be counted"):
        with_shots(Dataset("made", tuple("abc"), {"train": split}, 1, (), "print"), 1, 0)


def test_hidden_labels_stay_beside_the_images_without() -> None:
    whole = dataset(list(range(3)) * 10)
    found = with_labels_per_class(whole, 4, 0)
    assert found.unlabeled is not None
    assert found.hidden is not None
    assert not found.unlabeled.splits["train"].labels_N.any()
    assert list(found.hidden.names) == list(found.unlabeled.splits["train"].names)
    labels = dict(zip(whole.splits["train"].names, [0, 1, 2] * 10, strict=True))
    assert [labels[name] for name in found.hidden.names] == found.hidden.labels_N.tolist()
    assert found.splits["train"].class_counts(3).tolist() == [4, 4, 4]
