"""Features of many images, one after the other, and the file that holds them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitral.data.dataset import Dataset
from vitral.errors import UserError
from vitral.predictor import Floats, Predictor
from vitral.run.images import image_batches, open_images
from vitral.run.options import EmbedOptions
from vitral.training.journal import log


class Row(NamedTuple):
    """One image: its path or its name in the data, its features, and where it is known its split and its label (class
    index, or bool [classes])."""

    image: str
    embedding: Floats
    split: str | None = None
    label: Any = None


def open_embedded(predictor: Predictor, options: EmbedOptions) -> Dataset:
    """The data whose images are wanted. Raises UserError where there is no such split."""
    dataset, skipped = open_images(predictor.config, options.data, predictor.config)
    for name in (text for texts in skipped.values() for text in texts):
        log.warning("damaged, left out: %s", name)
    if options.split != "all" and options.split not in dataset.splits:
        raise UserError(
            "the data have no such split", where="split", got=options.split, wanted=", ".join(("all", *dataset.splits))
        )
    return dataset


def embed_data(predictor: Predictor, dataset: Dataset, options: EmbedOptions) -> Iterator[Row]:
    """Every image of the wanted splits, in order."""
    for name, split in dataset.splits.items():
        if options.split in ("all", name):
            place = 0
            for images_BCHW, _ in image_batches(predictor, split, options.batch_size):
                for embedding in predictor.features(images_BCHW, options.features):
                    yield Row(split.names[place], embedding, name, split.labels_N[place])
                    place += 1


def write_npz(path: Path, rows: Sequence[Row], classes: Sequence[str]) -> tuple[int, ...]:
    """Arrays `embeddings` float32 [N, D] ([N, patches, D]) and `images` (text); of data also `splits`, `labels` (int64
    [N], or bool [N, classes]) and `classes`. Readable without pickle. The file is there whole or not at all. Returns
    the shape of `embeddings`."""
    arrays: dict[str, Any] = {
        "embeddings": np.stack([row.embedding for row in rows]), "images": np.array([row.image for row in rows])
    }  # fmt: skip
    if rows[0].label is not None:
        arrays |= {"splits": np.array([row.split for row in rows]), "labels": np.array([row.label for row in rows])}
        arrays["classes"] = np.array(classes)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return arrays["embeddings"].shape
