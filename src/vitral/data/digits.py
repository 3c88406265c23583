"""The handwritten digits of scikit-learn: 1,797 scans of 8 x 8 pixels (UCI, Alpaydin and Kaynak 1998).

Shape letters: N samples, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset, fingerprint, memory_split
from vitral.data.regression_targets import as_targets, check_targets
from vitral.errors import UserError

TEST_SIZE = 360


def open_digits(config: DataConfig) -> Dataset:
    """The digits: gray 8 x 8, values 0..16 scaled to 0..255; test = 360 samples, stratified, random_state 0.
    Columns for `config.target`: digit, its value, and ink, the mean of the pixels in [0,1].

    The fingerprint covers names, labels and pixels. Raises UserError if a path to somewhere else is given.
    """
    if config.path not in (None, "digits"):
        raise UserError(
            "the digits are built in and read no folder", where="data.path", got=config.path, expected="digits"
        )
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch: Any = load_digits()
    images_NCHW = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    digits_N = bunch.target.astype(np.int64)
    labels_N, classes = digits_N, tuple(str(digit) for digit in range(10))
    if config.target is not None:
        columns = {"digit": digits_N, "ink": bunch.images.mean(axis=(1, 2)) / 16}
        check_targets(config.target, columns)
        rows = zip(*(columns[name] for name in config.target), strict=True)
        labels_N, classes = as_targets(rows, len(config.target)), config.target
    names = [f"digits/{index:04d}" for index in range(len(labels_N))]
    channels = 1 if config.channels == "auto" else config.channels
    whole = memory_split(images_NCHW, labels_N, names, channels)
    parts: Any = train_test_split(range(len(labels_N)), test_size=TEST_SIZE, stratify=digits_N, random_state=0)
    train, test = (whole.subset(sorted(part)) for part in parts)
    content = [part.tobytes() for part in (images_NCHW, labels_N)]
    return Dataset(
        name="digits",
        classes=classes,
        splits={"train": train, "test": test},
        channels=channels,
        notes=(),
        fingerprint=fingerprint([*content, *(name.encode() for name in (*train.names, *test.names))]),
    )
