"""Strips of real handwritten digits to read: three to six scans of scikit-learn's digits from left to right.

Shape letters: N strips, M digits of a strip, K = 6 the most of them, P scans, H height, W width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vitral.data.config import DataConfig
from vitral.data.counter_rng import Stream, uniform, uniform_runs
from vitral.data.dataset import Split, memory_split
from vitral.data.digits import open_digits
from vitral.data.splits import stratified
from vitral.data.text.config import TextSource
from vitral.data.text.dataset import TextDataset, TextSplit, text_dataset

FEWEST, MOST = 3, 6
SCAN = 8  # side of a scan, in pixels
GAP, TOP = 2, 4  # largest space before a digit and above it
SIZE = (SCAN + TOP, MOST * (SCAN + GAP))  # height, width of a strip
_VAL_SHARE = 0.2  # of the scans that are not for the test
_SPAN = 2**28  # strips of a split have numbers of their own


def open_digits_read(config: TextSource, images: DataConfig) -> TextDataset:
    """`config.count` training strips of 12 x 60 pixels, and an eighth of it each for val and test.

    The scans of test are the 360 test images of the digits; those of val a fifth of the others, each digit in
    proportion; no scan is in two splits. How many digits, which, their gaps (0 to 2 pixels) and heights (0 to 4) are
    drawn by `config.seed`. `boxes` are the places of the scans, digit by digit.
    """
    digits = open_digits(DataConfig(path="digits", channels=1))
    train = digits.splits["train"]
    is_val = np.zeros(len(train), np.bool_)
    is_val[stratified(train.labels_N, _VAL_SHARE, config.seed)] = True
    held = config.count // 8
    channels = 1 if images.channels == "auto" else images.channels
    parts = {
        "train": (train.subset(np.flatnonzero(~is_val)), config.count),
        "val": (train.subset(np.flatnonzero(is_val)), held),
        "test": (digits.splits["test"], held),
    }
    splits = {
        name: _strips(name, scans, count, config.seed, place * _SPAN, channels)
        for place, (name, (scans, count)) in enumerate(parts.items())
    }
    return text_dataset("digits_read", splits, (), channels)


def _strips(name: str, scans: Split, count: int, seed: int, first: int, channels: int) -> TextSplit:
    scans_PHW = np.stack([scans.read(place)[0].numpy() for place in range(len(scans))])
    number_N = torch.arange(first, first + count)
    digits_N = _whole(uniform(seed, 0, 0, number_N, Stream.STRIP_COUNT), MOST - FEWEST + 1) + FEWEST
    streams = (Stream.STRIP_DIGIT, Stream.STRIP_GAP, Stream.STRIP_TOP)
    scan_KN, gap_KN, top_KN = (
        _whole(draw, most)
        for draw, most in zip(
            uniform_runs(seed, 0, 0, number_N, streams, MOST), (len(scans), GAP + 1, TOP + 1), strict=True
        )
    )
    left_KN = np.cumsum(gap_KN + SCAN, axis=0) - SCAN
    strips_NCHW = np.zeros((count, 1, *SIZE), np.uint8)
    targets: list[str] = []
    boxes: list[Any] = []
    for strip in range(count):
        own = slice(0, digits_N[strip])
        left_M, top_M, scan_M = left_KN[own, strip], top_KN[own, strip], scan_KN[own, strip]
        for left, top, scan in zip(left_M.tolist(), top_M.tolist(), scan_M.tolist(), strict=True):
            strips_NCHW[strip, 0, top : top + SCAN, left : left + SCAN] = scans_PHW[scan]
        targets.append("".join(map(str, scans.labels_N[scan_M].tolist())))
        boxes.append(np.stack([left_M, top_M, left_M + SCAN, top_M + SCAN], axis=1).astype(np.float64))
    names = [f"{name}/{strip:06d}" for strip in range(count)]
    images = memory_split(strips_NCHW, np.zeros(count, np.int64), names, channels)
    return TextSplit(targets, names, images=images, boxes=boxes)


def _whole(draw: torch.Tensor, most: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Whole numbers from 0 to most - 1."""
    return (draw.double() * most).long().numpy()
