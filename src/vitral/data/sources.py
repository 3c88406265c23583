"""Which kind of data a path holds, and the one place that turns a DataConfig into a Dataset that can be trained on.

Shape letters: N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from vitral.data.cifar import find_cifar, open_cifar
from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset, Labels
from vitral.data.digits import open_digits
from vitral.data.folder import open_folder
from vitral.errors import UserError, nearest

SOURCES: dict[str, Callable[[DataConfig], Dataset]] = {
    "digits": open_digits,
    "folder": open_folder,
    "cifar": open_cifar,
}
BUILT_IN = ("digits",)
VAL_SEED = 0


def open_dataset(config: DataConfig, *, hold_out: bool = True) -> Dataset:
    """The data that `config` points at, with a validation split (unless `hold_out` is off: then as they are).

    `source` auto: a built-in name without a folder of that name, then CIFAR files, then an image folder. Without a
    validation split, round(val_fraction x n) train samples are held out, at least one of each class: stratified, always
    the same for the same data; a note says so. Raises UserError for a path that is missing or holds no data, for fewer
    than two classes, for classes too small to split, and all that the source raises.
    """
    name = _source(config)
    if name not in BUILT_IN:
        _check_path(config)
    try:
        dataset = SOURCES[name](config)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(error.filename or config.path)) from None
    if len(dataset.classes) < 2:
        only = ", ".join(dataset.classes)
        raise UserError(
            "only one class, so there is nothing to tell apart", where=config.path, got=only, wanted="2 or more"
        )
    if not hold_out:
        return dataset
    if "val" not in dataset.splits:
        dataset = with_validation(dataset, config.val_fraction)
    if "test" not in dataset.splits:
        note = "no test split: results are of the validation data, on which checkpoint and temperature are chosen too"
        dataset = replace(dataset, notes=(*dataset.notes, note))
    return dataset


def stratified(labels_N: Labels, fraction: float, seed: int) -> Labels:
    """Places, ascending, of round(fraction x n) samples: each class in proportion, to within one where it can be.

    Each class keeps at least one sample on both sides, so the number is raised or lowered to what that needs. Every
    class that occurs must occur twice or more.
    """
    occurs_K, inverse_N, counts_K = np.unique(labels_N, return_inverse=True, return_counts=True)
    assert counts_K.min() >= 2, "a class with one sample"
    total = min(max(round(fraction * len(labels_N)), len(occurs_K)), len(labels_N) - len(occurs_K))
    ideal_K = total * counts_K / len(labels_N)
    take_K = np.clip(np.floor(ideal_K).astype(np.int64), 1, counts_K - 1)
    while take_K.sum() < total:
        take_K[np.argmax(np.where(take_K < counts_K - 1, ideal_K - take_K, -np.inf))] += 1
    while take_K.sum() > total:
        take_K[np.argmin(np.where(take_K > 1, ideal_K - take_K, np.inf))] -= 1
    order_N = np.random.RandomState(seed).permutation(len(labels_N))  # RandomState: its numbers never change with NumPy
    by_class_N = order_N[np.argsort(inverse_N[order_N], kind="stable")]
    first_K = np.cumsum(counts_K) - counts_K
    taken = [by_class_N[first : first + take] for first, take in zip(first_K, take_K, strict=True)]
    return np.sort(np.concatenate(taken)).astype(np.int64)


def with_validation(dataset: Dataset, fraction: float) -> Dataset:
    """The dataset with a part of its train split held out as "val", and a note that says so."""
    train = dataset.splits["train"]
    counts_K = np.bincount(train.labels_N, minlength=len(dataset.classes))
    single = [name for name, count in zip(dataset.classes, counts_K, strict=True) if count == 1]
    if single:
        shown = ", ".join(single[:10]) + (" ..." if len(single) > 10 else "")
        raise UserError(
            f"one image is too few to train on and to hold one out for validation: {shown}",
            where=dataset.name,
            wanted="2 or more images a class, or a validation split",
        )
    held_out = stratified(train.labels_N, fraction, VAL_SEED)
    kept = np.setdiff1d(np.arange(len(train)), held_out)
    splits = {"train": train.subset(kept), "val": train.subset(held_out)}
    splits |= {name: split for name, split in dataset.splits.items() if name not in splits}
    note = f"no validation split: {len(held_out)} of {len(train)} train images held out, stratified, seed {VAL_SEED}"
    return replace(dataset, splits=splits, notes=(*dataset.notes, note))


def _source(config: DataConfig) -> str:
    if config.source != "auto":
        return config.source
    if config.path is None:
        raise UserError(
            "no data is named",
            where="data",
            hint="Say where the images are: data=DIR (a folder of class folders, or CIFAR files), or data=digits.",
        )
    path = Path(config.path).expanduser()
    if config.path in BUILT_IN and not path.is_dir():
        return config.path
    return "cifar" if path.is_dir() and find_cifar(path) else "folder"


def _check_path(config: DataConfig) -> None:
    """Raises UserError unless the path is a folder."""
    if config.path is None:
        raise UserError(f"source {config.source} needs a folder", where="data.path", hint="Say where: data=DIR.")
    path = Path(config.path).expanduser()
    if path.is_dir():
        return
    if path.exists():
        archive = path.suffix.lower() in (".gz", ".tgz", ".tar", ".zip", ".xz", ".bz2", ".7z")
        hint = "Unpack it and give the folder." if archive else None
        raise UserError("a folder is wanted, and this is a file", where="data.path", got=config.path, hint=hint)
    raise UserError("no such folder", where="data.path", got=config.path, nearest=_near(path, config.path))


def _near(path: Path, written: str) -> str | None:
    """The most similar name beside the first part of the path that is missing, or a built-in name."""
    missing = path
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent
    folders = [child for child in missing.parent.iterdir() if child.is_dir() and not child.name.startswith(".")]
    options = {child.name: str(child) for child in folders} | {
        name: name for name in BUILT_IN if missing.name == written
    }
    return options.get(nearest(missing.name, options) or "")
