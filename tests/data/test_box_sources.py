"""Boxes as every format holds them: coordinates, classes, splits, pairs of files, and files of strangers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitral.data.boxes import Boxes, Unpaired
from vitral.data.config import DataConfig
from vitral.data.convert import Layout, convert
from vitral.data.dataset import Dataset
from vitral.data.sources import open_dataset
from vitral.errors import UserError

SIZE = (40, 30)  # width, height


def opened(path: Path, **keys: Any) -> Dataset:
    return open_dataset(DataConfig(path=str(path), **keys), hold_out=False, boxes=True)


def picture(path: Path, seed: int = 0, size: tuple[int, int] = SIZE, turn: int = 1) -> Path:
    """Noise, in a JPEG of this EXIF orientation or a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = turn
    more: dict[str, Any] = {"exif": exif} if turn != 1 else {}
    Image.fromarray(noise).save(path, **more)
    return path


def boxes_of(dataset: Dataset, split: str = "train") -> Boxes:
    found = dataset.splits[split].boxes
    assert found is not None
    assert dataset.task == dataset.splits[split].task == "detection"
    assert np.array_equal(dataset.splits[split].labels_N, found.hot(len(dataset.classes)))
    return found


def rows(dataset: Dataset, split: str = "train") -> dict[str, list[tuple[str, list[float]]]]:
    """Class and corners of the boxes of each image."""
    found = boxes_of(dataset, split)
    return {
        Path(name).stem: [(dataset.classes[k], box) for box, k in zip(own.boxes_M4.tolist(), own.label_M, strict=True)]
        for place, name in enumerate(dataset.splits[split].names) for own in [found.of(place)]
    }  # fmt: skip


def coco(root: Path, **changes: Any) -> Path:
    """Two images, three boxes, one of them a crowd; ids with gaps; categories out of order, one unused."""
    for number, name in enumerate(("a.png", "b.png")):
        picture(root / "images" / name, number)
    tree = {
        "images": [{"id": 70, "file_name": "a.png", "width": 40, "height": 30}, {"id": 9, "file_name": "b.png"}],
        "categories": [{"id": 90, "name": "owl"}, {"id": 3, "name": "cat"}, {"id": 18, "name": "unused"}],
        "annotations": [
            {"id": 1, "image_id": 70, "category_id": 90, "bbox": [1.5, 2, 10.25, 20], "iscrowd": 0},
            {"id": 5, "image_id": 70, "category_id": 3, "bbox": [0, 0, 40, 30], "iscrowd": 1, "segmentation": [[1, 2]]},
            {"id": 7, "image_id": 70, "category_id": 3, "bbox": [5, 5, 4, 4]},
        ],
        **changes,
    }
    path = root / "labels.json"
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def test_coco(tmp_path: Path) -> None:
    dataset = opened(coco(tmp_path))
    assert dataset.classes == ("cat", "unused", "owl"), "in the order of their ids"
    found = boxes_of(dataset)
    assert found.of(0).boxes_M4.tolist() == [[1.5, 2, 11.75, 22], [0, 0, 40, 30], [5, 5, 9, 9]]
    assert found.of(0).label_M.tolist() == [2, 0, 0]
    assert found.of(0).crowd_M.tolist() == [False, True, False]
    assert len(found.of(1).boxes_M4) == 0, "an image without annotations is a negative"
    assert found.size_N2.tolist() == [[30, 40], [0, 0]]
    assert dataset.splits["train"].labels_N.tolist() == [[True, False, True], [False] * 3]
    assert any("1 box is of crowds" in note for note in dataset.notes)


def test_coco_splits_lie_in_their_usual_places(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        picture(tmp_path / split / f"{split}.png", len(split))
        entry = {"id": 1, "file_name": f"{split}.png"}
        tree = {"images": [entry], "categories": [{"id": 1, "name": "cat"}],
                "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2]}]}  # fmt: skip
        (tmp_path / "annotations").mkdir(exist_ok=True)
        for kind in ("instances", "person_keypoints"):
            (tmp_path / "annotations" / f"{kind}_{split}.json").write_text(json.dumps(tree), encoding="utf-8")
    picture(tmp_path / "val2017" / "more.png", 9)
    dataset = opened(tmp_path)
    assert {name: list(split.names) for name, split in dataset.splits.items()} == {
        "train": ["train2017/train2017.png"], "val": ["val2017/val2017.png"],
    }  # fmt: skip
    assert dataset.unpaired == Unpaired((), ("val2017/more.png",), kept=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"annotations": [{"image_id": 70, "category_id": 4, "bbox": [1, 1, 2, 2]}]}, "unknown category"),
        ({"annotations": [{"image_id": 70, "category_id": 3, "bbox": [1, 1, 2]}]}, "not a box"),
        ({"annotations": [{"image_id": 70, "category_id": 3, "bbox": [1, 1, 2, "x"]}]}, "not a box"),
        ({"annotations": [{"image_id": 70, "category_id": 3, "bbox": [1, 1, 2, 1e12]}]}, "not a box"),
        ({"annotations": [{"image_id": 70, "category_id": 3}]}, "not a box"),
        ({"annotations": [7]}, "object is expected"),
        ({"annotations": [{"image_id": 70, "category_id": 3, "bbox": [1, 1, 2, 2]}] * 10_001}, "too many boxes"),
        ({"images": [{"id": 1, "file_name": "a.png"}] * 2}, "comes twice"),
        ({"images": [{"id": 1, "file_name": "lost.png"}]}, "not there, such as lost.png"),
        ({"images": {}}, "not the format of COCO"),
    ],
)
def test_coco_of_strangers(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        opened(coco(tmp_path, **changes), source="coco")


def test_annotations_of_images_that_are_not_listed_are_counted(tmp_path: Path) -> None:
    rest = {"category_id": 3, "bbox": [1, 1, 2, 2]}
    dataset = opened(coco(tmp_path, annotations=[{"image_id": 70, **rest}, {"image_id": 2, **rest}]))
    assert dataset.unpaired.labels == ("labels.json, annotation 1 of image 2",)
    assert any("1 annotation has no image and is not read" in note for note in dataset.notes)


def test_other_numbers_in_coco(tmp_path: Path) -> None:
    found = opened(coco(tmp_path), box_format="xyxy")
    assert boxes_of(found).of(0).boxes_M4[0].tolist() == [1.5, 2, 10.25, 20]
    changes = {"annotations": [{"image_id": 70, "category_id": 3, "bbox": [0.5, 0.5, 0.5, 0.2]}]}
    found = opened(coco(tmp_path, **changes), box_format="cxcywh", box_unit="normalized")
    assert boxes_of(found).of(0).boxes_M4.tolist() == [[10, 12, 30, 18]]


def voc_xml(*objects: tuple[str, tuple[object, ...]], head: str = "", more: str = "") -> str:
    body = "".join(
        f"<object><name>{name}</name>{more}<bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        "</bndbox><part><name>head</name><bndbox><xmin>7</xmin></bndbox></part></object>"
        for name, (x0, y0, x1, y1) in objects
    )  # fmt: skip
    size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
    return f"<?xml version='1.0'?>{head}<annotation><filename>x</filename>{size}{body}</annotation>"


def voc(root: Path, *, first: int = 1) -> Path:
    for number, name in enumerate("abc"):
        picture(root / "JPEGImages" / f"{name}.jpg", number)
    (root / "Annotations").mkdir()
    (root / "Annotations/a.xml").write_text(
        voc_xml(("cat", (first, 5, 40, 30)), ("owl", (2, 2, 3, 3))), encoding="utf-8"
    )
    (root / "Annotations/b.xml").write_text(voc_xml(), encoding="utf-8")
    return root


def test_voc_counts_from_one_unless_there_is_a_zero(tmp_path: Path) -> None:
    one, zero = opened(voc(tmp_path / "one")), opened(voc(tmp_path / "zero", first=0))
    assert rows(one)["a"] == [("cat", [0, 4, 40, 30]), ("owl", [1, 1, 3, 3])]
    assert rows(zero)["a"] == [("cat", [0, 5, 40, 30]), ("owl", [2, 2, 3, 3])]
    assert any("counted from 1" in note for note in one.notes)
    assert any("counted from 0: an xmin or ymin is 0" in note for note in zero.notes)
    assert rows(one)["b"] == rows(one)["c"] == []
    assert one.unpaired == Unpaired((), ("JPEGImages/c.jpg",))
    assert boxes_of(one).size_N2.tolist() == [[30, 40], [30, 40], [0, 0]]


def test_voc_splits_by_lists_and_by_folders(tmp_path: Path) -> None:
    root = voc(tmp_path / "lists")
    (root / "ImageSets/Main").mkdir(parents=True)
    for name, words in (("trainval", "a\nc\n"), ("train", "a\n"), ("val", "b  1\n"), ("cat_train", "a 1\n")):
        (root / f"ImageSets/Main/{name}.txt").write_text(words, encoding="utf-8")
    (root / "Annotations/lost.xml").write_text(voc_xml(("dog", (1, 1, 2, 2))), encoding="utf-8")
    dataset = opened(root)
    assert {name: list(split.names) for name, split in dataset.splits.items()} == {
        "train": ["JPEGImages/a.jpg"], "val": ["JPEGImages/b.jpg"]}  # fmt: skip
    assert any("1 image is in no list" in note for note in dataset.notes)
    assert dataset.unpaired.labels == ("Annotations/lost.xml",)
    assert dataset.classes == ("cat", "owl"), "a file that is not read has no classes"
    (root / "ImageSets/Main/val.txt").write_text("a\n", encoding="utf-8")
    with pytest.raises(UserError, match="come twice: a"):
        opened(root)
    for split in ("train", "valid"):
        picture(tmp_path / "folders" / split / "x.jpg", 5)
        (tmp_path / "folders" / split / "x.xml").write_text(voc_xml((split, (1, 1, 9, 9))), encoding="utf-8")
    dataset = opened(tmp_path / "folders")
    assert rows(dataset)["x"] == [("train", [0, 0, 9, 9])]
    assert rows(dataset, "val")["x"] == [("valid", [0, 0, 9, 9])]


LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
EXTERNAL = '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (voc_xml(("&b;", (1, 1, 2, 2)), head=LAUGHS), "document type"),
        (voc_xml(("&f;", (1, 1, 2, 2)), head=EXTERNAL), "document type"),
        (voc_xml(("&f;", (1, 1, 2, 2))), "not readable as XML: undefined entity"),
        ("<annotation>" + "<a>" * 99 + "</a>" * 99 + "</annotation>", "nested deeper"),
        ("<annotation><object>", "not readable as XML"),
        ("\x89PNG", "not readable as XML"),
        ("<svg></svg>", "not the format of VOC"),
        ("<?xml version='1.0' encoding='klingon'?><annotation/>", "not readable as XML"),
        (voc_xml(("cat", ("nan", 1, 2, 2))), "not a box"),
        (voc_xml(("cat", ("", 1, 2, 2))), "not a box"),
        (voc_xml(("cat", ("1e999", 1, 2, 2))), "not a box"),
        (voc_xml((" ", (1, 1, 2, 2))), "without a name"),
    ],
)
def test_xml_of_strangers(tmp_path: Path, content: str, words: str) -> None:
    root = voc(tmp_path)
    (root / "Annotations/b.xml").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=words) as caught:
        opened(root)
    assert "b.xml" in str(caught.value)


def yolo(root: Path, yaml: str | None = "names: [cat, owl]\ntrain: images/train\nval: images/val\n") -> Path:
    for number, name in enumerate(("train/a", "train/b", "val/c")):
        picture(root / "images" / f"{name}.png", number)
    for split, name, words in (("train", "a", "1 0.5 0.5 0.5 0.2\n\n0 .1 .1 .2 .2\n"), ("val", "c", "")):
        (root / "labels" / split).mkdir(parents=True)
        (root / "labels" / split / f"{name}.txt").write_text(words, encoding="utf-8")
    if yaml is not None:
        (root / "data.yaml").write_text(yaml, encoding="utf-8")
    return root


YAMLS = {
    "list": "names: [cat, owl]\ntrain: images/train\nval: images/val\nnc: 2\n",
    "numbers": "path: .\nnames: {0: cat, 1: owl}\ntrain: images/train\nval: [images/val]\n",
    "roboflow": "names: [cat, owl]\ntrain: ../images/train\nval: ../images/val\ntest: ''\n",
}


@pytest.mark.parametrize("yaml", YAMLS.values(), ids=YAMLS)
def test_yolo(tmp_path: Path, yaml: str) -> None:
    root = yolo(tmp_path, yaml)
    for path in (root, root / "data.yaml"):
        dataset = opened(path)
        assert dataset.classes == ("cat", "owl")
        (owl, cat) = rows(dataset)["a"]
        assert owl == ("owl", pytest.approx([10, 12, 30, 18]))
        assert cat == ("cat", pytest.approx([0, 0, 8, 6]))
        assert rows(dataset)["b"] == rows(dataset, "val")["c"] == []
        assert dataset.unpaired == Unpaired((), ("images/train/b.png",))


def test_yolo_without_a_description(tmp_path: Path) -> None:
    root = yolo(tmp_path, None)
    assert opened(root).classes == ("0", "1")
    (root / "classes.txt").write_text("cat\nowl\n", encoding="utf-8")
    (root / "labels/train/lost.txt").write_text("0 .1 .1 .2 .2\n", encoding="utf-8")
    (root / "labels/train/a.txt").write_text("1 0.1 0.1 0.5 0.1 0.3 0.9\n", encoding="utf-8")
    dataset = opened(root)
    assert rows(dataset)["a"] == [("owl", pytest.approx([4, 3, 20, 27]))]
    assert any("1 polygon read as upright boxes" in note for note in dataset.notes)
    assert dataset.unpaired.labels == ("labels/train/lost.txt",)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2 .1 .1 .2 .2", "unknown class"), ("cat .1 .1 .2 .2", "no number of a class"), ("0 .1 .1 .2", "not a box"),
        ("0 .1 .1 .2 .2 .9", "not a box"), ("0 nan .1 .2 .2", "not a box"), ("0 a b c d", "not a box"),
        ("0 .1 .1 .2 .2 .3 inf", "not a box"), ("9999999999999 .1 .1 .2 .2", "no number of a class"),
    ],
)  # fmt: skip
def test_lines_of_strangers(tmp_path: Path, line: str, words: str) -> None:
    root = yolo(tmp_path)
    (root / "labels/train/a.txt").write_text(f"0 .1 .1 .2 .2\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=words) as caught:
        opened(root)
    assert "a.txt:2" in str(caught.value)


def test_boxes_follow_the_upright_image(tmp_path: Path) -> None:
    """Shares of a photo that is shown on its side are of the sides as they are seen."""
    picture(tmp_path / "images/a.jpg", turn=6)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("0 0.5 0.5 1 0.5\n", encoding="utf-8")
    assert rows(opened(tmp_path))["a"] == [("0", [0, 10, 30, 30])]


TABLES = {
    "corners": "path,label,xmin,ymin,xmax,ymax,split\na.png,cat,1,2,11,22,train\na.png,owl,0,0,4.5,4,train\n"
    "b.png,,,,,,val\n",
    "sizes": "filename;class;x;y;w;h;split\na.png;cat;1;2;10;20;train\na.png;owl;0;0;4.5;4;train\nb.png;;;;;;valid\n",
    "centers": "image,label,cx,cy,w,h,split\na.png,cat,6,12,10,20,train\na.png,owl,2.25,2,4.5,4,train\n"
    "b.png,,,,,,val\n",
}


@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES)
def test_tables(tmp_path: Path, text: str) -> None:
    for name in "ab":
        picture(tmp_path / f"{name}.png", ord(name))
    path = tmp_path / "boxes.csv"
    path.write_text(text, encoding="utf-8")
    for where in (path, tmp_path):
        dataset = opened(where)
        assert rows(dataset) == {"a": [("cat", [1, 2, 11, 22]), ("owl", [0, 0, 4.5, 4])]}
        assert rows(dataset, "val") == {"b": []}


def test_tables_of_strangers(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    path = tmp_path / "boxes.csv"
    head = "path,label,xmin,ymin,xmax,ymax\n"
    for row, words in (("a.png,cat,1,2,x,4", "not a box"), ("b.png,cat,1,2,3,4", "1 image is missing"),
                       ("a.png,,1,2,3,4", "not a label"), (",cat,1,2,3,4", "no path")):  # fmt: skip
        path.write_text(f"{head}{row}\n", encoding="utf-8")
        with pytest.raises(UserError, match=words):
            opened(path)
    path.write_text(f"{head}a.png,cat,.25,.5,.5,1\n", encoding="utf-8")
    assert rows(opened(path, box_unit="normalized"))["a"] == [("cat", [10, 15, 20, 30])]
    assert opened(path, box_format="xywh").splits["train"].boxes is not None
    path.write_text("path,label,x,y\na.png,7,1,2\n", encoding="utf-8")
    assert open_dataset(DataConfig(path=str(path)), hold_out=False, one_class=True).task == "classification"


def test_numbers_to_learn_are_no_boxes(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("path,label,x,y,w,h\na.png,cat,1,2,3,4\n", encoding="utf-8")
    assert opened(tmp_path / "t.csv", target=("x", "y")).task == "regression"


@pytest.mark.parametrize("shape", ["lists", "records"])
def test_hugging_face(tmp_path: Path, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    content = io.BytesIO()
    Image.new("RGB", SIZE).save(content, "PNG")
    label = datasets.ClassLabel(names=["owl", "cat"])
    one = {"bbox": datasets.List(datasets.Value("float32")), "category": label}
    features = datasets.Features({
        "image": datasets.Image(), "width": datasets.Value("int64"),
        "objects": datasets.List(one) if shape == "records" else {
            "bbox": datasets.List(datasets.List(datasets.Value("float32"))), "category": datasets.List(label)},
    })  # fmt: skip
    two = [{"bbox": [1, 2, 10, 20], "category": 1}, {"bbox": [0, 0, 4.5, 4], "category": 0}]
    objects: list[Any] = [two, []]
    if shape == "lists":
        objects = [{key: [each[key] for each in own] for key in ("bbox", "category")} for own in objects]
    table = {"image": [{"bytes": content.getvalue()}] * 2, "width": [40, 40], "objects": objects}
    datasets.Dataset.from_dict(table, features=features).save_to_disk(str(tmp_path / "d"))
    dataset = opened(tmp_path / "d", source="hf")
    assert dataset.classes == ("owl", "cat")
    assert rows(dataset) == {"000000": [("cat", [1, 2, 11, 22]), ("owl", [0, 0, 4.5, 4])], "000001": []}
    shares = opened(tmp_path / "d", source="hf", box_format="xyxy", box_unit="normalized")
    assert rows(shares)["000000"][0] == ("cat", [40, 60, 400, 600])


def same(one: Dataset, other: Dataset, within: float) -> None:
    assert one.classes == other.classes
    assert {n: len(s) for n, s in one.splits.items()} == {n: len(s) for n, s in other.splits.items()}
    for name in one.splits:
        mine, theirs = boxes_of(one, name), boxes_of(other, name)
        assert np.array_equal(mine.ends_N, theirs.ends_N)
        assert np.array_equal(mine.label_X, theirs.label_X)
        np.testing.assert_allclose(theirs.boxes_X4, mine.boxes_X4, atol=within, rtol=0)


@pytest.mark.parametrize(("layout", "within"), [("coco", 1e-12), ("voc", 0.00051), ("yolo", 4e-5), ("csv", 0.0)])
def test_there_and_back(tmp_path: Path, layout: Layout, within: float) -> None:
    """Fractions, an image without boxes, a class without boxes that is not the last by name, three splits, a rotated
    photo: equal in every format to its precision."""
    picture(tmp_path / "in/c.jpg", 3, turn=8)
    text = "path,label,xmin,ymin,xmax,ymax,split\n" + "".join(
        f"{name}.png,{label},{box},{split}\n" for name, label, box, split in (
            ("a", "owl", "1.3333333333333333,2,11.1,22.7", "train"), ("a", "cat & dog", "0,0,40,30", "train"),
            ("b", "", ",,,", "train"), ("d", "cat & dog", "3,4,5,6", "val"), ("e", "owl", "3,4,5.125,6", "test"),
        )
    ) + "c.jpg,owl,1,2,29,39,train\n"  # fmt: skip
    for name in "abde":
        picture(tmp_path / f"in/{name}.png", ord(name))
    (tmp_path / "in/boxes.csv").write_text(text, encoding="utf-8")
    source = opened(tmp_path / "in", classes=("zebra", "owl", "cat & dog"))
    written = convert(source, tmp_path / "out", layout)
    assert written.lost == []
    assert written.copied == 5
    back = opened(written.path)
    same(source, back, within)
    again = convert(back, tmp_path / "again", "coco")
    same(source, opened(again.path), within)
    assert (back.splits["train"].read(2) == source.splits["train"].read(2)).all()


def test_what_a_format_cannot_hold_is_named(tmp_path: Path) -> None:
    source = opened(coco(tmp_path / "in", annotations=[
        {"image_id": 70, "category_id": 3, "bbox": [-2, 1, 9, 9], "iscrowd": 1}]))  # fmt: skip
    (crowd, cut) = convert(source, tmp_path / "voc", "voc").lost
    assert "1 box of crowds became plain boxes" in crowd
    assert "1 box cut at the left or upper edge" in cut
    assert len(convert(source, tmp_path / "yolo", "yolo").lost) == 1
    for layout in ("coco", "csv"):
        found = convert(source, tmp_path / layout, layout)
        assert found.lost == []
        assert boxes_of(opened(found.path)).crowd_X.tolist() == [True]
    with pytest.raises(UserError, match="boxes have no place in this layout"):
        convert(source, tmp_path / "no", "folder")


@pytest.mark.parametrize("make", [voc, yolo, coco])
def test_boxes_are_refused_where_no_boxes_are_learned(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    with pytest.raises(UserError, match="the annotations are boxes"):
        open_dataset(DataConfig(path=str(make(tmp_path))))


def test_a_description_joins_boxes_of_several_paths(tmp_path: Path) -> None:
    for split, label in (("train", "owl"), ("val", "cat")):
        picture(tmp_path / split / "a.png", len(split))
        (tmp_path / split / "boxes.csv").write_text(
            f"path,label,xmin,ymin,xmax,ymax\na.png,{label},1,2,3,4\n", encoding="utf-8"
        )
    (tmp_path / "all.yaml").write_text("splits: {train: train, val: val}\n", encoding="utf-8")
    dataset = opened(tmp_path / "all.yaml")
    assert dataset.classes == ("cat", "owl")
    assert rows(dataset)["a"] == [("owl", [1, 2, 3, 4])]
    assert rows(dataset, "val")["a"] == [("cat", [1, 2, 3, 4])]
