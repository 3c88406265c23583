"""Read Hugging Face datasets: a name on the Hub, a folder of `save_to_disk`, or Parquet, Arrow and WebDataset shards.

All are read map-style, by place: a batch is a function of its step, so a run resumes exactly. Shards are converted once
into Arrow files in the library's cache and mapped into memory. Needs the extra `datasets`.
Shape letters: N samples, K classes.
"""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vitral.data.box_files import with_boxes
from vitral.data.boxes import Size, Unpaired
from vitral.data.config import DataConfig
from vitral.data.dataset import SPLITS, Dataset, Labels
from vitral.data.decode import header
from vitral.data.files import Part, class_map, encoded_dataset, hidden, known_column, label_array, some
from vitral.data.folder_names import SPLIT_OF, any_of
from vitral.data.hf_boxes import BoxColumn, box_column, read_boxes
from vitral.data.label_vectors import named, vector_width
from vitral.data.regression_targets import as_number, as_targets, check_targets
from vitral.errors import UserError
from vitral.optional_imports import install, optional

_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
_LABEL_NAMES = ("label", "labels", "class", "cls", "target", "fine_label")
_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp")
_PATH_NAMES = ("path", "file", "filename", "file_name", "image_path")  # the names that a manifest's column may have
_SPLIT = re.compile(rf"(?:^|[/\\_.-])({any_of(SPLIT_OF)})(?=[/\\_.\-\d]|$)")


_RANGE = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")
_SHARDS = 100_000  # that one pattern, with all of its ranges, may stand for


class _Columns(NamedTuple):
    image: str
    label: str
    names: tuple[str, ...] | None  # of a ClassLabel, in its order
    several: bool

    def texts(self, value: Any) -> list[str]:
        """The names of the classes of a sample, from the value in its column."""
        each: list[Any] = value if self.several else [value]
        return [str(label) if self.names is None else self.names[label] for label in each]


def find_shards(path: str) -> list[Path]:
    """The shards that a path means: a file, a pattern such as x-{000..009}.tar or x-*.parquet, or a folder of them."""
    counts = [int(last) - int(first) + 1 for first, last in _RANGE.findall(path)]
    if math.prod(max(count, 1) for count in counts) > _SHARDS:
        raise UserError("too many shards", where="data.path", got=path, expected=f"at most {_SHARDS:,} of one pattern")
    expanded = [found for pattern in _expand(os.path.expanduser(path)) for found in _glob(pattern)]
    if len(expanded) == 1 and expanded[0].is_dir():
        expanded = sorted(
            entry
            for entry in expanded[0].rglob("*")
            if entry.is_file() and not any(map(hidden, entry.relative_to(expanded[0]).parts))
        )
    return [shard for shard in expanded if shard.suffix.lower() in _BUILDERS]


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def open_hf(config: DataConfig) -> Dataset:
    """A Hugging Face dataset; `config.path` is looked for on the disk first, and only then on the hub.

    Splits go by their names (validation is val); image and label column are `config.image_column` and `label_column`,
    or the one of type Image and the one of type ClassLabel or called label; a dotted name reaches into a record.
    ClassLabel names keep their order; other labels are sorted, whole numbers by value. A list of labels is multi-label;
    a column of records with boxes and classes (`objects`) makes the data those of a detector (see `hf_boxes`).
    Local data need no network. The fingerprint covers shard names and sizes (local) or the dataset's own (hub), labels
    and class names. Raises UserError for a missing extra, unknown columns, unlabeled samples, and what can't be had.
    """
    parts, content, root = _load(config)
    features = next(iter(parts.values())).features
    with_objects = None if config.target is not None else box_column(features, config.label_column)
    if with_objects is not None:
        return _with_objects(parts, content, root, with_objects, config)
    columns = _columns(next(iter(parts.values())), config)
    if config.target is None:
        classes, labels = _labels(parts, columns, config)
    else:
        classes, labels = config.target, {split: _numbers(part, split, config.target) for split, part in parts.items()}
    read = {
        split: Part(
            labels[split], [f"{split}/{place:06d}" for place in range(len(part))], _images(part, columns.image, root)
        )
        for split, part in parts.items()
    }
    covered = [text.encode("utf-8", "surrogatepass") for text in (*content, *classes)]
    covered += [part for split, labels_N in labels.items() for part in (split.encode(), labels_N.tobytes())]
    note = f"columns: {', '.join((columns.image, *(config.target or (columns.label,))))}"
    return encoded_dataset(Path(str(config.path)).name, classes, read, config, [note], covered, made_up=True)


def _with_objects(
    parts: Mapping[str, Any], content: list[str], root: str | None, column: BoxColumn, config: DataConfig
) -> Dataset:
    """The dataset of a column of boxes."""
    image = _image_column(_flat(next(iter(parts.values())).features), config)
    files = {split: _images(part, image, root) for split, part in parts.items()}
    values = {split: _values(part, column.column) for split, part in parts.items()}
    sizes = {split: _Sizes(files[split], len(part)) for split, part in parts.items()}
    classes, boxes = read_boxes(values, sizes, column, config)
    read = {
        split: Part(own.hot(len(classes)), [f"{split}/{place:06d}" for place in range(len(own))], files[split])
        for split, own in boxes.items()
    }
    covered = [text.encode("utf-8", "surrogatepass") for text in (*content, *classes)]
    covered += [part for split, own in boxes.items() for part in (split.encode(), own.content())]
    note = f"columns: {image}, {column.column} ({column.boxes}, {column.label})"
    name = Path(str(config.path)).name
    dataset = encoded_dataset(name, classes, read, config, [note], covered, made_up=True)
    return with_boxes(dataset, boxes, Unpaired())


class _Sizes(Sequence[Size]):
    """Height and width of encoded images, from their headers when they are read; 1, 1 of damaged ones."""

    def __init__(self, file: Callable[[int], str | bytes], count: int) -> None:
        self._file, self._count = file, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: Any) -> Any:
        if place >= self._count:
            raise IndexError(place)
        try:
            head = header(self._file(place))
        except UserError:
            return 1, 1
        return head.height, head.width


def _library() -> Any:
    try:
        return optional("datasets")
    except ImportError:
        raise UserError(
            "Parquet, Arrow, WebDataset and the hub need the library datasets", where="data.source",
            hint=install("datasets"),
        ) from None  # fmt: skip


def _load(config: DataConfig) -> tuple[dict[str, Any], list[str], str | None]:
    """Our split names to `datasets.Dataset`; what identifies the content; and the folder that paths in local data are
    relative to, as in a manifest."""
    datasets, written = _library(), str(config.path)
    path, shards = Path(written).expanduser(), find_shards(written)
    is_hub = not shards and not is_saved(path)
    if config.subset is not None and not is_hub:
        raise UserError("data on this disk have no configurations", where="data.subset", got=config.subset)
    if is_hub and (path.exists() or written.startswith((".", "/", "~")) or _wild(written)):
        raise UserError(
            "no dataset here", where=written,
            expected="a folder of save_to_disk, or files that end in .parquet, .arrow or .tar",
        )  # fmt: skip
    grouped = {} if is_saved(path) else _group(shards, written)
    try:
        if is_saved(path):
            found = datasets.load_from_disk(str(path))
        elif shards:
            files = {split: list(map(str, own)) for split, own in grouped.items()}
            found = datasets.load_dataset(_BUILDERS[shards[0].suffix.lower()], data_files=files)
        else:
            found = datasets.load_dataset(written, config.subset)
    except Exception as error:  # the library raises its own and those of half a dozen others
        got = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        if not is_hub:
            raise UserError("the dataset can't be read", where=written, got=got) from error
        raise UserError(
            "not on this disk, and it can't be had from the hub", where=written, got=got,
            hint="Is the name right and the network there? HF_HUB_OFFLINE must not be 1. Some need data.subset too.",
        ) from error  # fmt: skip
    parts = _named(found, written)
    if is_hub:
        return parts, [written, *(f"{name} {part._fingerprint}" for name, part in parts.items())], None
    files, root = (sorted(path.rglob("*.arrow")), path) if is_saved(path) else (shards, shards[0].parent)
    return parts, [f"{file.name} {file.stat().st_size}" for file in files], str(root)


def _expand(pattern: str) -> list[str]:
    """{000..009} written out, the first one and then those behind it; numbers keep their width."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = int(match[1]), int(match[2])
    if last < first:
        raise UserError("an empty range of shards", where="data.path", got=match[0], expected="{first..last}")
    numbers = [str(number).zfill(len(match[1])) for number in range(first, last + 1)]
    return [
        whole for number in numbers for whole in _expand(pattern[: match.start()] + number + pattern[match.end() :])
    ]


def _wild(path: str) -> bool:
    return any(sign in path for sign in "*?[{")


def _glob(pattern: str) -> list[Path]:
    if Path(pattern).exists():
        return [Path(pattern)]
    found = sorted(Path(path) for path in glob.glob(pattern, recursive=True)) if _wild(pattern) else []
    if not found and Path(pattern).suffix.lower() in _BUILDERS:
        raise UserError("no such shard", where="data.path", got=pattern)
    return found


def _group(shards: Sequence[Path], where: str) -> dict[str, list[Path]]:
    """Group shards by the split in their file or folder names; all are train where no name holds a split."""
    kinds = sorted({shard.suffix.lower() for shard in shards})
    if len(kinds) > 1:
        raise UserError(f"shards of several kinds: {', '.join(kinds)}", where=where)
    groups: dict[str, list[Path]] = {}
    for shard in shards:
        named = _SPLIT.findall(shard.name.lower()) or [n for n in (shard.parent.name.lower(),) if n in SPLIT_OF]
        groups.setdefault(SPLIT_OF[named[-1]] if named else "", []).append(shard)
    if set(groups) == {""}:
        return {"train": groups[""]}
    if "" in groups:
        names = some([shard.name for shard in groups[""]], 5)
        raise UserError(f"shards without a split in their names, beside others with one: {names}", where=where)
    return groups


def _named(found: Any, where: str) -> dict[str, Any]:
    """By our names of splits. A dataset without splits is all train."""
    if not isinstance(found, Mapping):
        return {"train": found}
    parts = {SPLIT_OF[str(name)]: part for name, part in found.items() if str(name) in SPLIT_OF}
    if "train" not in parts:
        raise UserError("no split for training", where=where, got=some(map(str, found)), expected="train")
    return {split: parts[split] for split in SPLITS if split in parts}


def _labels(
    parts: Mapping[str, Any], columns: _Columns, config: DataConfig
) -> tuple[tuple[str, ...], dict[str, Labels]]:
    """Classes, and the labels of each split."""
    values = {split: _values(part, columns.label) for split, part in parts.items()}
    values, columns = _without_vectors(values, columns, config)
    for split, own in values.items():
        _refuse_unlabeled(own, columns, split)
    index_of = _class_map(values, columns, config)
    return tuple(index_of), {
        split: label_array([columns.texts(value) for value in own], index_of, columns.several)
        for split, own in values.items()
    }


def _numbers(part: Any, split: str, targets: tuple[str, ...]) -> Labels:
    """The numbers of these columns in place of labels."""
    values = [
        [as_number(value, name, f"{split}, row {place}") for place, value in enumerate(_values(part, name))]
        for name in targets
    ]
    return as_targets(zip(*values, strict=True), len(targets))


def _columns(part: Any, config: DataConfig) -> _Columns:
    types: dict[str, Any] = _flat(part.features)
    image = _image_column(types, config)
    inner = {name: getattr(feature, "feature", feature) for name, feature in types.items()}
    typed = [name for name, feature in inner.items() if type(feature).__name__ == "ClassLabel"]
    if config.target is not None:
        check_targets(config.target, types)
        return _Columns(image, "", None, False)
    label = _one("label", config.label_column, types, typed, _LABEL_NAMES)
    names = getattr(inner[label], "names", None)
    return _Columns(image, label, None if names is None else tuple(names), inner[label] is not types[label])


def _image_column(types: dict[str, Any], config: DataConfig) -> str:
    kinds = {name: type(feature).__name__ for name, feature in types.items()}
    typed = [name for name, kind in kinds.items() if kind == "Image"] or [n for n in _IMAGE_NAMES if n in types]
    return _one("image", config.image_column, types, typed, _PATH_NAMES)


def _flat(features: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Columns and, dotted, the fields of records in them."""
    flat: dict[str, Any] = {}
    for name, feature in features.items():
        flat[prefix + name] = feature
        if isinstance(feature, Mapping):
            flat |= _flat(feature, f"{prefix}{name}.")
    return flat


def _one(kind: str, column: str | None, types: Mapping[str, Any], typed: list[str], usual: Sequence[str]) -> str:
    if column is not None:
        return known_column(f"{kind}_column", column, types)
    found = typed or [name for name in usual if name in types]
    if len(found) == 1:
        return found[0]
    what = f"several columns could be the {kind}" if found else f"no column looks like the {kind}"
    raise UserError(
        what, where=f"data.{kind}_column", got=some(found or types, 20), hint=f"Name it: data.{kind}_column=..."
    )


def _images(part: Any, column: str, root: str | None) -> Callable[[int], str | bytes]:
    """Gives the image of a row, undecoded: its bytes, or its path."""
    names = column.split(".")
    part = part.select_columns([names[0]])
    if type(part.features[names[0]]).__name__ == "Image":
        part = part.cast_column(names[0], _library().Image(decode=False))

    def encoded(index: int) -> str | bytes:
        record: Any = part[index]
        for name in names:
            record = record[name]
        if isinstance(record, Mapping):
            record = record.get("bytes") or record.get("path")
        if isinstance(record, str) and root is not None:
            record = os.path.join(root, record)
        if not isinstance(record, str | bytes):
            raise UserError("no image in this row", got=type(record).__name__, expected="encoded bytes, or a path")
        return record

    return encoded


def _values(part: Any, column: str) -> list[Any]:
    """The raw values of a column in a split, in order: numbers or text, or lists of them."""
    top, *inner = column.split(".")
    values: list[Any] = part.select_columns([top]).with_format(None)[:][top]
    for name in inner:
        values = [None if value is None else value.get(name) for value in values]
    return values


def _refuse_unlabeled(values: Sequence[Any], columns: _Columns, split: str) -> None:
    """Raises UserError for a value that is no label."""
    for place, value in enumerate(values):
        listed = value if columns.several else [value]
        for each in listed if isinstance(listed, list) else [None]:
            if each is None or isinstance(each, float | bool | bytes | dict | list) or each == "":
                raise UserError("not a label", where=f"{split}, row {place}, {columns.label}", got=repr(value)[:60])
            if columns.names is not None and not 0 <= each < len(columns.names):
                raise UserError(
                    "a sample without a label", where=f"{split}, row {place}", got=f"{columns.label} = {each}",
                    expected=f"0 to {len(columns.names) - 1}",
                )  # fmt: skip


def _without_vectors(
    labels: dict[str, list[Any]], columns: _Columns, config: DataConfig
) -> tuple[dict[str, list[Any]], _Columns]:
    """Class names in place of multi-hot vectors, if the labels are such; lists of a ClassLabel only where they are as
    long as it has names."""
    rows = [value for values in labels.values() for value in values]
    if columns.names is not None and vector_width(rows) != len(columns.names):
        return labels, columns
    names = named(rows, config.classes, f"{config.path}: {columns.label}")
    if names is None:
        return labels, columns
    each = iter(names)
    found = {split: [next(each) for _ in values] for split, values in labels.items()}
    return found, columns._replace(names=None, several=True)


def _class_map(labels: Mapping[str, list[Any]], columns: _Columns, config: DataConfig) -> dict[str, int]:
    if columns.names is not None:
        return class_map(columns.names, config.classes or columns.names, columns.label)
    found = {each for values in labels.values() for value in values for each in (value if columns.several else [value])}
    whole = all(isinstance(each, int) for each in found)
    order = tuple(str(each) for each in sorted(found)) if whole else None
    return class_map(map(str, found), config.classes or order, columns.label)
