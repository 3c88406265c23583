"""Detect the kind of data at a path, and open it as a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from vitral.data.box_table import describes_boxes, open_box_table
from vitral.data.boxes import refuse_boxes
from vitral.data.cifar import find_cifar, open_cifar
from vitral.data.coco import coco_files, looks_like_coco, open_coco
from vitral.data.config import DataConfig, Validation
from vitral.data.dataset import Dataset
from vitral.data.digits import open_digits
from vitral.data.digits_scenes import open_digits_scenes
from vitral.data.filename_labels import fits, looks_flat, open_filename
from vitral.data.files import loose_images, some, subfolders
from vitral.data.folder import IMAGE_FILES, LAYOUT, has_classes, is_unlabeled, open_folder, open_images
from vitral.data.hf import find_shards, is_saved, open_hf
from vitral.data.splits import with_val_in_train, with_validation
from vitral.data.table_source import ENDINGS, describes_images, open_table
from vitral.data.value_range import find_value_range
from vitral.data.voc import looks_like_voc, open_voc
from vitral.data.yaml_source import open_description
from vitral.data.yolo import is_yolo_yaml, looks_like_yolo, open_yolo
from vitral.errors import UserError, nearest

BUILT_IN = ("digits", "digits_scenes")
MANIFESTS = (
    "metadata",
    "manifest",
    "labels",
    "index",
    "boxes",
)  # a folder with one of these, .csv or .jsonl, is a table


SOURCES: dict[str, Callable[[DataConfig], Dataset]] = {
    "digits": open_digits,
    "folder": open_folder,
    "filename": open_filename,
    "images": open_images,
    "table": open_table,
    "cifar": open_cifar,
    "hf": open_hf,
    "yaml": lambda config: open_description(config, _open),
    "coco": open_coco,
    "voc": open_voc,
    "yolo": open_yolo,
    "box_table": open_box_table,
    "digits_scenes": open_digits_scenes,
}
# Keys that only some sources read: given to another one, they would be ignored.
_ONLY = {
    "pattern": ("filename",),
    "image_column": ("table", "hf", "box_table"),
    "label_column": ("table", "hf", "box_table"),
    "target": ("table", "hf", "digits"),
    "split_column": ("table", "box_table"),
    "label_separator": ("table",),
    "classes": ("folder", "filename", "table", "hf", "coco", "voc", "yolo", "box_table"),
    "subset": ("hf",),
    "box_format": ("coco", "box_table", "hf"),
    "box_unit": ("coco", "box_table", "hf"),
}
_LOOKED_FOR = (
    "CIFAR files; a folder that save_to_disk wrote, .parquet, .arrow or .tar shards; metadata.csv or metadata.jsonl; "
    f"image files named label_index.ext; {LAYOUT}"
)


def open_dataset(
    config: DataConfig, *, hold_out: bool = True, equal_classes: bool = True, one_class: bool = False,
    boxes: bool = False,
) -> Dataset:  # fmt: skip
    """The data that `config` points at, with a validation split (unless `hold_out` is off: then as they are).

    `source` auto: see `find_source`. Class indices come from one map for all splits. With `equal_classes` a split that
    lacks classes is refused, otherwise it is opened with the right indices (`Dataset.absent` names what it lacks). Data
    of one class are refused too, unless `one_class` says that they will do, and boxes, unless `boxes` does.
    Without a validation split, round(val_fraction x n) train samples are held out, at least one of each class:
    stratified, always the same for the same data; a note says so. Raises UserError for a path that is missing or holds
    no data, for classes too small to split, and all that the source raises.
    """
    dataset = _open_ranged(config)
    if dataset.task == "detection" and not boxes:
        refuse_boxes(dataset.name)
    if len(dataset.classes) < 2 and dataset.task == "classification" and not one_class:
        _refuse_one_class(dataset, config.path)
    if not dataset.classes:
        raise UserError("no image has any class", where=config.path)
    if equal_classes and dataset.task != "detection":
        refuse_unequal(dataset, config.path)
    return make_val_split(dataset, config.val_fraction, config.validation) if hold_out else dataset


def make_val_split(
    dataset: Dataset, fraction: float, validation: Validation = "own", *, to_evaluate: bool = True
) -> Dataset:
    """The dataset with a validation split, carved out of train where there is none; notes say what is amiss.

    validation "dev": the split is carved out of train always, and the evaluated split (test, or else val) is gone.
    "none": no split is carved. For both, val belongs to train where there is a test split. Raises UserError for "none"
    where nothing would be left to evaluate on.
    """
    if validation != "own":
        dataset = with_val_in_train(dataset)
    if validation == "none":
        if len(dataset.splits) == 1 and to_evaluate:
            raise UserError(
                "no images would be left to evaluate the result on", where="data.validation", got="none",
                hint="Data with a test or val split have them; data.validation=own holds a part of train out.",
            )  # fmt: skip
        return replace(dataset, notes=(*dataset.notes, "trained on all train images, without validation"))
    if validation == "dev":
        alone = replace(dataset, splits={"train": dataset.splits["train"]})
        return with_validation(alone, fraction, "chosen on a part of train")
    if "val" not in dataset.splits:
        dataset = with_validation(dataset, fraction)
    if "test" not in dataset.splits:
        note = "no test split: results are of the validation data, on which checkpoint and temperature are chosen too"
        dataset = replace(dataset, notes=(*dataset.notes, note))
    return dataset


def _refuse_one_class(dataset: Dataset, where: str | None) -> NoReturn:
    """Raises UserError, which names the right source for a flat folder that was put inside one folder."""
    only = ", ".join(dataset.classes)
    names = [name.rsplit("/", 1)[-1] for split in dataset.splits.values() for name in split.names]
    labels = fits(names)
    if labels is None:
        raise UserError(
            "only one class, so there is nothing to tell apart", where=where, got=only, expected="2 or more"
        )
    raise UserError(
        f"one class, {only}, whose file names hold {len(labels)} classes: {some(labels)}", where=where,
        hint=f"data.source=filename reads the classes from the names of the files below {where}.",
    )  # fmt: skip


def refuse_unequal(dataset: Dataset, where: str | None) -> None:
    """Raises UserError for a split without any image of a class that another split, or data.classes, has."""
    found = dataset.absent()
    if not found:
        return
    absent = {name: set(found.get(name, ())) for name in dataset.splits}

    def named(classes: set[str]) -> str:
        return some([name for name in dataset.classes if name in classes])

    lacking = absent["train"]
    if lacking and not any(lacking - own for own in absent.values()):
        raise UserError(f"classes without any image: {named(lacking)}", where=where, expected=IMAGE_FILES)
    lines: list[str] = []
    for split, own in absent.items():
        if own != lacking:
            kinds = (("missing", own - lacking), ("extra", lacking - own))
            differ = "; ".join(f"{kind}: {named(classes)}" for kind, classes in kinds if classes)
            lines.append(f"split {split!r}: its classes differ from train's; {differ}")
    raise UserError("\n  ".join(lines), where=where, expected=named(set(dataset.classes) - lacking))


def unlabeled_source(config: DataConfig) -> DataConfig:
    """`config`, for learning without labels: a folder of nothing but images, whose classes nobody knows, will do."""
    if config.source != "auto" or config.path is None or not config.place.is_dir():
        return config
    name, found = find_source(config)
    return found.model_copy(update={"source": "images"}) if name == "folder" and is_unlabeled(found.place) else config


def find_source(config: DataConfig) -> tuple[str, DataConfig]:
    """The name of the source that `config` means, and `config` with the path that this source reads.

    auto, in this order: a built-in name without a folder of that name; by the file's ending YAML, JSON, CSV or JSONL,
    shards (also patterns of them); in a folder CIFAR files, `save_to_disk`, boxes of COCO, YOLO and VOC, a manifest by
    one of the usual names, image files whose names hold their class, shards without images beside them, class folders.
    A `pattern` selects filename. A table with columns of boxes is a box_table.
    Raises UserError, saying what was looked for, where nothing fits.
    """
    if config.source != "auto":
        if config.source not in (*BUILT_IN, "hf"):
            _check_path(config)
        return config.source, config
    if config.path is None:
        raise UserError(
            "no data is named",
            where="data",
            hint="Say where the images are: data=DIR (a folder of class folders, or CIFAR files), or data=digits.",
        )
    path = config.place
    if config.path in BUILT_IN and not path.is_dir():
        return config.path, config
    if path.suffix.lower() in (".yaml", ".yml") and path.is_file():
        return "yolo" if is_yolo_yaml(path) else "yaml", config
    if path.suffix.lower() == ".json" and looks_like_coco(path):
        return "coco", config
    if path.suffix.lower() in ENDINGS and path.is_file():
        return _table(path, config), config
    if not path.is_dir():
        if find_shards(config.path):
            return "hf", config
        _check_path(config)
    return _look_into(path, config)


def _look_into(path: Path, config: DataConfig) -> tuple[str, DataConfig]:
    if config.pattern is not None:
        return "filename", config
    if find_cifar(path):
        return "cifar", config
    if is_saved(path):
        return "hf", config
    boxes = {"coco": coco_files, "yolo": looks_like_yolo, "voc": looks_like_voc}
    for name, has_boxes in boxes.items():
        if has_boxes(path):
            return name, config
    manifests = _manifests(path, config)
    if len(manifests) > 1:
        names = some(file.name for file in manifests)
        raise UserError(f"several manifests: {names}", where=str(path), hint="Name one of them: data=FILE.")
    if manifests:
        return _table(manifests[0], config), config.model_copy(update={"path": str(manifests[0])})
    if looks_flat(path):
        return "filename", config
    images = any(loose_images(path))
    if not images and find_shards(str(path)):
        return "hf", config
    if not images and not subfolders(path):
        raise UserError("no images here that are laid out in a known way", where=str(path), expected=_LOOKED_FOR)
    return "folder", config


def _table(path: Path, config: DataConfig) -> str:
    return "box_table" if config.target is None and describes_boxes(path) else "table"


def _manifests(path: Path, config: DataConfig, *, others: bool = False) -> list[Path]:
    """The tables in a folder that name its images, or the `others`: beside class folders a table without columns for
    image and label is about something else (what the classes are called, say)."""
    tables = [
        file for file in sorted(path.iterdir())
        if file.stem in MANIFESTS and file.suffix.lower() in ENDINGS and file.is_file()
    ]  # fmt: skip
    named = config.image_column is not None or config.label_column is not None
    foreign = [] if named else [file for file in tables if not describes_images(file)]
    foreign = foreign if foreign and has_classes(path) else []
    return foreign if others else [file for file in tables if file not in foreign]


def _open_ranged(config: DataConfig) -> Dataset:
    """With `value_range` auto replaced by the range of all images."""
    dataset = _open(config)
    if config.value_range != "auto":
        return replace(dataset, value_range=config.value_range)
    found = find_value_range(dataset, config)
    if found is None:
        return dataset
    low, high = found
    note = f"images of more than 8 bits: {low:g} is black, {high:g} is white (data.value_range={low:g},{high:g})"
    ranged = _open(config.model_copy(update={"value_range": found}))
    return replace(ranged, value_range=found, notes=(*ranged.notes, note))


def _open(config: DataConfig) -> Dataset:
    try:
        guessed = config.source == "auto"
        name, config = find_source(config)
        if name != "yaml":
            _refuse_ignored(name, config)
        dataset = SOURCES[name](config)
        if not guessed or name != "folder":
            return dataset
        tables = _manifests(config.place, config, others=True)
        notes = [f"{file.name} has no columns for image and label: the folders are the classes" for file in tables]
        return replace(dataset, notes=(*dataset.notes, *notes))
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(error.filename or config.path)) from None


def _refuse_ignored(source: str, config: DataConfig) -> None:
    default = DataConfig()
    for key in ("label_column", "label_separator", "classes") if config.target is not None else ():
        if getattr(config, key) is not None:
            raise UserError("has no effect with data.target", where=f"data.{key}", got=getattr(config, key))
    for key, readers in _ONLY.items():
        if source not in readers and getattr(config, key) != getattr(default, key):
            raise UserError(
                f"this key means nothing to the source {source}", where=f"data.{key}", got=getattr(config, key),
                expected=f"a source that reads it: {', '.join(readers)}",
            )  # fmt: skip


def _check_path(config: DataConfig) -> None:
    """Raises UserError unless the path is what the source reads: a folder, or a file for table and yaml."""
    file_wanted = config.source in ("table", "yaml", "box_table")
    kind = "file" if file_wanted else "folder"
    if config.path is None:
        raise UserError(f"source {config.source} needs a {kind}", where="data.path", hint="Say where: data=DIR.")
    path = config.place
    if path.is_file() if file_wanted else path.is_dir() or (config.source in ("coco", "yolo") and path.is_file()):
        return
    if path.is_dir():
        raise UserError(
            f"source {config.source} reads a file, and this is a folder", where="data.path", got=config.path
        )
    if path.exists():
        archive = path.suffix.lower() in (".gz", ".tgz", ".zip", ".xz", ".bz2", ".7z", ".tar")
        hint = "Unpack it and give the folder." if archive else None
        raise UserError("a folder is expected, and this is a file", where="data.path", got=config.path, hint=hint)
    hub = "A name on the Hugging Face hub needs data.source=hf." if config.source == "auto" else None
    raise UserError(f"no such {kind}", where="data.path", got=config.path, nearest=_near(path, config.path), hint=hub)


def _near(path: Path, written: str) -> str | None:
    """The most similar name beside the first part of the path that is missing, or a built-in name."""
    missing = path
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent
    options = {child.name: str(child) for child in missing.parent.iterdir() if not child.name.startswith(".")}
    options |= {name: name for name in BUILT_IN if missing.name == written}
    return options.get(nearest(missing.name, options) or "")
