"""Read boxes in the format of COCO: a JSON file per split, with lists of images, annotations and categories.

`bbox` is (x0, y0, width, height) in pixels. Ids are any numbers, with gaps; class indices follow the ids' order.
"""

from __future__ import annotations

import mmap
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitral.data.box_files import BoxFile, box_dataset, split_in
from vitral.data.boxes import BoxRow, Size, Unpaired, corners
from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset
from vitral.data.files import loose_images, some, subfolders
from vitral.data.folder_names import SPLIT_OF
from vitral.errors import UserError, plural, shown
from vitral.files import open_regular, parse_json, read_bounded

_BYTES = 2**30  # of one JSON file: that of COCO's 118,287 train images has 450 MB
_ITEMS = 100_000_000
_SHOWN = 5
_MARKS = (b'"images"', b'"annotations"', b'"categories"', b'"bbox"')
LAYOUT = "annotations/instances_train.json (images, annotations, categories) beside the images"


def coco_files(root: Path) -> dict[str, Path]:
    """The JSON files with boxes in a folder, by split: in it, in `annotations`, and in the folders of splits. Several
    of one split are those called instances_*, where there is one. Raises UserError for several others."""
    names = [name for name in subfolders(root) if name.lower() in ("annotations", "labels") or name.lower() in SPLIT_OF]
    places = [root, *(root / name for name in names)]
    found: dict[str, list[Path]] = {}
    for path in (path for place in places for path in sorted(place.glob("*.json")) if looks_like_coco(path)):
        split = split_in(path.stem) or SPLIT_OF.get(path.parent.name.lower() if path.parent != root else "", "")
        found.setdefault(split, []).append(path)
    single: dict[str, Path] = {}
    for split, paths in found.items():
        instances = [path for path in paths if path.name.startswith("instances")] or paths
        if len(instances) > 1 or (split == "" and len(found) > 1):
            names = some(str(path.relative_to(root)) for path in (instances if len(instances) > 1 else paths))
            what = f"of {split}" if split else "whose names say no split"
            raise UserError(f"several files with boxes {what}: {names}", where=str(root), hint="Name one: data=FILE.")
        single[split or "train"] = instances[0]
    return single


def looks_like_coco(path: Path) -> bool:
    """Whether a JSON file has the lists of COCO, by its keys alone; nothing is parsed."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if not 0 < size <= _BYTES:
                return False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return all(content.find(mark) >= 0 for mark in _MARKS)
    except (UserError, OSError):
        return False


def open_coco(config: DataConfig) -> Dataset:
    """The images and boxes of a COCO JSON file, or of a folder of them (see `coco_files`).

    Images lie beside the file, or beside its folder in a folder called like the split, `images` or both. An image
    without annotations has no boxes; `iscrowd` marks crowds. `config.box_format` and `box_unit` read files that hold
    other numbers than the format says. Images that no file lists are not read, and counted in a note. Raises UserError
    with the entry for ids that come twice or are unknown, boxes that are none, and images that are missing.
    """
    path = config.place
    files = {"train": path} if path.is_file() else coco_files(path)
    if not files:
        raise UserError("no JSON file with boxes here", where=str(path), expected=LAYOUT)
    root = path.parent if path.is_file() else path
    trees = {split: _tree(file) for split, file in files.items()}
    found: dict[str, list[BoxFile]] = {}
    names: dict[str, dict[Any, str]] = {split: _categories(tree, files[split]) for split, tree in trees.items()}
    lost: list[str] = []
    listed: set[str] = set()
    folders: set[Path] = set()
    for split, tree in trees.items():
        images = _images(tree, files[split])
        folder = _image_folder(files[split], [name for name, _ in images.values()])
        rows, strangers = _rows(tree, images, names[split], config, files[split])
        lost += strangers
        folders.add(folder)
        for key, (name, size) in images.items():
            whole = os.path.relpath(folder / name, root).replace(os.sep, "/")
            listed.add(os.path.normpath(folder / name))
            found.setdefault(split, []).append(BoxFile(whole, rows[key], size, config.box_unit == "normalized"))
    _refuse_missing(root, found)
    declared = list(dict.fromkeys(shown(name) for own in names.values() for name in own.values()))
    more = sorted(
        os.path.relpath(folder / name, root).replace(os.sep, "/")
        for folder in folders for name in loose_images(folder) if os.path.normpath(folder / name) not in listed
    )  # fmt: skip
    notes = [f"boxes of {', '.join(f'{split}: {file.relative_to(root)}' for split, file in files.items())}"]
    return box_dataset(root, found, config, notes, declared, Unpaired(tuple(lost), tuple(more), kept=False))


def _tree(path: Path) -> dict[str, Any]:
    tree = parse_json(read_bounded(path, _BYTES), where=str(path), max_items=_ITEMS)
    lists = ("images", "annotations", "categories")
    if not isinstance(tree, dict) or not all(isinstance(tree.get(name), list) for name in lists):
        raise UserError("not the format of COCO", where=str(path), expected=f"an object with the lists {some(lists)}")
    for name in lists:
        for place, entry in enumerate(tree[name]):
            if not isinstance(entry, dict):
                raise UserError("an object is expected", where=f"{path}: {name}[{place}]", got=repr(entry)[:80])
    return tree


def _key(entry: dict[str, Any], name: str, where: str) -> Any:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"no {name}", where=where, got=repr(value)[:80], expected="a whole number, or text")
    return value


def _categories(tree: dict[str, Any], path: Path) -> dict[Any, str]:
    """Class names by id, in the order of the ids."""
    names: dict[Any, str] = {}
    for place, entry in enumerate(tree["categories"]):
        where = f"{path}: categories[{place}]"
        key, name = _key(entry, "id", where), entry.get("name")
        if key in names or not isinstance(name, str) or not name.strip():
            raise UserError("an id that comes twice" if key in names else "no name", where=where, got=repr(entry)[:80])
        names[key] = name.strip()
    return dict(sorted(names.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _images(tree: dict[str, Any], path: Path) -> dict[Any, tuple[str, Size]]:
    """File name and stated size of each image, by id."""
    images: dict[Any, tuple[str, Size]] = {}
    for place, entry in enumerate(tree["images"]):
        where = f"{path}: images[{place}]"
        key, name = _key(entry, "id", where), entry.get("file_name")
        if key in images or not isinstance(name, str) or not name.strip():
            what = "an id that comes twice" if key in images else "no file_name"
            raise UserError(what, where=where, got=repr(entry)[:80])
        sides = [entry.get("height"), entry.get("width")]
        whole = all(isinstance(side, int | float) and 0 < side < 2**31 for side in sides)
        images[key] = name, (round(sides[0]), round(sides[1])) if whole else (0, 0)
    twice = [name for name, count in Counter(name for name, _ in images.values()).items() if count > 1]
    if twice:
        raise UserError(f"{plural(len(twice), 'image')} listed twice: {some(twice, _SHOWN)}", where=str(path))
    return images


def _rows(
    tree: dict[str, Any], images: dict[Any, Any], names: dict[Any, str], config: DataConfig, path: Path
) -> tuple[dict[Any, list[BoxRow]], list[str]]:
    """The boxes of each image, and the annotations of images that are not listed."""
    rows: dict[Any, list[BoxRow]] = {key: [] for key in images}
    strangers: list[str] = []
    form = config.box_format or "xywh"
    for place, entry in enumerate(tree["annotations"]):
        where = f"{path}: annotations[{place}]"
        image, label = _key(entry, "image_id", where), _key(entry, "category_id", where)
        if label not in names:
            raise UserError("unknown category", where=where, got=label, expected=some(map(str, names)))
        if image not in images:
            strangers.append(f"{path.name}, annotation {place} of image {image}")
            continue
        box = entry.get("bbox")
        found = corners(box if isinstance(box, list) else [box], where, form)
        rows[image].append(BoxRow(found, names[label], entry.get("iscrowd") in (1, True)))
    return rows, strangers


def _image_folder(path: Path, names: Sequence[str]) -> Path:
    """Where the images of a JSON file lie: the first folder that holds most of the first twenty."""
    above = path.parent.parent
    split = split_in(path.stem) or ""
    called = [path.stem.removeprefix("instances_"), *(name for name, of in SPLIT_OF.items() if of == split)]
    places = [path.parent, path.parent / "images", *(above / name for name in called),
              *(above / "images" / name for name in called), above / "images", above]  # fmt: skip
    counts = [sum((place / name).is_file() for name in names[:20]) for place in places]
    if names and not max(counts):
        raise UserError(
            f"the images of this file are not there, such as {names[0]}", where=str(path),
            expected=f"in {path.parent}, {path.parent / 'images'}, {above / called[0]} or {above / 'images'}",
        )  # fmt: skip
    return places[counts.index(max(counts))]


def _refuse_missing(root: Path, found: dict[str, list[BoxFile]]) -> None:
    lost = [file.name for files in found.values() for file in files if not (root / file.name).is_file()]
    if lost:
        raise UserError(f"{plural(len(lost), 'image is', 'images are')} missing: {some(lost, _SHOWN)}", where=str(root))
