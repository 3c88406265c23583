"""What a check finds in boxes: one mistake planted in each data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.test_box_sources import coco, opened, picture, voc, yolo
from vitral.data.check import check_dataset
from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset
from vitral.data.findings import CODES, CheckReport, Finding
from vitral.data.sources import open_dataset
from vitral.data.statistics import box_sheet, class_sheets, dataset_stats

Row = tuple[str, str, float, float, float, float]
GOOD: list[Row] = [(name, label, 2 + k, 3, 20 + k, 25) for k, (name, label) in enumerate(
    (name, label) for name in ("a.png", "b.png", "c.png", "d.jpg") for label in ("cat", "owl"))]  # fmt: skip


def data(root: Path, rows: Sequence[Row], *, turn: int = 1, names: Sequence[str] = ("a.png", "b.png", "c.png"),
         **keys: Any) -> Dataset:  # fmt: skip
    """Four images of 40 x 30 pixels with these boxes; d.jpg is turned by EXIF."""
    for number, name in enumerate(names):
        picture(root / name, number)
    picture(root / "d.jpg", 77, turn=turn)
    lines = [",".join(map(str, row)) for row in rows]
    lines += [f"{name},,,,," for name in (*names, "d.jpg") if name not in {row[0] for row in rows}]
    (root / "boxes.csv").write_text("\n".join(["path,label,xmin,ymin,xmax,ymax", *lines]), encoding="utf-8")
    return opened(root, **keys)


def found(dataset: Dataset, **how: Any) -> dict[str, Finding]:
    report = check_dataset(dataset, workers=1, **how)
    assert CheckReport.from_json(report.to_json()) == report
    return {each.code: each for each in report.findings}


def test_good_boxes_have_no_findings(tmp_path: Path) -> None:
    assert found(data(tmp_path, GOOD)) == {}


def test_one_class_is_enough_for_a_detector(tmp_path: Path) -> None:
    assert found(data(tmp_path, [row for row in GOOD if row[1] == "cat"])) == {}


def test_single_boxes(tmp_path: Path) -> None:
    rows: list[Row] = [
        *GOOD, ("a.png", "cat", -3, 1, 5, 5), ("a.png", "owl", 30, 3, 40.9, 30), ("b.png", "cat", 7, 7, 7, 12),
        ("b.png", "cat", 9, 9, 4, 12), ("c.png", "owl", *GOOD[5][2:]), ("c.png", "cat", *GOOD[5][2:]),
    ]  # fmt: skip
    rows = [row for row in rows if row[0] != "d.jpg"]
    codes = found(data(tmp_path, rows))
    assert {code: each.severity for code, each in codes.items()} == dict.fromkeys(
        ("box-outside", "box-degenerate", "box-duplicate", "no-boxes"), "warning"
    )
    assert codes["box-outside"].numbers == {"boxes": 1, "images": 1}
    assert "reach out of their images" in codes["box-outside"].message
    assert [sample.name for group in codes["box-outside"].groups for sample in group] == ["a.png"]
    assert codes["box-degenerate"].numbers == {"boxes": 2, "images": 1}
    assert codes["box-duplicate"].numbers == {"boxes": 1, "images": 1}, "the same box of another class is no duplicate"
    assert codes["no-boxes"].groups[0][0].label == "no boxes"
    assert set(codes) <= CODES.keys()


def scaled(rows: Sequence[Row], x: float, y: float) -> list[Row]:
    return [(name, label, x0 * x, y0 * y, x1 * x, y1 * y) for name, label, x0, y0, x1, y1 in rows]


UNITS: dict[str, tuple[list[Row], str]] = {
    "normalized": (scaled(GOOD, 1 / 40, 1 / 30), "normalized: shares of the sides"),
    "sizes": ([(n, c, x0 + 20, y0 + 10, 9, 8) for n, c, x0, y0, _, _ in GOOD], "xywh: a corner and a size"),
    "larger": (scaled(GOOD, 3, 3), "wrong unit?"),
}


@pytest.mark.parametrize("name", list(UNITS))
def test_wrong_units_are_one_error_with_a_hint(tmp_path: Path, name: str) -> None:
    rows, words = UNITS[name]
    codes = found(data(tmp_path, rows))
    assert codes["box-unit"].severity == "error"
    assert words in codes["box-unit"].message
    assert not codes.keys() & {"box-outside", "box-degenerate"}
    assert ("Read as" in codes["box-unit"].message) == (name != "larger")


def test_the_hint_leads_to_data_that_fit(tmp_path: Path) -> None:
    assert found(data(tmp_path / "a", UNITS["normalized"][0], box_unit="normalized")) == {}
    assert found(data(tmp_path / "b", UNITS["sizes"][0], box_format="xywh")) == {}
    wide = [(n, c, 20, 10, 39, 29) for n, c, *_ in GOOD[::2]]
    message = found(data(tmp_path / "c", wide, box_format="xywh"))["box-unit"].message
    assert "Read as xyxy: corners, 100% would be inside" in message


def test_photos_that_were_annotated_before_they_were_turned(tmp_path: Path) -> None:
    """d.jpg is seen as 40 high and 30 wide; a box to x = 38 fits the stored picture alone."""
    rows: list[Row] = [row for row in GOOD if row[0] != "d.jpg"]
    turned = [*rows, ("d.jpg", "cat", 5.0, 5.0, 38.0, 25.0)]
    finding = found(data(tmp_path / "turned", turned, turn=6))["box-rotated"]
    assert finding.severity == "error"
    assert [sample.name for group in finding.groups for sample in group] == ["d.jpg"]
    assert "1 image turned by its EXIF data, with boxes that fit only the stored picture" in finding.message
    assert "box-rotated" not in found(data(tmp_path / "plain", turned)), "it is not turned"
    upright = [*rows, ("d.jpg", "cat", 5.0, 5.0, 28.0, 38.0)]
    assert found(data(tmp_path / "right", upright, turn=6)) == {}


def test_sizes_that_annotations_state(tmp_path: Path) -> None:
    dataset = data(tmp_path, GOOD)
    text = (tmp_path / "boxes.csv").read_text(encoding="utf-8").splitlines()
    wide = [f"{line},{'width,height' if not n else '40,30' if n < 7 else '80,60'}" for n, line in enumerate(text)]
    (tmp_path / "boxes.csv").write_text("\n".join(wide), encoding="utf-8")
    finding = found(opened(tmp_path))["box-size"]
    assert finding.severity == "error"
    assert (
        "1 image of another size than its annotations state (d.jpg is 30 x 40, stated are 60 x 80)" in finding.message
    )
    assert len(dataset.splits["train"]) == 4


def test_files_without_a_pair(tmp_path: Path) -> None:
    root = voc(tmp_path / "voc")
    (root / "Annotations/lost.xml").write_text("<annotation/>", encoding="utf-8")
    codes = found(opened(root))
    assert codes["label-no-image"].severity == "error"
    assert (
        "1 label file or annotation without an image, not read: Annotations/lost.xml" in codes["label-no-image"].message
    )
    assert (
        "1 image without a label file, kept as images without boxes: JPEGImages/c.jpg"
        in codes["image-no-label"].message
    )
    assert codes["no-boxes"].numbers == {"images": 2}


def test_classes(tmp_path: Path) -> None:
    finding = found(opened(coco(tmp_path / "coco")))["unused-class"]
    assert (finding.severity, finding.message) == ("warning", "no box of 1 class: unused")
    root = yolo(tmp_path / "yolo")
    (root / "labels/train/a.txt").write_text("0 .5 .5 .5 .5\n", encoding="utf-8")
    (root / "labels/val/c.txt").write_text("1 .5 .5 .5 .5\n", encoding="utf-8")
    finding = found(opened(root))["unused-class"]
    assert (finding.severity, finding.message) == ("error", "no box for training of 1 class: owl")


def test_equal_images_with_other_boxes(tmp_path: Path) -> None:
    rows = [row for row in GOOD if row[0] != "b.png"]
    same: list[Row] = [("b.png", *row[1:]) for row in rows if row[0] == "a.png"]
    moved: list[Row] = [(n, c, x0 + 1, y0, x1, y1) for n, c, x0, y0, x1, y1 in same]
    for name, more in (("equal", same), ("other", moved)):
        data(tmp_path / name, [*rows, *more])
        (tmp_path / name / "b.png").write_bytes((tmp_path / name / "a.png").read_bytes())
        codes = found(opened(tmp_path / name))
        assert "duplicates" in codes
        assert ("duplicates-labels" in codes) == (name == "other")


def test_a_kept_check_knows_boxes(tmp_path: Path) -> None:
    dataset = data(tmp_path / "d", GOOD)
    first = check_dataset(dataset, workers=1, cache=tmp_path / "cache")
    again = check_dataset(opened(tmp_path / "d"), workers=1, cache=tmp_path / "cache")
    moved = check_dataset(data(tmp_path / "d", scaled(GOOD, 1.01, 1)), workers=1, cache=tmp_path / "cache")
    assert (first.cached, again.cached, moved.cached) == (False, True, False)
    assert first.fingerprint == again.fingerprint != moved.fingerprint


def test_damaged_images_are_left_out_with_their_boxes(tmp_path: Path) -> None:
    data(tmp_path, GOOD)
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    dataset = opened(tmp_path, channels=3)
    codes = found(dataset)
    assert codes["damaged"].numbers["images"] == 1
    assert "box-outside" not in codes
    stats, whole = dataset_stats(dataset, 1)
    assert stats["splits"]["train"]["boxes"]["count"] == 6
    assert [len(whole.splits["train"].boxes.of(place).label_M) for place in range(3)] == [2, 2, 2]  # pyright: ignore


def test_statistics_and_sheets(tmp_path: Path) -> None:
    rows: list[Row] = [*GOOD[:4], ("c.png", "cat", 0, 0, 40, 30)]
    dataset = data(tmp_path, rows)
    stats, _ = dataset_stats(dataset, 1)
    boxes = stats["splits"]["train"]["boxes"]
    assert boxes == {"count": 5, "crowds": 0, "images_without": 1, "most": 2, "classes": {"cat": 3, "owl": 2},
                     "sizes": {"small": 4, "medium": 1, "large": 0}}  # fmt: skip
    assert stats["splits"]["train"]["classes"] == {"cat": 3, "owl": 2}
    assert [sample.name for sample in box_sheet(dataset, 10)] == ["a.png", "b.png", "c.png"]
    assert [sample.name for sample in class_sheets(dataset, 9)["owl"]] == ["a.png", "b.png"]


def test_the_scenes_pass(tmp_path: Path) -> None:
    dataset = open_dataset(DataConfig(path="digits_scenes"), hold_out=False, boxes=True)
    part = dataset.with_parts({name: split.subset(range(60)) for name, split in dataset.splits.items()})
    assert not [each for each in found(part).values() if each.severity == "error"]
    assert np.array_equal(part.splits["val"].boxes.ends_N, dataset.splits["val"].boxes.ends_N[:60])  # pyright: ignore
