"""Read boxes from a table: CSV or JSONL with one box per row, `path, label, xmin, ymin, xmax, ymax`.

A row with a path alone is an image without boxes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from vitral.data.box_files import BoxFile, box_dataset
from vitral.data.boxes import BoxRow, Size, corners
from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset
from vitral.data.files import known_column, some
from vitral.data.folder_names import SPLIT_OF
from vitral.data.table_source import NAMES, read_records
from vitral.errors import UserError, plural

# Four columns of a box, by the format of their numbers.
_EDGES = {
    "xyxy": (("xmin", "ymin", "xmax", "ymax"), ("x0", "y0", "x1", "y1"), ("x_min", "y_min", "x_max", "y_max"),
             ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom")),
    "xywh": (("x", "y", "w", "h"), ("x", "y", "width", "height"), ("left", "top", "width", "height")),
    "cxcywh": (("cx", "cy", "w", "h"), ("x_center", "y_center", "width", "height")),
}  # fmt: skip
_SHOWN = 5


def box_columns(names: Iterable[str]) -> tuple[str, tuple[str, ...]] | None:
    """The format and the four columns of boxes in a table, by their usual names; None where there are none."""
    lower = {name.lower(): name for name in reversed(list(names))}
    for form, groups in _EDGES.items():
        for group in groups:
            if all(name in lower for name in group):
                return form, tuple(lower[name] for name in group)
    return None


def describes_boxes(path: Path) -> bool:
    """Whether a table has columns of boxes, and one for the image, by their usual names."""
    try:
        names = {key: None for _, record in islice(read_records(path), 100) for key in record}
    except (UserError, OSError):
        return False
    lower = {name.lower() for name in names}
    return box_columns(names) is not None and bool(lower & set(NAMES["image"])) and bool(lower & set(NAMES["label"]))


def open_box_table(config: DataConfig) -> Dataset:
    """The images and boxes of a table; paths are relative to it.

    Columns of image, label and split as in other tables; those of the box are xmin, ymin, xmax, ymax or one of their
    other usual names; perhaps `crowd`; width and height of the image, where they are no columns of the box. The numbers
    are what the names of their columns say, or `config.box_format`, in pixels, or shares with `config.box_unit`.
    Raises UserError with the line for missing columns, boxes that are none, unknown splits, and missing images.
    """
    path = config.place
    records = list(read_records(path))
    names = list(dict.fromkeys(key for _, record in records for key in record))
    found = box_columns(names)
    if found is None:
        raise UserError(
            "no columns of boxes", where=f"{path}:1", got=some(names, 20), expected="xmin, ymin, xmax, ymax"
        )
    form, edges = config.box_format or found[0], found[1]
    columns = {
        kind: _column(kind, getattr(config, f"{kind}_column"), names, path) for kind in ("image", "label", "split")
    }
    free = {name.lower(): name for name in names if name not in edges}
    sides = [free[name] for name in ("height", "width") if name in free]
    rows: dict[tuple[str, str], list[BoxRow]] = {}
    sizes: dict[tuple[str, str], Size] = {}
    for line, record in records:
        where = f"{path}:{line}"
        image = record.get(columns["image"] or "")
        if not isinstance(image, str) or not image.strip():
            raise UserError(f"no path in the column {columns['image']}", where=where, got=repr(image))
        place = _split(record, columns["split"], where), os.path.normpath(image.strip()).replace(os.sep, "/")
        own = rows.setdefault(place, [])
        sizes.setdefault(place, _size([record.get(side) for side in sides]))
        values, label = [record.get(edge) for edge in edges], record.get(columns["label"] or "")
        if all(value in (None, "") for value in (*values, label)):
            continue
        if not isinstance(label, str | int) or isinstance(label, bool) or not str(label).strip():
            raise UserError("not a label", where=where, got=f"{columns['label']} = {label!r}"[:80], expected="text")
        crowd = str(record.get(free.get("crowd", ""), "")).strip().lower() in ("1", "true")
        own.append(BoxRow(corners(values, where, form), str(label).strip(), crowd))
    _refuse(path, list(rows))
    files: dict[str, list[BoxFile]] = {}
    for (split, name), own in rows.items():
        files.setdefault(split, []).append(BoxFile(name, own, sizes[split, name], config.box_unit == "normalized"))
    note = f"columns of {path.name}: {', '.join(filter(None, [*columns.values(), *edges]))} ({form})"
    return box_dataset(path.parent, files, config, [note])


def _column(kind: str, column: str | None, names: list[str], path: Path) -> str | None:
    if column is not None:
        return known_column(f"{kind}_column", column, names)
    lower = {name.lower(): name for name in reversed(names)}
    found = next((lower[name] for name in NAMES[kind] if name in lower), None)
    if found is None and kind != "split":
        raise UserError(f"no column for the {kind}", where=f"{path}:1", got=f"columns {some(names, 20)}",
                        expected=", ".join(NAMES[kind]), hint=f"Name it: data.{kind}_column=...")  # fmt: skip
    return found


def _split(record: Mapping[str, Any], column: str | None, where: str) -> str:
    if column is None:
        return "train"
    split = record.get(column)
    if not isinstance(split, str) or split.strip().lower() not in SPLIT_OF:
        raise UserError("unknown split", where=where, got=repr(split), expected=", ".join(SPLIT_OF))
    return SPLIT_OF[split.strip().lower()]


def _size(sides: list[Any]) -> Size:
    words = [str(side) for side in sides]
    whole = len(words) == 2 and all(word.isdecimal() and len(word) < 10 and int(word) for word in words)
    return (int(words[0]), int(words[1])) if whole else (0, 0)


def _refuse(path: Path, places: list[tuple[str, str]]) -> None:
    names = [name for _, name in places]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise UserError(f"{plural(len(twice), 'image')} in two splits: {some(twice, _SHOWN)}", where=str(path))
    lost = [name for name in names if not (path.parent / name).is_file()]
    if lost:
        what = f"{plural(len(lost), 'image is', 'images are')} missing: {some(lost, _SHOWN)}"
        raise UserError(what, where=str(path), hint=f"Paths are relative to {path.parent}.")
