"""YAML files that describe data, and the same one map of classes over splits that lie apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers import write_colors
from vitral.config import build
from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset
from vitral.data.sources import find_source, open_dataset
from vitral.errors import UserError


def described(text: str, **keys: object) -> Dataset:
    Path("about").mkdir(exist_ok=True)
    Path("about/pets.yaml").write_text(text, encoding="utf-8")
    return open_dataset(build(DataConfig, {"path": "about/pets.yaml", **keys}), hold_out=False)


def refused(text: str, message: str, **keys: object) -> None:
    with pytest.raises(UserError, match=message):
        described(text, **keys)


def test_paths_are_relative_to_the_file_and_keys_reach_the_source() -> None:
    write_colors(Path("about/pets"), "cat dog owl")
    data = described("path: pets\nclasses: [owl, dog, cat]\n")
    assert data.classes == ("owl", "dog", "cat")
    assert data.name == "pets"
    assert find_source(DataConfig(path="about/pets.yaml"))[0] == "yaml"
    flat = described("path: pets\nsource: filename\npattern: '^(?P<label>\\w+)/'\n")
    assert flat.classes == ("cat", "dog", "owl")
    assert described("path: pets\nclasses: [owl, dog, cat]\n", classes=["dog", "cat", "owl"]).classes[0] == "dog"


def test_splits_that_lie_apart_share_one_map() -> None:
    """Each folder by itself would number its classes from 0: val's `owl` would become train's `cat`."""
    write_colors(Path("about/a"), "cat dog owl")
    write_colors(Path("about/b"), "dog owl", 2)
    text = "splits: {train: a, val: b}\n"
    refused(text, r"split 'val': its classes differ from train's; missing: cat")
    config = DataConfig(path="about/pets.yaml")
    data = open_dataset(config, hold_out=False, equal_classes=False)
    assert data.classes == ("cat", "dog", "owl")
    for split in data.splits.values():
        assert [Path(name).parent.name for name in split.names] == [data.classes[i] for i in split.labels_N]
    assert data.absent() == {"val": ("cat",)}
    alone = open_dataset(DataConfig(path="about/a"), hold_out=False)
    assert np.array_equal(data.splits["train"].read(0), alone.splits["train"].read(0))


def test_a_class_that_train_lacks_is_refused() -> None:
    write_colors(Path("about/a"), "cat dog")
    write_colors(Path("about/b"), "cat dog owl", 2)
    refused("splits: {train: a, test: b}\n", r"split 'test': its classes differ from train's; extra: owl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path: a\npaht: b\n", r"(?s)pets\.yaml: paht: unknown key.*did you mean 'path'"),
        ("source: folder\n", "either path, or splits"),
        ("path: a\nsplits: {train: a}\n", "either path, or splits"),
        ("splits: {val: a}\n", "splits needs a path for train"),
        ("path: nowhere\n", "no such folder"),
        ("path: a\nsource: yaml\n", "can't describe another one"),
        ("splits: {train: whole}\n", r"(?s)splits of its own.*train, val"),
        ("path: a\nsubset: x\n", "means nothing to the source folder"),
        ("path: [\n", r"pets\.yaml:2: not readable as YAML"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    write_colors(Path("about/a"))
    write_colors(Path("about/whole/train"))
    write_colors(Path("about/whole/val"))
    refused(text, message)
