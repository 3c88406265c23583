"""Flat folders whose file names hold the class: read, found by themselves, and never mistaken for one class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import TINY
from vitral.config import build
from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset
from vitral.data.filename_labels import fits
from vitral.data.sources import find_source, open_dataset
from vitral.errors import UserError
from vitral.run.train import train
from vitral.weights.folder import load_config as load_folder_config

NAMES = ("cat", "dog", "polar_bear")


def flat(root: Path, names: tuple[str, ...] = NAMES, count: int = 4, first: int = 0) -> Path:
    """root/<name>_<number>.png, a color for each name."""
    root.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(names):
        for number in range(first, first + count):
            Image.new("RGB", (5, 4), (10 * place, number, 7)).save(root / f"{name}_{number:05d}.png")
    return root


def opened(path: Path, **keys: object) -> Dataset:
    return open_dataset(build(DataConfig, {"path": str(path), **keys}))


def refused(path: Path, message: str, **keys: object) -> None:
    with pytest.raises(UserError, match=message):
        opened(path, **keys)


def test_label_and_pixels_belong_together(tmp_path: Path) -> None:
    data = open_dataset(DataConfig(path=str(flat(tmp_path))), hold_out=False)
    assert data.classes == NAMES
    train = data.splits["train"]
    assert len(train) == 12
    for index, name in enumerate(train.names):
        label, number = name.removesuffix(".png").rsplit("_", 1)
        assert data.classes[train.labels_N[index]] == label
        assert train.read(index)[:, 0, 0].tolist() == [10 * NAMES.index(label), int(number), 7]


def test_auto_finds_it_and_splits_are_folders(tmp_path: Path) -> None:
    flat(tmp_path / "train")
    flat(tmp_path / "valid", count=2)
    flat(tmp_path / "test", count=1)
    assert find_source(DataConfig(path=str(tmp_path)))[0] == "filename"
    data = opened(tmp_path)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 12, "val": 6, "test": 3}
    assert data.classes == NAMES


def test_ten_classes_of_cifar_named_files(tmp_path: Path) -> None:
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    data = opened(flat(tmp_path, classes, count=3))
    assert data.classes == classes
    assert data.splits["train"].class_counts(10).tolist() == [2] * 10


@pytest.mark.parametrize("inside", ["", "images", "train", "train/images"])
def test_the_folder_source_refuses_a_flat_folder_and_says_what_fits(tmp_path: Path, inside: str) -> None:
    """Also where it lies inside one folder, which would be one class, or inside a split."""
    flat(tmp_path / inside)
    if inside.startswith("train"):
        flat(tmp_path / inside.replace("train", "val"), count=1)
    refused(tmp_path, r"(?s)3 classes.*cat.*data\.source=filename", source="folder")


def test_a_flat_train_and_val_beside_another_folder_are_no_classes(tmp_path: Path) -> None:
    flat(tmp_path / "train")
    flat(tmp_path / "val", count=2)
    flat(tmp_path / "docs", ("page",), 1)
    refused(tmp_path, r"(?s)data\.source=filename", source="folder")


def test_pattern_with_split(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for label in ("a", "b"):
            for number in range(3):
                path = tmp_path / "deep" / f"{number}-{label}-{split}.png"
                path.parent.mkdir(exist_ok=True)
                Image.new("L", (3, 3)).save(path)
    data = opened(tmp_path, pattern=r"\d-(?P<label>\w)-(?P<split>\w+)\.png$")
    assert data.classes == ("a", "b")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 6, "val": 6}
    assert all(f"-{split}." in name for split, part in data.splits.items() for name in part.names)
    refused(tmp_path, r"(?s)unknown splits.*'a'", pattern=r"(?P<split>\w)-(?P<label>\w+)\.png")


def test_wrong_patterns(tmp_path: Path) -> None:
    flat(tmp_path)
    refused(tmp_path, r"data\.pattern: not a regular expression", pattern="(?P<label>[a-z+")
    refused(tmp_path, "no group named label", pattern="(?P<name>.*)")
    refused(tmp_path, r"4 of 12 images have names that the pattern doesn't fit: cat_00000\.png, cat_00001\.png",
            pattern="(?P<label>dog|polar_bear)")  # fmt: skip
    refused(tmp_path, r"means nothing to the source folder", pattern="(?P<label>dog)", source="folder")


def test_one_misfit_is_named(tmp_path: Path) -> None:
    flat(tmp_path)
    Image.new("L", (3, 3)).save(tmp_path / "cover.png")
    refused(tmp_path, r"1 of 13 .*: cover\.png", source="filename")


def test_explicit_classes_give_the_order(tmp_path: Path) -> None:
    flat(tmp_path)
    assert opened(tmp_path, classes=["polar_bear", "dog", "cat"]).classes == ("polar_bear", "dog", "cat")
    refused(tmp_path, "doesn't name: polar_bear", classes=["dog", "cat"])
    refused(tmp_path, "named twice: cat", classes=["dog", "cat", "cat", "polar_bear"])
    refused(tmp_path, "classes without any image: owl", classes=[*NAMES, "owl"])


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["cat_1.png", "dog_1.png", "cat_2.png", "dog_2.png"], ("cat", "dog")),
        (["cat.0.jpg", "dog.0.jpg", "cat.1.jpg", "dog.1.jpg"], ("cat", "dog")),
        (["big_cat-1", "dog-1", "big_cat-2", "dog-2"], ("big_cat", "dog")),
        (["cat_1.png", "dog_1.png", "cat_2.png"], None),  # more labels than half the files
        (["img_1.png", "img_2.png", "img_3.png"], None),  # one label
        (["cat_1.png", "dog_1.png", "cat_2.png", "dog.png"], None),
        ([], None),
    ],
)
def test_which_names_look_like_labels(names: list[str], labels: tuple[str, ...] | None) -> None:
    assert fits(names) == labels


def test_a_flat_folder_trains_with_its_ten_classes(tmp_path: Path) -> None:
    """Images named as CIFAR-10's usually are: auto reads the names; the folder source says which source does."""
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    random = np.random.default_rng(0)
    (tmp_path / "flat").mkdir()
    for number in range(60):
        pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"flat/{classes[number % 10]}_{number:05d}.png")
    keys = {**TINY, "data": str(tmp_path / "flat"), "model.name": "vit_micro_patch2_8", "data.image_size": 8}
    train("small", {**keys, "out": str(tmp_path / "run")})
    config = load_folder_config(tmp_path / "run/model")
    assert config.classes == classes
    assert config.provenance["data"]["counts"] == {"train": 50, "val": 10}
    message = r"(?s)images lie directly in this folder.*Their names hold 10 classes.*pass data\.source=filename"
    with pytest.raises(UserError, match=message):
        train("small", {**keys, "data.source": "folder", "out": str(tmp_path / "no")})
