"""Manifests: what is read from them, and every way in which they can be wrong, with its line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitral.config import build
from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset
from vitral.data.sources import find_source, open_dataset
from vitral.errors import UserError


@pytest.fixture(autouse=True)
def _images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(6):
        Image.new("RGB", (5, 4), (number, 0, 9)).save(tmp_path / "images" / f"{number}.png")


def manifest(text: str | bytes, name: str = "list.csv") -> str:
    path = Path(name)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def opened(path: str, **keys: object) -> Dataset:
    return open_dataset(build(DataConfig, {"path": path, **keys}), hold_out=False)


def rows(labels: str = "cat dog cat dog cat dog") -> list[str]:
    return [f"images/{number}.png,{label}" for number, label in enumerate(labels.split())]


def refused(path: str, message: str, **keys: object) -> None:
    with pytest.raises(UserError, match=message):
        opened(path, **keys)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_delimiters_byte_order_marks_and_line_ends(delimiter: str, start: str, end: str) -> None:
    splits = ["train"] * 2 + ["val"] * 2 + ["test"] * 2
    lines = [f"{row},{split}" for row, split in zip(rows("é b é b b é"), splits, strict=True)]
    data = opened(manifest(start + end.join(["path,label,split", *lines]).replace(",", delimiter) + end))
    assert data.classes == ("b", "é")
    found = {name: split.labels_N.tolist() for name, split in data.splits.items()}
    assert found == {"train": [1, 0], "val": [1, 0], "test": [0, 1]}


def test_paths_are_relative_to_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absolute = tmp_path / "images" / "5.png"
    path = manifest("\n".join(["path,label", *rows()[:5], f"{absolute},dog"]))
    monkeypatch.chdir("/")
    data = opened(str(tmp_path / path))
    train = data.splits["train"]
    assert train.labels_N.tolist() == [0, 1, 0, 1, 0, 1]
    assert [int(train.read(index)[0, 0, 0]) for index in range(6)] == list(range(6))


def test_columns_by_name_quotes_and_case() -> None:
    lines = ["Kind,File,note", *(f'"{label}",images/{n}.png,"a, ""b"""' for n, label in enumerate(("x, y", "z") * 3))]
    path = manifest("\n".join(lines))
    refused(path, r"list\.csv:1: no column for the label(.|\n)*Kind, File, note")
    data = opened(path, label_column="Kind")
    assert data.classes == ("x, y", "z")
    refused(path, r"(?s)data\.label_column: no such column.*did you mean 'Kind'", label_column="kind")


def test_jsonl_and_a_folder_with_metadata(tmp_path: Path) -> None:
    text = "".join(json.dumps({"file_name": f"images/{n}.png", "label": n % 2}) + "\n\n" for n in range(6))
    manifest(text, "metadata.jsonl")
    assert find_source(DataConfig(path=str(tmp_path)))[0] == "table"
    data = opened(str(tmp_path))
    assert data.classes == ("0", "1")
    assert data.splits["train"].labels_N.tolist() == [0, 1] * 3


def test_multi_label_csv_and_jsonl_agree() -> None:
    tags = [["cat"], ["dog", "cat"], [], ["owl"], ["dog"], ["cat", "owl", "dog"]]
    lines = [f"images/{n}.png,{';'.join(own)}" for n, own in enumerate(tags)]
    one = opened(manifest("\n".join(["path,label", *lines])), label_separator=";")
    objects = [json.dumps({"path": f"images/{n}.png", "label": own}) for n, own in enumerate(tags)]
    two = opened(manifest("\n".join(objects), "list.jsonl"))
    expected = np.array([[label in own for label in ("cat", "dog", "owl")] for own in tags])
    for data in (one, two):
        assert data.multi_label
        assert data.classes == ("cat", "dog", "owl")
        assert np.array_equal(data.splits["train"].labels_N, expected)
    assert one.task == "multilabel"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\nimages/0.png,cat\nimages/1.png,\n", r"list\.csv:3: an empty label"),
        (
            "path,label\nimages/0.png,cat\nimages/9.png,dog\n",
            r"1 file is missing, or no regular files: images/9\.png \(line 3\)",
        ),
        ("path,label\nimages/0.png,cat\n./images/0.png,dog\n", r"images/0\.png \(lines 2 and 3\)"),
        ("path,label,split\nimages/0.png,cat,train\nimages/1.png,dog,dev\n", r"(?s)list\.csv:3: unknown split.*'dev'"),
        ("path,label,split\nimages/0.png,cat,val\nimages/1.png,dog,val\n", r"rows for val but none for train"),
        ("path,label\nimages/0.png,cat,3\n", r"(?s)list\.csv:2: a row with another number of fields.*3"),
        ("path,label,label\nimages/0.png,cat,3\n", r"list\.csv:1: columns that are there twice: label"),
        ("path,kind\nimages/0.png,cat\n", r"list\.csv:1: no column for the label"),
        ("path,label\n,cat\n", r"list\.csv:2: no path"),
        ('path,label\nimages/0.png,"cat\n', r"list\.csv:\d: not readable as CSV"),
        ("", "no rows"),
        ("path,label\n", "no rows"),
        ("path,label\nimages\\0.png,cat\n", r"(?s)not with a backslash: images/0\.png is there"),
        ("path,label\nimages/0,cat\n", r"(?s)with the ending of the file: images/0\.png"),
        ("path,label\nimages,cat\n", r"1 file is missing, or no regular files: images"),
        ("path,cat,dog\nimages/0.png,1,0\nimages/1.png,0,1\n", r"(?s)columns cat, dog hold zeros and ones.*`label`"),
        (b"path,label\nimages/0.png,cat\nimages/1.png,h\xe9\n", r"list\.csv:3: not UTF-8 but another encoding"),
        ("path,label\n".encode("utf-16"), r"list\.csv:1: not UTF-8 but UTF-16"),
    ],
)
def test_mistakes_are_named_with_their_line(text: str | bytes, message: str) -> None:
    refused(manifest(text), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "images/0.png", "label": "a"}\n{"path": ', r"list\.jsonl:2: not readable as JSON"),
        ("[1]", r"list\.jsonl:1: an object"),
        ('{"path": "images/0.png", "label": null}', r"list\.jsonl:1: an empty label"),
        ('{"path": "images/0.png", "label": true}', r"list\.jsonl:1: not a label"),
        (
            '{"path": "images/0.png", "label": ["a"]}\n{"path": "images/1.png", "label": "b"}',
            r"list\.jsonl:2: label is a list",
        ),
        ('{"path": "images/0.png", "label": ["a", "a"]}', r"list\.jsonl:1: a label that is there twice"),
        ('{"path": "images/0.png", "label": ["a", ""]}', r"list\.jsonl:1: an empty label"),
    ],
)
def test_mistakes_of_jsonl(text: str, message: str) -> None:
    refused(manifest(text, "list.jsonl"), message)


def test_the_fingerprint_follows_labels_and_files() -> None:
    first = opened(manifest("\n".join(["path,label", *rows()]))).fingerprint
    assert opened(manifest("\n".join(["path;label", *rows()]).replace(",", ";"))).fingerprint == first
    assert opened(manifest("\n".join(["path,label", *rows("dog cat cat dog cat dog")]))).fingerprint != first


def test_indices_come_from_one_map_where_splits_lack_classes() -> None:
    """val lacks ant: its indices must still be train's, and it is refused unless someone says that it is meant."""
    labels, splits = ["ant", "bee", "cat", "bee", "cat", "bee"], ["train"] * 3 + ["val"] * 2 + ["test"]
    lines = [f"images/{n}.png,{label},{split}" for n, (label, split) in enumerate(zip(labels, splits, strict=True))]
    config = DataConfig(path=manifest("\n".join(["path,label,split", *lines])))
    with pytest.raises(UserError, match=r"(?s)split 'val'.*missing: ant.*split 'test'.*missing: ant, cat"):
        open_dataset(config)
    data = open_dataset(config, equal_classes=False)
    assert data.classes == ("ant", "bee", "cat")
    assert {name: split.labels_N.tolist() for name, split in data.splits.items()} == {
        "train": [0, 1, 2], "val": [1, 2], "test": [1],
    }  # fmt: skip
    assert data.absent() == {"val": ("ant",), "test": ("ant", "cat")}


def test_only_line_ends_end_lines() -> None:
    data = opened(manifest("\n".join(["path,label", *(line.replace("cat", "c\x0ba\u2028t") for line in rows())])))
    assert data.classes == (r"c\x0ba\u2028t", "dog")  # as it is written in reports and model folders


def classes_beside(root: Path, table: str, name: str = "labels.csv") -> Path:
    for label in "01":
        (root / "signs" / label).mkdir(parents=True)
        for number in range(3):
            (root / "images" / f"{number}.png").rename(root / "signs" / label / f"{number}.png")
            Image.new("RGB", (5, 4), (number, 9, 9)).save(root / "images" / f"{number}.png")
    (root / "signs" / name).write_text(table, encoding="utf-8")
    return root / "signs"


@pytest.mark.parametrize(
    ("table", "name"),
    [
        ("ClassId,Name\n0,stop\n1,go\n", "labels.csv"),
        ("image,photographer\n0/0.png,Ann\n", "metadata.csv"),
        ('{"0": "stop", "1": "go"}\n', "labels.jsonl"),
    ],
)
def test_a_table_of_something_else_beside_class_folders(table: str, name: str, tmp_path: Path) -> None:
    root = classes_beside(tmp_path, table, name)
    data = opened(str(root))
    assert data.classes == ("0", "1")
    assert len(data.splits["train"]) == 6
    assert f"{name} has no columns for image and label: the folders are the classes" in data.notes
    assert f"{name} has no columns" not in str(opened(str(root), source="folder").notes)


def test_a_manifest_beside_class_folders_is_the_manifest(tmp_path: Path) -> None:
    root = classes_beside(tmp_path, "image,label\n0/0.png,stop\n1/0.png,go\n")
    assert opened(str(root)).classes == ("go", "stop")
    root.joinpath("labels.csv").write_text("picture,sign\n0/0.png,stop\n1/0.png,go\n", encoding="utf-8")
    assert opened(str(root), image_column="picture", label_column="sign").classes == ("go", "stop")


def test_a_table_of_something_else_without_class_folders_is_refused(tmp_path: Path) -> None:
    manifest("id,diagnosis\n0,ill\n", "labels.csv")
    refused(str(tmp_path), "(?s)no column for the image.*data.source=folder")
