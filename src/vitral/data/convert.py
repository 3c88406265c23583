"""Write any data set as image files in one of several common layouts.

Shape letters: C channels, H height, W width.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from vitral.atomic_files import interrupted, recover, whole_folder
from vitral.config import dump_yaml
from vitral.data.convert_boxes import image_stems, refuse_layout, write_boxes
from vitral.data.damaged_images import without_damage
from vitral.data.dataset import Dataset, Split
from vitral.data.filename_labels import DEFAULT
from vitral.data.regression_targets import refuse_numbers
from vitral.errors import UserError, taken

Layout = Literal["folder", "flat", "csv", "coco", "voc", "yolo"]

_FORBIDDEN = re.compile(r'[/\\:*?"<>|\x00-\x1f]')


class Converted(NamedTuple):
    """What was written: the path that `data=` takes, the dataset without damaged images, how many of its images are
    copies of files, and what the layout could not hold, one sentence each."""

    path: Path
    dataset: Dataset
    copied: int
    lost: list[str]


def convert(dataset: Dataset, out: Path, layout: Layout, workers: int | None = None, max_bad: int = 0) -> Converted:
    """Write every image with its split and label below `out`.

    folder: SPLIT/CLASS/00017.png; flat: SPLIT/CLASS_00017.png; csv: SPLIT/00017.png and manifest.csv (path, label,
    split), or, where images have several labels, manifest.jsonl. The number is the image's place in its split. Images
    that are files are copied as they are, others become PNG files of the dataset's channels. Where the order of the
    classes isn't the sorted one, or one has no image, a description OUT/OUT.yaml keeps it. Data with boxes are written
    as coco, voc, yolo or csv: see `convert_boxes`. Images are decoded once; up to `max_bad` damaged ones are left out.
    Raises UserError for a folder that holds something, for more damaged images (nothing stays written then), class
    names that no file may have, and several labels per image in the layouts that have room for one.
    """
    _refuse(dataset, out, layout)
    with whole_folder(out) as folder:
        written, damage, copied = _write_splits(dataset, folder, layout, workers)
        dataset, lost = without_damage(dataset, damage, max_bad), list[str]()
        if dataset.task == "detection":
            path, lost = write_boxes(dataset, folder, layout, written, _needs_order(dataset))
            return Converted(out / path.relative_to(folder), dataset, copied, lost)
        path = _manifest(dataset, folder, written) if layout == "csv" else folder
        if (described := _description(dataset, path, layout)) is not None:
            path = folder / f"{out.resolve().name}.yaml"
            path.write_text(described, encoding="utf-8")
    return Converted(out / path.relative_to(folder), dataset, copied, lost)


def _write_splits(
    dataset: Dataset, out: Path, layout: Layout, workers: int | None
) -> tuple[dict[str, list[str]], dict[str, dict[int, str]], int]:
    """The names of the files of each split, what is wrong with its damaged images, and how many files are copies."""
    written: dict[str, list[str]] = {}
    damage: dict[str, dict[int, str]] = {}
    copied = 0
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for name, split in dataset.splits.items():
            stems = _stems(dataset, split, name, layout)
            for folder in {str(Path(stem).parent) for stem in stems}:
                (out / folder).mkdir(parents=True, exist_ok=True)
            done = list(pool.map(lambda index, s=split, t=stems: _write(s, index, out / t[index]), range(len(split))))
            written[name] = [stem + one.ending for stem, one in zip(stems, done, strict=True) if one.damage is None]
            damage[name] = {index: one.damage for index, one in enumerate(done) if one.damage is not None}
            copied += sum(one.copy for one in done)
    return written, damage, copied


def _description(dataset: Dataset, path: Path, layout: Layout) -> str | None:
    """A description that keeps the classes, where reading the path alone would not."""
    if not _needs_order(dataset):
        return None
    source = {"folder": "folder", "flat": "filename", "csv": "table"}[layout]
    tree = {"source": source, "path": path.name if layout == "csv" else ".", "classes": list(dataset.classes)}
    return dump_yaml(tree)


def _needs_order(dataset: Dataset) -> bool:
    """Whether the classes, read back as those in use and sorted, would be others."""
    counts_K = sum(split.class_counts(len(dataset.classes)) for split in dataset.splits.values())
    return list(dataset.classes) != sorted(dataset.classes) or not np.all(counts_K)


def _refuse(dataset: Dataset, out: Path, layout: Layout) -> None:
    refuse_numbers(dataset)
    refuse_layout(dataset, layout)
    recover(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not interrupted(out):
        raise taken(out)
    if layout == "csv" or dataset.task == "detection":
        return
    if dataset.multi_label:
        raise UserError(
            "images with several labels have no place in this layout", where="layout", got=layout, expected="csv"
        )
    lowered: dict[str, str] = {}
    for label in dataset.classes:
        # Windows cuts off a trailing dot or space; a leading dot hides the folder; equal but for case is one folder.
        twin = lowered.setdefault(label.lower(), label)
        if not label or _FORBIDDEN.search(label) or label[0] == "." or label[-1] in ". " or twin != label:
            hint = "layout=csv takes any class name."
            raise UserError(
                "no file on every system can carry this class name", where="layout", got=repr(label), hint=hint
            )
        match = re.search(DEFAULT, f"{label}_00000.png")
        if layout == "flat" and (match is None or match["label"] != label):
            raise UserError("this class name can't be read back from a file name", where="layout", got=repr(label))


def _stems(dataset: Dataset, split: Split, name: str, layout: Layout) -> list[str]:
    """The paths of a split's files, without their endings."""
    if dataset.task == "detection":
        return image_stems(split, name, layout)
    digits = max(5, len(str(len(split) - 1)))
    numbers = [f"{index:0{digits}d}" for index in range(len(split))]
    if layout == "csv":
        return [f"{name}/{number}" for number in numbers]
    between = "/" if layout == "folder" else "_"
    labels = (dataset.classes[label] for label in split.labels_N.tolist())
    return [f"{name}/{label}{between}{number}" for label, number in zip(labels, numbers, strict=True)]


class _Written(NamedTuple):
    """One image: the ending of its name, whether it is a copy; or what is wrong with it."""

    ending: str = ""
    copy: bool = False
    damage: str | None = None


def _write(split: Split, index: int, path: Path) -> _Written:
    try:
        image_CHW = split.read(index)
    except UserError as error:
        return _Written(damage=error.what)
    file = split.file(index) if split.file is not None else None
    if isinstance(file, str):
        ending = os.path.splitext(file)[1].lower() or ".img"
        shutil.copyfile(file, f"{path}{ending}")
        return _Written(ending, True)
    pixels_HWC = np.ascontiguousarray(image_CHW.numpy().transpose(1, 2, 0))
    Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[2] == 1 else pixels_HWC).save(f"{path}.png")
    return _Written(".png")


def _manifest(dataset: Dataset, out: Path, names: dict[str, list[str]]) -> Path:
    rows = [
        (name, labels, split)
        for split, paths in names.items()
        for name, labels in zip(paths, dataset.labels(split), strict=True)
    ]
    path = out / ("manifest.jsonl" if dataset.multi_label else "manifest.csv")
    with path.open("w", encoding="utf-8", newline="") as file:
        if dataset.multi_label:
            trees = ({"path": name, "labels": labels, "split": split} for name, labels, split in rows)
            file.writelines(json.dumps(tree, ensure_ascii=False) + "\n" for tree in trees)
        else:
            writer = csv.writer(file)
            writer.writerow(["path", "label", "split"])
            writer.writerows((name, *labels, split) for name, labels, split in rows)
    return path
