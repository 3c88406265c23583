"""Multi-hot vectors: refused where their classes are not declared, read right where they are, never taken for names."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitral.config import build
from vitral.data.check import check_dataset
from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset
from vitral.data.label_vectors import named, text_vectors, vector_width
from vitral.data.sources import open_dataset
from vitral.errors import UserError

Rows = list[list[Any]]
TWO: Rows = [[1, 0], [0, 1], [1, 0], [0, 1]]
THREE: Rows = [[1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("rows", "width"),
    [
        (TWO, 2),
        (THREE, 3),
        ([[True, False], [False, True]], 2),
        ([[1.0, 0.0], [0.0, 1.0]], 2),
        ([["1", "0"], ["0", "1"]], 2),
        ([[1], [0]], None),  # lists of one class
        ([[0, 1], [1]], None),
        ([["cat", "dog"], ["dog", "owl"]], None),
        ([[0, 2], [1, 0]], None),
        ([[1, -1], [-1, -1]], 2),
        ([[0, 255, 0], [255, 0, 0]], 3),
        ([["1", "-1"], ["-1", "1"]], 2),
        ([["3", "owl"], ["owl", "3"]], None),
        ([[], []], None),
        ([], None),
    ],
)
def test_vectors_are_told_from_lists_of_names(rows: Rows, width: int | None) -> None:
    assert vector_width(rows) == width


def test_declared_classes_give_the_vectors_their_names() -> None:
    assert named(THREE, ("cat", "dog", "owl"), "x") == [["cat", "owl"], ["dog"], [], ["owl"]]
    assert named([["1", "0"], ["0", "1"]], ("0", "1"), "x") is None  # the names themselves
    assert named([[-1, 1], [1, 1], [-1, -1]], ("cat", "dog"), "x") == [["dog"], ["cat", "dog"], []]
    assert named([[0, 0], [0, 0]], ("cat", "dog"), "x") == [[], []]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["0 1", "1 0"], [["0", "1"], ["1", "0"]]),
        (["1,0", "0,1"], [["1", "0"], ["0", "1"]]),
        (["-1 1", "1 -1"], [["-1", "1"], ["1", "-1"]]),
        (["10", "01"], [["1", "0"], ["0", "1"]]),
        (["10", "11"], None),  # numbers
        (["0", "1"], None),
        (["1.5", "2.5"], None),
        (["2020-01", "2020-02"], None),
        (["0 1", "cat"], None),
        ([0, 1], None),
        ([], None),
    ],
)
def test_vectors_as_text(values: list[Any], expected: Rows | None) -> None:
    assert text_vectors(values) == expected


def test_the_same_labels_everywhere_are_an_error(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [["cat", "dog"]] * 6)
    report = check_dataset(opened(path))
    found = [each for each in report.findings if each.code == "same-labels"]
    assert [(each.severity, each.numbers) for each in found] == [("error", {"images": 6})]
    assert "(cat, dog)" in found[0].message


def opened(path: Path, **keys: Any) -> Dataset:
    return open_dataset(build(DataConfig, {"path": str(path), **keys}), hold_out=False, equal_classes=False)


def write_jsonl(folder: Path, rows: Rows) -> Path:
    lines: list[str] = []
    for number, row in enumerate(rows):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
        lines.append(json.dumps({"path": f"{number}.png", "labels": row}))
    path = folder / "list.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("rows", [TWO, THREE, [[True, False], [False, True]], [[1.0, 0.0], [0.0, 1.0]]])
def test_a_manifest_of_vectors_is_refused_or_read_right(rows: Rows, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, rows)
    with pytest.raises(UserError, match=r"(?s)vectors of \d numbers .0 and 1.*data\.classes="):
        opened(path)
    classes = ("beach", "boat", "cliff")[: len(rows[0])]
    dataset = opened(path, classes=classes)
    assert dataset.classes == classes
    np.testing.assert_array_equal(dataset.splits["train"].labels_N, np.array(rows, bool))
    with pytest.raises(UserError, match="4 names in"):
        opened(path, classes=("a", "b", "c", "d"))


@pytest.mark.parametrize(
    ("cells", "keys", "message"),
    [
        (["1;0", "0;1"], {"label_separator": ";"}, "vectors of 2"),
        (["1 0", "0 1"], {}, "vectors of 2"),
        (["1,-1", "-1,-1"], {}, "vectors of 2"),
        (["10", "01"], {}, "vectors of 2"),
        (["[1, 0]", "[0, 1]"], {}, "a list written as text"),
        (["['cat', 'dog']", "['cat']"], {}, "a list written as text"),
    ],
)
def test_vectors_and_lists_in_csv(cells: list[str], keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path, [[0]] * len(cells))
    with (tmp_path / "list.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["path", "label"], *([f"{n}.png", cell] for n, cell in enumerate(cells))])
    with pytest.raises(UserError, match=message):
        opened(tmp_path / "list.csv", **keys)


def test_text_of_flags_is_read_where_classes_are_declared(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [[0]] * 2)
    path = tmp_path / "list.csv"
    path.write_text("path,label\n0.png,01\n1.png,10\n", encoding="utf-8")
    dataset = opened(path, classes=("cat", "dog"))
    np.testing.assert_array_equal(dataset.splits["train"].labels_N, [[False, True], [True, False]])
    assert opened(path, classes=("01", "10")).splits["train"].labels_N.tolist() == [0, 1]
    datasets = pytest.importorskip("datasets")
    images = [Image.new("RGB", (8, 8), (number, 0, 0)) for number in range(2)]
    datasets.Dataset.from_dict({"image": images, "label": ["0 1", "1 0"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match="vectors of 2"):
        opened(tmp_path / "train.parquet")
    found = opened(tmp_path / "train.parquet", classes=("cat", "dog"))
    np.testing.assert_array_equal(found.splits["train"].labels_N, [[False, True], [True, False]])


@pytest.mark.parametrize("rows", [TWO, THREE, [[True, False], [False, True]]])
def test_parquet_of_vectors_is_refused_or_read_right(rows: Rows, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    images = [Image.new("RGB", (8, 8), (number, 0, 0)) for number in range(len(rows))]
    datasets.Dataset.from_dict({"image": images, "labels": rows}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"numbers \(0 and 1\)"):
        opened(tmp_path / "train.parquet")
    dataset = opened(tmp_path / "train.parquet", classes=("a", "b", "c")[: len(rows[0])])
    np.testing.assert_array_equal(dataset.splits["train"].labels_N, np.array(rows, bool))
