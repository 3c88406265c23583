"""A folder of image files: DIR/train/<class>/*, DIR/val/<class>/*, DIR/test/<class>/*, or DIR/<class>/* alone.

A class's files are found at any depth below it. Hidden files, and `__MACOSX`, are no data.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset, Split, fingerprint, spaced
from vitral.data.decode import GREY_MODES, decode, header, readable_extensions
from vitral.errors import UserError

SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
LAYOUT = "DIR/<class>/*.png, or DIR/train/<class>/*.png with val and test beside train"
_ENDINGS = "files that end in .png, .jpg, .jpeg, .webp, .tif, .bmp, .gif or another image format"
_HEADERS = 2000


class _File(NamedTuple):
    name: str  # below the dataset's folder, with "/"
    label: str
    bytes: int


def open_folder(config: DataConfig) -> Dataset:
    """The images below `config.path`, one class a folder; class indices follow the train split's sorted class names.

    channels "auto": 1 if the headers of all train images (up to 2,000, evenly spaced) say grey, else 3. The fingerprint
    covers relative path, class and size in bytes of every file, not the pixels. Raises UserError where there is no
    image, no class folder, an empty class, or where the splits' classes differ.
    """
    assert config.path is not None
    root = Path(config.path).expanduser()
    ignored: Counter[str] = Counter()
    found = {split: _scan(root, folder, ignored) for split, folder in _split_folders(root, ignored).items()}
    classes = tuple(sorted({file.label for file in found["train"]}))
    for split, files in found.items():
        _same_classes(classes, {file.label for file in files}, f"{root}: split {split!r}")
    channels = _channels(root, found["train"]) if config.channels == "auto" else config.channels
    return Dataset(
        name=root.resolve().name,
        classes=classes,
        splits={split: _split(root, files, classes, channels) for split, files in found.items()},
        channels=channels,
        notes=tuple(f"ignored {count} {what}" for what, count in sorted(ignored.items())),
        fingerprint=fingerprint(
            os.fsencode(f"{split}\0{file.name}\0{file.label}\0{file.bytes}") for split in found for file in found[split]
        ),
    )


def images_below(folder: Path) -> list[Path]:
    """Every image file in a folder, at any depth, sorted."""
    return sorted(Path(path) for path, _ in _walk(folder, Counter()))


def _split_folders(root: Path, ignored: Counter[str]) -> dict[str, Path]:
    """Which folder holds which split; the root itself is the train split where there are no split folders."""
    folders = {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and not _hidden(path.name)}
    splits: dict[str, Path] = {}
    for split, names in SPLIT_FOLDERS.items():
        here = [name for name in names if name in folders]
        if len(here) > 1:
            raise UserError(f"two folders for one split: {' and '.join(here)}", where=str(root))
        if here:
            splits[split] = folders[here[0]]
    others = sorted(set(folders) - {path.name for path in splits.values()})
    if not splits or (others and not any(_has_folders(path) for path in splits.values())):
        return {"train": root}  # no split folders, or classes that happen to be called train or test
    if "train" not in splits:
        names = ", ".join(path.name for path in splits.values())
        raise UserError(f"a folder for {names} but none named train", where=str(root), wanted=LAYOUT)
    ignored.update({f"folder beside train: {name}": 1 for name in others})
    return splits


def _scan(root: Path, folder: Path, ignored: Counter[str]) -> list[_File]:
    """Every image below the class folders of one split, sorted by class, then name."""
    files: list[_File] = []
    empty: list[str] = []
    for label in sorted(path.name for path in folder.iterdir() if path.is_dir() and not _hidden(path.name)):
        paths = sorted(_walk(folder / label, ignored))
        empty.extend([] if paths else [label])
        files += [_File(Path(path).relative_to(root).as_posix(), label, size) for path, size in paths]
    loose = [entry.name for entry in os.scandir(folder) if entry.is_file() and _is_image(entry.name)]
    if not files and loose:
        raise UserError(
            f"{len(loose)} images lie directly in this folder, so their classes are unknown (one is {min(loose)})",
            where=str(folder),
            wanted=LAYOUT,
        )
    if empty:
        raise UserError(f"class folders without images: {_some(empty)}", where=str(folder), wanted=_ENDINGS)
    if not files:
        raise UserError("no images here", where=str(folder), wanted=f"{LAYOUT} ({_ENDINGS})")
    ignored.update({f"image(s) outside of the class folders, in {folder.name}": len(loose)} if loose else {})
    return files


def _walk(folder: Path, ignored: Counter[str], above: frozenset[str] = frozenset()) -> Iterator[tuple[str, int]]:
    """(path, bytes) of the images below; links are followed, but never in circles."""
    above |= {os.path.realpath(folder)}
    with os.scandir(folder) as entries:
        for entry in entries:
            if _hidden(entry.name):
                continue
            if entry.is_dir():
                if not entry.is_symlink() or os.path.realpath(entry.path) not in above:
                    yield from _walk(Path(entry.path), ignored, above)
            elif _is_image(entry.name):
                yield entry.path, _bytes(entry)
            else:
                ignored[
                    f"file(s) that end in {os.path.splitext(entry.name)[1].lower() or 'nothing'}, no image format"
                ] += 1


def _bytes(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a link to nowhere: unreadable when read, and named then
        return -1


def _split(root: Path, files: list[_File], classes: tuple[str, ...], channels: int) -> Split:
    index_of = {label: index for index, label in enumerate(classes)}
    names = [file.name for file in files]
    labels_N = np.array([index_of[file.label] for file in files], np.int64)
    return Split(labels_N, names, partial(_read, str(root), names, channels), partial(_size, str(root), names))


def _read(root: str, names: list[str], channels: int, index: int) -> Tensor:
    return decode(os.path.join(root, names[index]), channels)


def _size(root: str, names: list[str], index: int) -> tuple[int, int]:
    head = header(os.path.join(root, names[index]))
    return head.height, head.width


def _channels(root: Path, files: list[_File]) -> int:
    for index in spaced(len(files), _HEADERS):
        try:
            if header(root / files[index].name).mode not in GREY_MODES:
                return 3
        except UserError:  # says nothing about the channels; reading it will name it
            continue
    return 1


def _same_classes(train: tuple[str, ...], other: set[str], where: str) -> None:
    missing, extra = sorted(set(train) - other), sorted(other - set(train))
    if missing or extra:
        parts = [f"{kind}: {_some(names)}" for kind, names in (("missing", missing), ("extra", extra)) if names]
        raise UserError(f"its classes differ from train's; {'; '.join(parts)}", where=where, wanted=_some(list(train)))


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_image(name: str) -> bool:
    return not _hidden(name) and os.path.splitext(name)[1].lower() in readable_extensions()


def _has_folders(path: Path) -> bool:
    return any(child.is_dir() and not _hidden(child.name) for child in path.iterdir())
