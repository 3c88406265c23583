"""Read images whose file names hold their class, such as cat_00017.png, in one folder or in train, val and test."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vitral.data.config import DataConfig
from vitral.data.dataset import SPLITS, Dataset
from vitral.data.files import (
    Ignored,
    LabeledFile,
    files_dataset,
    labeled_files,
    loose_images,
    some,
    split_folders,
    subfolders,
)
from vitral.data.folder_names import SPLIT_OF
from vitral.errors import UserError, shown

# label_index.ext, where the label may hold underscores; cat-7.png and cat.7.png too.
DEFAULT = r"(?:^|/)(?P<label>[^/]+?)[_.-]\d+(?:\.[A-Za-z]\w*)?$"


def fits(names: Sequence[str]) -> tuple[str, ...] | None:
    """Return the classes in these file names by the default pattern, if they look like labels at all: every name fits,
    two classes or more, at most half as many as files. None otherwise."""
    labels: set[str] = set()
    for name in names:
        match = re.search(DEFAULT, name)
        if match is None:
            return None
        labels.add(match["label"])
        if 2 * len(labels) > len(names):
            return None
    return tuple(sorted(labels)) if len(labels) >= 2 else None


def looks_flat(root: Path) -> bool:
    """Whether `root`, or its folders train, val and test, hold image files alone, and their names hold classes."""
    folders = list(split_folders(root).values()) or [root]
    if any(map(subfolders, folders)):
        return False
    return fits([name for folder in folders for name in loose_images(folder)]) is not None


def open_filename(config: DataConfig) -> Dataset:
    """The images below `config.path`, labeled by the group `label` of `config.pattern` (default: label_index.ext).

    The pattern is searched in the path below the folder, written with "/". Its group `split`, if it has one, says the
    split (train, val, valid, validation or test); else the folders of these names do; else all is train. Class indices
    follow the sorted classes of all splits, or `config.classes`. The fingerprint covers path, class, split and size in
    bytes. Raises UserError, naming some, for files whose names don't fit, and for a pattern that can't be used.
    """
    root, ignored = config.place, Counter[Ignored]()
    files = labeled_files(root, root, "", ignored)
    if not files:
        raise UserError("no images here", where=str(root), expected="image files named label_index.ext")
    splits = _match(files, config, root)
    if "train" not in splits:
        raise UserError(f"images for {' and '.join(splits)} but none for train", where=str(root))
    dataset = files_dataset(root, splits, config, ignored)
    return replace(dataset, notes=(f"classes from file names: {some(dataset.classes, 20)}", *dataset.notes))


def _pattern(config: DataConfig) -> re.Pattern[str]:
    try:
        pattern = re.compile(config.pattern or DEFAULT)
    except re.error as error:
        raise UserError(f"not a regular expression: {error}", where="data.pattern", got=config.pattern) from None
    if "label" not in pattern.groupindex:
        raise UserError(
            "the pattern has no group named label", where="data.pattern", got=config.pattern,
            expected=r"such as (?P<label>.+)_\d+",
        )  # fmt: skip
    return pattern


def _match(found: list[LabeledFile], config: DataConfig, root: Path) -> dict[str, list[LabeledFile]]:
    """Every file with its class, by split: those that there are, train first."""
    pattern = _pattern(config)
    has_split = "split" in pattern.groupindex
    folders = {path.name: split for split, path in split_folders(root).items()}
    files, misfits, unknown = dict[str, list[LabeledFile]](), list[str](), dict[str, str]()
    for name, _, size in found:
        match = pattern.search(name)
        split = folders.get(name.split("/")[0]) if folders else "train"
        if match is not None and has_split:
            split = SPLIT_OF.get(match["split"] or "", "unknown")
        if match is None or not match["label"] or split is None:
            misfits.append(name)
        elif split == "unknown":
            unknown[name] = repr(match["split"])
        else:
            files.setdefault(split, []).append(LabeledFile(name, shown(match["label"]), size))
    if misfits:
        says = "lie outside of train, val and test, or have" if folders else "have"
        raise UserError(
            f"{len(misfits)} of {len(found)} images {says} names that the pattern doesn't fit: {some(misfits, 5)}",
            where=str(root), expected=config.pattern or "label_index.ext, such as cat_00017.png",
            hint="data.pattern='(?P<label>...)...' is another regular expression; its group `label` is the class.",
        )  # fmt: skip
    if unknown:
        name, got = next(iter(unknown.items()))
        raise UserError(
            f"{len(unknown)} images of unknown splits, such as {name}", where="data.pattern", got=got,
            expected=", ".join(SPLIT_OF),
        )  # fmt: skip
    return {split: files[split] for split in SPLITS if split in files}
