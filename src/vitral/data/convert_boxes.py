"""Write the annotations of data with boxes in the formats of COCO, VOC, YOLO, or as a table.

Shape letters: N images, M boxes of one image, 4 a box (x0, y0, x1, y1).
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

import numpy as np
import torch

from vitral.config import dump_yaml
from vitral.data.box_ops import to_cxcywh, to_xywh
from vitral.data.boxes import OwnBoxes
from vitral.data.dataset import Array, Dataset, Split
from vitral.errors import UserError, plural
from vitral.files import json_text

BOX_LAYOUTS = ("coco", "voc", "yolo", "csv")
_CROWDS_LOST = ("voc", "yolo")


class Written(NamedTuple):
    """What `data=` takes; what the format could not hold, one sentence each."""

    path: Path
    lost: list[str]


def image_stems(split: Split, name: str, layout: str) -> list[str]:
    """The paths of a split's images, without their endings, as each format lays them out."""
    digits = max(5, len(str(len(split) - 1)))
    folder = {"coco": f"{name}/", "csv": f"{name}/", "yolo": f"images/{name}/", "voc": f"JPEGImages/{name}_"}[layout]
    return [f"{folder}{index:0{digits}d}" for index in range(len(split))]


def write_boxes(
    dataset: Dataset, out: Path, layout: str, files: Mapping[str, list[str]], classes_order: bool
) -> Written:
    """Write the annotations of all splits below `out`, beside the images `files`, one for each image of each split.

    coco: annotations/instances_SPLIT.json, ids from 1; voc: Annotations and ImageSets/Main, pixels from 1; yolo: labels
    and data.yaml, shares with 6 decimals; csv: boxes.csv. Sizes are those of the upright images. Boxes are written as
    they are; VOC cannot hold any that begin left of or above the image, which are cut there. classes_order: whether
    reading the result back needs a description that keeps the order of the classes. Raises UserError for an image whose
    size cannot be read.
    """
    lost: list[str] = []
    every = [split.boxes for split in dataset.splits.values() if split.boxes is not None]
    crowds = sum(int(each.crowd_X.sum()) for each in every)
    if crowds and layout in _CROWDS_LOST:
        lost.append(f"{plural(crowds, 'box', 'boxes')} of crowds became plain boxes: {layout} has no mark for them")
    path = {"coco": _coco, "voc": _voc, "yolo": _yolo, "csv": _table}[layout](dataset, out, files, lost)
    if layout in ("voc", "csv") and classes_order:
        source = {"voc": "voc", "csv": "box_table"}[layout]
        tree = {"source": source, "path": "." if layout == "voc" else path.name, "classes": list(dataset.classes)}
        path = out / "classes.yaml"
        path.write_text(dump_yaml(tree), encoding="utf-8")
    return Written(path, lost)


def _images(dataset: Dataset, files: Mapping[str, list[str]]) -> Iterator[tuple[str, str, int, int, OwnBoxes]]:
    """Split, file, height, width and boxes of every image."""
    for name, split in dataset.splits.items():
        assert split.boxes is not None
        for place, file in enumerate(files[name]):
            height, width = split.size(place) if split.size else split.read(place).shape[1:]
            yield name, file, int(height), int(width), split.boxes.of(place)


def _number(value: float, decimals: int) -> str:
    """Without a fraction where there is none."""
    return str(int(value)) if value == int(value) else f"{value:.{decimals}f}"


def _plain(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _coco(dataset: Dataset, out: Path, files: Mapping[str, list[str]], lost: list[str]) -> Path:
    (out / "annotations").mkdir()
    categories = [{"id": number, "name": name} for number, name in enumerate(dataset.classes, 1)]
    trees: dict[str, dict[str, list[Any]]] = {
        name: {"images": [], "annotations": [], "categories": categories} for name in files
    }
    for name, file, height, width, own in _images(dataset, files):
        images, annotations = trees[name]["images"], trees[name]["annotations"]
        number = len(images) + 1
        images.append({"id": number, "file_name": file.removeprefix(f"{name}/"), "height": height, "width": width})
        for row_4, label, crowd in zip(_converted(own.boxes_M4, to_xywh).tolist(), *own[1:], strict=True):
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": int(label) + 1,
                "bbox": [_plain(each) for each in row_4], "area": _plain(max(row_4[2], 0) * max(row_4[3], 0)),
                "iscrowd": int(crowd),
            })  # fmt: skip
    for name, tree in trees.items():
        (out / "annotations" / f"instances_{name}.json").write_text(json_text(tree), encoding="utf-8")
    return out


def _converted(boxes_M4: Array, convert: Any) -> Array:
    return convert(torch.from_numpy(np.ascontiguousarray(boxes_M4))).numpy()


def _voc(dataset: Dataset, out: Path, files: Mapping[str, list[str]], lost: list[str]) -> Path:
    (out / "Annotations").mkdir()
    (out / "ImageSets" / "Main").mkdir(parents=True)
    cut, depth = 0, dataset.channels
    for _, file, height, width, own in _images(dataset, files):
        stem, name = os.path.splitext(os.path.basename(file))[0], os.path.basename(file)
        lines = ["<annotation>", f"  <filename>{escape(name)}</filename>",
                 f"  <size><width>{width}</width><height>{height}</height><depth>{depth}</depth></size>"]  # fmt: skip
        for (x0, y0, x1, y1), label in zip(own.boxes_M4.tolist(), own.label_M.tolist(), strict=True):
            cut += x0 < 0 or y0 < 0
            edges = {"xmin": max(x0, 0) + 1, "ymin": max(y0, 0) + 1, "xmax": x1, "ymax": y1}
            words = "".join(f"<{edge}>{_number(value, 3)}</{edge}>" for edge, value in edges.items())
            lines.append(f"  <object><name>{escape(dataset.classes[label])}</name><bndbox>{words}</bndbox></object>")
        (out / "Annotations" / f"{stem}.xml").write_text("\n".join([*lines, "</annotation>\n"]), encoding="utf-8")
    for name, own in files.items():
        stems = (os.path.splitext(os.path.basename(file))[0] + "\n" for file in own)
        (out / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(stems), encoding="utf-8")
    if cut:
        lost.append(
            f"{plural(cut, 'box', 'boxes')} cut at the left or upper edge of the image: VOC counts pixels from 1"
        )
    return out


def _yolo(dataset: Dataset, out: Path, files: Mapping[str, list[str]], lost: list[str]) -> Path:
    for name in files:
        (out / "labels" / name).mkdir(parents=True)
    for name, file, height, width, own in _images(dataset, files):
        stem = os.path.splitext(os.path.basename(file))[0]
        shares_M4 = _converted(own.boxes_M4, to_cxcywh) / np.array([width, height, width, height])
        lines = [
            " ".join([str(label), *(f"{share:.6f}" for share in row_4)])
            for label, row_4 in zip(own.label_M.tolist(), shares_M4.tolist(), strict=True)
        ]
        text = "".join(line + "\n" for line in lines)
        (out / "labels" / name / f"{stem}.txt").write_text(text, encoding="utf-8")
    tree = {"path": ".", **{name: f"images/{name}" for name in files}, "names": dict(enumerate(dataset.classes))}
    path = out / "data.yaml"
    path.write_text(dump_yaml(tree), encoding="utf-8")
    return path


def _table(dataset: Dataset, out: Path, files: Mapping[str, list[str]], lost: list[str]) -> Path:
    path = out / "boxes.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split", "width", "height", "label", "xmin", "ymin", "xmax", "ymax", "crowd"])
        for name, image, height, width, own in _images(dataset, files):
            rows = zip(own.boxes_M4.tolist(), own.label_M.tolist(), own.crowd_M.tolist(), strict=True)
            written = [[dataset.classes[label], *map(_plain, row_4), int(crowd)] for row_4, label, crowd in rows]
            writer.writerows([image, name, width, height, *row] for row in written or [["", "", "", "", "", ""]])
    return path


def refuse_layout(dataset: Dataset, layout: str) -> None:
    """Raise UserError for boxes in a layout of classes, and for classes in one of boxes."""
    if dataset.task == "detection" and layout not in BOX_LAYOUTS:
        raise UserError(
            "boxes have no place in this layout", where="layout", got=layout, expected=", ".join(BOX_LAYOUTS)
        )
    if dataset.task != "detection" and layout in ("coco", "voc", "yolo"):
        raise UserError(
            "data without boxes in a layout for boxes", where="layout", got=layout, expected="folder, flat, csv"
        )
