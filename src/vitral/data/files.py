"""What the sources that read image files share: finding them, telling them from other files, reading them.

Shape letters: N samples, K classes, C channels, H height, W width.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset, Labels, Split, fingerprint, spaced
from vitral.data.decode import GREY_MODES, PLUGINS, Decoding, Source, decode, header, readable_extensions
from vitral.data.folder_words import SPLIT_FOLDERS
from vitral.errors import UserError, plural, shown

_HEADERS = 2000


# Folders and files that systems put beside a user's: thumbnails and metadata of storage servers (Synology, QNAP,
# NetApp), waste baskets, and what archives made on a Mac or on Windows bring along.
_SYSTEM = frozenset({
    "__macosx", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "@appstore", "@sharebin", "@synoresource",
    "#recycle", "#snapshot", "~snapshot", "$recycle.bin", "recycler", "system volume information", "lost+found",
    "network trash folder", "temporary items", "thumbs.db", "thumbs.db:encryptable", "ehthumbs.db", "ehthumbs_vista.db",
    "desktop.ini", "icon\r", "__pycache__",
})  # fmt: skip
_SYSTEM_START = (".", "~$", "synofile_thumb", "synophoto_thumb")
_CAPITAL = re.compile(r"RECYCLED|FOUND\.[0-9]{3}")  # of FAT volumes; in small letters a class (recycled)
_THUMBNAILS = frozenset({"_thumbs", "thumbs", "thumbnails", "_thumbnails"})  # beside images, else names like others


class Ignored(NamedTuple):
    """What is in a folder of images and is none: one of the kind, and several."""

    one: str
    several: str


def said_ignored(ignored: Counter[Ignored]) -> list[str]:
    """A note for each kind, with its count."""
    return [f"ignored {plural(count, *kind)}" for kind, count in sorted(ignored.items())]


def hidden(name: str) -> bool:
    """Whether a file or folder is none of the data's: a hidden one, or thumbnails, metadata and waste that a system
    keeps beside them."""
    lower = name.lower()
    return lower.startswith(_SYSTEM_START) or lower in _SYSTEM or _CAPITAL.fullmatch(name) is not None


def is_image(path: str) -> bool:
    """Whether a file counts as an image: by the ending of its name, else by what its first bytes say. Pipes and devices
    are never opened; a link to nowhere counts by its name."""
    if os.path.exists(path) and not os.path.isfile(path):
        return False
    if os.path.splitext(path)[1].lower() in readable_extensions() | PLUGINS.keys():
        return True
    try:
        return bool(header(path))
    except UserError:
        return False


def walk(folder: Path, ignored: Counter[Ignored], above: frozenset[str] = frozenset()) -> Iterator[tuple[str, int]]:
    """(path, bytes) of the images below, at any depth; links are followed, but never in circles. What is no image is
    counted in `ignored`, by its ending."""
    above |= {os.path.realpath(folder)}
    with os.scandir(folder) as entries:
        for entry in entries:
            if hidden(entry.name):
                continue
            if entry.is_dir() and entry.name.lower() in _THUMBNAILS and _has_images(folder):
                said = f"of thumbnails beside images ({entry.name})"
                ignored[Ignored(f"folder {said}", f"folders {said}")] += 1
            elif entry.is_dir():
                if not entry.is_symlink() or os.path.realpath(entry.path) not in above:
                    yield from walk(Path(entry.path), ignored, above)
            elif not entry.is_file() and os.path.exists(entry.path):
                ignored[Ignored("pipe, socket or device", "pipes, sockets or devices")] += 1
            elif is_image(entry.path):
                yield entry.path, size_in_bytes(entry.path)
            else:
                ending = os.path.splitext(entry.name)[1].lower() or "nothing"
                said = f"{ending}, no image format"
                ignored[Ignored(f"file that ends in {said}", f"files that end in {said}")] += 1


def _has_images(folder: Path) -> bool:
    """Whether images lie in a folder itself."""
    with os.scandir(folder) as entries:
        return any(not hidden(entry.name) and entry.is_file() and is_image(entry.path) for entry in entries)


def size_in_bytes(path: str) -> int:
    """-1 for a link to nowhere, a folder or a pipe: such a file is unreadable when read, and named then."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def split_folders(root: Path) -> dict[str, Path]:
    """The folders train (or training), val (or valid, validation) and test (or testing) in `root`, in small letters or
    capital ones. A single one of them that holds no folder, beside others with images, is a class of this name: then
    there are none. Raises UserError for two of one split."""
    here = [path.name for path in sorted(root.iterdir()) if path.is_dir() and not hidden(path.name)]
    found: dict[str, Path] = {}
    for split, names in SPLIT_FOLDERS.items():
        present = [name for name in here if name.lower() in names]
        if len(present) > 1:
            raise UserError(f"two folders for one split: {' and '.join(present)}", where=str(root))
        if present:
            found[split] = root / present[0]
    return {} if len(found) == 1 and _is_class(next(iter(found.values())), [root / name for name in here]) else found


def _is_class(folder: Path, here: Sequence[Path]) -> bool:
    """Whether a folder called train holds images of a class, as others beside it do."""
    if any(path.is_dir() and not hidden(path.name) for path in folder.iterdir()):
        return False
    return any(next(walk(other, Counter()), None) is not None for other in here if other != folder)


def some(names: Iterable[str], most: int = 10) -> str:
    """The first names, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most:,} more" if len(listed) > most else "")


def class_map(labels: Iterable[str], wanted: Sequence[str] | None, where: str) -> dict[str, int]:
    """The one map from class name to index: in the order of `wanted`, else sorted. Raises UserError for a class that
    `wanted` doesn't name or names twice."""
    found = set(labels)
    if wanted is None:
        return {label: index for index, label in enumerate(sorted(found))}
    twice = sorted(name for name, count in Counter(wanted).items() if count > 1)
    if twice:
        raise UserError(f"classes named twice: {some(twice)}", where="data.classes")
    unknown = sorted(found - set(wanted))
    if unknown:
        raise UserError(
            f"classes that data.classes doesn't name: {some(unknown)}", where=where, wanted=some(list(wanted), 20)
        )
    return {label: index for index, label in enumerate(wanted)}


def indices(labels: Sequence[str], index_of: dict[str, int]) -> Labels:
    """Class indices, int64 [N]."""
    return np.array([index_of[label] for label in labels], np.int64)


def multi_hot(labels: Sequence[Sequence[str]], index_of: dict[str, int]) -> Labels:
    """Which classes each sample has, bool [N, K]; a sample without labels has none."""
    hot_NK = np.zeros((len(labels), len(index_of)), np.bool_)
    for row, own in enumerate(labels):
        hot_NK[row, [index_of[label] for label in own]] = True
    return hot_NK


def file_split(root: Path, names: list[str], labels_N: Labels, channels: int, rules: Decoding) -> Split:
    """A split of the image files `names` below `root`."""
    read, size = partial(_read, str(root), names, channels, rules), partial(_size, str(root), names)
    return Split(labels_N, [shown(name) for name in names], read, size, partial(_path, str(root), names))


class LabelledFile(NamedTuple):
    """An image file of a class; its name is below the dataset's folder, with "/"."""

    name: str
    label: str
    bytes: int


def files_dataset(
    root: Path,
    found: Mapping[str, Sequence[LabelledFile]],
    classes: Iterable[str],
    config: DataConfig,
    notes: Callable[[Sequence[str]], Iterable[str]],
) -> Dataset:
    """The dataset of these files, by split. Class indices follow `config.classes`, or the sorted `classes`; `notes`
    gets them in this order. The fingerprint covers split, path, class and size in bytes of each file, no pixels."""
    index_of = class_map(classes, config.classes, str(root))
    channels = file_channels(root, [file.name for file in found["train"]], config)
    rules = Decoding.of(config)
    splits: dict[str, Split] = {}
    for split, files in found.items():
        labels_N = indices([file.label for file in files], index_of)
        splits[split] = file_split(root, [file.name for file in files], labels_N, channels, rules)
    content = (f"{split}\0{file.name}\0{file.label}\0{file.bytes}" for split in found for file in found[split])
    return Dataset(
        name=root.resolve().name, classes=tuple(index_of), splits=splits, channels=channels,
        notes=tuple(notes(tuple(index_of))), fingerprint=fingerprint(map(os.fsencode, content)),
    )  # fmt: skip


def file_channels(root: Path, names: Sequence[str], config: DataConfig) -> int:
    """`config.channels`; auto is 1 if the headers of all files (up to 2,000, evenly spaced) say grey, else 3."""
    return asked_channels(len(names), lambda index: root / names[index], config)


def asked_channels(count: int, source: Callable[[int], Source], config: DataConfig) -> int:
    """The same for encoded images that need not be files: `source(i)` is a path or the bytes of image i."""
    if config.channels != "auto":
        return config.channels
    for index in spaced(count, _HEADERS):
        try:
            if header(source(index)).mode not in GREY_MODES:
                return 3
        except UserError:  # says nothing about the channels; reading it will name it
            continue
    return 1


def _read(root: str, names: Sequence[str], channels: int, rules: Decoding, index: int) -> Tensor:
    return decode(os.path.join(root, names[index]), channels, rules=rules)


def _path(root: str, names: Sequence[str], index: int) -> str:
    return os.path.join(root, names[index])


def _size(root: str, names: Sequence[str], index: int) -> tuple[int, int]:
    head = header(os.path.join(root, names[index]))
    return head.height, head.width
