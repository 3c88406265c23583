"""Compute features of many images, in one process or on a Ray cluster, and write them."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitral.atomic_files import whole_file
from vitral.data.damaged_images import find_damaged
from vitral.data.dataset import Dataset, Split
from vitral.errors import UserError
from vitral.predictor import Floats, Predictor
from vitral.run.command_options import EmbedOptions
from vitral.run.inference_inputs import image_batches, load_used, open_images
from vitral.training.metrics_log import console_logging, log


class Row(NamedTuple):
    """One image: its path or its name in the data, its features, and where it is known its split and its label (class
    index, or bool [classes])."""

    image: str
    embedding: Floats
    split: str | None = None
    label: Any = None


class Failed(NamedTuple):
    """An image that cannot be read, and why."""

    image: str
    error: str


def open_embedded(model: str, predictor: Predictor, options: EmbedOptions) -> Dataset:
    """The data whose images are expected. Raises UserError where there is no such split."""
    source = options.data.model_copy(update={"max_bad": 0})  # nothing is decoded twice: see `_of_split`
    dataset, skipped = open_images(predictor.config, source, predictor.config, model)
    for name in (text for texts in skipped.values() for text in texts):
        log.warning("damaged, left out: %s", name)
    if options.split != "all" and options.split not in dataset.splits:
        known = ", ".join(("all", *dataset.splits))
        raise UserError("the data have no such split", where="split", got=options.split, expected=known)
    return dataset


def embeddings(
    model: str, paths: Sequence[str] | None, options: EmbedOptions
) -> tuple[Sequence[str], Iterator[Row | Failed]]:
    """What `vitral embed` writes: the classes of the data, if it is data, and the images one by one: files, or with
    `paths` None the expected splits of the data. Whatever is wrong with model or data is raised at once; an image that
    cannot be read is Failed."""
    console_logging()
    if options.engine != "ray":
        dataset, work = _opened(model, options, is_data=paths is None)
        items = [paths] if dataset is None else _parts(dataset, options, sys.maxsize)
        return _classes(dataset), (row for item in items for row in work(item))
    from vitral.run.ray_map import alone, cut, map_on_cluster

    dataset, _ = _opened(model, alone(options, "cpu"), is_data=paths is None)  # here first, for what is wrong with it
    size = options.batch_size
    items = cut(paths or (), size) if dataset is None else _parts(dataset, options, size)
    work = partial(_work, model, options, dataset is not None)
    return _classes(dataset), map_on_cluster(work, items, options.device, options.ray.workers)


def _classes(dataset: Dataset | None) -> Sequence[str]:
    return () if dataset is None else dataset.classes


def _embedded(predictor: Predictor, options: EmbedOptions, paths: Sequence[str]) -> Iterator[Row | Failed]:
    rows = predictor.embed(paths, options.features, options.batch_size, stream=True)
    for path, row in zip(paths, rows, strict=True):
        yield Failed(path, str(row)) if isinstance(row, UserError) else Row(path, row)


def _of_split(predictor: Predictor, name: str, split: Split, options: EmbedOptions) -> Iterator[Row | Failed]:
    """Every image of a split, in order. Damaged ones are looked for where a batch cannot be read, and only in it."""
    start, size = 0, options.batch_size
    while start < len(split):
        rest = split.subset(range(start, len(split)))
        try:
            for row in _rows(predictor, name, rest, options):
                yield row
                start += 1
        except UserError:
            part = split.subset(range(start, min(start + size, len(split))))
            damage = find_damaged(part)
            if not damage:
                raise
            good = _rows(predictor, name, part.subset(at for at in range(len(part)) if at not in damage), options)
            for at in range(len(part)):
                cause = damage.get(at)
                yield next(good) if cause is None else Failed(part.names[at], f"{part.names[at]}: {cause}")
            start += len(part)


def _rows(predictor: Predictor, name: str, split: Split, options: EmbedOptions) -> Iterator[Row]:
    place = 0
    for images_BCHW, _ in image_batches(predictor, split, options.batch_size):
        for embedding in predictor.forward(images_BCHW, options.features).cpu().numpy():
            yield Row(split.names[place], embedding, name, split.labels_N[place])
            place += 1


class _Part(NamedTuple):
    """Images of a split, from one place to before another, of the data with this fingerprint."""

    split: str
    start: int
    stop: int
    fingerprint: str


def _parts(dataset: Dataset, options: EmbedOptions, size: int) -> list[_Part]:
    """The expected splits of the data, `size` images at a time."""
    return [
        _Part(name, start, min(start + size, len(split)), dataset.fingerprint)
        for name, split in dataset.splits.items()
        if options.split in ("all", name)
        for start in range(0, len(split), size)
    ]


def _opened(
    model: str, options: EmbedOptions, *, is_data: bool
) -> tuple[Dataset | None, Callable[[Any], Iterator[Row | Failed]]]:
    """The data, and what embeds a part of them or paths of files."""
    predictor = load_used(model, options)
    if not is_data:
        return None, partial(_embedded, predictor, options)
    dataset = open_embedded(model, predictor, options)

    def embed_part(part: _Part) -> Iterator[Row | Failed]:
        if dataset.fingerprint != part.fingerprint:
            where = f"{dataset.name} on {platform.node()}"
            raise UserError("the data differ from those of the calling machine", where=where)
        split = dataset.splits[part.split].subset(range(part.start, part.stop))
        return _of_split(predictor, part.split, split, options)

    return dataset, embed_part


def _work(model: str, options: EmbedOptions, is_data: bool, device: str) -> Callable[[Any], Iterator[Row | Failed]]:
    """In a process of the cluster."""
    from vitral.run.ray_map import alone

    return _opened(model, alone(options, device), is_data=is_data)[1]


def write_npz(
    path: Path, rows: Sequence[Row], classes: Sequence[str], failed: Sequence[Failed] = ()
) -> tuple[int, ...]:
    """Arrays `embeddings` float32 [N, D] ([N, patches, D]) and `images` (text); of data also `splits`, `labels` (int64
    [N], or bool [N, classes]) and `classes`; of images that cannot be read `failed` and `errors` (text), if there are
    any. Readable without pickle. The file is there whole or not at all. Returns the shape of `embeddings`."""
    arrays: dict[str, Any] = {
        "embeddings": np.stack([row.embedding for row in rows]), "images": np.array([row.image for row in rows])
    }  # fmt: skip
    if rows[0].label is not None:
        arrays |= {"splits": np.array([row.split for row in rows]), "labels": np.array([row.label for row in rows])}
        arrays["classes"] = np.array(classes)
    if failed:
        arrays |= {"failed": np.array([each.image for each in failed]), "errors": np.array([e.error for e in failed])}
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    return arrays["embeddings"].shape
