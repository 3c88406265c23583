"""Shared functions of sources that read boxes of image files: pairs of files, splits, units, the dataset."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from vitral.data.boxes import BoxRow, Size, Unpaired, as_boxes, refuse_many
from vitral.data.config import DataConfig
from vitral.data.dataset import SPLITS, Dataset
from vitral.data.decode import header
from vitral.data.files import (
    Ignored,
    class_map,
    encoded_dataset,
    files_part,
    ignored_notes,
    labeled_files,
    size_in_bytes,
    some,
)
from vitral.data.folder_names import SPLIT_OF, any_of
from vitral.errors import UserError, plural, shown

_SPLIT = re.compile(rf"(?:^|[/\\_.-])({any_of(SPLIT_OF)})(?=[/\\_.\-\d]|$)")


class BoxFile(NamedTuple):
    """An image and its boxes. name: below the dataset's folder, with "/". size: (height, width) as the annotations
    state it, or 0, 0. normalized: coordinates are shares of the image's sides."""

    name: str
    rows: Sequence[BoxRow]
    size: Size = (0, 0)
    normalized: bool = False


def split_in(name: str) -> str | None:
    """The split that a file name says, if any: instances_val2017, train.csv."""
    found = _SPLIT.findall(name.lower())
    return SPLIT_OF[found[-1]] if found else None


def box_dataset(
    root: Path,
    found: Mapping[str, Sequence[BoxFile]],
    config: DataConfig,
    notes: Iterable[str],
    declared: Sequence[str] | None = None,
    unpaired: Unpaired | None = None,
) -> Dataset:
    """The dataset of these files, by split, with the boxes as the source gives them.

    Class indices follow `config.classes`, or the classes that the source declares, or the sorted ones in use. Sizes of
    images are read from their headers where coordinates are shares of them; a damaged image, which the check names,
    keeps the shares. Notes count crowds, boxes that are not trained on, and what has no counterpart. The fingerprint
    covers names, boxes, classes, and the size in bytes of each file. Raises UserError where no split is for training,
    and for more than 10,000 boxes on one image.
    """
    splits = {split: found[split] for split in SPLITS if found.get(split)}
    if "train" not in splits:
        names = " and ".join(splits) or "no split"
        raise UserError(f"images with boxes for {names} but none for train", where=str(root))
    labels = {shown(row.label) for files in splits.values() for file in files for row in file.rows}
    index_of = class_map(labels | set(declared or ()), config.classes or declared, str(root))
    parts, boxes = {}, {}
    for split, files in splits.items():
        rows = [_in_pixels(root, file) for file in files]
        boxes[split] = as_boxes(rows, [file.size for file in files], index_of)
        parts[split] = files_part(root, [file.name for file in files], boxes[split].hot(len(index_of)))
    content = [os.fsencode(name) for name in index_of]
    for split, files in splits.items():
        sizes = (f"{split}\0{file.name}\0{size_in_bytes(os.path.join(root, file.name))}" for file in files)
        content += [*map(os.fsencode, sizes), boxes[split].content()]
    dataset = encoded_dataset(root.resolve().name, index_of, parts, config, notes, content)
    return with_boxes(dataset, boxes, unpaired or Unpaired())


def with_boxes(dataset: Dataset, boxes: Mapping[str, object], unpaired: Unpaired) -> Dataset:
    """The dataset with boxes in its splits, and notes that count what a reader would not expect."""
    splits = {name: replace(split, boxes=boxes[name]) for name, split in dataset.splits.items()}
    every = [split.boxes for split in splits.values() if split.boxes is not None]
    crowds, thin = sum(int(each.crowd_X.sum()) for each in every), sum(int(each.degenerate().sum()) for each in every)
    notes = [f"boxes: {sum(len(each.boxes_X4) for each in every):,} on {sum(map(len, every)):,} images"]
    if crowds:
        notes.append(f"{plural(crowds, 'box is', 'boxes are')} of crowds: not trained on, ignored in evaluation")
    if thin:
        names = [
            f"{splits[name].names[place]}" for name in splits if (own := splits[name].boxes) is not None
            for place in own.image_X[own.degenerate()].tolist()
        ]  # fmt: skip
        what = plural(thin, "box is", "boxes are")
        notes.append(f"{what} under one pixel wide or high, and not trained on: {some(dict.fromkeys(names), 5)}")
    if unpaired.labels:
        what = plural(len(unpaired.labels), "annotation has", "annotations have")
        notes.append(f"{what} no image and {'is' if len(unpaired.labels) == 1 else 'are'} not read: "
                     f"{some(unpaired.labels, 5)}")  # fmt: skip
    if unpaired.images:
        what = plural(len(unpaired.images), "image has", "images have")
        becomes = "no label file, and counts as without boxes" if unpaired.kept else "no annotation, and is not read"
        notes.append(f"{what} {becomes}: {some(unpaired.images, 5)}")
    return replace(dataset, splits=splits, notes=(*dataset.notes, *notes), unpaired=unpaired)


def _in_pixels(root: Path, file: BoxFile) -> list[BoxRow]:
    refuse_many(len(file.rows), str(root / file.name))
    rows = [row._replace(label=shown(row.label)) for row in file.rows]
    if not file.normalized or not rows:
        return rows
    height, width = 1, 1
    with suppress(UserError):
        head = header(str(root / file.name))
        height, width = head.height, head.width
    return [
        row._replace(corners=(x0 * width, y0 * height, x1 * width, y1 * height))
        for row in rows for x0, y0, x1, y1 in [row.corners]
    ]  # fmt: skip


class Pairs(NamedTuple):
    """Images and their label files by the split that their folders say, "" for none: (image, label file or None), both
    below the root with "/"."""

    by_split: dict[str, list[tuple[str, str | None]]]
    unpaired: Unpaired
    notes: list[str]


def pair_files(root: Path, ending: str, images: Sequence[str], labels: Sequence[str]) -> Pairs:
    """Images and label files of the same path below `root`, without endings and without the folders `images`, `labels`,
    Annotations and the like (the two lists, in small letters). Raises UserError for a label file of two images."""
    ignored = Counter[Ignored]()
    found = [file.name for file in labeled_files(root, root, "", ignored)]
    ignored = Counter({kind: count for kind, count in ignored.items() if ending not in kind[0]})
    containers = {*images, *labels}

    def key(name: str) -> str:
        *folders, file = name.split("/")
        return "/".join([*(each for each in folders if each.lower() not in containers), os.path.splitext(file)[0]])

    def in_labels(name: str) -> bool:
        return any(each.lower() in labels for each in name.split("/")[:-1])

    among = [name for name in found if in_labels(name)]  # masks or previews
    if among:
        ignored["image among the label files", "images among the label files"] += len(among)
        found = [name for name in found if not in_labels(name)]
    twice = [name for name, count in Counter(map(key, found)).items() if count > 1]
    if twice:
        raise UserError(f"several images of one name, and one label file: {some(twice, 5)}", where=str(root))
    files = {key(name): name for name in _walk_endings(root, ending)}
    by_split: dict[str, list[tuple[str, str | None]]] = {}
    bare: list[str] = []
    for name in found:
        label = files.pop(key(name), None)
        folders = [SPLIT_OF[each.lower()] for each in name.split("/")[:-1] if each.lower() in SPLIT_OF]
        by_split.setdefault(folders[0] if folders else "", []).append((name, label))
        bare += [name] if label is None else []
    return Pairs(by_split, Unpaired(tuple(sorted(files.values())), tuple(bare)), ignored_notes(ignored))


def by_folders(root: Path, pairs: Pairs) -> dict[str, list[tuple[str, str | None]]]:
    """The pairs by the splits that their folders say; all are train where none says one. Raises UserError for images
    outside of these folders."""
    if set(pairs.by_split) > {""}:
        names = some([name for name, _ in pairs.by_split[""]], 5)
        raise UserError(f"images outside of the folders of splits: {names}", where=str(root))
    return {split or "train": own for split, own in pairs.by_split.items()}


def _walk_endings(root: Path, ending: str) -> list[str]:
    """Files of this ending at any depth, sorted, below the root with "/"; hidden ones are left out."""
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(folder).relative_to(root)
        found += [(here / name).as_posix() for name in files if name.lower().endswith(ending) and name[0] != "."]
    return sorted(found)
