"""Pairs of source and target text from tables (CSV, TSV, JSONL, Parquet) and from two parallel text files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vitral.data.dataset import SPLITS
from vitral.data.files import some
from vitral.data.folder_names import SPLIT_OF
from vitral.data.table_source import ENDINGS, read_records
from vitral.data.text.config import TextSource
from vitral.data.text.dataset import TextDataset, TextSplit, text_dataset, with_held_out
from vitral.data.text.tokenizer import split_key
from vitral.errors import UserError, nearest, plural
from vitral.files import MIB, explained, read_lines, require_regular
from vitral.optional_imports import require

TABLES = (*ENDINGS, ".parquet")
_SOURCE = ("source", "src", "input", "question", "text")
_TARGET = ("target", "tgt", "output", "answer", "label", "translation")
_TEXT_BYTES = 1024 * MIB
_ROWS = 20_000_000

Rows = list[tuple[int, Mapping[str, Any]]]


class Pair(NamedTuple):
    """A row of a table: its two texts, its split, if it has one, and where it stands."""

    source: str
    target: str
    split: str | None
    name: str


def open_pairs(config: TextSource) -> TextDataset:
    """The text pairs of a table, of a folder with one table per split, or of two parallel text files.

    Splits are those of the folder or the split column; without them a tenth each is held out for val and test by source
    text, so that no source is in two splits. Raises UserError, with the line, for what cannot be read.
    """
    path = _existing(config.path, "data.path")
    if config.target_path is not None:
        pairs = _parallel(path, _existing(config.target_path, "data.target_path"))
    elif path.is_dir():
        pairs = [pair for split, file in _split_tables(path).items() for pair in read_pairs(file, config, split)]
    else:
        pairs = read_pairs(path, config)
    if not pairs:
        raise UserError("no text pairs", where=str(path))
    return _dataset(path.stem, pairs, config.seed, str(path))


def read_pairs(path: Path, config: TextSource, split: str | None = None) -> list[Pair]:
    """The rows of one table; `split` where the file is all of one split."""
    rows = read_rows(path)
    columns = find_columns(rows, config, path, (_SOURCE, _TARGET))
    return [
        Pair(*texts, split or row_split(row, columns[2], where), where)
        for line, row in rows
        for where in [f"{path.name}:{line}"]
        for texts in [(text_of(row, columns[0], where), text_of(row, columns[1], where))]
    ]


def _dataset(name: str, pairs: Sequence[Pair], seed: int, where: str) -> TextDataset:
    def split(rows: Sequence[Pair]) -> TextSplit:
        return TextSplit([row.target for row in rows], [row.name for row in rows], [row.source for row in rows])

    if pairs[0].split is None:
        splits, note = with_held_out(split(pairs), [split_key(pair.source) for pair in pairs], seed, where)
        return text_dataset(name, splits, [note])
    found = {each: rows for each in SPLITS if (rows := [pair for pair in pairs if pair.split == each])}
    if "train" not in found:
        raise UserError(f"rows for {' and '.join(found)} but none for train", where=where)
    return text_dataset(name, {each: split(rows) for each, rows in found.items()})


def read_rows(path: Path) -> Rows:
    """(line, fields) of every row. A .tsv file is read as IANA defines it: no quotes, one record per line."""
    suffix = path.suffix.lower()
    if suffix not in TABLES:
        raise UserError("not a table of text pairs", where=str(path), expected=", ".join(TABLES),
                        hint="Two parallel text files: data.path=FILE data.target_path=FILE.")  # fmt: skip
    rows = {".tsv": _tab_rows, ".parquet": _parquet_rows}.get(suffix, read_records)(path)
    found = list(rows)
    if not found:
        raise UserError("no rows", where=str(path))
    return found


def _tab_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    lines = read_lines(path, _TEXT_BYTES) or [""]
    header = [name.strip() for name in lines[0].split("\t")]
    if len(set(header)) < len(header):
        raise UserError("columns that are there twice", where=f"{path}:1", got=lines[0])
    for number, line in enumerate(lines[1:], 2):
        if not line:
            continue
        fields = line.split("\t")
        if len(fields) != len(header):
            raise UserError(
                "a row with another number of fields than the first line", where=f"{path}:{number}", got=len(fields),
                expected=f"{len(header)}: {', '.join(header)}",
            )  # fmt: skip
        yield number, dict(zip(header, fields, strict=True))


def _parquet_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows, from 1 on, of the columns that hold text."""
    require_regular(path)
    pyarrow, parquet = require("pyarrow", "datasets", "data.path"), require("pyarrow.parquet", "datasets", "data.path")
    with explained("not readable as Parquet", str(path)), parquet.ParquetFile(path) as file:
        if file.metadata.num_rows > _ROWS:
            raise UserError("too many rows", where=str(path), got=f"{file.metadata.num_rows:,}", expected=f"{_ROWS:,}")
        is_text = (pyarrow.types.is_string, pyarrow.types.is_large_string)
        names = [field.name for field in file.schema_arrow if any(test(field.type) for test in is_text)]
        number = 0
        for batch in file.iter_batches(columns=names):
            for row in batch.to_pylist():
                number += 1
                yield number, row


def find_columns(
    rows: Rows, config: TextSource, path: Path, usual: tuple[Sequence[str], Sequence[str]]
) -> tuple[str, str, str | None]:
    """The names of the two columns and of the split's. Raises UserError where they cannot be found."""
    names = list(dict.fromkeys(name for _, row in rows[:100] for name in row))
    lower = {name.lower(): name for name in reversed(names)}
    kinds = config.columns or tuple(next((lower[name] for name in own if name in lower), "") for own in usual)
    for column, own in zip(kinds, usual, strict=True):
        if column not in names:
            raise UserError(
                "no such column" if config.columns else "no column found by its usual name", where=f"{path}:1",
                got=column or f"columns {some(names, 20)}", expected=some(names if config.columns else own, 20),
                nearest=nearest(column, names), hint=f"Name both: data.columns=[{own[0]},{usual[1][0]}]",
            )  # fmt: skip
    if kinds[0] == kinds[1]:
        raise UserError("one column for both texts", where="data.columns", got=list(kinds))
    if config.split_column is not None and config.split_column not in names:
        raise UserError("no such column", where="data.split_column", got=config.split_column, expected=some(names, 20))
    return kinds[0], kinds[1], config.split_column or lower.get("split")


def text_of(row: Mapping[str, Any], column: str, where: str) -> str:
    """A field as text: whole numbers are written out. Raises UserError for other values; empty text is a text."""
    value = row.get(column)
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise UserError("a field that is no text", where=where, got=f"{column} = {value!r}"[:100], expected="text")


def row_split(row: Mapping[str, Any], column: str | None, where: str) -> str | None:
    """The split of a row; None without such a column."""
    if column is None:
        return None
    value = row.get(column)
    if not isinstance(value, str) or value.strip().lower() not in SPLIT_OF:
        raise UserError("unknown split", where=where, got=repr(value), expected=", ".join(SPLIT_OF))
    return SPLIT_OF[value.strip().lower()]


def _existing(path: str | None, key: str) -> Path:
    if path is None:
        raise UserError("no data is named", where=key, hint="Pass data.path=FILE.")
    found = Path(path).expanduser()
    if not found.exists():
        raise UserError("no such file or folder", where=key, got=path)
    return found


def _split_tables(folder: Path) -> dict[str, Path]:
    """The table of each split in a folder: train.tsv, valid.csv, test.jsonl."""
    found: dict[str, Path] = {}
    for name in sorted(os.listdir(folder)):
        file = folder / name
        split = SPLIT_OF.get(file.stem.lower())
        if split is None or file.suffix.lower() not in TABLES:
            continue
        if split in found:
            raise UserError(f"two tables for one split: {found[split].name} and {name}", where=str(folder))
        found[split] = file
    if "train" not in found:
        raise UserError(
            "no table of the split train in this folder", where=str(folder), got=some(found) or "no table",
            expected="train.csv, .tsv, .jsonl or .parquet, perhaps with val and test beside it",
        )  # fmt: skip
    return found


def _parallel(source: Path, target: Path) -> list[Pair]:
    """Lines of two files, one pair each."""
    lines = [read_lines(path, _TEXT_BYTES) for path in (source, target)]
    if len(lines[0]) != len(lines[1]):
        raise UserError(
            "two parallel files of different length", where=f"{source} and {target}",
            got=f"{plural(len(lines[0]), 'line')} and {plural(len(lines[1]), 'line')}",
        )  # fmt: skip
    rows = enumerate(zip(*lines, strict=True), 1)
    return [Pair(one, other, None, f"{source.name}:{number}") for number, (one, other) in rows]
