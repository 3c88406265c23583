"""Converted data, opened again, are the same: pixels, labels, splits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import write_colors
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
    counts = {name: len(split) for name, split in found.dataset.splits.items()}
    assert (found.path, counts, found.copied) == (
        tmp_path / ("out/manifest.csv" if layout == "csv" else "out"), {"train": 1437, "test": 360}, 0
    )  # fmt: skip
    again = open_dataset(DataConfig(path=str(found.path), channels=channels), hold_out=False)
    assert again.classes == dataset.classes
    assert contents(again) == contents(dataset)


@pytest.mark.parametrize("layout", ["folder", "flat", "csv"])
def test_files_are_copied_as_they_are(layout: Layout, tmp_path: Path) -> None:
    write_colors(tmp_path / "pets", "cat dog", 3)
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
    train = dataset_stats(dataset)[0]["splits"]["train"]
    assert train["classes"] == {"a": 2, "b": 4}
    assert train["sizes"] == {"4 x 5": 6}
    np.testing.assert_allclose(train["mean"], images.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(train["std"], images.transpose(1, 0, 2, 3).reshape(3, -1).std(1), atol=1e-6)
    sheets = class_sheets(dataset, 3)
    assert {label: [sample.place for sample in samples] for label, samples in sheets.items()} == {
        "a": [0, 4],
        "b": [1, 2, 5],
    }


@pytest.mark.parametrize("layout", ["folder", "flat", "csv"])
def test_the_order_of_classes_is_kept(layout: Layout, tmp_path: Path) -> None:
    """Also a class without images; the description beside the images can be moved with them."""
    dataset = some_images(("owl", "cat", "emu", "dog"), [0, 1, 3, 0, 1, 3])
    found = convert(dataset, tmp_path / "birds", layout)
    assert found.path == tmp_path / "birds/birds.yaml"
    (tmp_path / "birds").rename(tmp_path / "moved")
    config = DataConfig(path=str(tmp_path / "moved/birds.yaml"))
    again = open_dataset(config, hold_out=False, equal_classes=False)
    assert (again.classes, again.name) == (dataset.classes, "birds")
    assert contents(again) == contents(dataset)


def test_several_labels_keep_the_order_of_classes(tmp_path: Path) -> None:
    dataset = some_images(("owl", "cat"), [[True, True], [False, True], [True, False], [False, False]])
    again = open_dataset(DataConfig(path=str(convert(dataset, tmp_path / "out", "csv").path)), hold_out=False)
    assert again.classes == ("owl", "cat")
    assert contents(again) == contents(dataset)


@pytest.mark.parametrize("layout", ["folder", "csv"])
def test_damaged_images_are_left_out_or_nothing_is_written(layout: Layout, tmp_path: Path) -> None:
    write_colors(tmp_path / "pets", "cat dog", 4)
    (tmp_path / "pets/dog/0.png").write_bytes(b"no image")
    dataset = open_dataset(DataConfig(path=str(tmp_path / "pets")), hold_out=False)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"1 damaged image:(.|\n)*dog/0\.png"):
        convert(dataset, tmp_path / "out", layout)
    assert not list((tmp_path / "out").iterdir())
    found = convert(dataset, tmp_path / "out", layout, max_bad=1)
    again = open_dataset(DataConfig(path=str(found.path)), hold_out=False)
    assert contents(again) == contents(found.dataset)
    assert len(again.splits["train"]) == 7


def test_each_image_is_decoded_once() -> None:
    dataset = some_images(("a", "b"), [0, 1, 1, 1, 0, 1])
    read, seen = dataset.splits["train"].read, list[int]()
    split = replace(dataset.splits["train"], read=lambda index: (seen.append(index), read(index))[1])
    stats, whole = dataset_stats(replace(dataset, splits={"train": split}))
    assert sorted(seen) == list(range(6))
    assert stats["splits"]["train"]["images"] == len(whole.splits["train"]) == 6
    seen.clear()
    convert(replace(dataset, splits={"train": split}), Path("out"), "csv")
    assert sorted(seen) == list(range(6))
