"""Read boxes in the format of YOLO: a text file per image, `class center_x center_y width height` per line, as shares
of the image's sides, and data.yaml with the names of the classes and the folders of the splits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitral.config import load_yaml
from vitral.data.box_files import BoxFile, Pairs, box_dataset, by_folders, pair_files
from vitral.data.boxes import BoxRow, Unpaired, corners
from vitral.data.config import DataConfig
from vitral.data.dataset import SPLITS, Dataset
from vitral.data.files import some, subfolders
from vitral.data.folder_names import SPLIT_OF
from vitral.errors import UserError, plural
from vitral.files import read_lines

_BYTES = 16 * 2**20  # of one text file
_NOT_LABELS = ("classes.txt", "obj.names", "readme.txt", "requirements.txt")
YAMLS = ("data.yaml", "data.yml", "dataset.yaml")
IMAGES, LABELS = ("images",), ("labels",)
LAYOUT = "data.yaml (names, train, val), images/train/*.jpg and labels/train/*.txt"


def is_yolo_yaml(path: Path) -> bool:
    """Whether a YAML file names classes and the folder of a split at its top level, as YOLO's does."""
    try:
        tree = load_yaml(path)
    except (UserError, OSError):
        return False
    return "names" in tree and bool({"train", "val"} & tree.keys())


def looks_like_yolo(root: Path) -> bool:
    """Whether a folder has a data.yaml of YOLO, or folders `images` and `labels`, the latter with text files."""
    if any((root / name).is_file() and is_yolo_yaml(root / name) for name in YAMLS):
        return True
    named = {name.lower(): root / name for name in subfolders(root)}
    return {"images", "labels"} <= named.keys() and any(named["labels"].rglob("*.txt"))


def open_yolo(config: DataConfig) -> Dataset:
    """The images and boxes of a folder, or of its data.yaml.

    The label file of an image is found by replacing the folder `images` by `labels`, or lies beside it. Splits are the
    folders that data.yaml names, or folders train, val and test. Names of classes come from data.yaml, or classes.txt;
    else they are the numbers. An image without a label file has no boxes; label files without an image are not read;
    both are counted in notes. A polygon becomes the upright box about it. Raises UserError with file and line for
    lines that are none, and for unknown classes.
    """
    path = config.place
    described = next((path / name for name in YAMLS if (path / name).is_file()), None) if path.is_dir() else path
    tree = load_yaml(described) if described is not None else {}
    root = path if path.is_dir() else path.parent
    names = _names(tree, described, root)
    base = (
        root / str(tree["path"]) if isinstance(tree.get("path"), str) and (root / str(tree["path"])).is_dir() else root
    )
    pairs = _without_names(pair_files(base, ".txt", IMAGES, LABELS))
    by_split = _by_yaml(tree, base, pairs, described)
    if not any(label for own in by_split.values() for _, label in own):
        raise UserError("no label file with an image of the same name", where=str(base), expected=LAYOUT)
    polygons: list[str] = []

    found = {
        split: [
            BoxFile(image, _label_file(base / label, names, polygons) if label else (), normalized=True)
            for image, label in own
        ]
        for split, own in by_split.items()
    }
    notes = pairs.notes
    if names is None:
        notes.append("no data.yaml or classes.txt: the classes are called by their numbers")
        used = {row.label for own in found.values() for file in own for row in file.rows}
        names = sorted(used, key=int)
    if polygons:
        notes.append(f"{plural(len(polygons), 'polygon')} read as upright boxes, in {some(dict.fromkeys(polygons), 3)}")
    return box_dataset(base, found, config, notes, names, pairs.unpaired)


def _names(tree: Mapping[str, Any], described: Path | None, root: Path) -> list[str] | None:
    """The names of the classes in the order of their numbers; None where nothing says them."""
    names = tree.get("names")
    if isinstance(names, Mapping):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise UserError("numbers of classes with gaps", where=f"{described}: names", got=some(map(str, names)))
        names = [names[number] for number in range(len(names))]
    if names is None:
        files = [file for file in (root / "classes.txt", root / "labels" / "classes.txt") if file.is_file()]
        return [line.strip() for line in read_lines(files[0]) if line.strip()] if files else None
    if not isinstance(names, list) or not names:
        raise UserError("no list of names", where=f"{described}: names", got=repr(names)[:80])
    words = [str(name) for name in names]
    if len(set(words)) < len(words):
        raise UserError("classes named twice", where=f"{described}: names", got=some(words))
    return words


def _without_names(pairs: Pairs) -> Pairs:
    """classes.txt and the like are no label files without an image."""
    labels = tuple(name for name in pairs.unpaired.labels if name.rsplit("/", 1)[-1].lower() not in _NOT_LABELS)
    return pairs._replace(unpaired=Unpaired(labels, pairs.unpaired.images))


def _by_yaml(
    tree: Mapping[str, Any], base: Path, pairs: Pairs, described: Path | None
) -> dict[str, list[tuple[str, str | None]]]:
    """The images of the folders that data.yaml names; as the folders say where it names none."""
    named = {SPLIT_OF.get(str(key), ""): value for key, value in tree.items() if str(key) in SPLIT_OF and value}
    if not named:
        return by_folders(base, pairs)
    every = [pair for own in pairs.by_split.values() for pair in own]
    found: dict[str, list[tuple[str, str | None]]] = {}
    taken: set[str] = set()
    for split in (each for each in SPLITS if each in named):
        listed = named[split] if isinstance(named[split], list) else [named[split]]
        starts = [_folder(str(each), base, f"{described}: {split}") for each in listed]
        own = [pair for pair in every if any(start in ("", ".") or pair[0].startswith(f"{start}/") for start in starts)]
        if not own:
            raise UserError("no images here", where=f"{described}: {split}", got=some(map(str, listed)))
        twice = taken & {image for image, _ in own}
        if twice:
            raise UserError(f"images of two splits: {some(sorted(twice), 5)}", where=str(described))
        taken |= {image for image, _ in own}
        found[split] = own
    rest = [image for image, _ in every if image not in taken]
    if rest:
        what = plural(len(rest), "image is", "images are")
        pairs.notes.append(f"{what} in no folder that data.yaml names, and not read: {some(rest, 5)}")
    return found


def _folder(written: str, base: Path, where: str) -> str:
    """A folder that data.yaml names, below `base`. Exports of Roboflow begin with ../ for a folder beside the file."""
    plain = re.sub(r"^(\.\./)+", "", written.replace("\\", "/"))
    for place in (base / written, base / plain):
        if place.is_dir() and place.resolve().is_relative_to(base.resolve()):
            return place.resolve().relative_to(base.resolve()).as_posix()
    raise UserError("no such folder below the data", where=where, got=written, expected=f"a folder in {base}")


def _label_file(path: Path, names: Sequence[str] | None, polygons: list[str]) -> list[BoxRow]:
    rows: list[BoxRow] = []
    for line, text in enumerate(read_lines(path, _BYTES), 1):
        words, where = text.split(), f"{path}:{line}"
        if not words:
            continue
        number = words[0].removesuffix(".0")
        if not number.isdecimal() or len(number) > 6:
            raise UserError("no number of a class", where=where, got=text[:80], expected="class cx cy width height")
        if names is not None and int(number) >= len(names):
            raise UserError("unknown class", where=where, got=number, expected=f"0 to {len(names) - 1}")
        if len(words) >= 7 and len(words) % 2:
            x, y = ([corners([each] * 4, where)[0] for each in words[start::2]] for start in (1, 2))
            found = min(x), min(y), max(x), max(y)
            polygons.append(path.name)
        else:
            found = corners(words[1:], where, "cxcywh")
        rows.append(BoxRow(found, number if names is None else names[int(number)]))
    return rows
