"""Converted data, opened again, are the same: pixels, labels, splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import write_colours
from vitral.data.config import DataConfig
from vitral.data.convert import Layout, convert
from vitral.data.dataset import Dataset, memory_split
from vitral.data.sources import open_dataset
from vitral.data.statistics import class_sheets, dataset_stats
from vitral.errors import UserError


def contents(dataset: Dataset) -> dict[str, list[tuple[str, bytes]]]:
    """Label names and pixels of every split, in no order."""
    labels = {
        name: [" ".join(dataset.classes[k] for k in np.flatnonzero(row)) for row in split.labels_N]
        if split.multi_label
        else [dataset.classes[label] for label in split.labels_N]
        for name, split in dataset.splits.items()
    }
    return {
        name: sorted((label, split.read(index).numpy().tobytes()) for index, label in enumerate(labels[name]))
        for name, split in dataset.splits.items()
    }


@pytest.mark.parametrize("layout", ["folder", "flat", "csv"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_way_there_and_back(layout: Layout, channels: int, tmp_path: Path) -> None:
    dataset = open_dataset(DataConfig(path="digits", channels=channels), hold_out=False)
    found = convert(dataset, tmp_path / "out", layout)
    assert (found.counts, found.copied) == ({"train": 1437, "test": 360}, 0)
    again = open_dataset(DataConfig(path=str(found.path), channels=channels), hold_out=False)
    assert again.classes == dataset.classes
    assert contents(again) == contents(dataset)


@pytest.mark.parametrize("layout", ["folder", "flat", "csv"])
def test_files_are_copied_as_they_are(layout: Layout, tmp_path: Path) -> None:
    write_colours(tmp_path / "pets", "cat dog", 3)
    Image.new("RGB", (9, 7), (1, 2, 3)).save(tmp_path / "pets/cat/photo.JPG", "JPEG")
    found = convert(open_dataset(DataConfig(path=str(tmp_path / "pets")), hold_out=False), tmp_path / "out", layout)
    assert found.copied == 7
    files = [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".png", ".jpg")]
    originals = list((tmp_path / "pets").rglob("*.*"))
    assert sorted(path.read_bytes() for path in files) == sorted(path.read_bytes() for path in originals)
    again = open_dataset(DataConfig(path=str(found.path)), hold_out=False)
    assert contents(again) == contents(open_dataset(DataConfig(path=str(tmp_path / "pets")), hold_out=False))


def some_images(classes: tuple[str, ...], labels: object) -> Dataset:
    labels_N = np.array(labels)
    images_NCHW = np.random.default_rng(0).integers(0, 256, (len(labels_N), 3, 4, 5), dtype=np.uint8)
    split = memory_split(images_NCHW, labels_N, [str(i) for i in range(len(labels_N))], 3)
    return Dataset("x", classes, {"train": split}, 3, (), "00")


def test_several_labels_go_into_a_manifest(tmp_path: Path) -> None:
    dataset = some_images(("a, b", "ü;c"), [[True, True], [False, True], [True, False], [False, False]])
    found = convert(dataset, tmp_path / "out", "csv")
    again = open_dataset(DataConfig(path=str(found.path)), hold_out=False)
    assert again.multi_label
    assert contents(again) == contents(dataset)
    with pytest.raises(UserError, match="several labels"):
        convert(dataset, tmp_path / "other", "folder")


def test_class_names_with_anything_in_them(tmp_path: Path) -> None:
    names = ("a_1", "b.2", "cat dog", "ü", "x-3")
    for layout in ("folder", "flat", "csv"):
        dataset = some_images(names, [0, 1, 2, 3, 4] * 4)
        found = convert(dataset, tmp_path / layout, layout)  # pyright: ignore[reportArgumentType]
        assert contents(open_dataset(DataConfig(path=str(found.path)), hold_out=False)) == contents(dataset)


@pytest.mark.parametrize("name", ["a/b", ".hidden", "dot.", "", "a:b", "CAT"])
def test_class_names_that_no_file_may_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"class name.*\n.*\n.*layout=csv"):
        convert(some_images(("cat", name), [0, 1] * 3), tmp_path / "out", "folder")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    with pytest.raises(UserError, match="not empty"):
        convert(some_images(("a", "b"), [0, 1]), tmp_path / "out", "csv")


def test_statistics_are_those_of_numpy(tmp_path: Path) -> None:
    dataset = some_images(("a", "b"), [0, 1, 1, 1, 0, 1])
    images = np.stack([dataset.splits["train"].read(i).numpy() for i in range(6)]) / 255
    train = dataset_stats(dataset)["splits"]["train"]
    assert train["classes"] == {"a": 2, "b": 4}
    assert train["sizes"] == {"4 x 5": 6}
    np.testing.assert_allclose(train["mean"], images.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(train["std"], images.transpose(1, 0, 2, 3).reshape(3, -1).std(1), atol=1e-6)
    sheets = class_sheets(dataset, 3)
    assert {label: [sample.place for sample in samples] for label, samples in sheets.items()} == {
        "a": [0, 4],
        "b": [1, 2, 5],
    }
