"""Hugging Face datasets, made here: every kind of local shard gives the same pixels, labels and class names."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vitral.config import build
from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset
from vitral.data.folder_names import SPLIT_OF
from vitral.data.hf import _group, find_shards
from vitral.data.sources import open_dataset
from vitral.errors import UserError

NAMES = ["dog", "cat"]  # not in alphabetical order


@pytest.fixture
def datasets(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = pytest.importorskip("datasets", reason="the extra `datasets` is not installed")
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(module.config, "HF_HUB_OFFLINE", True)
    module.disable_progress_bars()
    return module


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (number, 10 * (number % 2), 7)).save(buffer, "PNG")
    return buffer.getvalue()


def made(datasets: Any, count: int, first: int = 0, **features: Any) -> Any:
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES), **features}
    numbers = range(first, first + count)
    columns = {"image": [{"bytes": png(n), "path": None} for n in numbers], "label": [n % 2 for n in numbers]}
    columns |= {name: list(numbers) for name in features}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def opened(path: Path | str, **keys: object) -> Dataset:
    return open_dataset(build(DataConfig, {"path": str(path), **keys}), hold_out=False)


def refused(path: Path | str, message: str, **keys: object) -> None:
    with pytest.raises(UserError, match=message):
        opened(path, **keys)


def holds(data: Dataset, **splits: range) -> None:
    """Red is the image's number, and green its label."""
    assert data.splits.keys() == splits.keys()
    for name, numbers in splits.items():
        split = data.splits[name]
        read = [split.read(index)[:, 0, 0].tolist() for index in range(len(split))]
        assert read == [[n, 10 * (n % 2), 7] for n in numbers], name
        assert split.labels_N.tolist() == [n % 2 for n in numbers]
        assert split.size is not None
        assert split.size(0) == (4, 6)


def test_saved_to_disk_with_splits(datasets: Any, tmp_path: Path) -> None:
    parts = {"train": made(datasets, 8), "validation": made(datasets, 4, 8), "test": made(datasets, 2, 12)}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    data = opened(tmp_path / "saved")
    holds(data, train=range(8), val=range(8, 12), test=range(12, 14))
    assert data.classes == ("dog", "cat")
    assert data.channels == 3
    arrow = next((tmp_path / "saved" / "train").glob("*.arrow"))
    holds(opened(arrow), train=range(8))


def test_parquet_shards_and_their_splits(datasets: Any, tmp_path: Path) -> None:
    made(datasets, 6).to_parquet(str(tmp_path / "train-00000-of-00002.parquet"))
    made(datasets, 2, 6).to_parquet(str(tmp_path / "train-00001-of-00002.parquet"))
    made(datasets, 4, 8).to_parquet(str(tmp_path / "test-00000-of-00001.parquet"))
    data = opened(tmp_path)
    holds(data, train=range(8), test=range(8, 12))
    assert data.classes == ("dog", "cat")
    holds(opened(f"{tmp_path}/train-*.parquet"), train=range(8))
    assert opened(tmp_path).fingerprint == data.fingerprint
    (tmp_path / "other.parquet").write_bytes((tmp_path / "test-00000-of-00001.parquet").read_bytes())
    refused(tmp_path, r"without a split in their names, beside others with one: other\.parquet")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"PAR1 not at all")
    refused(tmp_path / "broken", "the dataset can't be read")


def test_webdataset_shards_by_a_range(datasets: Any, tmp_path: Path) -> None:
    for shard in range(3):
        with tarfile.open(tmp_path / f"x-{shard:03d}.tar", "w") as tar:
            for number in range(4 * shard, 4 * shard + 4):
                for ending, data in (("png", png(number)), ("cls", str(number % 2).encode())):
                    info = tarfile.TarInfo(f"{number:05d}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    assert [path.name for path in find_shards(f"{tmp_path}/x-{{000..002}}.tar")] == [f"x-00{i}.tar" for i in range(3)]
    holds(opened(f"{tmp_path}/x-{{000..002}}.tar"), train=range(12))
    holds(opened(f"{tmp_path}/x-{{001..002}}.tar"), train=range(4, 12))
    assert opened(tmp_path).classes == ("0", "1")
    for many in ("x-{0..9999999999}.tar", "x-{0..999}-{0..999}.tar", f"x-{{0..{'9' * 18}}}.tar"):
        refused(f"{tmp_path}/{many}", r"too many shards(.|\n)*at most 100,000")
    refused(f"{tmp_path}/x-{{0..{'9' * 5000}}}.tar", "9 ... ")
    refused(f"{tmp_path}/x-{{000..003}}.tar", r"no such shard(.|\n)*x-003\.tar")


def test_columns_are_found_by_type_or_named(datasets: Any, tmp_path: Path) -> None:
    kinds = {"coarse": datasets.ClassLabel(num_classes=300), "id": datasets.Value("int64")}
    made(datasets, 6, **kinds).save_to_disk(str(tmp_path / "two"))
    refused(tmp_path / "two", r"data\.label_column: several columns could be the label(.|\n)*label, coarse")
    assert opened(tmp_path / "two", label_column="label").classes == ("dog", "cat")
    data = opened(tmp_path / "two", label_column="id")
    assert data.classes == tuple("012345")
    refused(tmp_path / "two", r"(?s)no such column.*did you mean 'label'", label_column="labell")
    refused(tmp_path / "two", r"image_column: no such column", image_column="picture", label_column="id")


def test_lists_of_labels_are_multi_label_and_the_unlabeled_are_named(datasets: Any, tmp_path: Path) -> None:
    several = datasets.List(datasets.ClassLabel(names=["a", "b", "c"]))
    rows = {"image": [{"bytes": png(n), "path": None} for n in range(3)], "tags": [[0, 2], [], [1]]}
    part = datasets.Dataset.from_dict(rows, features=datasets.Features(image=datasets.Image(), tags=several))
    part.save_to_disk(str(tmp_path / "several"))
    data = opened(tmp_path / "several")
    assert data.splits["train"].labels_N.tolist() == [[True, False, True], [False] * 3, [False, True, False]]
    made(datasets, 4).map(lambda row: {"label": -1}).save_to_disk(str(tmp_path / "none"))
    refused(tmp_path / "none", "train, row 0: a sample without a label")


def test_a_name_on_the_hub_that_cannot_be_reached(datasets: Any, tmp_path: Path) -> None:
    refused("nobody/nothing", "(?s)nobody/nothing: not on this disk, and it can't.*hub.*network", source="hf")
    refused("./nothing", "no dataset here", source="hf")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no dataset here", source="hf")


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    refused("nobody/nothing", r'pip install "vitral\[datasets\]"', source="hf")


@pytest.mark.parametrize("column", ["image_path", "path", "file_name"])
def test_paths_in_parquet_are_relative_to_the_file(
    datasets: Any, column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    for number in range(4):
        (tmp_path / "images" / f"{number}.png").write_bytes(png(number))
    rows = {column: [f"images/{number}.png" for number in range(4)], "label": ["cat", "dog"] * 2}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "list.parquet")
    monkeypatch.chdir("/")
    data = opened(tmp_path / "list.parquet")
    assert data.classes == ("cat", "dog")
    assert [int(data.splits["train"].read(index)[0, 0, 0]) for index in range(4)] == list(range(4))


@pytest.mark.parametrize("word", sorted(SPLIT_OF))
def test_shards_of_a_split_have_the_names_that_its_folders_may_have(word: str) -> None:
    found = _group([Path(f"x/{word}-00000.parquet"), Path("x/train-1.parquet")], "x")
    assert [path.name for path in found[SPLIT_OF[word]]][:1] == [f"{word}-00000.parquet"]
