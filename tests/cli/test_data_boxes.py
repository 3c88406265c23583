"""`vitral data` on boxes, and every command that has no use for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.test_data import output
from tests.cli.test_usage import refused
from tests.data.test_box_sources import voc, voc_xml
from tests.helpers import random_model, write_colors
from tests.report.test_report import Page
from vitral.report.box_drawing import class_color, draw_boxes

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return voc(tmp_path / "photos")


def test_check_as_text_and_page(photos: Path, capsys: Capture) -> None:
    (photos / "Annotations/b.xml").write_text(voc_xml(("cat", (5, 5, 99, 9)), ("cat", (9, 9, 8, 8))), encoding="utf-8")
    text = output("data check photos out=check.html", 0, capsys)
    assert "warning [box-outside] 1 box on 1 image reach out" in text
    assert "warning [box-degenerate] 1 box on 1 image" in text
    assert "warning [no-boxes] 1 image without boxes, kept as negatives" in text
    page = Path("check.html").read_text(encoding="utf-8")
    assert "Boxes" in Page(page).sections
    assert page.count("<img") >= 3, "the findings, and the sheet with boxes"
    (photos / "Annotations/lost.xml").write_text(voc_xml(), encoding="utf-8")
    assert "error [label-no-image]" in output("data check photos", 2, capsys)
    assert "warning [label-no-image]" in output("data check photos allow=[label-no-image]", 0, capsys)


def test_stats(photos: Path, capsys: Capture) -> None:
    tree = json.loads(output("data stats photos --json out=stats.html", 0, capsys))
    assert tree["splits"]["train"]["boxes"]["classes"] == {"cat": 1, "owl": 1}
    text = output("data stats photos", 0, capsys)
    assert "train: 2 boxes (1 small, 1 medium, 0 large), 0 of crowds, at most 2 on one image; 2 images without" in text
    assert "train boxes" in text
    assert "Boxes of owl" in Path("stats.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("layout", ["coco", "voc", "yolo", "csv"])
def test_convert(photos: Path, layout: str, capsys: Capture) -> None:
    tree = json.loads(output(f"data convert photos out=new layout={layout} --json", 0, capsys))
    assert (tree["counts"], tree["copied"], tree["lost"]) == ({"train": 3}, 3, [])
    found = json.loads(output(f"data stats {tree['path']} --json", 0, capsys))
    assert found["splits"]["train"]["boxes"]["classes"] == {"cat": 1, "owl": 1}


def test_wrong_layouts(photos: Path, capsys: Capture) -> None:
    refused("data convert photos out=new", capsys, "boxes have no place in this layout", "coco, voc, yolo, csv")
    write_colors(Path("pets"))
    refused("data convert pets out=new layout=coco", capsys, "data without boxes in a layout for boxes")
    refused("data check photos data.source=yolo", capsys, "no label file with an image of the same name")
    refused("data check photos data.box_unit=normalized", capsys, "means nothing to the source voc")


def test_boxes_are_refused_by_recipes_of_other_data(photos: Path, capsys: Capture) -> None:
    random_model(Path("model"))
    words = ("the annotations are boxes", "objective.kind=detection learns boxes", "data.source=images")
    for argv in (
        "train small data=photos out=run", "train digits data=digits_scenes out=run", "eval model data=photos",
        "estimate small data=photos", "probe model data=photos", "sweep small data=photos optim.lr=1e-3,1e-2 out=sweep",
    ):  # fmt: skip
        refused(argv, capsys, *words)
    assert not Path("run").exists()


def test_drawn_boxes() -> None:
    gray = np.zeros((20, 30, 1), np.uint8)
    found = draw_boxes(gray, [[5, 5, 15, 12], [-9, 2, 4, 40]], ["cat", ""])
    scale = 16
    assert found.shape == (20 * scale, 30 * scale, 3)
    assert tuple(found[12 * scale - 1, 10 * scale]) == class_color("cat") == class_color("cat") != class_color("owl")
    assert not found[8 * scale, 10 * scale].any(), "a box is not filled"
    large = draw_boxes(np.zeros((900, 1200, 3), np.uint8), [[0, 0, 1200, 900]], ["cat"])
    assert large.shape == (360, 480, 3)
    assert tuple(large[-1, 200]) == tuple(large[200, -1]) == class_color("cat")
