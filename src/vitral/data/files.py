"""Shared functions of sources that read image files: find, recognize and read them.

Shape letters: N samples, K classes, C channels, H height, W width.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from vitral.data.channels import Decoding
from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset, Labels, Split, fingerprint, spaced
from vitral.data.decode import GREY_MODES, PLUGINS, Source, decode, header, readable_extensions
from vitral.data.folder_names import SPLIT_FOLDERS
from vitral.errors import UserError, nearest, plural, shown

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


Ignored = tuple[str, str]  # what is in a folder of images and is none: one of the kind, and several


def ignored_notes(ignored: Counter[Ignored]) -> list[str]:
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
            if entry.is_dir() and entry.name.lower() in _THUMBNAILS and any(loose_images(folder)):
                kind = f"of thumbnails beside images ({entry.name})"
                ignored[f"folder {kind}", f"folders {kind}"] += 1
            elif entry.is_dir():
                if not entry.is_symlink() or os.path.realpath(entry.path) not in above:
                    yield from walk(Path(entry.path), ignored, above)
            elif not entry.is_file() and os.path.exists(entry.path):
                ignored["pipe, socket or device", "pipes, sockets or devices"] += 1
            elif is_image(entry.path):
                yield entry.path, size_in_bytes(entry.path)
            else:
                ending = os.path.splitext(entry.name)[1].lower() or "nothing"
                kind = f"{ending}, no image format"
                ignored[f"file that ends in {kind}", f"files that end in {kind}"] += 1


def loose_images(folder: Path) -> Iterator[str]:
    """Names of the images that lie in a folder itself."""
    with os.scandir(folder) as entries:
        yield from (each.name for each in entries if each.is_file() and not hidden(each.name) and is_image(each.path))


def subfolders(folder: Path) -> list[str]:
    """Names of the folders that lie in a folder itself, sorted, without hidden ones."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not hidden(path.name))


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
    here = subfolders(root)
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
    return not subfolders(folder) and any(any(walk(other, Counter())) for other in here if other != folder)


def some(names: Iterable[str], most: int = 10) -> str:
    """The first names, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most:,} more" if len(listed) > most else "")


def known_column(key: str, expected: str, columns: Iterable[str]) -> str:
    """The column that the key `data.KEY` names. Raises UserError where there is no such column."""
    if expected not in (names := list(columns)):
        raise UserError(
            "no such column", where=f"data.{key}", got=expected, expected=some(names, 20),
            nearest=nearest(expected, names),
        )  # fmt: skip
    return expected


def class_map(labels: Iterable[str], expected: Sequence[str] | None, where: str) -> dict[str, int]:
    """The one map from class name to index: in the order of `expected`, else sorted. Raises UserError for a class that
    `expected` doesn't name or names twice."""
    found = set(labels)
    if expected is None:
        return {label: index for index, label in enumerate(sorted(found))}
    twice = sorted(name for name, count in Counter(expected).items() if count > 1)
    if twice:
        raise UserError(f"classes named twice: {some(twice)}", where="data.classes")
    unknown = sorted(found - set(expected))
    if unknown:
        raise UserError(
            f"classes that data.classes doesn't name: {some(unknown)}", where=where, expected=some(list(expected), 20)
        )
    return {label: index for index, label in enumerate(expected)}


def label_array(labels: Sequence[Sequence[str]], index_of: dict[str, int], several: bool) -> Labels:
    """Class indices, int64 [N], of samples with one label each; or, where there may be `several` or none, which classes
    each has, bool [N, K]."""
    if not several:
        return np.array([index_of[label] for label, *_ in labels], np.int64)
    hot_NK = np.zeros((len(labels), len(index_of)), np.bool_)
    for row, own in enumerate(labels):
        hot_NK[row, [index_of[label] for label in own]] = True
    return hot_NK


class Part(NamedTuple):
    """Encoded images of one split: their labels and names, and where to read the files' paths or bytes."""

    labels_N: Labels
    names: Sequence[str]
    file: Callable[[int], str | bytes]


def files_part(root: Path, names: Sequence[str], labels_N: Labels) -> Part:
    """The image files `names` below `root`."""

    def path(index: int) -> str:  # not kept for all: a data set has millions
        return os.path.join(root, names[index])

    return Part(labels_N, list(map(shown, names)), path)


def encoded_dataset(
    name: str,
    classes: Iterable[str],
    parts: Mapping[str, Part],
    config: DataConfig,
    notes: Iterable[str],
    content: Iterable[bytes],
    *,
    made_up: bool = False,
) -> Dataset:
    """The dataset of these encoded images, with a fingerprint over `content`. Messages call an image by its path, or by
    its name if that is `made_up`. `config.channels` auto is 1 if the headers of all train images (up to 2,000, evenly
    spaced) say gray, else 3."""
    train, channels, rules = parts["train"], config.channels, Decoding.of(config)
    if channels == "auto":
        has_color = any_image(len(train.names), train.file, lambda source: header(source).mode not in GREY_MODES)
        channels = 3 if has_color else 1

    def split(part: Part) -> Split:
        def size(index: int) -> tuple[int, int]:
            head = header(part.file(index), name=part.names[index] if made_up else None)
            return head.height, head.width

        def read(index: int) -> Tensor:
            return decode(part.file(index), channels, name=part.names[index] if made_up else None, rules=rules)

        return Split(part.labels_N, part.names, read, size, part.file, made_up=made_up)

    splits = {each: split(part) for each, part in parts.items()}
    return Dataset(name, tuple(classes), splits, channels, tuple(notes), fingerprint(content))


def any_image(count: int, file: Callable[[int], str | bytes], test: Callable[[Source], bool]) -> bool:
    """Whether a test of the header holds for one of up to 2,000 evenly spaced images. An image that cannot be read is
    left out: reading it will name it."""
    for index in spaced(count, _HEADERS):
        with suppress(UserError):
            if test(file(index)):
                return True
    return False


class LabeledFile(NamedTuple):
    """An image file of a class; its name is below the dataset's folder, with "/"."""

    name: str
    label: str
    bytes: int


def labeled_files(root: Path, folder: Path, label: str, ignored: Counter[Ignored]) -> list[LabeledFile]:
    """Every image below a folder in `root`, at any depth, sorted by name."""
    found = sorted(walk(folder, ignored))
    return [LabeledFile(Path(path).relative_to(root).as_posix(), label, size) for path, size in found]


def files_dataset(
    root: Path,
    found: Mapping[str, Sequence[LabeledFile]],
    config: DataConfig,
    ignored: Counter[Ignored],
    classes: Iterable[str] | None = None,
) -> Dataset:
    """The dataset of these files, by split. Class indices follow `config.classes`, or the sorted `classes` (by default
    those of the files). The fingerprint covers split, path, class and size in bytes of each file, no pixels."""
    if classes is None:
        classes = (file.label for files in found.values() for file in files)
    index_of = class_map(classes, config.classes, str(root))
    parts: dict[str, Part] = {}
    for split, files in found.items():
        labels_N = label_array([[file.label] for file in files], index_of, several=False)
        parts[split] = files_part(root, [file.name for file in files], labels_N)
    content = (f"{split}\0{file.name}\0{file.label}\0{file.bytes}" for split in found for file in found[split])
    name, notes = root.resolve().name, ignored_notes(ignored)
    return encoded_dataset(name, index_of, parts, config, notes, map(os.fsencode, content))
