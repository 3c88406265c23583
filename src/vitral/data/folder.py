"""Read a folder of images: DIR/train/<class>/*, DIR/val/<class>/*, DIR/test/<class>/*, or DIR/<class>/* alone.

A class's files are found at any depth below it. Hidden files, and `__MACOSX`, are no data.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset
from vitral.data.filename_labels import fits
from vitral.data.files import (
    Ignored,
    LabeledFile,
    files_dataset,
    labeled_files,
    loose_images,
    some,
    split_folders,
    subfolders,
    walk,
)
from vitral.data.split_names import split_classes
from vitral.errors import UserError, command, plural, shown

LAYOUT = "DIR/<class>/*.png, or DIR/train/<class>/*.png with val and test beside train"
IMAGE_FILES = "files that end in .png, .jpg, .jpeg, .webp, .tif, .bmp, .gif or another image format"


NO_LABEL = "image"


def open_folder(config: DataConfig) -> Dataset:
    """Open the images below `config.path`, one class per folder; class indices follow the sorted class names of all
    splits, or `config.classes`.

    A file is an image by the ending of its name or, where that says nothing, by its first bytes. channels "auto": 1 if
    the headers of all train images (up to 2,000, evenly spaced) say gray, else 3. The fingerprint covers relative path,
    class and size in bytes of every file, not the pixels. An empty folder is a class too. Raises UserError where there
    is no image, or no class folder.
    """
    root, ignored = config.place, Counter[Ignored]()
    folders, beside = _split_folders(root)
    labels = {split: subfolders(folder) for split, folder in folders.items()}
    found = {split: _scan(root, folder, labels[split], ignored) for split, folder in folders.items()}
    classes = (shown(label) for own in labels.values() for label in own)
    dataset = files_dataset(root, found, config, ignored, classes)
    notes = (f"ignored 1 folder beside train: {name}" for name in beside)
    held = {shown(name): len(images_below(root / name)) for name in beside}
    left_out = {name: count for name, count in held.items() if count}
    return replace(dataset, notes=(*dataset.notes, *notes), left_out=left_out)


def open_images(config: DataConfig) -> Dataset:
    """Every image below `config.path`, at any depth, all of one class called image: for learning without labels.
    Channels, fingerprint and what counts as an image as in `open_folder`. Raises UserError where there is none."""
    root, ignored = config.place, Counter[Ignored]()
    files = labeled_files(root, root, NO_LABEL, ignored)
    if not files:
        raise UserError("no images here", where=str(root), expected=IMAGE_FILES)
    return files_dataset(root, {"train": files}, config, ignored)


def is_unlabeled(folder: Path) -> bool:
    """Whether images lie in this folder, and no folders that could be classes."""
    return not subfolders(folder) and any(loose_images(folder))


def has_classes(root: Path) -> bool:
    """Whether two or more folders in `root`, or in its folder train, hold images and are not named like splits."""
    folder = split_folders(root).get("train", root)
    labels = [label for label in subfolders(folder) if any(walk(folder / label, Counter()))]
    return len(labels) > 1 and not split_classes(labels)


def images_below(folder: Path) -> list[Path]:
    """Every image file in a folder, at any depth, sorted."""
    return sorted(Path(path) for path, _ in walk(folder, Counter()))


def _split_folders(root: Path) -> tuple[dict[str, Path], list[str]]:
    """Which folder holds which split, and the folders beside; the root itself is the train split where there are no
    split folders."""
    splits = split_folders(root)
    others = sorted(set(subfolders(root)) - {path.name for path in splits.values()})
    nested = any(map(subfolders, splits.values()))
    flat = any(map(_flat_hint, splits.values()))
    if not splits or (others and not flat and not nested):
        return {"train": root}, []  # no split folders, or classes that happen to be called train or test
    if "train" not in splits:
        names = ", ".join(path.name for path in splits.values())
        raise UserError(f"a folder for {names} but none named train", where=str(root), expected=LAYOUT)
    return splits, others


def _scan(root: Path, folder: Path, labels: list[str], ignored: Counter[Ignored]) -> list[LabeledFile]:
    """Every image below the class folders of one split, sorted by class, then name."""
    files = [file for label in labels for file in labeled_files(root, folder / label, shown(label), ignored)]
    loose = list(loose_images(folder))
    if not files and loose:
        raise UserError(
            f"{plural(len(loose), 'image lies', 'images lie')} directly in this folder, so their classes are unknown "
            f"(one is {min(loose)})",
            where=str(folder), expected=LAYOUT, hint=_flat_hint(folder) or _alone_hint(root, folder),
        )  # fmt: skip
    if not files:
        raise UserError("no images here", where=str(folder), expected=f"{LAYOUT} ({IMAGE_FILES})")
    place = f"outside of the class folders, in {folder.name}"
    ignored.update({(f"image {place}", f"images {place}"): len(loose)} if loose else {})
    return files


def _alone_hint(root: Path, folder: Path) -> str | None:
    """What to do where a split beside train has no classes, and train has."""
    train = split_folders(root).get("train")
    if train is None or folder in (root, train) or not subfolders(train):
        return None
    return f"To leave the images without classes out: {command(f'data={shown(str(train))}')}"


def _flat_hint(folder: Path) -> str | None:
    """What to do instead, if the files in this folder carry their classes in their names."""
    labels = fits(list(loose_images(folder)))
    if labels is None:
        return None
    return f"Their names hold {len(labels)} classes ({some(labels, 5)}): pass data.source=filename."
