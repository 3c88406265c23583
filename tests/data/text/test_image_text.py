"""Images with a text each: manifests, files beside images, file names, and strips of digits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitral.data.config import DataConfig
from vitral.data.digits import open_digits
from vitral.data.text.config import TextSource
from vitral.data.text.dataset import TextDataset
from vitral.data.text.digits_read import SIZE
from vitral.data.text.sources import open_text
from vitral.errors import UserError


def opened(**keys: Any) -> TextDataset:
    return open_text(TextSource(**keys))


def picture(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (9, 5), level).save(path)


def texts_of(data: TextDataset) -> dict[str, str]:
    return {name: text for split in data.splits.values() for name, text in zip(split.names, split.targets, strict=True)}


def check_pixels(data: TextDataset, level_of: dict[str, int]) -> None:
    for split in data.splits.values():
        assert split.images is not None
        for place, name in enumerate(split.names):
            image_CHW = split.images.read(place)
            assert image_CHW.shape == (1, 5, 9)
            assert (image_CHW == level_of[name]).all(), name


def test_a_manifest(tmp_path: Path) -> None:
    names = {f"lines/{number}.png": number for number in range(20)}
    for name, level in names.items():
        picture(tmp_path / name, level)
    rows = ["path,text", *(f'{name},"zeile, {level}"' for name, level in names.items())]
    (tmp_path / "index.csv").write_text("\n".join(rows), encoding="utf-8")
    data = opened(source="image_table", path=str(tmp_path / "index.csv"))
    assert texts_of(data) == {name: f"zeile, {level}" for name, level in names.items()}
    check_pixels(data, names)
    assert data.channels == 1
    assert data.has_images
    assert [len(data.splits[name]) for name in ("train", "val", "test")] == [16, 2, 2]
    colored = open_text(TextSource(source="image_table", path=str(tmp_path / "index.csv")), DataConfig(channels=3))
    images = colored.splits["train"].images
    assert images is not None
    assert images.read(0).shape == (3, 5, 9)


@pytest.mark.parametrize("ending", [".gt.txt", ".txt"])
def test_texts_beside_images_in_folders_of_splits(ending: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number in range(3):
            picture(tmp_path / split / f"{number}.png", number)
            (tmp_path / split / f"{number}{ending}").write_text(f" Zeile {number}\r\n", encoding="utf-8", newline="")
    data = opened(source="image_text_files", path=str(tmp_path))
    assert {name: list(split.targets) for name, split in data.splits.items()} == {
        "train": [" Zeile 0", " Zeile 1", " Zeile 2"], "test": [" Zeile 0", " Zeile 1", " Zeile 2"],
    }  # fmt: skip
    (tmp_path / "train" / f"1{ending}").unlink()
    with pytest.raises(UserError, match=r"1 of 6 images without a text.*train/1\.png"):
        opened(source="image_text_files", path=str(tmp_path))


def test_texts_in_file_names(tmp_path: Path) -> None:
    names = {f"{text}{copy}.png": text for text in ("AB12", "x_y", "7", "ÄÖ") for copy in ("", "_0001", "_2")}
    for level, name in enumerate(names):
        picture(tmp_path / name, level)
    data = opened(source="image_names", path=str(tmp_path))
    assert texts_of(data) == names
    assert [len(data.splits[name]) for name in ("train", "val", "test")] == [10, 1, 1]
    pattern = r"^(?P<text>.)"
    assert texts_of(opened(source="image_names", path=str(tmp_path), pattern=pattern)) == {n: n[0] for n in names}


def test_splits_in_file_names(tmp_path: Path) -> None:
    for name in ("train-ab-1.png", "test-cd-1.png"):
        picture(tmp_path / name, 0)
    pattern = r"(?P<split>\w+)-(?P<text>\w+)-\d+"
    data = opened(source="image_names", path=str(tmp_path), pattern=pattern)
    assert {name: list(split.targets) for name, split in data.splits.items()} == {"train": ["ab"], "test": ["cd"]}


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({"source": "image_names"}, ("image_names reads a folder",)),
        ({"source": "image_table", "path": "."}, ("image_table reads a manifest",)),
        ({"source": "image_table", "path": "lost.csv"}, ("2 files are missing", "a.png, b.png")),
        ({"source": "image_table", "path": "twice.csv"}, ("1 path is there twice", "x_1.png")),
        ({"source": "image_names", "path": ".", "pattern": "("}, ("not a regular expression",)),
        ({"source": "image_names", "path": ".", "pattern": "x"}, ("no group named text",)),
        ({"source": "image_names", "path": ".", "pattern": "(?P<text>q)"}, ("1 of 1 images without a text",)),
        ({"source": "image_names", "path": "empty"}, ("no images here",)),
    ],
)
def test_bad_images_get_one_message(
    keys: dict[str, Any], parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "x_1.png", 0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "lost.csv").write_text("path,text\na.png,a\nb.png,b\n", encoding="utf-8")
    (tmp_path / "twice.csv").write_text("path,text\nx_1.png,a\n./x_1.png,b\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        opened(**keys)
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_strips_are_made_of_whole_scans_of_their_split() -> None:
    data = opened(source="digits_read", count=160)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 160, "val": 20, "test": 20}
    digits = open_digits(DataConfig())
    places = {split.read(place).numpy().tobytes(): (name, place, int(split.labels_N[place]))
              for name, split in digits.splits.items() for place in range(len(split))}  # fmt: skip
    used: dict[str, set[tuple[str, int]]] = {}
    lengths: Counter[int] = Counter()
    for name, split in data.splits.items():
        assert split.images is not None
        assert split.boxes is not None
        for index, (text, boxes_M4) in enumerate(zip(split.targets, split.boxes, strict=True)):
            strip_HW = split.images.read(index).numpy()[0]
            assert strip_HW.shape == SIZE == (12, 60)
            lengths[len(text)] += 1
            rest_HW, right = strip_HW.copy(), 0
            for sign, (x0, y0, x1, y1) in zip(text, boxes_M4.astype(int).tolist(), strict=True):
                assert (x1 - x0, y1 - y0) == (8, 8)
                assert right <= x0 <= right + 2
                found = places[np.ascontiguousarray(strip_HW[y0:y1, x0:x1]).tobytes()]
                assert found[2] == int(sign)
                used.setdefault(name, set()).add(found[:2])
                rest_HW[y0:y1, x0:x1], right = 0, x1
            assert not rest_HW.any(), "nothing outside the boxes"
    assert set(lengths) == {3, 4, 5, 6}
    assert {name for name, _ in used["test"]} == {"test"}
    assert {name for name, _ in used["train"] | used["val"]} == {"train"}
    assert not used["train"] & used["val"]
    assert opened(source="digits_read", count=160).fingerprint == data.fingerprint
    assert opened(source="digits_read", count=160, seed=1).fingerprint != data.fingerprint
