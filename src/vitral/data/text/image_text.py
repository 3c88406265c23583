"""Images with a text each: a manifest, text files beside the images, and text in file names."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitral.data.config import DataConfig
from vitral.data.dataset import SPLITS, fingerprint
from vitral.data.files import (
    Ignored,
    encoded_dataset,
    files_part,
    ignored_notes,
    labeled_files,
    size_in_bytes,
    some,
    split_folders,
)
from vitral.data.folder_names import SPLIT_OF
from vitral.data.text.config import TextSource
from vitral.data.text.dataset import TextDataset, TextSplit, with_held_out
from vitral.data.text.pairs import find_columns, read_rows, row_split, text_of
from vitral.errors import UserError, plural, shown
from vitral.files import MIB, read_text

# AB12_0001.png: AB12. The number behind the last underscore tells copies of a text apart.
PATTERN = r"(?:^|/)(?P<text>[^/]+?)(?:_\d+)?\.[A-Za-z]\w*$"
_IMAGE = ("image", "path", "file", "filename", "file_name", "image_path")
_TEXT = ("text", "transcription", "words", "caption", "label", "target")
_BYTES = MIB  # of a text file beside an image


class _File(NamedTuple):
    name: str
    text: str
    split: str | None
    bytes: int


def open_image_table(config: TextSource, images: DataConfig) -> TextDataset:
    """The images that a manifest (CSV, TSV, JSONL, Parquet) names, with a text each; paths are relative to it.

    `images`: how they are read. Splits are those of the split column; else a tenth each is held out by name. Raises
    UserError for columns and fields as text pairs do, and for files that are missing or named twice.
    """
    path = _place(config, os.path.isfile, "a manifest")
    rows = read_rows(path)
    columns = find_columns(rows, config, path, (_IMAGE, _TEXT))
    found: list[_File] = []
    for line, row in rows:
        where = f"{path.name}:{line}"
        name = text_of(row, columns[0], where).strip()
        size = size_in_bytes(os.path.join(path.parent, name)) if name else -1
        found.append(_File(name, text_of(row, columns[1], where), row_split(row, columns[2], where), size))
    lost = [each.name for each in found if each.bytes < 0]
    if lost:
        raise UserError(f"{plural(len(lost), 'file is', 'files are')} missing, or no regular files: {some(lost, 5)}",
                        where=str(path), hint=f"Paths are relative to {path.parent}.")  # fmt: skip
    twice = [name for name, count in Counter(os.path.normpath(each.name) for each in found).items() if count > 1]
    if twice:
        raise UserError(f"{plural(len(twice), 'path is', 'paths are')} there twice: {some(twice, 5)}", where=str(path))
    return _dataset(path.parent, path.stem, found, config, images, ())


def open_text_files(config: TextSource, images: DataConfig) -> TextDataset:
    """Images with their text in name.gt.txt or name.txt beside them, in one folder or in train, val and test.

    Line ends at the end of a text file are no part of the text. Raises UserError, naming some, for images without text.
    """
    root = _place(config, os.path.isdir, "a folder")

    def text_for(name: str) -> str | None:
        stem = root / os.path.splitext(name)[0]
        file = next((each for ending in (".gt.txt", ".txt") if (each := Path(f"{stem}{ending}")).is_file()), None)
        return None if file is None else read_text(file, _BYTES).rstrip("\r\n")

    return _folder(root, config, images, text_for, "name.gt.txt or name.txt beside each image")


def open_image_names(config: TextSource, images: DataConfig) -> TextDataset:
    """Images whose file names hold their text: AB12_0001.png and AB12.png say AB12.

    `config.pattern` is another regular expression with a group `text`, and maybe `split`, searched in the path below
    the folder, written with "/". Raises UserError, naming some, for names that don't fit.
    """
    root = _place(config, os.path.isdir, "a folder")
    try:
        pattern = re.compile(config.pattern or PATTERN)
    except re.error as error:
        raise UserError(f"not a regular expression: {error}", where="data.pattern", got=config.pattern) from None
    if "text" not in pattern.groupindex:
        raise UserError("the pattern has no group named text", where="data.pattern", got=config.pattern,
                        expected=r"such as (?P<text>.+)_\d+")  # fmt: skip

    def text_for(name: str) -> str | None:
        match = pattern.search(name)
        return None if match is None else shown(match["text"] or "")

    def split_for(name: str) -> str | None:
        match = pattern.search(name)
        return None if match is None else SPLIT_OF.get((match["split"] or "").lower())

    named_splits = split_for if "split" in pattern.groupindex else None
    return _folder(root, config, images, text_for, f"names that {pattern.pattern} fits", named_splits)


def _folder(
    root: Path, config: TextSource, images: DataConfig, text_for: Callable[[str], str | None], expected: str,
    split_for: Callable[[str], str | None] | None = None,
) -> TextDataset:  # fmt: skip
    ignored = Counter[Ignored]()
    files = labeled_files(root, root, "", ignored)
    if not files:
        raise UserError("no images here", where=str(root))
    folders = {path.name: split for split, path in split_folders(root).items()}
    found: list[_File] = []
    misfits: list[str] = []
    for name, _, size in files:
        text = text_for(name)
        split = split_for(name) if split_for is not None else folders.get(name.split("/")[0])
        if text is None or (split is None and (folders or split_for is not None)):
            misfits.append(name)
        else:
            found.append(_File(name, text, split, size))
    if misfits:
        problem = "without a text" + (" or outside of train, val and test" if folders or split_for else "")
        raise UserError(f"{len(misfits)} of {len(files)} images {problem}: {some(misfits, 5)}", where=str(root),
                        expected=expected)  # fmt: skip
    return _dataset(root, root.resolve().name, found, config, images, ignored_notes(ignored))


def _dataset(
    root: Path, name: str, found: Sequence[_File], config: TextSource, images: DataConfig, notes: Sequence[str]
) -> TextDataset:
    names = [file.name for file in found]
    part = files_part(root, names, np.zeros(len(names), np.int64))
    content = (
        f"{file.split}\0{file.name}\0{file.text}\0{file.bytes}".encode("utf-8", "surrogatepass") for file in found
    )
    read = encoded_dataset(name, (), {"train": part}, images, (), ())
    whole = TextSplit([file.text for file in found], part.names, images=read.splits["train"])
    dataset = TextDataset(name, {"train": whole}, tuple(notes), fingerprint(content), read.channels)
    if found[0].split is None:
        splits, note = with_held_out(whole, names, config.seed, str(root))
        return replace(dataset, splits=splits, notes=(*dataset.notes, note))
    places = {each: [place for place, file in enumerate(found) if file.split == each] for each in SPLITS}
    if not places["train"]:
        raise UserError("no images of the split train", where=str(root))
    return replace(dataset, splits={each: whole.subset(own) for each, own in places.items() if own})


def _place(config: TextSource, test: Callable[[Path], bool], kind: str) -> Path:
    if config.path is None or not test(config.place):
        raise UserError(
            f"{config.source} reads {kind}", where="data.path", got=config.path, hint="Pass data.path=PATH."
        )
    return config.place
