"""A manifest of image files: CSV (comma, semicolon, tab or |) or JSONL with a path, a label and perhaps a split a row.

Several labels per row, as a JSON list or as text with `label_separator` between them, make the data multi-label.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from vitral.data.config import DataConfig
from vitral.data.dataset import SPLITS, Dataset
from vitral.data.files import class_map, encoded_dataset, files_part, known_column, label_array, size_in_bytes, some
from vitral.data.folder_names import SPLIT_OF
from vitral.data.label_vectors import named
from vitral.data.regression_targets import as_number, as_targets, check_targets
from vitral.errors import UserError, plural
from vitral.files import parse_json, read_text

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson")
NAMES = {
    "image": ("path", "image", "file", "filename", "file_name", "image_path"),
    "label": ("label", "labels", "class"),
    "split": ("split",),
}
_LIST = re.compile(r"\[.*\]|\{.*\}", re.DOTALL)
_FLAGS = frozenset({"0", "1", "0.0", "1.0", "False", "True"})
_SHOWN = 5
_BYTES = 2**30  # of a manifest: ten million rows
csv.field_size_limit(2**20)


class _Row(NamedTuple):
    line: int
    path: str
    labels: tuple[str, ...]
    split: str


class _Columns(NamedTuple):
    image: str
    label: str
    split: str | None


def open_table(config: DataConfig) -> Dataset:
    """The images that a manifest names; paths are relative to it.

    Columns are `config.image_column`, `label_column`, `split_column`, or found by their usual names. Without a split
    column all rows are train. Class indices follow the sorted labels of all rows, or `config.classes`. The fingerprint
    covers path, labels, split and size in bytes of every row. Raises UserError with the line numbers for text that
    isn't UTF-8, missing columns, empty labels, missing files, paths that are there twice and unknown splits.
    """
    path = config.place
    records = list(read_records(path))
    if not records:
        raise UserError("no rows", where=str(path))
    columns = _columns([record for _, record in records[:100]], config, path)
    if config.target is None:
        records = _without_vectors(records, columns.label, config, path)
    several = config.label_separator is not None or any(isinstance(r.get(columns.label), list) for _, r in records)
    rows = [_row(line, record, columns, config, several, path) for line, record in records]
    _refuse_twice(rows, path)
    sizes = [size_in_bytes(os.path.join(path.parent, row.path)) for row in rows]
    lost = [row for row, size in zip(rows, sizes, strict=True) if size < 0]
    if lost:
        raise UserError(
            f"{plural(len(lost), 'file is', 'files are')} missing, or no regular files: "
            + some((f"{row.path} (line {row.line})" for row in lost), _SHOWN),
            where=str(path), hint=_lost_hint(lost[0].path, path),
        )  # fmt: skip
    return _dataset(rows, sizes, several, columns, config, path)


def describes_images(path: Path) -> bool:
    """Whether a table has the columns of a manifest, by their usual names; so may one that cannot be read."""
    try:
        records = [record for _, record in islice(read_records(path), 100)]
    except (UserError, OSError):
        return True
    names = {key.lower() for record in records for key in record}
    return all(names & set(NAMES[kind]) for kind in ("image", "label"))


def _lost_hint(name: str, path: Path) -> str:
    """What the path of a missing file could have meant."""
    hint = f"Paths are relative to {path.parent}."
    slashes = name.replace("\\", "/")
    if slashes != name:
        there = " is there" if os.path.exists(os.path.join(path.parent, slashes)) else ""
        return f"Paths are written with /, not with a backslash: {slashes}{there}. {hint}"
    folder, stem = os.path.split(os.path.join(path.parent, name))
    if not os.path.splitext(stem)[1] and os.path.isdir(folder):
        with os.scandir(folder) as entries:
            found = next((entry.name for entry in entries if os.path.splitext(entry.name)[0] == stem), None)
        if found is not None:
            return (
                f"Paths are written with the ending of the file: {os.path.join(os.path.dirname(name), found)}. {hint}"
            )
    return hint


def _dataset(
    rows: Sequence[_Row], sizes: Sequence[int], several: bool, columns: _Columns, config: DataConfig, path: Path
) -> Dataset:
    targets = config.target
    index_of = {} if targets else class_map((each for row in rows for each in row.labels), config.classes, str(path))
    splits = {split: found for split in SPLITS if (found := [row for row in rows if row.split == split])}
    if "train" not in splits:
        raise UserError(f"rows for {' and '.join(splits)} but none for train", where=str(path))
    labels = {
        split: as_targets(([float(each) for each in row.labels] for row in found), len(targets))
        if targets
        else label_array([row.labels for row in found], index_of, several)
        for split, found in splits.items()
    }
    parts = {
        split: files_part(path.parent, [row.path for row in found], labels[split]) for split, found in splits.items()
    }
    note = f"columns of {path.name}: {', '.join(filter(None, [*columns, *(targets or ())]))}"
    content = (
        "\0".join((row.split, row.path, *row.labels, str(size))).encode("utf-8", "surrogatepass")
        for row, size in zip(rows, sizes, strict=True)
    )
    return encoded_dataset(path.stem, targets or index_of, parts, config, [note], content)


def read_records(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line, fields) of every row of a CSV or JSONL file. Raises UserError with the line that cannot be read."""
    rows = _json_rows if path.suffix.lower() in (".jsonl", ".ndjson") else _csv_rows
    yield from rows(read_text(path, _BYTES), path)


def _json_rows(text: str, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line, words in enumerate(text.split("\n"), 1):
        if not words.strip():
            continue
        record = parse_json(words, where=f"{path}:{line}")
        if not isinstance(record, dict):
            raise UserError("an object of names and values is expected", where=f"{path}:{line}", got=words[:60])
        yield line, record


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    head = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t|", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = (fields for fields in reader if any(field.strip() for field in fields))
    try:
        header = [field.strip() for field in next(rows, [])]
        if twice := sorted({name for name in header if header.count(name) > 1}):
            raise UserError(f"columns that are there twice: {some(twice)}", where=f"{path}:{reader.line_num}")
        for fields in rows:
            if len(fields) != len(header):
                raise UserError(
                    "a row with another number of fields than the first line", where=f"{path}:{reader.line_num}",
                    got=len(fields), expected=f"{len(header)}: {', '.join(header)}",
                )  # fmt: skip
            yield reader.line_num, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise UserError(f"not readable as CSV: {error}", where=f"{path}:{reader.line_num}") from None


def _columns(records: Sequence[Mapping[str, Any]], config: DataConfig, path: Path) -> _Columns:
    names = list(dict.fromkeys(key for record in records for key in record))

    def one(kind: str, column: str | None) -> str | None:
        if column is None:
            lower = {name.lower(): name for name in reversed(names)}
            return next((lower[name] for name in NAMES[kind] if name in lower), None)
        return known_column(f"{kind}_column", column, names)

    image, label = one("image", config.image_column), ""
    if config.target is None:
        label = one("label", config.label_column)
    else:
        check_targets(config.target, names)
    for kind, found in (("image", image), ("label", label)):
        if found is None:
            raise UserError(
                f"no column for the {kind}", where=f"{path}:1", got=f"columns {some(names, 20)}",
                expected=", ".join(NAMES[kind]), hint=_column_hint(kind, names, records, path),
            )  # fmt: skip
    return _Columns(image or "", label or "", one("split", config.split_column))


def _column_hint(kind: str, names: Sequence[str], records: Sequence[Mapping[str, Any]], path: Path) -> str:
    flags = [name for name in names if all(str(record.get(name)).strip() in _FLAGS for record in records)]
    if kind == "label" and len(flags) > 1:
        return (
            f"The columns {some(flags, _SHOWN)} hold zeros and ones. Write one column `label` with the name of the "
            "column that is 1 (several names with data.label_separator=';')."
        )
    return f"Name it: data.{kind}_column=... If folders are the classes: data={path.parent} data.source=folder"


def _without_vectors(
    records: Sequence[tuple[int, Mapping[str, Any]]], label: str, config: DataConfig, path: Path
) -> list[tuple[int, Mapping[str, Any]]]:
    """The rows with class names in place of multi-hot vectors, if their labels are such."""
    separator = config.label_separator
    values: list[Any] = [record.get(label) for _, record in records]
    lists = [value.split(separator) if isinstance(value, str) and separator else value for value in values]
    names = named(lists, config.classes, f"{path}: {label}")
    if names is None:
        return list(records)
    return [(line, {**record, label: own}) for (line, record), own in zip(records, names, strict=True)]


def _row(
    line: int, record: Mapping[str, Any], columns: _Columns, config: DataConfig, several: bool, path: Path
) -> _Row:
    where = f"{path}:{line}"
    image = record.get(columns.image)
    if not isinstance(image, str) or not image.strip():
        raise UserError(f"no path in the column {columns.image}", where=where, got=repr(image))
    if config.target is not None:  # as text, which is exact; see `_dataset`
        labels = tuple(repr(as_number(record.get(name), name, where)) for name in config.target)
    else:
        labels = _labels(record.get(columns.label), columns.label, config.label_separator, several, where)
    if columns.split is None:
        return _Row(line, image.strip(), labels, "train")
    split = record.get(columns.split)
    if not isinstance(split, str) or split.strip().lower() not in SPLIT_OF:
        raise UserError("unknown split", where=where, got=repr(split), expected=", ".join(SPLIT_OF))
    return _Row(line, image.strip(), labels, SPLIT_OF[split.strip().lower()])


def _labels(value: Any, column: str, separator: str | None, several: bool, where: str) -> tuple[str, ...]:
    """One label; or, where an image may have several, all of them."""
    if isinstance(value, str) and separator is not None:
        parts: list[Any] = value.split(separator) if value.strip() else []
    elif isinstance(value, list):
        parts = value
    elif several:
        raise UserError(
            f"{column} is a list elsewhere, so it must be one here", where=where, got=repr(value), expected="[...]"
        )
    else:
        parts = [value]
    if isinstance(value, str) and separator is None and _LIST.fullmatch(value.strip()):
        raise UserError(
            "a list written as text, which would be taken for the name of one class", where=where,
            got=f"{column} = {value[:60]}", expected="one class name, or several with a separator (cat;dog)",
            hint="data.label_separator=';' splits such text; lists belong into a JSONL file.",
        )  # fmt: skip
    words = [str(part).strip() if isinstance(part, str | int) and not isinstance(part, bool) else "" for part in parts]
    if not all(words):
        raise UserError("an empty label" if value in ("", None, []) or "" in parts else "not a label", where=where,
                        got=f"{column} = {value!r}", expected="text or a whole number")  # fmt: skip
    if len(set(words)) < len(words):
        raise UserError("a label that is there twice", where=where, got=f"{column} = {value!r}")
    return tuple(words)


def _refuse_twice(rows: Sequence[_Row], path: Path) -> None:
    first: dict[str, int] = {}
    twice: list[str] = []
    for row in rows:
        place = os.path.normpath(os.path.join(path.parent, row.path))
        if place in first:
            twice.append(f"{row.path} (lines {first[place]} and {row.line})")
        first.setdefault(place, row.line)
    if twice:
        raise UserError(f"{len(twice)} paths are there twice: {some(twice, _SHOWN)}", where=str(path))
