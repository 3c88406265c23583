"""The folder of a page with its pictures, and the file of one picture: checked before minutes of computation, replaced
only by its own command."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vitral.atomic_files import tidy, write_json
from vitral.errors import UserError, taken
from vitral.files import read_json
from vitral.report.render import write_page
from vitral.report.sections import Figure, Section


class PageFolder(NamedTuple):
    """A folder that may be written. page, record: names of the page and of the JSON file; old: the files in it from an
    earlier call."""

    path: Path
    page: str
    record: str
    old: Sequence[str] = ()

    def write(
        self, title: str, sections: Sequence[Section], figures: Sequence[Figure], found: Mapping[str, Any]
    ) -> None:
        """Write page, figures and record, and remove the old files. found: what the record holds, with `files`."""
        self.path.mkdir(parents=True, exist_ok=True)
        # The first record also lists the old files, in case of a kill.
        write_json(self.path / self.record, {**found, "files": [*found["files"], *self.old]})
        for name in set(self.old) - set(found["files"]):
            (self.path / name).unlink(missing_ok=True)
        for figure in figures:
            (self.path / figure.name).write_bytes(figure.content)
        write_page(self.path / self.page, title, sections)
        write_json(self.path / self.record, found)


def page_folder(out: str, *, overwrite: bool, page: str, record: str, command: str) -> PageFolder:
    """Return the folder for a page. Raises UserError for one that is a file or not writable, that holds files and may
    not be replaced, and that another program wrote."""
    folder = Path(out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError("out is a file", where="out", got=folder, expected="a new or empty folder")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError("folder is not writable", where="out", got=folder)
    if folder.is_dir():
        tidy(folder, (record,))
    inside = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set[str]()
    if not inside:
        return PageFolder(folder, page, record)
    if not overwrite:
        raise taken(folder, overwrite=True)
    if record not in inside:
        raise UserError(f"folder was not written by {command} and is not replaced", where="out",
                        got=folder, expected="a new or empty folder")  # fmt: skip
    try:
        named = read_json(folder / record)["files"]
        return PageFolder(folder, page, record, [name for name in named if name in inside])
    except (ValueError, KeyError, TypeError):
        raise UserError("the record of this folder cannot be read", where=str(folder / record)) from None


def png_file(out: str, *, overwrite: bool) -> Path:
    """Return the file to write a picture to. Raises UserError for one that exists or cannot be written."""
    path = Path(out).expanduser()
    if path.suffix.lower() != ".png":
        raise UserError("not a PNG file", where="out", got=out, expected="a name that ends in .png")
    if path.is_dir() or (path.exists() and not overwrite):
        raise taken(path, overwrite=not path.is_dir())
    if not path.parent.is_dir():
        raise UserError("folder not found", where="out", got=path.parent)
    return path
