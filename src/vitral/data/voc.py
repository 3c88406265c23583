"""Read boxes in the format of Pascal VOC: an XML file per image.

Its pixels are counted from 1, and the last one belongs to the box: x0 = xmin - 1, x1 = xmax. Many programs write
numbers from 0 into the same format; where one xmin or ymin of a data set is 0, all of them are read so: x0 = xmin.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

from vitral.data.box_files import BoxFile, Pairs, box_dataset, by_folders, pair_files
from vitral.data.boxes import BoxRow, Size, corners
from vitral.data.config import DataConfig
from vitral.data.dataset import SPLITS, Dataset
from vitral.data.files import some
from vitral.errors import UserError, plural
from vitral.files import read_bounded, read_lines

_BYTES = 16 * 2**20  # of one XML file
_DEPTH = 16
_EDGES = ("xmin", "ymin", "xmax", "ymax")
IMAGES, LABELS = ("jpegimages", "images"), ("annotations", "labels", "xmls", "xml")
LAYOUT = "Annotations/*.xml and JPEGImages/*.jpg, perhaps ImageSets/Main/train.txt; or *.xml beside the images"


class VocObject(NamedTuple):
    """One object of an XML file: its class, the four numbers as they stand there, whether it is called difficult."""

    label: str
    edges: tuple[float, float, float, float]
    difficult: bool


def looks_like_voc(root: Path) -> bool:
    """Whether XML files lie in a folder, in one for annotations in it, or in one for train."""
    names = [name for name in os.listdir(root) if name.lower() in (*LABELS, "train")]
    places = [place for place in (root, *(root / name for name in names)) if place.is_dir()]
    return any(name.lower().endswith(".xml") for place in places for name in os.listdir(place))


def open_voc(config: DataConfig) -> Dataset:
    """The images below `config.path` and the boxes of the XML files of the same names.

    Splits are the folders train, val and test, or else the lists in ImageSets/Main (trainval is train where no list
    train is), or else all is train. An image without an XML file has no boxes; XML files without an image are not read;
    both are counted in notes. Objects called difficult are read like others. Class indices follow the sorted names, or
    `config.classes`. Raises UserError, with file and line, for XML that is damaged or declares entities, and for boxes
    that are none.
    """
    root = config.place
    pairs = pair_files(root, ".xml", IMAGES, LABELS)
    objects: dict[str, list[VocObject]] = {}
    sizes: dict[str, Size] = {}
    labels = [label for own in pairs.by_split.values() for _, label in own if label is not None]
    if not labels:
        raise UserError("no XML file with an image of the same name", where=str(root), expected=LAYOUT)
    for label in labels:
        sizes[label], objects[label] = read_voc(root / label)
    first = 0.0 if any(min(each.edges[:2]) == 0 for own in objects.values() for each in own) else 1.0
    found = {
        split: [
            _file(image, objects.get(label or "", ()), sizes.get(label or "", (0, 0)), first) for image, label in own
        ]
        for split, own in _listed(root, pairs).items()
    }
    words = "from 0: an xmin or ymin is 0" if first == 0 else "from 1, the last one included (no xmin or ymin is 0)"
    notes = [*pairs.notes, f"pixels of the XML files are counted {words}"]
    if difficult := sum(each.difficult for own in objects.values() for each in own):
        notes.append(f"{plural(difficult, 'object is', 'objects are')} called difficult, and read like others")
    return box_dataset(root, found, config, notes, None, pairs.unpaired)


def _file(image: str, objects: Sequence[VocObject], size: Size, first: float) -> BoxFile:
    rows = [BoxRow((x0 - first, y0 - first, x1, y1), each.label) for each in objects for x0, y0, x1, y1 in [each.edges]]
    return BoxFile(image, rows, size)


def _listed(root: Path, pairs: Pairs) -> dict[str, list[tuple[str, str | None]]]:
    """The images by the lists in ImageSets/Main, where no folder says a split. Raises UserError for an image in two of
    them, and for names of no image."""
    folder = root / "ImageSets" / "Main"
    lists = {split: folder / f"{split}.txt" for split in SPLITS if (folder / f"{split}.txt").is_file()}
    if "train" not in lists and (folder / "trainval.txt").is_file():
        lists["train"] = folder / "trainval.txt"
    if set(pairs.by_split) != {""} or "train" not in lists:
        return by_folders(root, pairs)
    here = {Path(image).stem: (image, label) for image, label in pairs.by_split[""]}
    names = {split: [line.split()[0] for line in read_lines(path) if line.strip()] for split, path in lists.items()}
    twice = [name for name, count in Counter(name for own in names.values() for name in own).items() if count > 1]
    lost = [name for own in names.values() for name in own if name not in here]
    if twice or lost:
        what = f"{plural(len(twice or lost), 'name')} {'that come twice' if twice else 'of no image'}"
        raise UserError(f"{what}: {some(twice or lost, 5)}", where=str(folder))
    rest = here.keys() - {name for own in names.values() for name in own}
    if rest:
        pairs.notes.append(
            f"{plural(len(rest), 'image is', 'images are')} in no list of {folder.relative_to(root)}, and not read: "
            + some(sorted(rest), 5)
        )
    return {split: [here[name] for name in own] for split, own in names.items()}


def read_voc(path: Path) -> tuple[Size, list[VocObject]]:
    """Stated (height, width), or 0, 0, and the objects of a VOC file. Nothing outside of the file is read, entities are
    refused, depth and size are bounded. Raises UserError with the line."""
    reader = _Reader(path)
    reader.read(read_bounded(path, _BYTES))
    return reader.size, reader.objects


class _Reader:
    """Takes the events of expat; holds the text of the elements that are read, by their path."""

    def __init__(self, path: Path) -> None:
        self.path, self.size, self.objects = path, (0, 0), list[VocObject]()
        self._open: list[str] = []
        self._text: dict[str, str] = {}
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.StartDoctypeDeclHandler = self._refuse  # with it, entities and external files

    def read(self, content: bytes) -> None:
        try:
            self._parser.Parse(content, True)
        except expat.ExpatError as error:
            what = f"not readable as XML: {expat.ErrorString(error.code)}"
            raise UserError(what, where=f"{self.path}:{error.lineno}") from None
        except (LookupError, ValueError) as error:
            raise UserError(f"not readable as XML: {error}", where=str(self.path)) from None

    def _where(self) -> str:
        return f"{self.path}:{self._parser.CurrentLineNumber}"

    def _refuse(self, *_: object) -> None:
        raise UserError("a document type, which may declare entities", where=self._where(), expected="plain VOC XML")

    def _start(self, name: str, _: dict[str, str]) -> None:
        if len(self._open) >= _DEPTH:
            raise UserError(f"nested deeper than {_DEPTH} elements", where=self._where())
        if not self._open and name != "annotation":
            raise UserError("not the format of VOC", where=self._where(), got=f"<{name[:40]}>", expected="<annotation>")
        self._open.append(name)
        if self._open == ["annotation", "object"]:
            self._text = {}

    def _characters(self, text: str) -> None:
        path = "/".join(self._open[1:])
        if path.startswith(("object/name", "object/bndbox/", "object/difficult", "size/")):
            self._text[path] = self._text.get(path, "") + text

    def _end(self, name: str) -> None:
        self._open.pop()
        if self._open != ["annotation"]:
            return
        if name == "size":
            sides = [self._text.get(f"size/{side}", "").strip() for side in ("height", "width")]
            if all(side.isdecimal() and len(side) < 10 and int(side) for side in sides):
                self.size = int(sides[0]), int(sides[1])
        elif name == "object":
            label = self._text.get("object/name", "").strip()
            edges = [self._text.get(f"object/bndbox/{edge}", "").strip() for edge in _EDGES]
            if not label:
                raise UserError("an object without a name", where=self._where())
            found = corners(edges, self._where())
            self.objects.append(VocObject(label, found, self._text.get("object/difficult", "").strip() == "1"))
