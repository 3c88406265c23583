"""Decode every image of a split once and collect the numbers that a check needs: about 2 KB per image.

A large split is scanned in parts that are saved as they finish, so that an interrupted check continues.
Shape letters: N images, C channels, H height, W width, S a side of 32, T a side of 16.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from vitral.data import check_cache
from vitral.data.dataset import Array, Split
from vitral.data.perceptual_hash import CROPS_UP_TO, SIDE, WINDOWS, perceptual_hash, window_hashes
from vitral.errors import UserError
from vitral.files import parse_json

THUMB = SIDE // 2
PART = 4096  # images that are saved together
_TASK = 64  # images per task of a thread
_TOGETHER = 1 << 22  # bytes of equally large images that are measured together


@dataclass(frozen=True)
class Scan:
    """What is known of each image of a split after decoding it once.

    digest_N2: 128 bits over shape and pixels (equal exactly where the images are). size_N2: height, width in pixels;
    0, 0 where damaged. constant_N: one color all over. gray_N: all color channels equal. hash_N: see `hashes`.
    thumbs_NCTT: uint8, 16 x 16. gray_NSS: uint8, 32 x 32. windows_NW: hashes of
    parts (see `hashes`), 0 in large splits. damaged: what is wrong, by place. sums_3C: number of pixels, and
    over them the sums of values and of squares, 0..255, exact.
    """

    digest_N2: Array
    size_N2: Array
    constant_N: Array
    gray_N: Array
    hash_N: Array
    thumbs_NCTT: Array
    gray_NSS: Array
    windows_NW: Array
    damaged: dict[int, str]
    sums_3C: Array

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, in [0,1]."""
        return tuple((self._means_2C[0] / 255).tolist())

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, in [0,1]: of all pixels together."""
        mean_C, square_C = self._means_2C
        return tuple((np.sqrt(np.maximum(square_C - mean_C**2, 0)) / 255).tolist())

    @property
    def _means_2C(self) -> Array:
        return self.sums_3C[1:] / np.maximum(self.sums_3C[0], 1)


def scan(
    split: Split, channels: int, workers: int | None = None, tick: Callable[[int], None] = lambda count: None
) -> Scan:
    """Decode every image once, in `workers` threads (default: one a core). Memory: about 2 KB per image.

    An image whose reading raises UserError is noted as damaged. The result does not depend on the number of threads.
    `tick` gets the number of images done since the last call.
    """
    count = len(split)
    found = Scan(
        np.zeros((count, 2), np.uint64), np.zeros((count, 2), np.int32), np.zeros(count, bool), np.zeros(count, bool),
        np.zeros(count, np.uint64), np.zeros((count, 3 if channels > 2 else 1, THUMB, THUMB), np.uint8),
        np.zeros((count, SIDE, SIDE), np.uint8), np.zeros((count, len(WINDOWS)), np.uint64), {},
        np.zeros((3, channels)),
    )  # fmt: skip
    parts = [range(start, min(start + _TASK, count)) for start in range(0, count, _TASK)]
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for part, sums_3C in zip(parts, pool.map(lambda part: _part(split, part, found), parts), strict=True):
            found.sums_3C[...] += sums_3C
            tick(len(part))
    return replace(found, damaged=dict(sorted(found.damaged.items())))


def _part(split: Split, part: range, found: Scan) -> Array:
    """Fill in these places; returns pixels, sums and squares a channel [3, C]."""
    sums_3C = np.zeros_like(found.sums_3C)
    waiting: dict[tuple[int, ...], list[tuple[int, Array]]] = {}
    for index in part:
        try:
            image_CHW = split.read(index).numpy()
        except UserError as error:
            found.damaged[index] = error.what
            continue
        found.digest_N2[index] = _digest(image_CHW)
        same = waiting.setdefault(image_CHW.shape, [])
        same.append((index, image_CHW))
        if len(same) * image_CHW.nbytes >= _TOGETHER:
            sums_3C += _measure(waiting.pop(image_CHW.shape), found)
        if len(waiting) > 8:
            sums_3C += _measure(waiting.pop(next(iter(waiting))), found)
    for same in waiting.values():
        sums_3C += _measure(same, found)
    return sums_3C


def _digest(image_CHW: Array) -> Array:
    digest = hashlib.blake2b(np.array(image_CHW.shape, "<i8").tobytes(), digest_size=16)
    digest.update(np.ascontiguousarray(image_CHW).data)
    return np.frombuffer(digest.digest(), "<u8")


def _measure(images: list[tuple[int, Array]], found: Scan) -> Array:
    """Equally large images, all together."""
    places = np.array([index for index, _ in images])
    images_NCHW = np.stack([image for _, image in images]) if len(images) > 1 else images[0][1][None]
    count, channels, height, width = images_NCHW.shape
    flat_NCX = images_NCHW.reshape(count, channels, -1)
    found.size_N2[places] = height, width
    found.constant_N[places] = (flat_NCX.min(2) == flat_NCX.max(2)).all(1)
    if channels > 2:
        equal_NX = (flat_NCX[:, 0] == flat_NCX[:, 1]) & (flat_NCX[:, 1] == flat_NCX[:, 2])
        found.gray_N[places] = equal_NX.all(1)
    shown = torch.from_numpy(images_NCHW[:, : found.thumbs_NCTT.shape[1]])
    if (height, width) != (SIDE, SIDE):
        shown = F.interpolate(shown, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    thumbs_NCSS = shown.numpy()
    found.hash_N[places] = perceptual_hash(thumbs_NCSS)
    if len(found.hash_N) <= CROPS_UP_TO:
        found.windows_NW[places] = window_hashes(thumbs_NCSS)
    weight_C = np.array([1.0] if thumbs_NCSS.shape[1] == 1 else [0.299, 0.587, 0.114], np.float32)
    found.gray_NSS[places] = np.rint(np.tensordot(thumbs_NCSS.astype(np.float32), weight_C, axes=(1, 0)))
    quarters = thumbs_NCSS.reshape(count, -1, THUMB, 2, THUMB, 2).astype(np.uint16)
    found.thumbs_NCTT[places] = (quarters.sum((3, 5)) + 2) // 4
    squares_C = np.einsum("ncx,ncx->c", flat_NCX, flat_NCX, dtype=np.uint64)
    return np.stack([np.full(channels, count * height * width), flat_NCX.sum((0, 2), dtype=np.float64), squares_C])


def scan_in_parts(
    split: Split, channels: int, workers: int | None, keep: Path | None, name: str, tick: Callable[[int], None]
) -> Scan:
    """What `scan` finds in all of the split. Parts of 4,096 images are kept in the folder `keep`, and taken from there;
    a smaller split is one part, and is not kept. `tick` is called with how many more images are done."""
    if keep is None or len(split) <= PART:
        return scan(split, channels, workers, tick)
    parts: list[Scan] = []
    for start in range(0, len(split), PART):
        count = min(PART, len(split) - start)
        key = f"{name}-{start}"
        found = _read(check_cache.load_arrays(keep, key), count)
        if found is None:
            found = scan(split.subset(range(start, start + count)), channels, workers, tick)
            check_cache.store_arrays(keep, key, _arrays(found))
        else:
            tick(count)
        parts.append(found)
    return joined(parts)


def joined(parts: Sequence[Scan]) -> Scan:
    """One scan of the images of all parts, in order: what is known of each image one after the other, sums added."""
    sizes = [len(part.size_N2) for part in parts]
    values: dict[str, Any] = {}
    for field in fields(Scan):
        own = [getattr(part, field.name) for part in parts]
        if field.name == "damaged":
            starts = np.cumsum([0, *sizes[:-1]]).tolist()
            values["damaged"] = {
                start + place: cause for start, each in zip(starts, own, strict=True) for place, cause in each.items()
            }
        elif "_N" in field.name:
            values[field.name] = np.concatenate(own)
        else:
            values[field.name] = np.sum(own, axis=0)
    return Scan(**values)


def _arrays(scan: Scan) -> dict[str, Any]:
    arrays = {field.name: np.asarray(getattr(scan, field.name)) for field in fields(Scan) if field.name != "damaged"}
    text = json.dumps({str(place): cause for place, cause in scan.damaged.items()})
    return {**arrays, "damaged": np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)}


def _read(arrays: dict[str, Any] | None, count: int) -> Scan | None:
    names = {field.name for field in fields(Scan)}
    if arrays is None or arrays.keys() != names or len(arrays["size_N2"]) != count:
        return None
    text = arrays["damaged"].tobytes().decode("utf-8", "surrogatepass")
    damaged = {int(place): cause for place, cause in parse_json(text, where="damaged", max_items=2**31).items()}
    values: dict[str, Any] = {**arrays, "damaged": damaged}
    return Scan(**values)
