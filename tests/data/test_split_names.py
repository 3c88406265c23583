"""Splits, folds and years that were taken for classes are an error of the check; real classes are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitral.config import build
from vitral.data.check import check_dataset
from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset
from vitral.data.findings import CheckReport
from vitral.data.sources import open_dataset
from vitral.data.split_names import split_classes

WARNING = {"split-names": "warning"}
SCENES = "seg_train/seg_train/sea seg_train/seg_train/hill seg_test/seg_test/sea seg_test/seg_test/hill"


def plant(root: Path, folders: str, names: str = "{number}.png", count: int = 6) -> Path:
    for folder in folders.split():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            seed = [number, *folder.encode()]
            pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            name = names.format(number=number, label=folder.rsplit("/", 1)[-1])
            Image.fromarray(pixels).save(root / folder / name)
    return root


def opened(path: Path) -> Dataset:
    return open_dataset(build(DataConfig, {"path": str(path)}), hold_out=False, equal_classes=False, one_class=True)


def found(report: CheckReport) -> dict[str, str]:
    return {each.code: each.severity for each in report.findings}


@pytest.mark.parametrize(
    "folders",
    [
        f"{SCENES} seg_pred/seg_pred",
        "training_set/cat training_set/dog test_set/cat test_set/dog",
        "trainset/cat trainset/dog valset/cat valset/dog",
        "imagesTr/cat imagesTr/dog imagesTs/cat imagesTs/dog",
        "X_train/a/cat X_train/a/dog X_test/a/cat X_test/a/dog",
        "train_images val_images",
        "fold0 fold1 fold2",
        "00_train/cat 00_train/dog 01_val/cat 01_val/dog",
        "train_v2/cat train_v2/dog test_v1/cat test_v1/dog",
        "fold0/cat fold0/dog fold1/cat fold1/dog",
        "2023/cat 2023/dog 2024/cat 2024/dog",
        "2023/0 2023/1 2024/0 2024/1",
        "training_set/training_set/cat training_set/training_set/dog test_set/test_set/cat test_set/test_set/dog",
        "session1/cat session1/dog session2/cat session2/dog",
        "cat/train cat/test dog/train dog/test",
        "cat/train cat/test cat/ground_truth dog/train dog/test dog/ground_truth",
    ],
)
def test_splits_are_no_classes(folders: str, tmp_path: Path) -> None:
    assert found(check_dataset(opened(plant(tmp_path / "d", folders)))) == {"split-names": "error"}


@pytest.mark.parametrize("names", ["{label}.{number}.png", "{label}_{number:04}.png"])
@pytest.mark.parametrize(
    "folders",
    [
        SCENES,
        "training_set/training_set/cat training_set/training_set/dog test_set/test_set/cat test_set/test_set/dog",
        "train_images/cat train_images/dog val_images/cat val_images/dog",
        "2023/cat 2023/dog 2024/cat 2024/dog",
        "cat/train cat/test dog/train dog/test",
    ],
)
def test_files_named_after_their_class_hide_no_splits(folders: str, names: str, tmp_path: Path) -> None:
    assert found(check_dataset(opened(plant(tmp_path / "d", folders, names)))) == {"split-names": "error"}


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ("cat dog", {}),
        ("cat/images dog/images", {}),
        ("cat/siamese cat/persian dog/poodle dog/beagle", {}),
        ("cat/001 cat/002 dog/001 dog/002", WARNING),  # sessions, or whatever else has numbers
        ("north/cat north/dog south/cat south/dog", WARNING),
        ("cat/left cat/right dog/left dog/right", WARNING),
        ("benign/40X benign/100X malignant/40X malignant/100X", WARNING),
        ("angry/male angry/female happy/male happy/female", WARNING),
        ("0/anna 0/bob 1/anna 1/bob", WARNING),
        (
            "train/cat/front train/cat/side train/dog/front train/dog/side test/cat/front test/cat/side test/dog/front "
            "test/dog/side",
            {},
        ),
        ("tr ts de", {}),  # codes of languages
        ("lang_tr lang_ts", {}),
        ("2-fold 3-fold 4-fold", {}),
        ("dev test ops", WARNING),
        ("eval_board dev_board test_board", WARNING),
        ("shard_a shard_b", WARNING),
        ("train bus", {}),
        ("steam_train tram", {}),
        ("2023 2024", {}),  # pictures by their year
        ("0 1 2", {}),
        ("restaurant contest", {}),
    ],
)
def test_classes_are_no_splits(folders: str, expected: dict[str, str], tmp_path: Path) -> None:
    assert found(check_dataset(opened(plant(tmp_path / "d", folders)))) == expected


def test_the_way_out_that_is_named_works(tmp_path: Path) -> None:
    root = plant(tmp_path / "d", SCENES)
    message = check_dataset(opened(root)).findings[0].message
    file = root / "scenes.yaml"
    file.write_text(message[message.index("splits:") :], encoding="utf-8")
    dataset = opened(file)
    assert dataset.classes == ("hill", "sea")
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 12, "test": 12}
    assert check_dataset(dataset).findings == ()


def test_names_of_splits() -> None:
    scenes = {"seg_train": "train", "seg_test": "test", "seg_pred": ""}
    assert split_classes(list(scenes)) == scenes
    assert split_classes(("fold_1", "fold_2")) == {"fold_1": "", "fold_2": ""}
    assert split_classes(("train", "trainer", "test tube")) == {}
